"""One file of PPO: a model of a few thousand weights learns to go on with the alphabet. Read it from top to bottom.

    python docs/tour/ppo_in_one_file.py

A prompt is a letter; the best answer to "c" is "defgh" and then the end. Nobody shows the model an answer: it guesses,
is scored, and guesses again. What takes seconds here is what the project does with language models: every equation
comes from `inverse_alignment.maths`, and a test holds the losses below equal to those of `optimise/ppo.py`. The real
thing adds texts, a trained reward model, caches, minibatches and checkpoints, and no other idea.

Shapes: b answers at once, of at most t tokens; a mask is True at tokens that count.
"""
# ruff: noqa: T201

from typing import NamedTuple

import torch
from torch import Tensor, nn

from inverse_alignment.maths.advantages import generalised_advantages
from inverse_alignment.maths.credit import terminal_rewards
from inverse_alignment.maths.kl import k1
from inverse_alignment.maths.masked import masked_sum, masked_whiten
from inverse_alignment.maths.surrogate import policy_loss, value_loss

LETTERS, END = "abcdefgh", 8  # tokens are 0..8, and 8 ends an answer
LENGTH, ROWS, STEPS = 8, 128, 50
BETA = 0.05  # the price of drifting one nat away from the reference
GAMMA, LAMBDA = 1.0, 0.95  # how far ahead a token is held responsible
CLIP, VALUE_CLIP = 0.2, 0.2  # how far an update may go from one batch
EPOCHS, RATE, LARGEST_NORM = 4, 0.01, 1.0


class Reader(nn.Module):
    """A small recurrent network: after each token it says `width` numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.read = nn.Embedding(END + 1, 32), nn.GRU(32, 32, batch_first=True)
        self.say = nn.Linear(32, width)

    def forward(self, ids: Tensor) -> Tensor:
        """(b, n) tokens to (b, n, width) numbers."""
        return self.say(self.read(self.embed(ids))[0])


# 1. Answer: the policy writes, token by token, what comes to its mind.


@torch.no_grad()
def sample(policy: nn.Module, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Prompts (b, p) to the tokens of prompts and answers, (b, p + t), and the mask of the answers, (b, t)."""
    ids, counts = prompts, []
    running = torch.ones(len(prompts), dtype=torch.bool)
    for _ in range(LENGTH):
        token = torch.multinomial(policy(ids)[:, -1].softmax(-1), 1)
        ids = torch.cat([ids, token], -1)
        counts.append(running)
        running = running & (token.squeeze(-1) != END)  # the end token itself still counts
    return ids, torch.stack(counts, -1)


# 2. Score: one number per answer. Here a rule; in the project a reward model that has learned from comparisons.


def score(ids: Tensor, mask: Tensor) -> Tensor:
    """A point for every letter that goes on with the alphabet; the first that does not costs one and ends the count."""
    before, letters = ids[:, :-1], ids[:, 1:]
    written = mask & (letters != END)
    wrong = written & (letters != before + 1)
    right = written & (wrong.cumsum(-1) == 0)
    return right.sum(-1).float() - wrong.any(-1).float()


# 3. Look: what the policy, the frozen reference and the critic say about the same answers.


class View(NamedTuple):
    """log π(y_t), log π_ref(y_t) and V(y_<t), each (b, t)."""

    log_probs: Tensor
    ref_log_probs: Tensor
    values: Tensor


def log_probs_of(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities (b, t) of the tokens of the answers: each was chosen in the state of the token before it."""
    t = mask.shape[1]
    return model(ids)[:, -t - 1 : -1].log_softmax(-1).gather(-1, ids[:, -t:].unsqueeze(-1)).squeeze(-1)


def values_of(critic: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """The critic's guess (b, t), before each token, at the rewards still to come."""
    return critic(ids)[:, -mask.shape[1] - 1 : -1].squeeze(-1)


@torch.no_grad()
def look(policy: nn.Module, reference: nn.Module, critic: nn.Module, ids: Tensor, mask: Tensor) -> View:
    """What everybody says before the update."""
    return View(log_probs_of(policy, ids, mask), log_probs_of(reference, ids, mask), values_of(critic, ids, mask))


# 4. Credit: from one score per answer to an advantage per token.


def credit(scores: Tensor, view: View, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Advantages and value targets, (b, t): was a token better than the critic expected, and what should it expect?

    The last token earns the score; every token pays for making the policy differ from the reference.
    """
    rewards = terminal_rewards(scores, view.log_probs - view.ref_log_probs, mask, BETA)
    estimate = generalised_advantages(rewards, view.values, mask, GAMMA, LAMBDA)
    return masked_whiten(estimate.advantages, mask), estimate.returns


# 5. Update: make tokens with a positive advantage likelier, but not by more than the clip allows from one batch.


class Learner(NamedTuple):
    """The two models that learn, each with its optimiser."""

    policy: nn.Module
    critic: nn.Module
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer]


def update(
    learner: Learner, ids: Tensor, mask: Tensor, view: View, advantages: Tensor, returns: Tensor
) -> tuple[float, float]:
    """Several passes over the same answers, in place; the mean policy and value loss."""
    passes = []
    for _ in range(EPOCHS):
        actor = policy_loss(log_probs_of(learner.policy, ids, mask), view.log_probs, advantages, mask, CLIP)
        judge = value_loss(values_of(learner.critic, ids, mask), view.values, returns, mask, VALUE_CLIP)
        for model, optimizer, loss in zip(learner[:2], learner.optimizers, (actor.loss, judge.loss), strict=True):
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), LARGEST_NORM)
            optimizer.step()
        passes.append([actor.loss.item(), judge.loss.item()])
    first, second = torch.tensor(passes, dtype=torch.float64).mean(0).tolist()
    return first, second


def main() -> None:
    """Fifty times: answer, score, look, credit, update."""
    torch.manual_seed(0)
    policy, reference, critic = Reader(END + 1), Reader(END + 1), Reader(1)
    reference.load_state_dict(policy.state_dict())
    optimizers = [torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0) for model in (policy, critic)]
    learner = Learner(policy, critic, (optimizers[0], optimizers[1]))
    print("step  score  nats from the reference  an answer")
    for step in range(STEPS + 1):
        ids, mask = sample(policy, torch.randint(END, (ROWS, 1)))
        scores = score(ids, mask)
        view = look(policy, reference, critic, ids, mask)
        if step % 10 == 0:
            drift = masked_sum(k1(view.log_probs, view.ref_log_probs), mask, -1).mean()
            text = "".join([*LETTERS, "."][token] for token in ids[0, 1:][mask[0]])
            print(f"{step:4}  {scores.mean():5.2f}  {drift:23.2f}  {LETTERS[ids[0, 0]]} -> {text}")
        advantages, returns = credit(scores, view, mask)
        update(learner, ids, mask, view, advantages, returns)


if __name__ == "__main__":
    main()
