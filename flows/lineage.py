"""The walk from a policy back to the bytes of its data, printed and drawn; the verb `lineage`."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.artifact import external
from inverse_alignment.core.errors import UserError
from inverse_alignment.data.sources import reference
from tasks.ancestry import Made, Origin, Records
from tasks.dataset import tracked

BOX, GAP, ROW, BOW = (212, 46), 26, 92, 34
KINDS = {"policy": "#2f6fde", "reward": "#c2571a", "data": "#3a8a4d", "other": "#5f6773"}
STAGE_KINDS = {"sft": "policy", "ppo": "policy", "reward_model": "reward", "refresh": "reward", "aggregate": "data"}
Walk = Sequence[tuple[Made, list[Origin]]]


@dataclass(frozen=True)
class Box:
    """A box of the drawing: what it says, what kind it is, and in which row and column it lies."""

    title: str
    below: str
    kind: str
    row: int
    column: int


def show(records: Records, start: Made, config: PipelineConfig, console: Console) -> None:
    """Print the walk back as a tree; what was said once is not said again."""
    places = places_of(config)
    tree = Tree(_label(start, ""))
    _grow(tree, records, start, {start.fingerprint}, places)
    console.print(tree, highlight=False)
    data = {origin.digest: origin for _, origins in records.walk(start) for origin in origins if origin.is_data}
    for origin in data.values():
        at = places.get(origin.digest, "not on this machine, or with other bytes now")
        console.print(f"data bytes: {origin.name.removeprefix('source.')}, sha256 {origin.digest}", highlight=False)
        console.print(f"            {at}", highlight=False, markup=False)


def write(records: Records, start: Made, path: Path) -> None:
    """Draw the walk: .svg or .html, or .mmd for mermaid.

    Raises:
        UserError: the file's name ends in none of these, or it cannot be written.
    """
    walk = list(records.walk(start))
    drawings = {".svg": draw, ".html": page, ".mmd": mermaid}
    if path.suffix not in drawings:
        raise UserError(f"no drawing is called {path.name}", where="--out", fix="end the name in .svg, .html or .mmd")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(drawings[path.suffix](walk), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"the drawing cannot be written there: {error.strerror}", where=f"--out {path}", fix="name another file"
        ) from error


def places_of(config: PipelineConfig) -> dict[str, str]:
    """Where the sources of a configuration lie, by the digest of their bytes, with the name that DVC gives them."""
    found: dict[str, str] = {}
    for source in config.data.sources:
        if reference(source) is None and Path(source.path).exists():
            dvc = tracked(Path(source.path))
            told = f", in {dvc.path}/ with DVC's md5 {dvc.md5}" if dvc else ""
            found[external("data", Path(source.path)).digest] = f"{source.path}{told}"
    return found


def _grow(tree: Tree, records: Records, made: Made, said: set[str], places: Mapping[str, str]) -> None:
    for origin in records.origins(made):
        if origin.made is None:
            known = places.get(origin.digest)
            what = known or ("bytes from outside" if origin.is_data else "no record of this store has made it")
            tree.add(f"{escape(origin.name)}: [dim]{origin.digest[:12]}[/] {escape(what)}")
        elif origin.made.fingerprint in said:
            tree.add(f"{_label(origin.made, origin.name)} [dim]… as above[/]")
        else:
            said.add(origin.made.fingerprint)
            kept = f" [yellow]left in office by {origin.kept_by} refused refreshes[/]" if origin.kept_by else ""
            _grow(tree.add(_label(origin.made, origin.name) + kept), records, origin.made, said, places)


def _label(made: Made, name: str) -> str:
    seed = made.record["identity"]["seed"]
    of = "" if seed is None else f", seed {seed}"
    called = f"{escape(name)}: " if name else ""
    return f"{called}[bold]{made.stage}[/] {made.fingerprint[:12]} [dim]digest {made.record['digest'][:12]}{of}[/]"


def mermaid(walk: Walk) -> str:
    """The walk as a mermaid graph, from the data to the policy."""
    boxes, edges = _boxes(walk)
    lines = [f'  {key}["{box.title}<br>{box.below}"]:::{box.kind}' for key, box in boxes.items()]
    lines += [f"  {source} -- {name} --> {target}" for source, target, name in edges]
    lines += [f"  classDef {kind} stroke:{colour},stroke-width:2px" for kind, colour in KINDS.items()]
    return "\n".join(["graph BT", *lines, ""])


def page(walk: Walk) -> str:
    """The walk as a page of its own."""
    start = walk[0][0]
    title = f"Where {start.stage} {start.fingerprint[:12]} comes from"
    style = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem;color:#1c2330;background:#fff}main{overflow-x:auto}"
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title><style>{style}</style>\n'
        f"<h1>{title}</h1>\n<p>Every box is an artifact of the store by the beginning of its fingerprint, or bytes "
        f"from outside by the beginning of their sha256; an arrow leads from what was used to what was made.</p>\n"
        f"<main>{draw(walk)}</main>\n</html>\n"
    )


def draw(walk: Walk) -> str:
    """The walk as SVG: the artifact on top, the bytes of the data at the bottom."""
    boxes, edges = _boxes(walk)
    bow = BOW * max(boxes[source].row - boxes[target].row for source, target, _ in edges)
    width = max(box.column for box in boxes.values()) * (BOX[0] + GAP) + BOX[0] + 2 * GAP + bow
    height = max(box.row for box in boxes.values()) * ROW + BOX[1] + 2 * GAP
    lines = [_edge(boxes[target], boxes[source], name) for source, target, name in edges]
    shapes = [_shape(box) for box in boxes.values()]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="system-ui,sans-serif" role="img" aria-label="Lineage">\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#8a93a0"/></marker></defs>\n' + "\n".join([*lines, *shapes]) + "\n</svg>"
    )


def _boxes(walk: Walk) -> tuple[dict[str, Box], list[tuple[str, str, str]]]:
    """Boxes by key, and arrows (from, to, name of the input). A box lies below all that use it."""
    edges: list[tuple[str, str, str]] = []
    said: dict[str, tuple[str, str, str]] = {}
    for made, origins in walk:
        said[made.fingerprint] = (made.stage, made.fingerprint[:12], STAGE_KINDS.get(made.stage, "other"))
        for origin in origins:
            key = origin.made.fingerprint if origin.made else origin.digest
            if origin.made is None:
                said[key] = (origin.name.removeprefix("source."), f"sha256 {origin.digest[:12]}", "data")
            edges.append((key, made.fingerprint, origin.name))
    rows = dict.fromkeys(said, 0)
    for _ in rows:  # the longest way from the top; a graph of n boxes is settled after n looks
        for source, target, _name in edges:
            rows[source] = max(rows[source], rows[target] + 1)
    columns: dict[int, int] = {}
    boxes: dict[str, Box] = {}
    for key, (title, below, kind) in said.items():
        column = columns.get(rows[key], 0)
        columns[rows[key]] = column + 1
        boxes[key] = Box(title, below, kind, rows[key], column)
    return boxes, edges


def _edge(upper: Box, lower: Box, name: str) -> str:
    """An arrow to the next row goes straight; a longer one goes round on the right, the farther the longer."""
    (x1, y1), (x2, y2) = _corner(lower), _corner(upper)
    rows = lower.row - upper.row
    if rows == 1:
        x1, x2, y2 = x1 + BOX[0] // 2, x2 + BOX[0] // 2, y2 + BOX[1]
        middle = (y1 + y2) // 2
        way = f"M{x1} {y1}C{x1} {middle} {x2} {middle} {x2} {y2}"
    else:
        x1, y1, x2, y2 = x1 + BOX[0], y1 + BOX[1] // 2, x2 + BOX[0], y2 + BOX[1] // 2
        out = max(x1, x2) + BOW * rows
        way = f"M{x1} {y1}C{out} {y1} {out} {y2} {x2} {y2}"
    return (
        f'<path d="{way}" fill="none" stroke="#8a93a0" marker-end="url(#tip)"><title>{html.escape(name)}</title></path>'
    )


def _shape(box: Box) -> str:
    x, y = _corner(box)
    return (
        f'<g><rect x="{x}" y="{y}" width="{BOX[0]}" height="{BOX[1]}" rx="7" fill="#fff" stroke="{KINDS[box.kind]}" '
        f'stroke-width="2"/><text x="{x + 12}" y="{y + 20}" font-size="14" font-weight="600">{html.escape(box.title)}'
        f'</text><text x="{x + 12}" y="{y + 37}" font-size="12" font-family="monospace" fill="#5f6773">'
        f"{html.escape(box.below)}</text></g>"
    )


def _corner(box: Box) -> tuple[int, int]:
    return GAP + box.column * (BOX[0] + GAP), GAP + box.row * ROW
