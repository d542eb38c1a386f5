"""The model of AVA: one causal trunk, Q of every next token, and a belief about the reward of every token.

TQR, "Transformer with Q-value and Reward heads", is from Cai et al. 2024, arXiv 2411.09341; its reward weighting from
the Preference Transformer, Kim et al. 2023, arXiv 2303.00957, which has no Q. What is said of a token stands in its own
column: the state before it chose it, hence Q is read one column earlier; the state at it has seen it, hence its reward
is read there. Rewards are in units of Q, log-probabilities in nats.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.maths.masked import masked_mean, masked_sum
from inverse_alignment.maths.variational import (
    RewardPosterior,
    attention_received,
    boltzmann_log_policy,
    last_reward,
    weighted_posterior,
)
from inverse_alignment.models.loading import load_trunk, save_model
from inverse_alignment.models.log_probs import HEAD_NUMBERS, Head
from inverse_alignment.models.reward_scores import family, save_family

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KIND, HEADS = "ava", "heads.safetensors"


@dataclass(frozen=True)
class TqrForm:
    """What a TQR model is besides its weights.

    Attributes:
        q: whose Q it is: that of a policy, `Q = log softmax(α z)` with its logits z, a head's own, or nobody's.
        inverse_temperature: α of a policy's Q; β of the Boltzmann policy of a fresh one.
        weighted: whether rewards are weighted by the attention that their tokens receive.
        bound: c, log σ stays between -c and c.
        score: the reward of a whole answer: that of its last token, the sum over its tokens or, as in the Preference
            Transformer, their mean.
        uncertain: whether σ was trained; if not, scores come without a standard deviation.
    """

    q: Literal["pretrained", "fresh", "none"] = "pretrained"
    inverse_temperature: float = 1.0
    weighted: bool = True
    bound: float = 3.0
    score: Literal["last", "sum", "mean"] = "last"
    uncertain: bool = True


class TokenBeliefs(NamedTuple):
    """What a TQR model says of the tokens of answers: (b, l) each, zero where nothing counts.

    Attributes:
        log_probs: log π of the tokens, of the Boltzmann policy that goes with Q; zero without a Q.
        action_values: Q of the tokens; `log_probs` itself where Q is a policy's.
        posterior: of their rewards, weighted.
    """

    log_probs: Tensor
    action_values: Tensor
    posterior: RewardPosterior


class Tqr(nn.Module):
    """Trunk and heads. Rewards are those of the prior at first, N(0, 1), and all weights of tokens equal.

    Args:
        trunk: a causal model without a head.
        form: what it is.
        q_head: the layer that makes Q, or logits, of the trunk's states; None: the trunk's own token embeddings do.
        seed: of what is random at first.
    """

    def __init__(self, trunk: PreTrainedModel, form: TqrForm, q_head: nn.Linear | None, seed: int = 0) -> None:
        super().__init__()
        self.trunk, self.form, self.q_head = trunk, form, q_head
        width = trunk.config.get_text_config().hidden_size
        self.reward_head = nn.Linear(width, 2)
        nn.init.zeros_(self.reward_head.weight)
        nn.init.zeros_(self.reward_head.bias)
        if form.weighted:
            generator = torch.Generator().manual_seed(derive_seed("queries", seed))
            self.queries = nn.Linear(width, width, bias=False)
            self.keys = nn.Linear(width, width, bias=False)
            nn.init.normal_(self.queries.weight, std=width**-0.5, generator=generator)
            nn.init.zeros_(self.keys.weight)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.trunk.device

    def size(self) -> int:
        """All weights, each once."""
        return sum(weight.numel() for weight in self.parameters())

    def forward(self, input_ids: Tensor, attention_mask: Tensor, counts: Tensor) -> TokenBeliefs:
        """Everything it believes of the tokens that count.

        Args:
            input_ids: (b, l), prompts and answers, padded on the right.
            attention_mask: (b, l).
            counts: (b, l) bool, True at response tokens; never in the first column.
        """
        states = self._states(input_ids, attention_mask)
        values = log_probs = torch.zeros(counts.shape, device=counts.device)
        if self.form.q != "none":
            chosen = self._chosen(states[:, :-1][counts[:, 1:]], input_ids[counts])
            values, log_probs = (values.masked_scatter(counts, found) for found in chosen)
        return TokenBeliefs(log_probs, values, self._rewards(states, counts))

    def rewards(self, input_ids: Tensor, attention_mask: Tensor, counts: Tensor) -> RewardPosterior:
        """Of the rewards alone: all that scoring needs. Arguments as of `forward`."""
        return self._rewards(self._states(input_ids, attention_mask), counts)

    def score(self, posterior: RewardPosterior, counts: Tensor) -> Tensor:
        """Means (b,) of the rewards of whole answers."""
        match self.form.score:
            case "last":
                return last_reward(posterior.mean, counts)
            case "sum":
                return masked_sum(posterior.mean, counts, -1)
            case "mean":
                return masked_mean(posterior.mean, counts, -1)

    def deviation(self, posterior: RewardPosterior, counts: Tensor) -> Tensor:
        """Standard deviations (b,) of the same: rewards of single tokens are independent in q."""
        variance = (2 * posterior.log_std).exp()
        match self.form.score:
            case "last":
                return last_reward(posterior.log_std, counts).exp()
            case "sum":
                return masked_sum(variance, counts, -1).sqrt()
            case "mean":
                return masked_sum(variance, counts, -1).sqrt() / counts.sum(-1)

    def _states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states: Tensor = self.trunk(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        return states

    def _rewards(self, states: Tensor, counts: Tensor) -> RewardPosterior:
        states = states.to(self.reward_head.weight.dtype)
        mean, log_std = self.reward_head(states).unbind(-1)
        weights = counts / counts.sum(-1, keepdim=True)
        if self.form.weighted:
            weights = attention_received(self.queries(states), self.keys(states), counts)
        return weighted_posterior(RewardPosterior(mean, log_std), weights, counts, self.form.bound)

    def _chosen(self, states: Tensor, targets: Tensor) -> Tensor:
        """Q and log π (2, n) of n tokens, some logits at a time, which are made again for the backward pass."""

        def of(part: Tensor, target: Tensor) -> Tensor:
            logits = self._logits(part).float()
            log_policy = boltzmann_log_policy(logits, self.form.inverse_temperature)
            values = log_policy if self.form.q == "pretrained" else logits
            return torch.stack([table.gather(-1, target.unsqueeze(-1)).squeeze(-1) for table in (values, log_policy)])

        vocabulary = self.trunk.config.get_text_config().vocab_size
        keep = len(states) * vocabulary < HEAD_NUMBERS // 2 or not torch.is_grad_enabled()
        rows = max(1, HEAD_NUMBERS // vocabulary)
        parts = zip(states.split(rows), targets.split(rows), strict=True)
        return torch.cat([of(*part) if keep else checkpoint(of, *part, use_reentrant=False) for part in parts], -1)

    def _logits(self, states: Tensor) -> Tensor:
        if self.q_head is not None:
            logits: Tensor = self.q_head(states)
            return logits
        embeddings = self.trunk.get_input_embeddings().weight
        assert isinstance(embeddings, Tensor)
        return nn.functional.linear(states, embeddings)


def new_tqr(model: PreTrainedModel, form: TqrForm, seed: int = 0) -> Tqr:
    """A TQR model on the trunk of a model, which it takes.

    Args:
        model: the causal LM whose Q it has; any model with a causal trunk, where Q is fresh (zero at first) or none.
        seed: of what is random at first.

    Raises:
        UserError: the policy's Q is asked for, and its logits are no linear map of its last states.
    """
    head = None
    if form.q == "fresh":
        sizes = model.config.get_text_config()
        head = nn.Linear(sizes.hidden_size, sizes.vocab_size, bias=False)
        nn.init.zeros_(head.weight)
    elif form.q == "pretrained":
        output = model.get_output_embeddings()
        if not isinstance(output, nn.Linear) or not Head(model).is_linear:
            raise UserError(
                f"no Q can be read from it: the logits of {type(model).__name__} are not linear in its last states",
                where="models.reward, reward.q.type",
                fix="set reward.q.type=fresh",
            )
        if output.weight is not model.get_input_embeddings().weight or output.bias is not None:
            head = copy.deepcopy(output)
    return Tqr(cast("PreTrainedModel", model.base_model), form, head, seed)


def save_tqr(model: Tqr, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write trunk and tokenizer as transformers does, the heads beside them, and `reward.json`."""
    from safetensors.torch import save_file

    save_model(model.trunk, tokenizer, folder)
    heads = {name: weight.contiguous() for name, weight in model.state_dict().items() if not name.startswith("trunk.")}
    save_file(heads, str(folder / HEADS))
    save_family({"type": KIND, **asdict(model.form)}, folder)


def load_tqr(folder: Path, dtype: str = "float32") -> Tqr:
    """What `save_tqr` wrote.

    Raises:
        UserError: the folder holds no such model, or its heads do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    trunk = load_trunk(folder, dtype)
    try:
        form = TqrForm(**{name: value for name, value in family(folder).items() if name != "type"})
        heads = load_file(str(folder / HEADS))
        own = heads.get("q_head.weight")
        head = None if own is None else nn.Linear(own.shape[1], own.shape[0], bias="q_head.bias" in heads)
        model = Tqr(trunk, form, head)
        missing, unknown = model.load_state_dict(heads, strict=False)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise _refused(folder, str(error).partition("\n")[0]) from error
    missing = [name for name in missing if not name.startswith("trunk.")]
    if missing or unknown:
        raise _refused(folder, f"lacks {missing[0]}" if missing else f"it knows no {unknown[0]}")
    return model


def _refused(folder: Path, why: str) -> UserError:
    fix = "give the folder that a stage reward_model with reward.type=ava wrote"
    return UserError(f"not a reward model of the family {KIND}: {why}", where=str(folder), fix=fix)
