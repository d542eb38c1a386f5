"""Artifact folders by name -> one `Comparison`. Names are given, nothing is looked up by listing folders."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, RootModel, ValidationError

from inverse_alignment.core.artifact import METRICS, RECORD
from inverse_alignment.core.errors import UserError
from inverse_alignment.report.comparison import (
    Alarms,
    Answer,
    Comparison,
    CurvePoint,
    Evaluation,
    Gate,
    Node,
    Round,
    Run,
    Sample,
    SelectionAudit,
    Start,
    Stratum,
    TrainingPoint,
)

SHOWN_PROMPTS = 8
STRATA = "strata.json"  # of a reward model that measured how strong its pairs are
WEIGHTS = ("model", "policy")  # parts whose digest names what was trained: a kept reward model keeps its digest
ANSWERS = "answers.jsonl"
KEY_LENGTH, WORTH_DIGITS = 16, 6
REBUILD = "delete this artifact's folder and run again: it is built anew"

M = TypeVar("M", bound=BaseModel)


def collect(
    inputs: Mapping[str, Path],
    *,
    title: str,
    arms: Sequence[str],
    seeds: Sequence[int],
    rounds: int,
    config_digest: str,
) -> Comparison:
    """Read everything the report shows.

    Args:
        inputs: artifact folders by name: `preferences`, `sft.s{seed}`, `reward.s{seed}`, `start.s{seed}`, and
            `audit.s{seed}` where there is an audit model; for every arm, seed and round `ppo.{arm}.s{seed}.r{round}`,
            or `direct.…` of a direct method, and `evaluate.…`; `select.…` and `refresh.…` too where the arm refreshes
            its reward model.

    Raises:
        UserError: an artifact or one of its files is missing or cannot be read; it is named.
    """
    return Comparison(
        title=title,
        config_digest=config_digest,
        arms=tuple(arms),
        seeds=tuple(seeds),
        rounds=rounds,
        starts=tuple(_start(inputs, seed) for seed in seeds),
        runs=tuple(_run(inputs, arm, seed, rounds) for arm in arms for seed in seeds),
        lineage={name: _node(folder) for name, folder in sorted(inputs.items())},
        statistics=_read_json(_folder(inputs, "preferences") / "statistics.json"),
    )


def _start(inputs: Mapping[str, Path], seed: int) -> Start:
    folder = _folder(inputs, f"start.s{seed}")
    return Start(
        seed=seed,
        evaluation=_one(folder / "evaluation.json", Evaluation),
        samples=_samples(folder),
        worth=_worth(folder / ANSWERS),
        strata=_strata(_folder(inputs, f"reward.s{seed}") / STRATA),
    )


def _strata(path: Path) -> tuple[Stratum, ...]:
    """Pairs by strength; none where the reward model was trained without asking."""
    return _parse(_text(path), RootModel[tuple[Stratum, ...]], path, str(path)).root if path.is_file() else ()


def _run(inputs: Mapping[str, Path], arm: str, seed: int, rounds: int) -> Run:
    done = tuple(_round(inputs, f"{arm}.s{seed}", number) for number in range(1, rounds + 1))
    last = _folder(inputs, f"evaluate.{arm}.s{seed}.r{rounds}")
    return Run(arm=arm, seed=seed, rounds=done, worth=_worth(last / ANSWERS))


def _worth(path: Path) -> dict[str, float]:
    """Mean over a prompt's answers of gold, else of the audit score; nothing where neither is known."""
    if not path.is_file():
        return {}
    answers: dict[str, list[float]] = {}
    for answer in _many(path, Answer):
        value = answer.audit_score if answer.gold is None else answer.gold
        if value is None:
            return {}
        answers.setdefault(answer.prompt_key[:KEY_LENGTH], []).append(value)
    return {key: round(math.fsum(values) / len(values), WORTH_DIGITS) for key, values in answers.items()}


