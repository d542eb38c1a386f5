"""Inputs from outside: identified by content, hashed once, fetched as safe files only, refused clearly."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from inverse_alignment.core.artifact import PENDING, digest_of
from inverse_alignment.core.artifact import external as plain
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison
from inverse_alignment.data.read import read
from inverse_alignment.data.sources import DatasetRef, HhSource
from tasks import external


def aged(path: Path, text: str) -> Path:
    """A file that was last written a while ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    past = time.time() - 60
    os.utime(path, (past, past))
    return path


def test_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    file = aged(tmp_path / "model" / "a.json", "1")
    aged(tmp_path / "model" / "deep" / "b.json", "2")
    assert external.data_file(str(file), "key", tmp_path).digest == plain("data", file).digest
    folder = file.parent
    assert external.model(str(folder), None, "key", tmp_path).digest == plain("model", folder).digest


def test_an_unchanged_file_is_not_hashed_again(tmp_path: Path) -> None:
    file = aged(tmp_path / "data.jsonl", "one")
    cache = tmp_path / "store"
    external.data_file(str(file), "key", cache)
    memory = cache / ".external.json"
    key = next(iter(json.loads(memory.read_text())))
    memory.write_text(json.dumps({key: "remembered"}))
    assert external.data_file(str(file), "key", cache).digest == "remembered"
    aged(file, "two!")
    fresh = external.data_file(str(file), "key", cache).digest
    assert fresh == plain("data", file).digest
    assert len(json.loads(memory.read_text())) == 1  # what it said of the old state is gone


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text("one")
    external.data_file(str(file), "key", tmp_path / "store")
    assert not (tmp_path / "store" / ".external.json").exists()


def test_a_damaged_memory_is_as_good_as_none(tmp_path: Path) -> None:
    file = aged(tmp_path / "data.jsonl", "one")
    (tmp_path / ".external.json").write_text("{half")
    assert external.data_file(str(file), "key", tmp_path).digest == plain("data", file).digest


def test_a_hub_id_without_revision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a revision") as error:
        external.model("someone/some-model", None, "models.policy", tmp_path)
    assert "models.policy.revision" in error.value.fix


def test_nothing_is_read_where_nothing_shall_be(tmp_path: Path) -> None:
    with external.unread():
        assert external.data_file("nowhere.jsonl", "key", tmp_path).uri == "nowhere.jsonl"
        assert external.model("someone/m", "abc", "key", tmp_path).uri == "hub:someone/m@abc"
        part = DatasetRef(revision="a" * 40, data_dir="x")
        assert external.dataset("someone/d", part, "key", tmp_path).uri == f"hub:someone/d@{'a' * 40}"
        assert external.dataset("nowhere", DatasetRef(), "key", tmp_path).uri == "nowhere"


COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = {
    "README.md": "a model",
    "config.json": "{}",
    "model.safetensors": "weights",
    "1_Pooling/config.json": "{}",
    "modeling_evil.py": "raise SystemExit",
    "pytorch_model.bin": "pickle",
    "onnx/model.onnx": "graph",
}
DATASET = {
    "README.md": "a dataset",
    "loader.py": "raise SystemExit",
    "cache.pkl": "pickle",
    "helpful-base/train.jsonl.gz": "train",
    "helpful-base/test.jsonl.gz": "test",
    "harmless-base/train.jsonl.gz": "other",
}
ASK = """
import json, sys
from contextlib import nullcontext
from pathlib import Path
from inverse_alignment.core.errors import UserError
from inverse_alignment.data.sources import DatasetRef
from tasks import external
for kind, path, revision, data_dir, mode in json.loads(sys.argv[1]):
    try:
        with external.local() if mode == "local" else nullcontext():
            if kind == "model":
                made = external.model(path, revision, "models.policy", Path(sys.argv[2]))
            else:
                part = DatasetRef(revision=revision, data_dir=data_dir)
                made = external.dataset(path, part, "data.sources[0]", Path(sys.argv[2]))
        print(json.dumps({"uri": made.uri, "digest": made.digest}))
    except UserError as error:
        print(json.dumps({"what": error.what, "where": error.where, "fix": error.fix}))
"""


