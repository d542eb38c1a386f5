"""Identity of the code: what a stage reaches decides, and nothing else does."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest
from package_copies import PACKAGE, Flip, Redocument, copy_of_package, digests, distances, source

from inverse_alignment.core.configuration import NOT_IDENTITY, Section, identity_of
from inverse_alignment.core.fingerprint import code_digest, fingerprint, identity, reached_modules, source_files
from inverse_alignment.models.specs import CheckpointModel
from inverse_alignment.stages.registry import STAGES

MODULES = {name: spec.module for name, spec in STAGES.items()}
SHARED = {
    "select": ("encoders", "policy_view"),
    "refresh": ("encoders",),
    "reward_model": ("pair_strength", "reward_families", "tqr_reward"),
}
"""What of the stages' own folder a stage reaches besides itself."""


@pytest.fixture(scope="module")
def here() -> dict[str, str]:
    return {module: code_digest(module) for module in MODULES.values()}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package that tests edit and put back."""
    return copy_of_package(tmp_path_factory.mktemp("copied"))


@pytest.fixture(scope="module")
def redocumented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with other docstrings, other line numbers and no comments in every module."""
    root = copy_of_package(tmp_path_factory.mktemp("redocumented"))
    for path in root.rglob("*.py"):
        tree = Redocument().visit(ast.parse(path.read_text()))
        path.write_text("# a comment\n\n\n" + ast.unparse(ast.fix_missing_locations(tree)))
    return root


@pytest.fixture(scope="module")
def of_redocumented(redocumented: Path) -> dict[str, str]:
    return digests(redocumented, *MODULES.values())


def test_the_place_of_the_package_does_not_matter(copied, here):
    assert digests(copied, *MODULES.values()) == here


def far_away(root: Path, module: str) -> tuple[str, str]:
    """The farthest module two or more imports away that holds an operator to flip, and a stage that does without it."""
    away = distances(root, module)
    for name in sorted(away, key=lambda name: (-away[name], name)):
        flip = Flip()
        flip.visit(ast.parse(source(root, name).read_text()))
        without = [other for other in MODULES.values() if name not in distances(root, other)]
        if flip.done and without and away[name] >= 2:
            return name, without[0]
    raise AssertionError(f"nothing to flip two imports away from {module}")


@pytest.mark.parametrize("stage", STAGES)
def test_words_change_nothing_and_a_flipped_operator_far_away_does(stage, copied, redocumented, of_redocumented, here):
    module = MODULES[stage]
    far, untouched = far_away(copied, module)
    assert source(redocumented, far).read_text() != source(copied, far).read_text()
    assert of_redocumented[module] == here[module]

    path = source(copied, far)
    whole, flip = path.read_text(), Flip()
    path.write_text(ast.unparse(flip.visit(ast.parse(whole))))
    try:
        flipped = digests(copied, module, untouched)
    finally:
        path.write_text(whole)
    assert flipped[module] != here[module]
    assert flipped[untouched] == here[untouched]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reaches_what_it_imports_and_nothing_else(stage, copied):
    module = MODULES[stage]
    reached = {name for name in reached_modules(module) if source(copied, name).name != "__init__.py"}
    assert reached == {name for name in distances(copied, module) if source(copied, name).name != "__init__.py"}
    assert "inverse_alignment.config" not in reached
    assert "inverse_alignment" not in reached_modules(module)
    if stage != "compare":
        assert not [name for name in reached if name.startswith("inverse_alignment.report")]
    others = {name for name in reached if name.startswith("inverse_alignment.stages.")} - {module}
    assert others == {f"inverse_alignment.stages.{name}" for name in SHARED.get(stage, ())}


def test_training_never_reaches_the_gold_reward():
    for stage in set(STAGES) - {"evaluate", "aggregate"}:  # aggregation asks whether prompts are known, scores nothing
        assert not [name for name in reached_modules(MODULES[stage]) if ".world" in name]
    assert "inverse_alignment.world.gold" in reached_modules(MODULES["evaluate"])