def _direct_round(inputs: Mapping[str, Path], run: str, number: int) -> Round:
    """A round without RL. The policy was not asked on the way: its curve is the policy at the end."""
    name = f"{run}.r{number}"
    evaluated = _folder(inputs, f"evaluate.{name}")
    at = _one(evaluated / "evaluation.json", Evaluation)
    records = [_read_json(_folder(inputs, f"direct.{run}.r{before}") / RECORD) for before in range(1, number + 1)]
    step = int(sum(record["metrics"]["steps"] for record in records))
    end = CurvePoint(step=step, gold=at.gold_reward, rm_score=at.rm_score, audit_score=at.audit_score, kl=at.kl_to_sft)
    selected = _one(inputs[f"select.{name}"] / "audit.json", SelectionAudit) if f"select.{name}" in inputs else None
    return Round(
        round=number,
        evaluation=at,
        samples=_samples(evaluated),
        curve=(end,),
        training=(),
        alarms=(),
        selection=selected,
        gate=None,
    )


def _round(inputs: Mapping[str, Path], run: str, number: int) -> Round:
    name = f"{run}.r{number}"
    if f"direct.{name}" in inputs:
        return _direct_round(inputs, run, number)
    evaluated, trained = _folder(inputs, f"evaluate.{name}"), _folder(inputs, f"ppo.{name}")
    refreshed = f"refresh.{name}" in inputs
    return Round(
        round=number,
        evaluation=_one(evaluated / "evaluation.json", Evaluation),
        samples=_samples(evaluated),
        curve=tuple(_many(evaluated / "curve.jsonl", CurvePoint)),
        training=tuple(_many(trained / METRICS, TrainingPoint)),
        alarms=_one(trained / "alarms.json", Alarms).alarms,
        selection=_one(_folder(inputs, f"select.{name}") / "audit.json", SelectionAudit) if refreshed else None,
        gate=_one(_folder(inputs, f"refresh.{name}") / "gate.json", Gate) if refreshed else None,
    )


def _samples(folder: Path) -> tuple[Sample, ...]:
    """The first answer to each of the first few prompts: what the page shows."""
    first: dict[str, Sample] = {}
    for sample in _many(folder / "samples.jsonl", Sample):
        first.setdefault(sample.prompt, sample)
    return tuple(first.values())[:SHOWN_PROMPTS]


def _node(folder: Path) -> Node:
    record = _read_json(folder / RECORD)
    try:
        return Node(
            kind=record["kind"],
            fingerprint=record["fingerprint"],
            digest=next((record["parts"][part] for part in WEIGHTS if part in record["parts"]), record["digest"]),
            inputs=record["identity"]["inputs"],
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise UserError("not the record of an artifact", where=str(folder / RECORD), fix=REBUILD) from error


def _folder(inputs: Mapping[str, Path], name: str) -> Path:
    if name not in inputs:
        raise UserError(
            f"the comparison was not given '{name}'",
            where="inputs of the stage compare",
            fix="give it an artifact for every arm, seed and round, and both select and refresh where an arm refreshes",
        )
    return inputs[name]


def _text(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path.name} is missing", where=str(path), fix=REBUILD)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not UTF-8", where=str(path), fix=REBUILD) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path.name} is not JSON", where=f"{path}, line {error.lineno}", fix=REBUILD) from error
    if not isinstance(value, dict):
        raise UserError(f"{path.name} holds no mapping", where=str(path), fix=REBUILD)
    return value


def _one(path: Path, kind: type[M]) -> M:
    return _parse(_text(path), kind, path, str(path))


def _many(path: Path, kind: type[M]) -> list[M]:
    lines = _text(path).split("\n")  # not splitlines: answers may hold other line separators
    return [_parse(line, kind, path, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _parse(text: str, kind: type[M], path: Path, where: str) -> M:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        place = f"{where}, field '{field}'" if field else where
        raise UserError(f"{path.name} cannot be read: {first['msg']}", where=place, fix=REBUILD) from error
