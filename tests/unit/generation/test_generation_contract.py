"""What everybody who answers prompts promises: the model in this process, and a vLLM server, a fake and a real one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy import stats

from inverse_alignment.core.context import VllmRuntime
from inverse_alignment.generation.hf import HfGenerate
from inverse_alignment.generation.settings import LOWEST_TEMPERATURE, VllmGeneration
from inverse_alignment.generation.vllm import Sampler, VllmGenerate, serving
from inverse_alignment.models.loading import new_policy
from inverse_alignment.models.specs import InitialisedModel
from tests.unit.generation import fake_vllm
from tests.unit.models import tiny

# 64 numbers a head: the kernels of vLLM have no smaller ones
SPEC = InitialisedModel(vocab_size=280, hidden_size=128, layers=2, heads=2, context=64)
LONGEST = 12
MARGIN = 0.15  # between the two highest logits, so that rounding and the lowest temperature change no greedy token


class Case(NamedTuple):
    """A model with what it is asked."""

    model: torch.nn.Module
    folder: Path
    prompts: list[list[int]]
    end: int


@torch.no_grad()
def greedy(model, prompt, end):
    """Step by step, without cache or padding: the greedy answer, and its least margin."""
    ids, least = list(prompt), np.inf
    while len(ids) - len(prompt) < LONGEST and (len(ids) == len(prompt) or ids[-1] != end):
        top = model(torch.tensor([ids])).logits[0, -1].topk(2)
        least = min(least, float(top.values[0] - top.values[1]))
        ids.append(int(top.indices[0]))
    return ids[len(prompt) :], least


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    model = new_policy(SPEC, tiny.tokenizer(), 0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(12)
    noise = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 40, (32,), generator=noise).tolist()
    prompts = [torch.randint(5, 280, (length,), generator=noise).tolist() for length in lengths]
    free = HfGenerate(model, LONGEST, 1.0, -1, 0, 64)(prompts, range(32))
    written = Counter(token for tokens in free for token in tokens)
    folder = tiny.saved(model, tmp_path_factory.mktemp("policy"))
    # What a checkpoint recommends is not what we sample: a server that heeded it would be noticed.
    (folder / "generation_config.json").write_text(
        json.dumps({"temperature": 0.05, "do_sample": True, "eos_token_id": [1, *range(100, 200)]})
    )
    return Case(model, folder, prompts, written.most_common(4)[3][0])


class Contract:
    """Subclasses say who answers: a fixture `who`, from (max_new_tokens, temperature) to a `Generate`."""

    def test_cold_answers_are_greedy_token_by_token(self, case, who):
        sure = [(p, ids) for p in case.prompts for ids, least in [greedy(case.model, p, case.end)] if least > MARGIN]
        assert len(sure) >= 4 and len({len(prompt) for prompt, _ in sure}) > 1
        cold = who(LONGEST, LOWEST_TEMPERATURE)([prompt for prompt, _ in sure], range(len(sure)))
        assert list(cold) == [ids for _, ids in sure]

    def test_an_answer_ends_with_the_end_token_or_is_as_long_as_it_may_be(self, case, who):
        answers = list(who(LONGEST, 1.0)(case.prompts * 8, range(256)))
        ended = [tokens for tokens in answers if tokens[-1] == case.end]
        assert 0 < len(ended) < 256  # both happen
        assert all(case.end not in tokens[:-1] for tokens in answers)
        assert all(len(tokens) == LONGEST for tokens in answers if tokens[-1] != case.end)
        assert case.end != 1 and any(1 in tokens for tokens in answers)  # the model's own end token is one like others

    def test_the_noise_of_a_row_is_that_of_its_seed(self, case, who):
        generate = who(LONGEST, 1.0)
        first = list(generate(case.prompts, range(32)))
        assert list(generate(case.prompts, range(32))) == first
        assert list(generate(case.prompts[::-1], range(32)[::-1])) == first[::-1]
        other = list(generate(case.prompts, [99, *range(1, 32)]))
        assert other[0] != first[0] and other[1:] == first[1:]
        same, twin, another = generate([case.prompts[0]] * 3, [5, 5, 6])
        assert same == twin != another

    def test_a_seed_may_have_63_bits(self, case, who):
        big = 2**63 - 1
        one, other, again = who(LONGEST, 1.0)([case.prompts[0]] * 3, [big, big - 1, big])
        assert one == again != other

    def test_the_longest_answer_fits_beside_the_longest_prompt(self, case, who):
        (tokens,) = who(LONGEST, LOWEST_TEMPERATURE)([[7] * (SPEC.context - LONGEST)], [0])
        assert tokens == greedy(case.model, [7] * (SPEC.context - LONGEST), case.end)[0]

    def test_who_is_asked_nothing_answers_nothing(self, who):
        assert list(who(LONGEST, 1.0)([], [])) == []

    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    def test_the_first_token_has_the_distribution_of_the_policy(self, case, who, temperature):
        with torch.no_grad():
            logits = case.model(torch.tensor([case.prompts[0]])).logits[0, -1].double()
        rows = 800
        drawn = np.bincount(
            [tokens[0] for tokens in who(1, temperature)([case.prompts[0]] * rows, range(1000, 1000 + rows))],
            minlength=SPEC.vocab_size,
        )
        assert fits(drawn, logits / temperature) > 1e-3
        assert fits(drawn, logits / temperature * 1.3) < 1e-6  # the test can tell


def fits(drawn, logits):
    """The p-value of χ² that counts come from softmax(logits); what is expected less than five times is one class."""
    expected = torch.softmax(logits, -1).numpy() * drawn.sum()
    often = expected >= 5
    counts, wanted = [*drawn[often], drawn[~often].sum()], [*expected[often], expected[~often].sum()]
    return stats.chisquare(counts, wanted).pvalue


class TestInThisProcess(Contract):
    @pytest.fixture
    def who(self, case):
        return lambda longest, temperature: HfGenerate(case.model, longest, temperature, case.end, 0, 7)


def served(case, runtime, version, log):
    sampler = Sampler(LONGEST, 1.0, case.end, SPEC.vocab_size, rows=7)
    return serving(case.folder, SPEC.context, sampler, VllmGeneration(version=version), runtime, log, lambda: None)


def at(generate, case):
    """The same server, asked otherwise."""
    return lambda longest, temperature: VllmGenerate(
        generate.address, Sampler(longest, temperature, case.end, SPEC.vocab_size, rows=7)
    )


class TestFakeServer(Contract):
    @pytest.fixture(scope="class")
    def server(self, case, tmp_path_factory):
        folder = tmp_path_factory.mktemp("fake")
        program = folder / "vllm"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{fake_vllm.__file__}" "$@"\n')
        program.chmod(0o755)
        runtime = VllmRuntime(executable=str(program), start_seconds=120, answer_seconds=60)
        with served(case, runtime, fake_vllm.VERSION, folder / "log") as generate:
            yield generate

    @pytest.fixture
    def who(self, case, server):
        return at(server, case)

    def test_answers_are_those_of_this_process_row_by_row(self, case, who):
        """The fake has our noise: prompt, seed, temperature and length of every row arrive, whatever comes first."""
        here = HfGenerate(case.model, LONGEST, 1.0, case.end, 0, 64)
        assert list(who(LONGEST, 1.0)(case.prompts, range(32))) == list(here(case.prompts, range(32)))


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("vllm") is None or not (torch.cuda.is_available() or os.environ.get("VLLM_TARGET_DEVICE") == "cpu"),
    reason="needs a program vllm on the path, and a GPU or, for a build for CPUs, VLLM_TARGET_DEVICE=cpu",
)
@pytest.mark.timeout(1200)
class TestRealServer(Contract):
    @pytest.fixture(scope="class")
    def server(self, case, tmp_path_factory):
        folder = tmp_path_factory.mktemp("real")
        program = folder / "vllm"  # compiling for a toy takes longer than all the tests
        program.write_text(f'#!/bin/sh\nexec "{shutil.which("vllm")}" "$@" --enforce-eager\n')
        program.chmod(0o755)
        told = subprocess.run(["vllm", "--version"], capture_output=True, text=True, check=True, timeout=300)
        runtime = VllmRuntime(executable=str(program), memory_share=0.15, start_seconds=900)
        with served(case, runtime, told.stdout.split()[-1], folder / "log") as generate:
            yield generate

    @pytest.fixture
    def who(self, case, server):
        return at(server, case)
