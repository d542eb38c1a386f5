"""The encoder that a configuration names; a sentence-transformers model comes in as an input of the stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from inverse_alignment.core.artifact import canonical_json, sha256_text
from inverse_alignment.core.context import StageContext
from inverse_alignment.core.fingerprint import code_digest, versions
from inverse_alignment.core.protocols import Embed
from inverse_alignment.embedding.cached import CachedEmbed
from inverse_alignment.embedding.settings import EncoderConfig, LexicalEncoder


def encoder(config: EncoderConfig, inputs: Mapping[str, Path], context: StageContext, name: str = "encoder") -> Embed:
    """Ready to embed texts; those that it has embedded before are read from the context's cache.

    Args:
        name: of the input that holds a sentence-transformers model.
    """
    if isinstance(config, LexicalEncoder):
        from inverse_alignment.embedding.lexical import LexicalEncoder as Lexical

        make, known = partial(Lexical, config.dimensions), {"dimensions": config.dimensions}
        return _cached(make, Lexical.__module__, ("scikit-learn",), known, context)
    from inverse_alignment.embedding.sentence import SentenceTransformerEncoder
    from inverse_alignment.models.loading import pick_device

    runtime = context.runtime
    device = pick_device(runtime.device).type
    read = partial(SentenceTransformerEncoder, inputs[name], device, runtime.scoring_rows)
    if name not in context.digests:
        return read()
    decides = {
        "model": context.digests[name],
        "device": device,
        "rows": runtime.scoring_rows,
        "threads": runtime.threads,
    }
    packages = ("torch", "transformers", "sentence-transformers")
    return _cached(read, SentenceTransformerEncoder.__module__, packages, decides, context)


def _cached(
    make: Callable[[], Embed],
    module: str,
    packages: tuple[str, ...],
    known: Mapping[str, object],
    context: StageContext,
) -> Embed:
    """Kept under everything that decides a vector besides its text."""
    space = {"code": code_digest(module), "versions": versions(packages), "known": dict(known)}
    return CachedEmbed(make, context.cache, sha256_text(canonical_json(space)))
