"""What goes wrong with a vLLM server is said in three lines, and what it is started with is what was configured."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest

from inverse_alignment.core.context import VllmRuntime
from inverse_alignment.core.errors import UserError
from inverse_alignment.generation.settings import VllmGeneration
from inverse_alignment.generation.vllm import (
    Address,
    Sampler,
    VllmGenerate,
    find_program,
    serve_command,
    serving,
    vocabulary_of,
)

SAMPLER = Sampler(max_new_tokens=4, temperature=1.0, end_token=1, vocabulary=100, rows=2)
PROMPT = [5, 6, 7]
GOOD = {"choices": [{"token_ids": [9, 8, 1], "prompt_token_ids": PROMPT, "finish_reason": "stop"}]}


# ------------------------------------------------------------------------------------------ a server that is up


@contextmanager
def answering(status, content, delay=0.0):
    """A server that gives every request the same reply, and keeps what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))), self.headers))
            if status is None:
                return  # hangs up
            time.sleep(delay)
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log"
    path.write_text("INFO 12:00 [core.py:700] starting\n\nWARNING: old\nValueError: no room left on the GPU\nbye\n")
    return path


def asked_of(port, log, seconds=30.0):
    return list(VllmGenerate(Address(port, "policy-1", "secret", seconds, log), SAMPLER)([PROMPT], [3]))


def refused(log, status, content, seconds=30.0, delay=0.0) -> UserError:
    with answering(status, content, delay) as (port, _), pytest.raises(UserError) as caught:
        asked_of(port, log, seconds)
    assert str(log) in caught.value.where
    return caught.value


def test_what_is_asked_leaves_nothing_to_defaults(log, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # nobody is there
    with answering(200, GOOD) as (port, asked):
        assert asked_of(port, log) == [[9, 8, 1]]
    [(path, request, headers)] = asked
    assert (path, headers["Authorization"]) == ("/v1/completions", "Bearer secret")
    assert request == {
        "model": "policy-1",
        "prompt": PROMPT,
        "seed": 3,
        "max_tokens": 4,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,
        "stop_token_ids": [1],
        "return_token_ids": True,
    }


def choice(**changes):
    return {"choices": [{**GOOD["choices"][0], **changes}]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"choices": GOOD["choices"] * 2}, "gave 2 answers to one prompt"),
        ({"choices": []}, "gave 0 answers to one prompt"),
        ({"object": "text_completion"}, "gave no answers to one prompt"),
        (choice(token_ids=None), "gave no token ids"),
        (choice(token_ids=[]), "gave no token ids"),
        (choice(prompt_token_ids=[0, *PROMPT]), "read a prompt of 4 tokens where 3 were asked"),
        (choice(token_ids=[9, 100, 1]), "wrote token 100, but the policy's vocabulary has 100"),
        (choice(token_ids=[9, -2, 1]), "wrote token -2"),
        (choice(token_ids=[9, 1, 8, 8]), "went on after the end of an answer"),
        (choice(token_ids=[9, 8, 7, 6, 1]), "went on after the end of an answer"),
        (choice(token_ids=[9, 8], finish_reason="abort"), "stopped an answer after 2 tokens: abort"),
        (b"<html>", "gave a reply that is not JSON"),
    ],
)
def test_a_reply_that_nobody_asked_for_is_refused(log, content, says):
    assert says in refused(log, 200, content).what


def test_an_answer_may_be_as_long_as_it_may_be(log):
    with answering(200, choice(token_ids=[9, 8, 7, 99], finish_reason="length")) as (port, _):
        assert asked_of(port, log) == [[9, 8, 7, 99]]


@pytest.mark.parametrize("content", [{"error": {"message": "Token id 700 is out of vocabulary"}}, b"out of vocabulary"])
def test_a_refusal_is_passed_on(log, content):
    assert "HTTP 400" in (error := refused(log, 400, content)).what and "out of vocabulary" in error.what


def test_a_slow_answer_names_the_key_to_raise(log):
    error = refused(log, 200, GOOD, seconds=0.3, delay=1.5)
    assert "within 0.3 s" in error.what and error.where.startswith("runtime.vllm.answer_seconds")


def test_a_server_that_ends_meanwhile_is_said_with_its_last_error(log):
    assert refused(log, None, GOOD).what.endswith("ended while it answered: ValueError: no room left on the GPU")


def test_the_first_error_is_not_followed_by_the_rest(log):
    with answering(500, b"") as (port, asked), pytest.raises(UserError):
        list(VllmGenerate(Address(port, "policy-1", "", 30, log), SAMPLER)([PROMPT] * 500, range(500)))
    assert len(asked) < 250


