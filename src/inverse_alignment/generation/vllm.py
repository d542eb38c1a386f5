"""Sampling by a vLLM server: a supervised child on the loopback interface, asked over HTTP.

The only file that knows vLLM, and it imports nothing of it: vLLM pins versions of torch and transformers that differ
from ours, so its program has an environment of its own. The server is asked by its completions API with token ids in
and token ids out (https://docs.vllm.ai/en/v0.32.0/serving/online_serving/openai_compatible_server/), one request per
row, because a request has one seed.
"""

from __future__ import annotations

import http.client
import json
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inverse_alignment.core.context import VllmRuntime
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.supervised import Supervised, supervised
from inverse_alignment.generation.settings import VllmGeneration

HOST = "127.0.0.1"
POLL_SECONDS = 0.5
LOOK_SECONDS = 10.0  # for an answer that needs no model
SHOWN_LINES, SHOWN_LETTERS = 3, 600
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
_BLAME = re.compile(r"\b\w*(?:Error|Exception)\b.*: ")


@dataclass(frozen=True)
class Sampler:
    """What is asked of every row.

    Attributes:
        rows: asked at once.
        vocabulary: ids that the model can write are below it.
    """

    max_new_tokens: int
    temperature: float
    end_token: int
    vocabulary: int
    rows: int


@dataclass(frozen=True)
class Address:
    """Where a server listens, and what it takes to be answered.

    Attributes:
        model: the name that the policy is served under; a foreign server does not know it.
        seconds: the longest wait for an answer.
        log: what the server says.
    """

    port: int
    model: str
    key: str
    seconds: float
    log: Path


