"""What is killed where, and from where it has to go on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.resume.points import CHECKPOINT, REPORT, Call, Damage, HalfRemoved, Point, Skipped, Torn, TornRow
from benchmarks.resume.project import OFTEN

PPO = "inverse_alignment.optimise.ppo"
DIRECT = "inverse_alignment.optimise.direct"
ADAMW = "torch.optim:AdamW.step"
RENAME = "pathlib:Path.rename"
NEVER = 3600.0


@dataclass(frozen=True)
class Case:
    """One run that is killed, perhaps more than once, and goes on.

    Attributes:
        name: of the case, for `--only`.
        target: the node that is run.
        kills: where each attempt but the last is killed.
        began: units of work that the node has behind it when the last attempt first reports; None if it does none.
        absent: nodes that are not there at first, besides the target.
        checkpoint_seconds: least seconds between two checkpoints of the attempts that are killed.
        damage: what happens to the newest checkpoint after the last kill.
        damage_before: the same for the checkpoint before it.
        defect: what is wrong with the last attempt: then its bytes have to differ.
    """

    name: str
    target: str
    kills: tuple[Point, ...]
    began: int | None
    absent: tuple[str, ...] = ()
    checkpoint_seconds: float = OFTEN
    damage: Damage | None = None
    damage_before: Damage | None = None
    defect: tuple[Point, ...] = field(default=())

    def facts(self) -> dict[str, Any]:
        """What goes into the report."""
        return {"name": self.name, "node": self.target, "points": [str(point) for point in self.kills]}


def _ppo(name: str, point: Point, began: int | None, arm: str = "main", **more: Any) -> Case:
    return Case(f"ppo: {name}", f"{arm}-s0-r1-ppo", (point,), began, **more)


def _saved(step: int, when: Literal["before", "after"] = "after") -> Call:
    return Call(f"{CHECKPOINT}:save", step, when=when)


def _done(units: int) -> Call:
    return Call(f"{REPORT}.progress", units)


# An iteration has 2 epochs of 2 minibatches, in each a step of the critic and one of the policy; in the first of an arm
# only the critic learns. So the third iteration begins after 4 + 8 steps.
INSIDE = (
    _ppo("first iteration, no checkpoint yet", Call(ADAMW, 2, when="after"), 0),
    _ppo("between two minibatches", Call(ADAMW, 14, when="after"), 2),
    _ppo("inside a minibatch, the critic has stepped and the policy has not", Call(ADAMW, 15, when="after"), 2),
    _ppo("between two epochs", Call(ADAMW, 16, when="after"), 2),
    _ppo("inside the last epoch", Call(ADAMW, 18, when="after"), 2),
    _ppo("after the last minibatch", Call(ADAMW, 20, when="after"), 2),
    _ppo("while it answers", Call(f"{PPO}:answer", 3), 2),
    _ppo("while it looks", Call(f"{PPO}:look", 3), 2),
    _ppo("between iterations, before the checkpoint", _done(3), 2),
    _ppo("between iterations, after the checkpoint", _saved(3), 3),
    _ppo("no checkpoint at all", _done(3), 0, checkpoint_seconds=NEVER),
    _ppo("in the midst of a row of metrics", TornRow(3), 2),
    _ppo("shared critic and adaptive KL, inside an epoch", Call(ADAMW, 14, when="after"), 2, arm="shared"),
    _ppo("adaptive KL, between iterations", _saved(3), 3, arm="hard"),
    _ppo("LoRA, inside an epoch", Call(ADAMW, 14, when="after"), 2, arm="lora-soft"),
    _ppo("credit by a token head, inside an epoch", Call(ADAMW, 14, when="after"), 2, arm="token"),
    Case(
        "ppo: killed four times in a row",
        "main-s0-r1-ppo",
        (Call(ADAMW, 2, when="after"), _done(2), _saved(2, "before"), Call(ADAMW, 3, when="after")),
        2,
    ),
)

REFERENCES = tuple(
    case
    for arm, kind in (
        ("hard", "hard"),
        ("soft", "soft"),
        ("lora-hard", "hard, of adapters,"),
        ("lora-soft", "soft, of adapters,"),
    )
    for case in (
        _ppo(f"right after a {kind} reference update", Call(f"{PPO}:move_reference", 2, when="after"), 1, arm),
        _ppo(f"right after the checkpoint of a {kind} reference update", _saved(2), 2, arm),
    )
)

NEXT = tuple(f"main-s0-r2-{stage}" for stage in ("rollout", "select", "refresh", "ppo"))
ROUNDS = (
    Case(
        "round: between PPO and the stages of the next round",
        "main-s0-r2-ppo",
        (Call("tasks.run_stage:Execute.entry", when="after", matching="name='main-s0-r1-ppo'"),),
        0,
        ("main-s0-r1-ppo", *NEXT),
    ),
    Case(
        "round: between the refresh and PPO of the next round",
        "main-s0-r2-ppo",
        (Call("tasks.run_stage:Execute.entry", when="after", matching="name='main-s0-r2-refresh'"),),
        0,
        NEXT,
    ),
    Case("round: inside the second round's PPO", "main-s0-r2-ppo", (Call(ADAMW, 14, when="after"),), 2),
    Case("round: second round's PPO with LoRA", "lora-soft-s0-r2-ppo", (_saved(2),), 2),
    Case("round: second round's PPO with a hard reference", "hard-s0-r2-ppo", (_done(3),), 2),
    Case(
        "round: begun between two policies, inside an epoch", "between-s0-r2-ppo", (Call(ADAMW, 14, when="after"),), 2
    ),
    Case("round: begun between two policies, no checkpoint yet", "between-s0-r2-ppo", (_done(1),), 0),
    Case("round: begun between two policies, with LoRA", "lora-between-s0-r2-ppo", (_saved(2),), 2),
)


def _trained(name: str, node: str) -> tuple[Case, ...]:
    """Kills of a stage that trains through TRL, which writes a checkpoint every ten steps."""

    def case(what: str, point: Point, began: int | None) -> Case:
        return Case(f"{name}: {what}", node, (point,), began)

    return (
        case("mid-way", _done(15), 10),
        case("before its first checkpoint", _done(7), 0),
        case("weights half written", Torn("safetensors.torch:serialize_file", "checkpoint-20/"), 10),
        case("optimiser half written", Torn("torch:save", "checkpoint-20/optimizer.pt"), 10),
        case("written, before fsync", Call(f"{CHECKPOINT}:fsync_tree", matching="checkpoint-20"), 10),
        case("after fsync, before the seal", Call(RENAME, matching="checkpoint-20/seal.json"), 10),
        case("sealed, before the old one is removed", Call("shutil:rmtree", matching="checkpoint-10'"), 30),
    )


TRAINED = (
    *_trained("sft", "sft-s0"),
    *_trained("reward", "reward-s0"),
    *_trained("refresh", "main-s0-r1-refresh"),
    *_trained("refresh with LoRA", "adapted-s0-r1-refresh")[:3],
    *_trained("refresh with MetaRM", "meta-s0-r1-refresh")[:3],
    *_trained("token head", "token-reward-s0")[:3],
    Case(
        "refresh: trained, while it is judged",
        "main-s0-r1-refresh",
        (Call("inverse_alignment.reward.refresh:judge"),),
        30,
    ),
)

DIRECTLY = (
    *_trained("direct with a hard reference", "direct-hard-s0-r1-direct"),
    *_trained("direct with a soft reference", "direct-soft-s0-r1-direct")[:3],
    *_trained("direct with adapters for a reference", "direct-lora-s0-r1-direct")[:3],
    *_trained("direct with beliefs", "direct-ava-s0-r1-direct")[:3],
    Case(
        "direct: right after a hard reference update",
        "direct-hard-s0-r1-direct",
        (Call(f"{DIRECT}:follow", 2, when="after"),),
        10,
    ),
    Case(
        "direct: reference half written",
        "direct-hard-s0-r1-direct",
        (Torn(f"{DIRECT}:save_parameters", "checkpoint-20/reference"),),
        10,
    ),
    Case("direct: second round with a hard reference", "direct-hard-s0-r2-direct", (_done(15),), 10),
    Case("direct: second round with beliefs", "direct-ava-s0-r2-direct", (_done(15),), 10),
)

TEMPORARY = r"\.checkpoint-3\.tmp"
WRITES = (
    _ppo("policy half written", Torn("safetensors.torch:serialize_file", f"{TEMPORARY}/policy/"), 2),
    _ppo("optimiser half written", Torn("safetensors.torch:serialize_file", f"{TEMPORARY}/state/policy_opt"), 2),
    _ppo("state half written", Torn("pathlib:Path.write_text", f"{TEMPORARY}/state/state.json"), 2),
    _ppo("checkpoint written, before fsync", Call(f"{CHECKPOINT}:fsync_tree", matching=TEMPORARY), 2),
    _ppo("after fsync, before the seal", Call(f"{CHECKPOINT}:fsync_tree", matching=TEMPORARY, when="after"), 2),
    _ppo("seal written, before its rename", Call(RENAME, matching=f"{TEMPORARY}/seal.json'"), 2),
    _ppo("sealed, before the rename", Call(RENAME, matching="/checkpoint-3'"), 2),
    _ppo("after the rename, before its folder's fsync", Call(RENAME, matching="/checkpoint-3'", when="after"), 3),
    _ppo("before the old one is removed", Call("shutil:rmtree", matching="/checkpoint-1'"), 3),
    _ppo("the old one half removed", HalfRemoved("/checkpoint-1'"), 3),
)

PUBLISHED = r"\.partial/ppo/[0-9a-f]{32}'"
PUBLICATION = (
    _ppo("trained, record half written", Torn("pathlib:Path.write_text", r"/artifact\.json"), None),
    _ppo("recorded, before the artifact appears", Call(RENAME, matching=r"\.scratch/[0-9a-f]{32}'"), None),
    _ppo("right after the artifact appeared", Call(RENAME, matching=r"\.scratch/[0-9a-f]{32}'", when="after"), None),
    _ppo("published, before its checkpoints are removed", Call("shutil:rmtree", matching=PUBLISHED), None),
    _ppo("published, its checkpoints half removed", HalfRemoved(PUBLISHED), None),
    Case(
        "rollout: recorded, before the artifact appears",
        "reference-s0",
        (Call(RENAME, matching=r"\.scratch/[0-9a-f]{32}'"),),
        15,  # it has no checkpoints, and its first report is of all 16 answers
    ),
)

OTHER, SIZE = "holds other bytes than were sealed", "bytes instead of"


def _damaged(name: str, damage: Damage, target: str = "main-s0-r1-ppo") -> Case:
    units, began = (_saved(3), 2) if target.endswith("ppo") else (_done(25), 10)
    return Case(f"damage: {name}", target, (units,), began, damage=damage)


DAMAGED = (
    _damaged("PPO's policy cut short", Damage("cut", "policy/model.safetensors", SIZE)),
    _damaged("PPO's optimiser cut short", Damage("cut", "state/policy_optimizer.safetensors", SIZE)),
    _damaged("PPO's value model swapped", Damage("swapped", "state/value.safetensors", OTHER)),
    _damaged("PPO's state swapped", Damage("swapped", "state/state.json", OTHER)),
    _damaged(
        "a bit of PPO's critic's optimiser flipped", Damage("flipped", "state/value_optimizer.safetensors", OTHER)
    ),
    _damaged("a bit of PPO's state flipped", Damage("flipped", "state/state.json", OTHER)),
    _damaged("PPO's value model gone", Damage("gone", "state/value.safetensors", "is missing")),
    _damaged("PPO's manifest cut short", Damage("cut", "seal.json", "is not JSON")),
    _damaged("PPO's checkpoint swapped as a whole", Damage("swapped", "", "seal.json is that of step 2")),
    Case(
        "damage: a bit of PPO's metrics flipped",
        "main-s0-r1-ppo",
        (_saved(3),),
        0,
        damage=Damage("flipped", "../metrics.jsonl", OTHER),
    ),
    Case(
        "damage: both of PPO's checkpoints",
        "main-s0-r1-ppo",
        (_saved(3),),
        0,
        damage=Damage("cut", "policy/model.safetensors", SIZE),
        damage_before=Damage("flipped", "state/value.safetensors", OTHER),
    ),
    _damaged(
        "reference of direct swapped", Damage("swapped", "reference.safetensors", OTHER), "direct-hard-s0-r1-direct"
    ),
    *(
        case
        for name, node in (("SFT", "sft-s0"), ("the reward model", "reward-s0"), ("the refresh", "main-s0-r1-refresh"))
        for case in (
            _damaged(f"weights of {name} swapped", Damage("swapped", "model.safetensors", OTHER), node),
            _damaged(f"optimiser of {name} cut short", Damage("cut", "optimizer.pt", SIZE), node),
            _damaged(f"a bit of the progress of {name} flipped", Damage("flipped", "trainer_state.json", OTHER), node),
        )
    ),
)

CONTROLS = (
    Case(
        "control: PPO's optimisers are not restored",
        "main-s0-r1-ppo",
        (_saved(2),),
        2,
        defect=(Skipped(f"{PPO}:load_optimizer"),),
    ),
    Case(
        "control: SFT's optimiser and schedule are not restored",
        "sft-s0",
        (_done(15),),
        10,
        defect=(Skipped("transformers:Trainer._load_optimizer_and_scheduler"),),
    ),
    Case(
        "control: a moved reference is not restored",
        "hard-s0-r1-ppo",
        (_saved(2),),
        2,
        defect=(Skipped(f"{PPO}:load_parameters"),),
    ),
    Case(
        "control: a moved reference of a direct method is not restored",
        "direct-hard-s0-r1-direct",
        (_done(15),),
        10,
        defect=(Skipped(f"{DIRECT}:load_parameters"),),
    ),
    Case(
        "control: hashes are not looked at",
        "main-s0-r1-ppo",
        (_saved(3),),
        3,
        damage=Damage("swapped", "state/value.safetensors"),
        defect=(Skipped(f"{CHECKPOINT}:damage"),),
    ),
)

CASES = (*INSIDE, *REFERENCES, *ROUNDS, *TRAINED, *DIRECTLY, *WRITES, *PUBLICATION, *DAMAGED)
