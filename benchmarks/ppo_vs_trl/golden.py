"""Golden numbers of TRL 1.12: `.venv-trl112/bin/python benchmarks/ppo_vs_trl/golden.py tests/golden`.

PPOTrainer itself does one iteration on a tiny random policy, value and reward model; only its sampling is replaced, by
fixed answers. Functions that it calls are wrapped to keep what they are given and what lies around them. Writes
`ppo_trl112.json` (settings) and `ppo_trl112.safetensors` (weights, inputs, outputs). Imports nothing of the project.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

PAD, END, VOCABULARY, LENGTH = 0, 1, 24, 6
MODEL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": END,
    "initializer_range": 0.5,  # of a model this small: at the usual 0.02 every token is as likely as any other
}
SETTINGS = {
    "temperature": 0.9,
    "kl_coef": 0.2,
    "missing_eos_penalty": 0.7,
    "gamma": 0.98,
    "lam": 0.9,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.3,
    "learning_rate": 0.02,  # large, so that later steps clip
    "num_ppo_epochs": 2,
    "num_mini_batches": 2,
}
PROMPTS = [[5, 6, 7], [8, 9], [10], [11, 12, 13, 14], [15, 16, 17], [18], [19, 20], [21, 22, 23, 5]]
RESPONSES = [  # of all lengths; the first never ends, the second ends with its last token
    [4, 9, 13, 7, 22, 10],
    [6, 6, 8, 19, 3, END],
    [12, 5, 21, 4, END],
    [17, 3, 9, END],
    [2, 20, END],
    [23, END],
    [END],
    [14, 8, 11, 2, 16, 5],
]
FIELDS = (  # of PPOTrainer.train, when it whitens
    "queries",
    "responses",
    "logprobs",
    "ref_logprobs",
    "values",
    "scores",
    "padding_mask",
    "padding_mask_p1",
    "rewards",
    "advantages",
    "returns",
)
STEP_FIELDS = ("micro_batch_inds", "new_logprobs", "vpred", "pg_loss", "vf_loss", "loss")  # when it goes backward


def main() -> None:
    """Run PPOTrainer once and write both files into the folder that is given."""
    folder = Path(sys.argv[1])
    transformers.set_seed(0)  # PPOTrainer seeds torch; its minibatches are numpy's
    wrote: dict[str, Tensor] = {}
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(scratch)
        _keep_weights(wrote, "before", trainer)
        _record(trainer, wrote)
        trainer.train()
    save_file({name: tensor.contiguous() for name, tensor in wrote.items()}, folder / "ppo_trl112.safetensors")
    versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    facts = {"model": MODEL, "settings": SETTINGS, "pad_token": PAD, "end_token": END, "versions": versions}
    (folder / "ppo_trl112.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


def _trainer(scratch: str) -> PPOTrainer:
    policy, reference = _model(LlamaForCausalLM, 0), _model(LlamaForCausalLM, 0)
    generator = torch.Generator().manual_seed(1)
    for parameter in reference.parameters():  # near the policy, not at it: there is a KL to pay for
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    dataset = Dataset.from_list([{"input_ids": prompt} for prompt in PROMPTS])
    trainer = PPOTrainer(
        args=_arguments(scratch),
        processing_class=_tokenizer(),
        model=policy,
        ref_model=reference,
        reward_model=_model(LlamaForSequenceClassification, 2, num_labels=1),
        value_model=_model(LlamaForSequenceClassification, 3, num_labels=1),
        train_dataset=dataset,
    )
    trainer.dataloader = DataLoader(dataset, batch_size=len(PROMPTS), collate_fn=trainer.data_collator)  # unshuffled
    return trainer


def _arguments(scratch: str) -> PPOConfig:
    return PPOConfig(
        output_dir=scratch,
        per_device_train_batch_size=len(PROMPTS),
        gradient_accumulation_steps=1,
        local_rollout_forward_batch_size=len(PROMPTS),
        total_episodes=len(PROMPTS),
        response_length=LENGTH,
        stop_token="eos",
        lr_scheduler_type="constant",
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        seed=0,
        **SETTINGS,
    )


def _model(kind: Any, seed: int, **more: Any) -> Any:
    torch.manual_seed(seed)
    return kind(LlamaConfig(**MODEL, **more))


def _tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": PAD, "<end>": END, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<end>",
        padding_side="left",
    )


def _record(trainer: PPOTrainer, wrote: dict[str, Tensor]) -> None:
    """Wrap what PPOTrainer calls: sampling, the reward, whitening, backward and the optimiser's step."""
    whiten, get_reward = ppo_trainer.masked_whiten, ppo_trainer.get_reward
    backward, step = trainer.accelerator.backward, trainer.optimizer.step
    steps = 0

    def generation(model: Any, queries: Tensor, rows: int, pad: int, config: Any) -> tuple[Tensor, Tensor]:
        answers = torch.tensor([[*answer, *[PAD] * (LENGTH - len(answer))] for answer in RESPONSES])
        sequences = torch.cat([queries, answers], 1)
        logits = ppo_trainer.forward(model, sequences, pad).logits[:, queries.shape[1] - 1 : -1]
        return sequences, logits / config.temperature

    def reward(model: Any, *rest: Any) -> Any:
        result = get_reward(model, *rest)
        if model is trainer.reward_model:
            wrote["raw_scores"] = result[1].clone()
        return result

    def whitened(values: Tensor, mask: Tensor, **more: Any) -> Tensor:
        around = sys._getframe(1).f_locals
        wrote.update({name: around[name].detach().clone() for name in FIELDS})
        result = whiten(values, mask, **more)
        wrote["whitened"] = torch.masked_fill(result, ~mask, 0)
        return result

    def going_backward(loss: Tensor, **more: Any) -> None:
        around = sys._getframe(1).f_locals
        wrote.update({f"step{steps}.{name}": torch.as_tensor(around[name]).detach().clone() for name in STEP_FIELDS})
        backward(loss, **more)

    def stepped(*rest: Any) -> None:
        nonlocal steps
        step(*rest)
        _keep_weights(wrote, f"after{steps}", trainer)
        steps += 1

    ppo_trainer.batch_generation, ppo_trainer.get_reward, ppo_trainer.masked_whiten = generation, reward, whitened
    trainer.accelerator.backward, trainer.optimizer.step = going_backward, stepped


def _keep_weights(wrote: dict[str, Tensor], when: str, trainer: PPOTrainer) -> None:
    for name, model in (("policy", trainer.policy_model), ("value", trainer.value_model)):
        wrote.update({f"{when}.{name}.{key}": tensor.detach().clone() for key, tensor in model.named_parameters()})
    if when == "before":
        given = trainer.ref_model.named_parameters()
        wrote.update({f"{when}.reference.{key}": tensor.detach().clone() for key, tensor in given})


if __name__ == "__main__":
    main()
