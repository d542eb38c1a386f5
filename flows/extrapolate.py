"""Extrapolate a policy of a run beyond where training has brought it: the verb `extrapolate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from flows.explain import producer_folder
from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.errors import UserError, nearest
from inverse_alignment.core.store import open_store
from inverse_alignment.stages.evaluate import NoGold
from tasks import run_stage
from tasks.run_stage import Flow, Plan

if TYPE_CHECKING:
    from inverse_alignment.evaluation.extrapolation import Tried

OPTIMISERS = ("ppo", "direct")
FILE = "extrapolation.json"


def show(name: str, flow: Flow, config: PipelineConfig, alphas: Sequence[float], out: Path, console: Console) -> None:
    """Try every α on validation prompts, say what each is worth on them, and write the policy of the best one.

    Raises:
        UserError: the node is no policy of the plan, it is not built, or no α is given.
    """
    from inverse_alignment.core.records import Prompt
    from inverse_alignment.data.aggregate import read_prompts
    from inverse_alignment.evaluation.extrapolation import best, save_extrapolated, try_alphas
    from inverse_alignment.generation.answers import Sampling, choose_prompts
    from inverse_alignment.generation.rollouts import ask
    from inverse_alignment.models.loading import pick_device
    from inverse_alignment.models.reward_scores import load_calibrated
    from inverse_alignment.world.gold import gold_reward

    store = open_store(config.store)
    plan = run_stage.plan(flow, store)
    node = _node(name, plan)
    item = plan.planned[node]
    assert item.entry is not None
    inputs = {key: producer_folder(artifact, plan) for key, artifact in item.node.inputs.items()}
    policy, start, preferences = store.local(item.entry.artifact) / "policy", inputs["reference"], inputs["preferences"]
    judge = _judge(node, plan)
    if start is None or preferences is None:
        raise UserError(f"what '{node}' was made from is not there", where=node, fix="run it: inverse-alignment run")
    evaluation, models = config.evaluation, config.models
    seed = item.node.seed or 0
    prompts: list[Prompt] = choose_prompts(read_prompts(preferences, "validation"), evaluation.prompts, seed)
    score = load_calibrated(
        judge, pick_device(config.runtime.device), models.reward.context, config.runtime.scoring_rows
    )
    sampling = Sampling(
        evaluation.max_new_tokens, evaluation.temperature, models.policy.context, config.runtime.generation_rows
    )
    tried = try_alphas(
        policy,
        start,
        alphas,
        ask(prompts, evaluation.samples, seed),
        sampling,
        score,
        None if isinstance(evaluation.gold, NoGold) else gold_reward,
        config.runtime.device,
        lambda done, total, unit: console.print(f"{done} of {total} {unit}", highlight=False),
    )
    chosen = best(tried)
    save_extrapolated(policy, start, chosen.alpha, out / "policy")
    said = {"node": node, "judge": str(judge.name), "chosen": chosen.alpha, "tried": [asdict(one) for one in tried]}
    (out / FILE).write_text(json.dumps(said, indent=1, sort_keys=True))
    table = Table(box=box.SIMPLE_HEAD, title=f"{node}: θ + α (θ - θ_sft), {len(prompts)} validation prompts")
    for column in ("α", "RM score, sd", "gold", "KL to SFT, nats", "tokens", "ended"):
        table.add_column(column, justify="right")
    for one in tried:
        gold = "" if one.gold_reward is None else f"{one.gold_reward:.3f}"
        mark = " *" if one is chosen else ""
        cells = (f"{one.rm_score:.3f}", gold, f"{one.kl_to_sft:.2f}", f"{one.response_tokens:.1f}")
        table.add_row(f"{one.alpha:g}{mark}", *cells, f"{one.ended_share:.0%}")
    console.print(table)
    console.print(f"* the highest score; gold decides nothing. {out / 'policy'}", highlight=False, soft_wrap=True)
    if warning := at_the_edge(tried, chosen):
        console.print(f"warning: {warning}", highlight=False, soft_wrap=True)


def at_the_edge(tried: Sequence[Tried], chosen: Tried) -> str:
    """What to say of an α that is the largest of several; empty where a larger one was tried and was worse."""
    if len(tried) < 2 or chosen.alpha < max(one.alpha for one in tried) or chosen.alpha <= 0:
        return ""
    return (
        f"the largest α has the highest score, {chosen.kl_to_sft:.1f} nats from where training began. Far out a score "
        "may rise while answers get worse (docs/results/direct.md): read some, or stay near the policy as it is"
    )


def _node(name: str, plan: Plan) -> str:
    names = [item.node.name for item in plan.planned.values() if item.node.stage in OPTIMISERS]
    if name not in names:
        raise UserError(f"no policy '{name}' in the plan", where="NODE", fix=nearest(name, names))
    if plan.planned[name].entry is None:
        raise UserError(f"'{name}' is not built yet", where="NODE", fix="run it: inverse-alignment run")
    return name


def _judge(node: str, plan: Plan) -> Path:
    """The model that audits the reward model of this seed where there is one, or the first reward model.

    Raises:
        UserError: neither is built.
    """
    seed = node.rpartition("-s")[2].partition("-")[0]
    for name in (f"audit-s{seed}", f"reward-s{seed}"):
        item = plan.planned.get(name)
        if item is not None and item.entry is not None:
            return Path(item.entry.artifact.uri) / "model"
    raise UserError("there is no reward model to choose by", where=node, fix="run it: inverse-alignment run")
