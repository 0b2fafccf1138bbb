"""Objectives: log-probabilities in, (sum, count, metrics) out. Only the optimiser step divides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Branches:
    """The trained tokens of a batch.

    logprobs: (N,) natural logarithms. weight: (N,). branch: (N,) index of each token's chain.
    """

    logprobs: Tensor
    weight: Tensor
    branch: Tensor


@dataclass(frozen=True, slots=True)
class Loss:
    """A sum over tokens and the count to divide it by, both additive over batches."""

    sum: Tensor
    count: float
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


Objective = Callable[[Branches], Loss]


def sft(branches: Branches) -> Loss:
    """L = - sum_t w_t log p(t) / sum_t w_t: the mean over all trained tokens of a step.

    Token-weighted over the whole step, whatever the lengths of its rows (the accumulation trap:
    transformers pull request 34191).
    """
    return Loss(-(branches.weight * branches.logprobs).sum(), float(branches.weight.sum()))