@dataclass(frozen=True)
class VllmGenerate:
    """`Generate` by a server that is up. Equal prompts and seeds give equal answers, up to the server's rounding.

    Its samples are of the same distribution as those of a model in this process, but not the same samples.
    """

    address: Address
    sampler: Sampler

    def __call__(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> Iterator[list[int]]:
        """See `core.protocols.Generate`.

        Raises:
            UserError: the server ended, took too long, refused a request, or answered what nobody asked.
        """
        pool = ThreadPoolExecutor(self.sampler.rows)
        try:
            yield from pool.map(self._answer, prompts, seeds)
        finally:
            pool.shutdown(wait=False)  # `map` has cancelled what was not begun

    def _answer(self, prompt: Sequence[int], seed: int) -> list[int]:
        sampler, address = self.sampler, self.address
        request = {
            "model": address.model,
            "prompt": list(prompt),
            "seed": seed,
            "max_tokens": sampler.max_new_tokens,
            "temperature": sampler.temperature,
            # Said, not left to defaults: nothing but the temperature may change the policy.
            **{"top_p": 1.0, "top_k": 0, "min_p": 0.0},
            **{"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
            "ignore_eos": True,  # a model may name more end tokens than its tokenizer: ours is the only one
            "stop_token_ids": [sampler.end_token],
            "return_token_ids": True,
        }
        return _tokens(self._complete(request), prompt, sampler, address.log)

    def _complete(self, request: Mapping[str, Any]) -> Any:
        address = self.address
        try:
            status, reply = _ask(address.port, "POST", "/v1/completions", address.seconds, request, address.key)
        except TimeoutError as error:
            raise UserError(
                f"the vLLM server has not answered a prompt within {address.seconds:g} s",
                where=f"runtime.vllm.answer_seconds, and {address.log}",
                fix="raise it, or lower runtime.generation_rows, the number of prompts asked at once",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise UserError(
                f"the vLLM server ended while it answered: {_said(address.log)}",
                where=str(address.log),
                fix="see there what ended it; run again, finished stages are not repeated",
            ) from error
        if status != http.client.OK:
            raise UserError(
                f"the vLLM server refused a prompt (HTTP {status}): {_reason(reply)}",
                where=str(address.log),
                fix="see there; the folder it serves is that of the policy, its longest sequence models.policy.context",
            )
        return _json(reply, address.log)


@contextmanager
def serving(
    folder: Path,
    context: int,
    sampler: Sampler,
    generation: VllmGeneration,
    runtime: VllmRuntime,
    log: Path,
    waiting: Callable[[], None],
) -> Iterator[VllmGenerate]:
    """A server of a policy for as long as the block lasts, and then none, however the block ends.

    Args:
        folder: the policy, as `save_pretrained` writes it.
        context: most tokens of prompt and answer together.
        log: where the server's own words go; it stays.
        waiting: called now and then until the server is up.

    Raises:
        UserError: vLLM is not installed, is of another version, ends at its start, or is not up in time.
    """
    program = find_program(runtime)
    address = Address(
        _free_port(), f"policy-{secrets.token_hex(8)}", secrets.token_hex(32), runtime.answer_seconds, log
    )
    command = serve_command(program, folder, context, address, generation, runtime)
    with supervised(command, log, {**ENVIRONMENT, "VLLM_API_KEY": address.key}) as server:
        _wait_until_up(server, address.port, runtime.start_seconds, waiting)
        _require_version(address, generation.version)
        yield VllmGenerate(address, sampler)


def find_program(runtime: VllmRuntime) -> str:
    """The path of vLLM's program: as configured, on the path, or beside this Python.

    Raises:
        UserError: there is none.
    """
    beside = str(Path(sys.executable).parent)
    found = shutil.which(runtime.executable) or shutil.which(runtime.executable, path=beside)
    if found is None:
        raise UserError(
            f"vLLM is not installed: there is no program '{runtime.executable}'",
            where="runtime.vllm.executable",
            fix="install vllm in an environment of its own and name its program, for example /opt/vllm/bin/vllm; "
            "or set generation to {type: hf}",
        )
    return found


def serve_command(
    program: str, folder: Path, context: int, address: Address, generation: VllmGeneration, runtime: VllmRuntime
) -> list[str]:
    """The command line of the server."""
    options = {
        "host": HOST,
        "port": address.port,
        "served-model-name": address.model,
        "dtype": generation.dtype,
        "max-model-len": context,
        "generation-config": "vllm",  # not the checkpoint's own temperature, top_p and end tokens
        "load-format": "safetensors",  # never a pickle
        "gpu-memory-utilization": runtime.memory_share,
        "tensor-parallel-size": runtime.gpus,
    }
    return [
        program,
        "serve",
        str(folder),
        *(part for name, value in options.items() for part in (f"--{name}", str(value))),
    ]


def vocabulary_of(folder: Path) -> int:
    """How many ids a model can write, from its configuration: its tokenizer may have fewer."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(config["vocab_size"] if "vocab_size" in config else config["text_config"]["vocab_size"])


def _wait_until_up(server: Supervised, port: int, seconds: float, waiting: Callable[[], None]) -> None:
    deadline = time.monotonic() + seconds
    while True:
        if (status := server.status()) is not None:
            raise UserError(
                f"the vLLM server ended at its start with status {status}: {_said(server.log)}",
                where=str(server.log),
                fix="see there; where memory is short, lower runtime.vllm.memory_share",
            )
        try:
            if _ask(port, "GET", "/health", LOOK_SECONDS)[0] == http.client.OK:
                return
        except (OSError, http.client.HTTPException):
            pass  # it does not listen yet
        if time.monotonic() > deadline:
            raise UserError(
                f"the vLLM server is not up after {seconds:g} s: {_said(server.log)}",
                where=f"runtime.vllm.start_seconds, and {server.log}",
                fix="raise it if the server was still at work",
            )
        waiting()
        time.sleep(POLL_SECONDS)


def _require_version(address: Address, version: str) -> None:
    found = _json(_ask(address.port, "GET", "/version", LOOK_SECONDS)[1], address.log)
    if not isinstance(found, dict) or found.get("version") != version:
        named = found.get("version") if isinstance(found, dict) else found
        raise UserError(
            f"the server is vLLM {named}, not {version}",
            where="generation.version, and runtime.vllm.executable",
            fix=f"set the version to {named}, which is another identity, or name the program of {version}",
        )


def _tokens(reply: Any, prompt: Sequence[int], sampler: Sampler, log: Path) -> list[int]:
    """The one answer in a reply, if it is one to this prompt.

    Raises:
        UserError: there is another number of answers, another prompt, an id that the model cannot write, or an answer
            that ends neither with the end token nor at its greatest length.
    """
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or len(choices) != 1:
        count = len(choices) if isinstance(choices, list) else "no"
        raise _strange(f"gave {count} answers to one prompt", log)
    tokens, read = choices[0].get("token_ids"), choices[0].get("prompt_token_ids")
    if not isinstance(tokens, list) or not tokens:
        raise _strange("gave no token ids (vLLM knows `return_token_ids` since 0.10.2)", log)
    if read is not None and read != list(prompt):
        raise _strange(f"read a prompt of {len(read)} tokens where {len(prompt)} were asked, or other tokens", log)
    if wrong := [token for token in tokens if not 0 <= token < sampler.vocabulary]:
        raise UserError(
            f"the vLLM server wrote token {wrong[0]}, but the policy's vocabulary has {sampler.vocabulary}",
            where=str(log),
            fix="see there which model and tokenizer it serves",
        )
    ends = tokens[-1] == sampler.end_token
    if sampler.end_token in tokens[:-1] or len(tokens) > sampler.max_new_tokens:
        raise _strange("went on after the end of an answer", log)
    if not ends and len(tokens) < sampler.max_new_tokens:
        raise _strange(f"stopped an answer after {len(tokens)} tokens: {choices[0].get('finish_reason')}", log)
    return tokens


def _strange(what: str, log: Path) -> UserError:
    return UserError(f"the vLLM server {what}", where=str(log), fix="use a version of vLLM that docs/support.md names")


def _ask(
    port: int, method: str, path: str, seconds: float, body: Mapping[str, Any] | None = None, key: str = ""
) -> tuple[int, bytes]:
    """Status and content of a reply. `http.client`, since a proxy of the environment has no business here."""
    connection = http.client.HTTPConnection(HOST, port, timeout=seconds)
    try:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def _json(content: bytes, log: Path) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise _strange("gave a reply that is not JSON", log) from error


def _reason(content: bytes) -> str:
    """What an error reply says, in whatever form."""
    try:
        return str(json.loads(content)["error"]["message"])[:SHOWN_LETTERS]
    except (ValueError, KeyError, TypeError):
        return content.decode("utf-8", "replace")[:SHOWN_LETTERS]


def _said(log: Path) -> str:
    """The lines of a log that name an error, else its last ones."""
    lines = [line for each in log.read_text("utf-8", "replace").splitlines() if (line := each.strip())]
    blame = list(dict.fromkeys(line for line in lines if _BLAME.search(line)))
    shown = " | ".join((blame or lines)[-SHOWN_LINES:])
    return shown[-SHOWN_LETTERS:] or "it said nothing"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
