"""Hyper-parameters of the optimisers. Light: imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from inverse_alignment.core.configuration import Section


class FixedKl(Section):
    """A constant KL coefficient."""

    type: Literal["fixed"] = "fixed"
    coefficient: float = Field(0.15, ge=0, description="β, reward units per nat")


class AdaptiveKl(Section):
    """A KL coefficient steered to a target (arXiv 1909.08593, section 2.2)."""

    type: Literal["adaptive"] = "adaptive"
    coefficient: float = Field(0.05, gt=0, description="first β, reward units per nat")
    target: float = Field(6.0, gt=0, description="KL to the SFT policy per answer, nats")
    horizon: float = Field(5000, gt=0, description="rollouts over which β may change by a factor of about e^0.2")


class PpoConfig(Section):
    """Proximal policy optimisation with a value model and generalised advantage estimation."""

    steps: int = Field(20, ge=1, description="iterations per round: rollouts, then updates")
    batch_size: int = Field(64, ge=1, description="rollouts per iteration")
    epochs: int = Field(2, ge=1, description="passes over an iteration's rollouts")
    minibatches: int = Field(2, ge=1, description="optimiser steps per pass; divides batch_size")
    learning_rate: float = Field(3e-4, gt=0, description="AdamW on the policy, constant")
    value_learning_rate: float = Field(1e-3, gt=0, description="AdamW on the value model, constant")
    kl: Annotated[FixedKl | AdaptiveKl, Field(discriminator="type")] = Field(
        FixedKl(), description="how the KL to the SFT policy is priced"
    )
    clip: float = Field(0.2, gt=0, lt=1, description="ε of the clipped surrogate")
    value_clip: float = Field(
        0.2, gt=0, description="how far a value may move per iteration before its loss is clipped"
    )
    gamma: float = Field(1.0, gt=0, le=1, description="discount per token")
    lam: float = Field(0.95, ge=0, le=1, description="λ of generalised advantage estimation")
    temperature: float = Field(
        1.0, gt=0, description="sampling temperature; log-probabilities are of the same distribution"
    )
    max_new_tokens: int = Field(64, ge=1, description="longest answer in policy tokens")
    missing_eos_penalty: float = Field(1.0, ge=0, description="subtracted from the score of an answer that did not end")
    score_clip: float = Field(5.0, gt=0, description="bound on the standardised score, standard deviations")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm is clipped to this, policy and value apart")
    value_warmup_steps: int = Field(
        3,
        ge=0,
        description="iterations that update only the value model, at the start and after the reward model changed",
    )
    samples_every: int = Field(4, ge=1, description="iterations between two batches of answers kept for the report")
