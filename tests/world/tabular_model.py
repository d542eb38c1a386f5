"""The enumerable world in the shape that the product trains: a transformers model whose logits are a table.

The hidden state of a token is the one-hot index of (prompt, answer so far), and the language-model head is the table of
logits itself, so policy and critic can represent everything, exactly. Nothing else is special: the product samples from
it with a cache, reads it in padded groups and steps it with its own optimiser.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from inverse_alignment.core.records import Prompt
from inverse_alignment.world.tabular import TabularPolicy, TabularProblem, absorbing, sequence_index

END = 0
"""Token 0 of the problem ends an answer; the others are letters."""


class TableConfig(PreTrainedConfig):
    """Shape of a table: prompts x prefixes rows (the hidden size), one column per token."""

    model_type = "table"

    def __init__(self, prompts: int = 1, length: int = 1, vocab_size: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.prompts, self.length, self.vocab_size = prompts, length, vocab_size
        self.prefixes = sum(vocab_size**t for t in range(length))
        self.hidden_size, self.num_hidden_layers = prompts * self.prefixes, 1


class Prefixes(nn.Module):
    """Token ids to the one-hot index of what stands before the next token; it has nothing to learn."""

    def __init__(self, config: TableConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, input_ids: Tensor, past_key_values: Any = None, **_: Any) -> BaseModelOutput:
        """Hidden states (b, t, d) of the tokens given; the cache holds the ids before them."""
        ids = input_ids
        if past_key_values is not None:
            seen = input_ids.float()[:, None, :, None]
            ids = past_key_values.update(seen, seen, 0)[0][:, 0, :, 0].long()
        first = self.config.vocab_size + 1  # letters and end, then the pad token, then one token per prompt
        prompt, row = torch.zeros_like(ids[:, 0]), torch.zeros_like(ids[:, 0])
        rows = []
        for token in ids.unbind(-1):
            asks, writes = token >= first, token < first - 1
            prompt = torch.where(asks, token - first, prompt)
            row = torch.where(asks, 0, torch.where(writes, row * self.config.vocab_size + token + 1, row))
            rows.append(prompt * self.config.prefixes + row.clamp(max=self.config.prefixes - 1))
        index = torch.stack(rows, -1)[:, -input_ids.shape[1] :]
        return BaseModelOutput(nn.functional.one_hot(index, self.config.hidden_size).float())


class TableModel(PreTrainedModel):
    """A policy whose weight is θ of the tabular world."""

    config_class = TableConfig
    base_model_prefix = "model"

    def __init__(self, config: TableConfig) -> None:
        super().__init__(config)
        self.model = Prefixes(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The table."""
        return self.lm_head

    def forward(self, input_ids: Tensor, logits_to_keep: int = 0, **options: Any) -> CausalLMOutput:
        """Logits (b, t, V), of the last `logits_to_keep` tokens if that is not zero."""
        states = self.model(input_ids, **options).last_hidden_state
        return CausalLMOutput(logits=self.lm_head(states[:, -logits_to_keep:]))

    @staticmethod
    def of(policy: TabularPolicy) -> TableModel:
        """The model with the logits of a tabular policy."""
        prompts, _, vocabulary = policy.logits.shape
        model = TableModel(TableConfig(prompts, policy.length, vocabulary))
        # What follows the end is never asked for; finite numbers keep 0 · inf out of the sum over one-hot states.
        table = policy.logits.detach().flatten(0, 1).nan_to_num(neginf=0.0)
        with torch.no_grad():
            model.lm_head.weight.copy_(table.T)
        return model

    def policy(self) -> TabularPolicy:
        """The tabular policy that this model has become."""
        logits = self.lm_head.weight.detach().double().T
        shape = (self.config.prompts, self.config.prefixes, self.config.vocab_size)
        return TabularPolicy(absorbing(logits.reshape(shape), self.config.length, END), self.config.length)


def tokenizer(problem: TabularProblem) -> PreTrainedTokenizerFast:
    """End and letters as in the problem, a pad token, and one token per prompt."""
    prompts, _, vocabulary = problem.reference.logits.shape
    words = ["<end>", *"abcdefgh"[: vocabulary - 1], "<pad>", *(f"x{number}" for number in range(prompts))]
    model = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        eos_token="<end>",
        pad_token="<pad>",
        chat_template="{{ messages[0]['content'] }}",
        clean_up_tokenization_spaces=False,
    )


def prompts_of(problem: TabularProblem, rows: int) -> list[Prompt]:
    """Each prompt of the problem equally often, `rows` in all."""
    return [Prompt.from_text(f"x{number % len(problem.reward)}") for number in range(rows)]


def indices(problem: TabularProblem, prompts: Sequence[Prompt], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Prompt and sequence index of each answer."""
    length, vocabulary = problem.reference.length, problem.reference.vocabulary
    letters = [["abcdefgh".index(letter) + 1 for letter in text.split()] for text in texts]
    padded = torch.tensor([[*row, *[END] * (length - len(row))] for row in letters])
    return torch.tensor([int(prompt.text()[1:]) for prompt in prompts]), sequence_index(padded, vocabulary)


def score(problem: TabularProblem) -> Any:
    """r(x, y) of the texts, as the product asks for it."""

    def of(prompts: Sequence[Prompt], texts: Sequence[str]) -> np.ndarray:
        return problem.reward[indices(problem, prompts, texts)].numpy()

    return of