def test_the_chat_template_bears_identity(copied, here):
    template = next((copied / PACKAGE.name / "text").rglob("*.jinja"))
    whole = template.read_text()
    template.write_text(whole + " ")
    try:
        changed = digests(copied, MODULES["sft"], MODULES["compare"])
    finally:
        template.write_text(whole)
    assert changed[MODULES["sft"]] != here[MODULES["sft"]]
    assert changed[MODULES["compare"]] == here[MODULES["compare"]]
    assert any(path.suffix == ".jinja" for path in source_files(MODULES["sft"]))


TOY = {
    "stages/one.py": "def build():\n    from inverse_alignment.deep import lazily\n    return lazily.f()\n",
    "deep/__init__.py": "",
    "deep/lazily.py": "from . import beside\nfrom .below.leaf import g\n\n\ndef f():\n    return beside.LIMIT + g()\n",
    "deep/beside.py": 'LIMIT = 3\n"""What it bounds."""\n',
    "deep/below/__init__.py": "",
    "deep/below/leaf.py": "def g():\n    return 1\n",
    "deep/words.txt": "a",
    "deep/below/words.txt": "b",
    "deep/alone.py": "X = 1\n",
}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """The package's core around a small tree of modules with lazy and relative imports."""
    copy_of_package(tmp_path)
    for name, text in TOY.items():
        path = tmp_path / PACKAGE.name / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_lazy_and_relative_imports_and_data_are_reached(toy):
    """One edit at a time; `False` marks the negative controls."""
    stage = "inverse_alignment.stages.one"
    before = digests(toy, stage)
    edits = {
        "deep/lazily.py": (TOY["deep/lazily.py"].replace("+", "-"), True),
        "deep/beside.py": ("LIMIT = 4\n", True),
        "deep/below/leaf.py": ("def g():\n    return 1.0\n", True),
        "deep/below/words.txt": ("c", True),
        "deep/alone.py": ("X = 2\n", False),
        "stages/one.py": (
            "# now\n" + TOY["stages/one.py"].replace("def build():", 'def build():\n    """Now."""'),
            False,
        ),
    }
    for name, (text, changes) in edits.items():
        path = toy / PACKAGE.name / name
        path.write_text(text)
        assert (digests(toy, stage) != before) == changes, name
        path.write_text(TOY[name])
    (toy / PACKAGE.name / "deep/beside.py").write_text('LIMIT = 3\n"""Other words below a constant."""\n')
    assert digests(toy, stage) == before
    (toy / PACKAGE.name / "deep/words.txt").write_text("b")
    (toy / PACKAGE.name / "deep/below/words.txt").write_text("a")
    assert digests(toy, stage) != before  # two data files of one name changed places


def test_an_import_that_leads_nowhere_is_an_error(toy):
    (toy / PACKAGE.name / "stages/one.py").write_text("from inverse_alignment.gone import x\n")
    with pytest.raises(subprocess.CalledProcessError):
        digests(toy, "inverse_alignment.stages.one")


class Small(Section):
    """A section with a field that only says where."""

    place: str
    size: int = 1

    model_config = Section.model_config


def test_where_something_lies_is_not_what_it_is():
    one, two = (CheckpointModel(path=path, revision=revision) for path, revision in (("a", None), ("b/c", "1f")))
    assert (
        identity_of(one)
        == identity_of(two)
        == {
            "type": "checkpoint",
            "context": 1024,
            "dtype": "float32",
            "template_date": None,
        }
    )
    assert identity_of(CheckpointModel(path="a", dtype="bfloat16")) != identity_of(one)
    assert identity_of({"models": [one, two]}) == {"models": [identity_of(one)] * 2}
    assert identity_of(Small(place="a")) == {"place": "a", "size": 1}  # not marked, hence kept
    assert NOT_IDENTITY == {"identity": False}


def test_every_part_of_an_identity_decides():
    same = {"stage": "s", "code": "c", "config": {"k": 1}, "seed": 0, "inputs": {"i": "d"}, "versions": {"torch": "1"}}
    other = {
        "stage": "t",
        "code": "d",
        "config": {"k": 2},
        "seed": None,
        "inputs": {"j": "d"},
        "versions": {"torch": "2"},
    }
    base = fingerprint(identity(**same))
    assert base == fingerprint(identity(**dict(reversed(same.items()))))
    assert len({base, *(fingerprint(identity(**{**same, name: other[name]})) for name in same)}) == 7
    assert fingerprint({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad808"  # sha256 of {"a":1}
