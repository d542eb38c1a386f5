"""The encoder that a configuration names; a sentence-transformers model comes in as an input of the stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from inverse_alignment.core.context import StageContext
from inverse_alignment.core.protocols import Embed
from inverse_alignment.embedding.settings import EncoderConfig, LexicalEncoder


def encoder(config: EncoderConfig, inputs: Mapping[str, Path], context: StageContext, name: str = "encoder") -> Embed:
    """Ready to embed texts.

    Args:
        name: of the input that holds a sentence-transformers model.
    """
    if isinstance(config, LexicalEncoder):
        from inverse_alignment.embedding.lexical import LexicalEncoder as Lexical

        return Lexical(config.dimensions)
    from inverse_alignment.embedding.sentence import SentenceTransformerEncoder
    from inverse_alignment.models.loading import pick_device

    device = pick_device(context.runtime.device).type
    return SentenceTransformerEncoder(inputs[name], device, context.runtime.scoring_rows)
