"""Judges: position bias is a tie, agreement by hand, and an endpoint that fails, is slow, or talks nonsense."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Prompt
from inverse_alignment.evaluation.judges import EndpointJudge, RewardJudge, agreement, judged

PROMPTS = [Prompt.from_text(text) for text in ("one", "two", "three")]


def length(prompts, texts):
    return np.array([float(len(text)) for text in texts])


def test_a_reward_model_as_judge():
    judge = RewardJudge(length, tie_margin=1.0)
    found = judged(judge, PROMPTS, ["aaaa", "a", "aa"], ["a", "aaaa", "aaa"])
    assert found.first_wins.tolist() == [1.0, 0.0, 0.5] and found.consistent.all()
    assert RewardJudge(length)(PROMPTS[:1], ["aa"], ["aaa"]).tolist() == [0.0]


def test_who_always_takes_the_first_has_said_nothing():
    """Negative control: a single order would call it a win."""

    def biased(prompts, first, second):
        return np.ones(len(prompts))

    found = judged(biased, PROMPTS, ["a"] * 3, ["b"] * 3)
    assert found.first_wins.tolist() == [0.5] * 3 and not found.consistent.any()
    assert biased(PROMPTS, [], []).mean() == 1.0


def test_agreement_by_hand():
    found = agreement(np.array([1.0, 1.0, 0.0, 0.5]), np.array([1.0, 0.0, 0.0, 1.0]))
    # equal in 2 of 4; chance ½ · ½ + ¼ · 0 + ¼ · ½
    assert (found.pairs, found.share, found.chance) == (4, 0.5, 0.375)
    assert found.kappa == pytest.approx(0.125 / 0.625)
    assert (found.decided, found.decided_share) == (3, pytest.approx(2 / 3))
    assert json.dumps(found.json())


def test_agreement_of_labellers_with_one_label():
    ties = agreement(np.full(2, 0.5), np.full(2, 0.5))
    assert ties.kappa is None and ties.decided_share is None and ties.share == 1.0
    perfect = agreement(np.array([1.0, 0.0]), np.array([1.0, 0.0]))
    assert perfect.kappa == 1.0


class Endpoint:
    """A fake on 127.0.0.1: answers with the longer one, by what `mood` says next."""

    def __init__(self) -> None:
        self.mood: list[object] = []
        self.seen: list[tuple[str, dict[str, str], dict]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.seen.append((self.path, dict(self.headers), body))
                mood = fake.mood.pop(0) if fake.mood else 200
                text = body["messages"][1]["content"]
                a, b = text.partition("[Answer A]\n")[2].partition("\n\n[Answer B]\n")[::2]
                b = b.removesuffix("\n\n[Verdict]")
                verdict = "[[C]]" if len(a) == len(b) else "I say [[B]] no, [[A]]" if len(a) > len(b) else "[[B]]"
                content = mood if isinstance(mood, str) else verdict
                reply = {"choices": [{"message": {"content": content}}]} if mood != "nonsense" else {"no": "choices"}
                self.send_response(mood if isinstance(mood, int) else 200)
                self.end_headers()
                self.wfile.write(json.dumps(reply).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/"


@pytest.fixture
def endpoint():
    fake = Endpoint()
    thread = threading.Thread(target=fake.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    fake.server.shutdown()
    thread.join()
    fake.server.server_close()


def test_an_endpoint_is_asked_in_both_orders(endpoint, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    judge = EndpointJudge(endpoint.url, "gpt", "SOME_KEY")
    found = judged(judge, PROMPTS, ["long one", "x", "same"], ["short", "longer", "size"])
    assert found.first_wins.tolist() == [1.0, 0.0, 0.5] and found.consistent.all()
    path, headers, body = endpoint.seen[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert (body["model"], body["temperature"]) == ("gpt", 0) and "long one" in body["messages"][1]["content"]
    assert len(endpoint.seen) == 6 and "secret" not in repr(judge)


def test_without_a_verdict_it_is_a_tie_and_without_a_key_nothing_is_sent(endpoint):
    endpoint.mood = ["I cannot decide."]
    assert EndpointJudge(endpoint.url, "gpt")(PROMPTS[:1], ["a"], ["bb"]).tolist() == [0.5]
    assert "Authorization" not in endpoint.seen[0][1]
    with pytest.raises(UserError, match="NO_SUCH_KEY holds no key"):
        EndpointJudge(endpoint.url, "gpt", "NO_SUCH_KEY")(PROMPTS[:1], ["a"], ["b"])
    assert len(endpoint.seen) == 1


def test_what_passes_is_tried_again_and_what_does_not_is_said(endpoint):
    endpoint.mood = [503, 429]
    judge = EndpointJudge(endpoint.url, "gpt", wait_seconds=0.001)
    assert judge(PROMPTS[:1], ["aa"], ["b"]).tolist() == [1.0] and len(endpoint.seen) == 3
    endpoint.mood = [404]
    with pytest.raises(UserError, match="status 404"):
        judge(PROMPTS[:1], ["aa"], ["b"])
    assert len(endpoint.seen) == 4  # not again
    endpoint.mood = [500] * 9
    with pytest.raises(UserError, match="does not answer: status 500"):
        judge(PROMPTS[:1], ["aa"], ["b"])
    assert len(endpoint.seen) == 8
    endpoint.mood = ["nonsense"]
    with pytest.raises(UserError, match="no chat completion"):
        judge(PROMPTS[:1], ["aa"], ["b"])


def test_nobody_there():
    judge = EndpointJudge("http://127.0.0.1:9", "gpt", wait_seconds=0.001)
    with pytest.raises(UserError, match="does not answer"):
        judge(PROMPTS[:1], ["aa"], ["b"])