def ask(
    tmp_path: Path, *calls: tuple[str, str, str | None, str | None, str], **environment: str
) -> list[dict[str, str]]:
    """What `external` answers in a process of its own, for the hub's client reads its environment once."""
    root = Path(__file__).parents[3]
    settings = {
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(calls), str(tmp_path / "store")],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def cached(hub: Path, kind: str, hub_id: str, files: dict[str, str], commit: str = COMMIT) -> Path:
    """A snapshot in the layout of the hub's cache: blobs by their hash, names as links to them."""
    folder = hub / f"{kind}s--{hub_id.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    for name, text in files.items():
        blob = aged(folder / "blobs" / hashlib.sha256(text.encode()).hexdigest(), text)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    aged(folder / "refs" / "main", commit)
    return snapshot


def digest(files: dict[str, str], *names: str) -> str:
    """The digest of these files, computed from their texts."""
    return digest_of({name: hashlib.sha256(files[name].encode()).hexdigest() for name in names})


def test_of_a_cached_model_only_safe_files_bear_identity(tmp_path: Path) -> None:
    snapshot = cached(tmp_path / "hub", "model", "org/name", MODEL)
    offline, local = ask(
        tmp_path,
        ("model", "org/name", COMMIT, None, "fetch"),
        ("model", "org/name", COMMIT, None, "local"),
        HF_HUB_OFFLINE="1",
    )
    assert offline == local
    assert offline["uri"] == str(snapshot.resolve())
    safe = ("README.md", "config.json", "model.safetensors", "1_Pooling/config.json")
    assert offline["digest"] == digest(MODEL, *safe)
    assert offline["digest"] != digest(MODEL, *MODEL)


def test_of_a_cached_dataset_only_the_wanted_part_bears_identity(tmp_path: Path) -> None:
    cached(tmp_path / "hub", "dataset", "org/name", DATASET)
    part, whole = ask(
        tmp_path,
        ("dataset", "org/name", COMMIT, "helpful-base/", "local"),
        ("dataset", "org/name", COMMIT, None, "local"),
        HF_HUB_OFFLINE="1",
    )
    wanted = ("helpful-base/train.jsonl.gz", "helpful-base/test.jsonl.gz")
    assert part["digest"] == digest(DATASET, *wanted)
    assert whole["digest"] == digest(DATASET, "README.md", "harmless-base/train.jsonl.gz", *wanted)


def test_a_local_dataset_has_the_digest_that_its_copy_on_the_hub_has(tmp_path: Path) -> None:
    cached(tmp_path / "hub", "dataset", "org/name", DATASET)
    for name, text in DATASET.items():
        aged(tmp_path / "copy" / name, text)
    aged(tmp_path / "copy" / ".cache" / "huggingface" / "when", "now")
    of_hub, of_copy = ask(
        tmp_path,
        ("dataset", "org/name", COMMIT, "helpful-base", "local"),
        ("dataset", str(tmp_path / "copy"), None, "helpful-base", "local"),
        HF_HUB_OFFLINE="1",
    )
    assert of_hub["digest"] == of_copy["digest"] != PENDING
    before = external.dataset(str(tmp_path / "copy"), DatasetRef(), "data.sources[0]", tmp_path).digest
    aged(tmp_path / "copy" / ".cache" / "huggingface" / "when", "later")
    assert external.dataset(str(tmp_path / "copy"), DatasetRef(), "data.sources[0]", tmp_path).digest == before
    aged(tmp_path / "copy" / "harmless-base" / "train.jsonl.gz", "changed")
    assert external.dataset(str(tmp_path / "copy"), DatasetRef(), "data.sources[0]", tmp_path).digest != before