# ------------------------------------------------------------------------------------------ a server that is started


def program(folder, body) -> VllmRuntime:
    path = folder / "vllm"
    path.write_text(f"#!{sys.executable}\nimport json, sys, time\n{body}")
    path.chmod(0o755)
    return VllmRuntime(executable=str(path), start_seconds=60)


HEALTHY = """
from http.server import *
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"version": "0.32.0"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
print(*sys.argv[1:], flush=True)
port = int(sys.argv[sys.argv.index("--port") + 1])
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def started(tmp_path, runtime, version="0.32.0", waiting=lambda: None):
    generation = VllmGeneration(version=version, dtype="bfloat16")
    return serving(tmp_path / "policy", 64, SAMPLER, generation, runtime, tmp_path / "log", waiting)


def not_started(tmp_path, runtime, version="0.32.0") -> UserError:
    with pytest.raises(UserError) as caught, started(tmp_path, runtime, version):
        raise AssertionError("it is up")
    return caught.value


def test_vllm_that_is_not_installed(tmp_path):
    error = not_started(tmp_path, VllmRuntime(executable="no-such-vllm"))
    assert "not installed" in error.what and error.where == "runtime.vllm.executable"


def test_a_program_is_found_by_path_by_name_and_beside_python(tmp_path, monkeypatch):
    path = program(tmp_path, "").executable
    assert find_program(VllmRuntime(executable=path)) == path
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_program(VllmRuntime()) == path
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert find_program(VllmRuntime()) == path


def test_a_server_that_ends_at_its_start_is_said_with_its_last_words(tmp_path):
    died = "print('loading'); print('OSError: [Errno 98] Address already in use: 127.0.0.1', flush=True); sys.exit(3)"
    error = not_started(tmp_path, program(tmp_path, died))
    assert error.what.endswith("with status 3: OSError: [Errno 98] Address already in use: 127.0.0.1")
    assert error.where == str(tmp_path / "log") and "loading" in (tmp_path / "log").read_text()


def test_a_server_that_ends_without_a_word(tmp_path):
    assert not_started(tmp_path, program(tmp_path, "")).what.endswith("with status 0: it said nothing")


def test_a_server_that_is_not_up_in_time(tmp_path):
    runtime = program(tmp_path, "print('compiling', flush=True); time.sleep(600)")
    error = not_started(tmp_path, runtime.model_copy(update={"start_seconds": 2.0}))
    assert error.what.endswith("not up after 2 s: compiling") and "runtime.vllm.start_seconds" in error.where


def test_another_version_is_refused(tmp_path):
    error = not_started(tmp_path, program(tmp_path, HEALTHY), version="0.31.0")
    assert "vLLM 0.32.0, not 0.31.0" in error.what and error.where.startswith("generation.version")


def test_a_server_lasts_as_long_as_the_block_and_is_told_what_was_configured(tmp_path):
    waited = []
    runtime = program(tmp_path, HEALTHY).model_copy(update={"gpus": 2, "memory_share": 0.5})
    with started(tmp_path, runtime, waiting=lambda: waited.append(1)) as generate:
        port = generate.address.port
        said, *_ = (tmp_path / "log").read_text().splitlines()
        ours = [p for p in psutil.process_iter(["cmdline"]) if str(port) in (p.info["cmdline"] or [])]
        assert ours
    assert waited
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in ours)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    model = generate.address.model
    assert said == (
        f"serve {tmp_path / 'policy'} --host 127.0.0.1 --port {port} --served-model-name {model} --dtype bfloat16 "
        "--max-model-len 64 --generation-config vllm --load-format safetensors --gpu-memory-utilization 0.5 "
        "--tensor-parallel-size 2"
    )


def test_two_servers_share_neither_name_nor_key_nor_port(tmp_path):
    runtime = program(tmp_path, HEALTHY)
    with started(tmp_path, runtime) as one, started(tmp_path, runtime) as two:
        assert one.address.model != two.address.model
        assert one.address.key != two.address.key and one.address.port != two.address.port


def test_the_key_is_not_on_the_command_line(tmp_path):
    address = Address(1, "policy-1", "secret", 30, tmp_path / "log")
    command = serve_command("vllm", tmp_path, 64, address, VllmGeneration(version="1"), VllmRuntime())
    assert not any("secret" in part for part in command)


@pytest.mark.parametrize("config", [{"vocab_size": 7}, {"text_config": {"vocab_size": 7}, "model_type": "gemma3"}])
def test_the_vocabulary_is_that_of_the_model(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert vocabulary_of(tmp_path) == 7
