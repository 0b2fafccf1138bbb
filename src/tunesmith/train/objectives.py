"""Objectives: log-probabilities in, (sum, count, hits) out. Only the optimiser step divides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Branches:
    """The trained tokens of a batch.

    logprobs: (N,) natural logarithms. hits: (N,) bool, where no other token is likelier. weight: (N,).
    branch: (N,) index of each token's chain.
    """

    logprobs: Tensor
    hits: Tensor
    weight: Tensor
    branch: Tensor


@dataclass(frozen=True, slots=True)
class Loss:
    """A sum over tokens, the count to divide it by, and how much of that count the model had right;
    all additive over batches.
    """

    sum: Tensor
    count: float
    hits: float


Objective = Callable[[Branches], Loss]


def sft(branches: Branches) -> Loss:
    """L = - sum_t w_t log p(t) / sum_t w_t: the mean over all trained tokens of a step.

    Token-weighted over the whole step, whatever the lengths of its rows (the accumulation trap:
    transformers pull request 34191). A token is right where no other is likelier.
    """
    weight = branches.weight
    hits = float((weight * branches.hits).sum())
    return Loss(-(weight * branches.logprobs).sum(), float(weight.sum()), hits)