def test_an_unreachable_hub_is_one_clear_error_within_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    of_model, of_dataset = ask(
        tmp_path,
        ("model", "org/name", COMMIT, None, "fetch"),
        ("dataset", "org/name", COMMIT, "helpful-base", "fetch"),
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    assert time.monotonic() - began < 10  # the client's own retries take 23 s for each
    assert of_model["what"].startswith("the model org/name cannot be downloaded: ")
    assert (of_model["where"], of_dataset["where"]) == ("models.policy.path", "data.sources[0].path")
    assert "check the network" in of_model["fix"] and "give the folder in data.sources[0].path" in of_dataset["fix"]
    (offline,) = ask(tmp_path, ("model", "org/name", COMMIT, None, "fetch"), HF_HUB_OFFLINE="1")
    assert offline["fix"].startswith("unset HF_HUB_OFFLINE")


class FakeHub(ThreadingHTTPServer):
    """A hub on this machine with the few endpoints that a download asks for; it remembers what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeHubHandler)
        self.repositories: dict[str, dict[str, str]] = {}  # "models/org/name" -> its files
        self.refusals: dict[str, tuple[int, str]] = {}  # "models/org/name" -> status and the hub's error code
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class FakeHubHandler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.asked.append(path)
        verb = next((verb for verb in ("resolve", "tree", "revision") if f"/{verb}/" in path), "")
        repository, _, rest = path.removeprefix("api/").partition(f"/{verb}/")
        if not repository.startswith(("models/", "datasets/")):  # as a model's files are addressed
            repository = f"models/{repository}"
        commit, _, name = rest.partition("/")
        files = self.server.repositories.get(repository)
        if repository in self.server.refusals:
            status, code = self.server.refusals[repository]
            self._answer(status, b"", {"X-Error-Code": code})
        elif files is None:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif commit != COMMIT:
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif verb == "resolve":
            text = files[name].encode()
            self._answer(200, text, {"ETag": f'"{hashlib.sha256(text).hexdigest()}"', "X-Repo-Commit": COMMIT})
        elif verb == "tree":
            rows = [
                {"type": "file", "path": path, "size": len(text), "oid": hashlib.sha1(text.encode()).hexdigest()}
                for path, text in files.items()
            ]
            self._answer(200, json.dumps(rows).encode(), {"Content-Type": "application/json"})
        else:
            facts = {"id": repository.partition("/")[2], "sha": COMMIT, "siblings": [], "tags": [], "private": False}
            self._answer(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """The test reads `FakeHub.asked` instead."""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_download_fetches_only_safe_files_and_happens_once(tmp_path: Path, hub: FakeHub) -> None:
    hub.repositories = {"models/org/name": MODEL, "datasets/org/name": DATASET}
    calls = (("model", "org/name", COMMIT, None, "fetch"), ("dataset", "org/name", COMMIT, "helpful-base", "fetch"))
    of_model, of_dataset = ask(tmp_path, *calls, HF_ENDPOINT=hub.endpoint)
    snapshot = Path(of_model["uri"])
    assert sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()) == [
        *("1_Pooling/config.json", "README.md", "config.json", "model.safetensors"),
    ]
    assert (snapshot / "model.safetensors").read_text() == "weights"
    assert of_model["digest"] == digest(MODEL, "README.md", "config.json", "model.safetensors", "1_Pooling/config.json")
    assert of_dataset["digest"] == digest(DATASET, "helpful-base/train.jsonl.gz", "helpful-base/test.jsonl.gz")
    unwanted = (".py", ".bin", ".pkl", ".onnx", "harmless-base/train.jsonl.gz")
    assert hub.asked and not [path for path in hub.asked if path.endswith(unwanted)]
    hub.asked.clear()
    assert ask(tmp_path, *calls, HF_ENDPOINT=hub.endpoint) == [of_model, of_dataset]
    assert hub.asked == []


def test_what_would_have_to_be_fetched_is_pending_and_nobody_is_asked(tmp_path: Path, hub: FakeHub) -> None:
    pickled = {name: text for name, text in MODEL.items() if not name.endswith(".safetensors")}
    cached(tmp_path / "hub", "model", "org/half", pickled)
    cached(tmp_path / "hub", "dataset", "org/part", {"harmless-base/train.jsonl.gz": "x", "dataset_infos.json": "{}"})
    hub.repositories = {"models/org/name": MODEL, "models/org/half": MODEL, "datasets/org/part": DATASET}
    absent = ask(
        tmp_path,
        ("model", "org/name", COMMIT, None, "local"),
        ("model", "org/half", COMMIT, None, "local"),
        ("dataset", "org/part", COMMIT, "helpful-base", "local"),
        HF_ENDPOINT=hub.endpoint,
        HF_HUB_DISABLE_TELEMETRY="0",
    )
    assert [each["uri"] for each in absent] == [f"hub:{name}@{COMMIT}" for name in ("org/name", "org/half", "org/part")]
    assert {each["digest"] for each in absent} == {PENDING}
    assert hub.asked == []


def test_a_download_that_was_cut_off_is_pending_and_goes_on(tmp_path: Path, hub: FakeHub) -> None:
    hub.repositories = {"models/org/name": MODEL}
    (whole,) = ask(tmp_path, ("model", "org/name", COMMIT, None, "fetch"), HF_ENDPOINT=hub.endpoint)
    (Path(whole["uri"]) / "config.json").unlink()
    planned, again = ask(
        tmp_path,
        ("model", "org/name", COMMIT, None, "local"),
        ("model", "org/name", COMMIT, None, "fetch"),
        HF_ENDPOINT=hub.endpoint,
    )
    assert planned["digest"] == PENDING
    assert again == whole


def test_the_reader_reads_what_was_downloaded(tmp_path: Path, hub: FakeHub) -> None:
    said = "\n\nHuman: Why?\n\nAssistant: {}"
    row = json.dumps({"chosen": said.format("Because."), "rejected": said.format("No.")})
    hub.repositories = {"datasets/org/name": {**DATASET, "online/train.jsonl": f"{row}\n", "online/test.jsonl": "{}"}}
    (made,) = ask(tmp_path, ("dataset", "org/name", COMMIT, "online", "fetch"), HF_ENDPOINT=hub.endpoint)
    source = HhSource(path="org/name", dataset=DatasetRef(revision=COMMIT, data_dir="online", split="train"))
    (pair,) = read(source, Path(made["uri"]))
    assert isinstance(pair, Comparison)
    assert (pair.prompt.messages[-1].content, pair.chosen, pair.rejected) == ("Why?", "Because.", "No.")


@pytest.mark.parametrize(
    ("kind", "hub_id", "commit", "where", "said"),
    [
        ("model", "org/absent", COMMIT, "models.policy.path", "is not on the hub, or is private"),
        ("dataset", "org/absent", COMMIT, "data.sources[0].path", "is not on the hub, or is private"),
        ("model", "org/name", "f" * 40, "models.policy.revision", f"has no commit {'f' * 40}"),
        ("dataset", "org/name", "f" * 40, "data.sources[0].dataset.revision", f"has no commit {'f' * 40}"),
        ("model", "org/gated", COMMIT, "models.policy.path", "is gated"),
        ("model", "org/broken", COMMIT, "models.policy.path", "cannot be downloaded: Server error '500"),
        ("model", "org/pickled", COMMIT, "models.policy.path", "holds no safetensors weights"),
        ("dataset", "org/scripted", COMMIT, "data.sources[0].path", "holds no tables"),
        ("model", "no/such/path", COMMIT, "models.policy.path", "is neither a folder here nor a hub id"),
        ("model", "org/name", "main", "models.policy.revision", "'main' is no commit"),
        ("dataset", "org/name", None, "data.sources[0].path", "no folder 'org/name', and a hub id needs a revision"),
    ],
)
def test_what_the_hub_does_not_give_is_one_clear_error(
    tmp_path: Path, hub: FakeHub, kind: str, hub_id: str, commit: str | None, where: str, said: str
) -> None:
    hub.repositories = {
        "models/org/name": MODEL,
        "datasets/org/name": DATASET,
        "models/org/pickled": {"config.json": "{}", "pytorch_model.bin": "pickle"},
        "datasets/org/scripted": {"README.md": "a dataset", "dataset_infos.json": "{}", "scripted.py": "import os"},
    }
    hub.refusals = {"models/org/gated": (403, "GatedRepo"), "models/org/broken": (500, "")}
    began = time.monotonic()
    (error,) = ask(tmp_path, (kind, hub_id, commit, None, "fetch"), HF_ENDPOINT=hub.endpoint)
    assert time.monotonic() - began < 10
    assert said in error["what"] and error["where"] == where and error["fix"]


def test_a_dataset_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    file = aged(tmp_path / "pairs.jsonl", "{}")
    with pytest.raises(UserError, match="is a file, not a dataset") as error:
        external.dataset(str(file), DatasetRef(), "data.sources[0]", tmp_path)
    assert error.value.where == "data.sources[0].path"
    with pytest.raises(UserError, match="holds no files below nowhere/") as error:
        external.dataset(str(tmp_path), DatasetRef(data_dir="nowhere"), "data.sources[0]", tmp_path)
    assert error.value.where == "data.sources[0].dataset.data_dir"
