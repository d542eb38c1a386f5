"""The results page: tables from the rows, between the marks of a written text, as in `benchmarks.bakeoff.page`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bakeoff.page import MARKED
from benchmarks.bakeoff.rows import Row
from benchmarks.reward_models import analysis
from benchmarks.reward_models.plan import BASELINE, CAUTIONS, POLICIES, REFERENCE, ROOT

PAGE = ROOT / "docs/results/reward-models.md"
NONE = "–"
NAMES = {
    BASELINE: "the longer answer wins",
    REFERENCE: "Bradley-Terry",
    "preference_transformer": "Preference Transformer",
    "ava_p": "AVA-p",
    "ava_p_without_weights": "AVA-p without reward weights",
    "ava_p_without_negatives": "AVA-p without negatives",
    "ava_p_without_irl": "AVA-p without IRL terms",
    "ava_p_without_cer": "AVA-p without CER",
    "ava_p_printed_cer": "AVA-p, CER as printed",
    "ava_p_fresh_q": "AVA-p without pretrained Q",
    "ava_d": "AVA-d",
    "ava_d_discounted": "AVA-d, γ = 0.9",
    "ensemble": "ensemble of 4 heads on one trunk",
    "laplace": "Laplace, last layer",
    "warm": "WARM, mean of 4",
    "odin": "ODIN",
    "inform": "InfoRM",
}


def render(rows: Sequence[Row], page: Path = PAGE) -> None:
    """Replace every marked part of the page.

    Raises:
        ValueError: there are no rows, or the page names a part that nothing makes.
    """
    if not rows:
        raise ValueError("there are no rows of this code and these settings to show")
    found = analysis.result(rows)
    text = MARKED.sub(lambda mark: _made(mark[1], rows, found), page.read_text(encoding="utf-8"))
    page.write_text(text, encoding="utf-8")


def _made(name: str, rows: Sequence[Row], found: Mapping[str, Any]) -> str:
    if name not in PARTS:
        raise ValueError(f"nothing makes the part '{name}'; there are {', '.join(PARTS)}")
    return f"<!-- made: {name} -->\n{PARTS[name](rows, found)}\n<!-- end -->"


def provenance(rows: Sequence[Row], found: Mapping[str, Any]) -> str:
    """What the numbers are made from."""
    seeds, units = found["seeds"], {(row["data"], row["seed"]) for row in rows}
    alone = " **One seed: the intervals are those of prompts, and say nothing of another training.**"
    commits, minutes = ", ".join(found["commits"]), found["seconds"] / 60
    return (
        f"{len(rows)} rows of {len(units)} units, seeds {seeds[0]} to {seeds[-1]}; commit {commits}, code digest "
        f"`{rows[0]['code']}`; {minutes:.0f} minutes of one core. In brackets 95 % intervals of a bootstrap of seeds "
        f"and of prompts inside them ({analysis.RESAMPLES:,} resamples).{alone if len(seeds) == 1 else ''}"
    )


def accuracy(rows: Sequence[Row], found: Mapping[str, Any]) -> str:
    """Held-out accuracy of every method on every set, in percent."""
    return _table(found, lambda method: _percent(method["accuracy"]))


def over_bt(rows: Sequence[Row], found: Mapping[str, Any]) -> str:
    """The difference from Bradley-Terry inside seeds, in points."""
    return _table(found, lambda method: _percent(method.get(f"over_{REFERENCE}"), "+"))


def world(rows: Sequence[Row], found: Mapping[str, Any]) -> str:
    """What only the world can say: gold's own order, and gold of the best of n."""
    methods = {name: method for name, method in found["data"].get("world", {}).items() if "best_of" in method}
    if not methods:
        return "No runs."
    best = sorted(next(iter(methods.values()))["best_of"], key=int)
    header = ["method", "ranks pairs as gold, %", *(f"gold of the best of {n}" for n in best)]
    lines = [
        [NAMES[name], f"{100 * method['gold_accuracy']:.1f}", *(f"{method['best_of'][n]:.3f}" for n in best)]
        for name, method in methods.items()
    ]
    oracle = next(iter(methods.values()))["oracle_best_of"]
    return _lines(header, [*lines, ["gold itself", "100.0", *(f"{oracle[n]:.3f}" for n in best)]])


def cautious(rows: Sequence[Row], found: Mapping[str, Any]) -> str:
    """Gold of the best of most answers, picked by the mean and by what caution makes of it."""
    methods = {name: each for name, each in found["data"].get("world", {}).items() if each.get("cautious_best_of")}
    if not methods:
        return "No runs."
    most = max(next(iter(methods.values()))["best_of"], key=int)
    lines = [
        [NAMES[name], f"{each['best_of'][most]:.3f}"]
        + [f"{each['cautious_best_of'][c][most]:.3f}" if c in each["cautious_best_of"] else NONE for c in CAUTIONS]
        for name, each in methods.items()
    ]
    return _lines([f"gold of the best of {most}", "by the mean", *(each.replace("_", " ") for each in CAUTIONS)], lines)


def degenerate(rows: Sequence[Row], found: Mapping[str, Any]) -> str:
    """Correlations of the summed token rewards with length and with log-likelihood."""

    def cell(method: Mapping[str, Any]) -> str:
        values = [method.get(f"corr_return_{name}") for name in ("length", "log_prob")]
        return ", ".join(NONE if value is None else f"{value:.2f}" for value in values)

    return _table(found, cell, skip=(BASELINE, REFERENCE))


def policies(rows: Sequence[Row], found: Mapping[str, Any]) -> str:
    """What PPO made of the reward models."""
    header = ["optimised against", "gold", "less Bradley-Terry's", "KL to the backbone, nats", "tokens"]
    lines = []
    for name, said in found["policies"].items():
        policy = POLICIES[name]
        dense = ", token by token" if policy.credit.type == "dense" else ""
        careful = "" if policy.caution.type == "mean" else f", {policy.caution.type}"
        cells = [_number(said["gold"]), _number(said.get(f"over_{analysis.BEFORE}"), "+")]
        lines.append([f"{NAMES[policy.method]}{dense}{careful}", *cells, f"{said['kl']:.2f}", f"{said['tokens']:.1f}"])
    return _lines(header, lines) if lines else "No runs."


PARTS: dict[str, Callable[[Sequence[Row], Mapping[str, Any]], str]] = {
    part.__name__: part for part in (provenance, accuracy, over_bt, world, cautious, policies, degenerate)
}


def _table(found: Mapping[str, Any], cell: Callable[[Mapping[str, Any]], str], skip: tuple[str, ...] = ()) -> str:
    sets = list(found["data"])
    names = [name for name in analysis.ORDER if any(name in found["data"][each] for each in sets) and name not in skip]
    lines = [
        [NAMES[name], *(cell(found["data"][each][name]) if name in found["data"][each] else NONE for each in sets)]
        for name in names
    ]
    return _lines(["method", *sets], lines)


def _lines(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _number(said: Mapping[str, Any] | None, sign: str = "") -> str:
    if said is None:
        return NONE
    low, high = said["ci95"]
    return f"{said['mean']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _percent(said: Mapping[str, Any] | None, sign: str = "") -> str:
    if said is None:
        return NONE
    low, high = said["ci95"]
    return f"{100 * said['mean']:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
