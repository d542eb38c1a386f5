"""What both contestants train on: token ids of real pairs, or of the embedded world's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison
from inverse_alignment.data.read import read
from inverse_alignment.data.sources import JsonlSource
from inverse_alignment.models.specs import InitialisedModel
from inverse_alignment.text.render import PairEncoder
from inverse_alignment.text.tokenizers import train_tokenizer

WORLD = Path(__file__).parents[2] / "data/advice/pairs.jsonl"
REAL = Path("pairs") / "alpaca_eval.jsonl.gz"
CONTEXT = {True: 1024, False: 128}
"""Most tokens of prompt and answer: real answers are long, the world's short."""


@dataclass(frozen=True)
class Field:
    """Rows to train on and rows held out, with the tokenizer and the model's shape.

    Attributes:
        train: rows of `reward.bradley_terry.pair_rows`.
        held_out: likewise.
    """

    tokenizer: Any
    spec: InitialisedModel
    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]


def field(data: Path | None, pairs: int, held_out: int) -> Field:
    """Pairs of AlpacaEval out of a data folder, or the world's without one; every fifth prompt is held out.

    Raises:
        UserError: the folder does not hold them, or holds too few.
    """
    source = JsonlSource(name="pairs", path=str(WORLD if data is None else data / REAL))
    found = [pair for pair in read(source) if isinstance(pair, Comparison)]
    apart = set(sorted({pair.prompt.key for pair in found})[::5])
    train = _spread([pair for pair in found if pair.prompt.key not in apart], pairs)
    test = _spread([pair for pair in found if pair.prompt.key in apart], held_out)
    spec = InitialisedModel(context=CONTEXT[data is not None])
    texts = [text for pair in train for text in (pair.prompt.text(), *pair.answers)]
    tokenizer = train_tokenizer(texts, spec.vocab_size)
    encoder = PairEncoder(tokenizer, spec.context)
    return Field(tokenizer, spec, _rows(encoder, train), _rows(encoder, test))


def _spread(pairs: list[Comparison], count: int) -> list[Comparison]:
    if len(pairs) < count:
        raise UserError(f"{count} pairs are wanted, but there are {len(pairs)}", where="--data", fix="use --quick")
    return [pairs[i * len(pairs) // count] for i in range(count)]


def _rows(encoder: PairEncoder, pairs: list[Comparison]) -> list[dict[str, Any]]:
    """As `pair_rows` makes them, without pairs that hold nothing to learn."""
    kept = []
    for encoded in encoder.encode_pairs(pairs):
        if not isinstance(encoded, str):
            ids = {"chosen_ids": list(encoded.chosen), "rejected_ids": list(encoded.rejected)}
            kept.append({**ids, "margin": 0.0, "weight": 1.0, "soft_label": 1.0, "linear": False, "start": 1})
    return kept
