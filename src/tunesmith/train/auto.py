"""What `auto` becomes: hyperparameters from rows, tokens and the model's width, each with its reason.

Starting points are those of "LoRA Without Regret" (Schulman et al. 2025): adapters on all linear
layers, alpha 32 at scale 1/r, a learning rate ten times that of full fine-tuning which hardly
depends on the rank but falls with the model's width, small batches, and a rank by the information
in the data. docs/lab-log.md has the grid that they were held against.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Choice:
    """A value that `auto` became, and why."""

    value: float | int
    reason: str


SHORT_RUN = 150
"""Steps: in a run of fewer, the rate is higher by half."""
TEXT_ROW = 512
"""Tokens of text that make the gradient of one row: the rate's rule counts rows of that size."""


def learning_rate(width: int, steps: int, batch: float, *, full: bool = False) -> Choice:
    """Peak rate for hidden states of `width`, a run of `steps`, and `batch` rows a step.

    Adam's rate goes with the root of the batch (Malladi et al. 2022, arXiv:2205.10287). The source's
    exponent of the width, 0.78, was measured from 2,000 on; adapters of narrow models bear more:
    the grid's best at 576 lies on 1.34, through the source's own value at 2,000.

    Args:
        full: of all weights, and not of an adapter.
    """
    times, exponent = (1, 0.78) if full else (10, 1.34)
    rate = times * 5e-5 * (2000 / width) ** exponent * math.sqrt(batch / 32)
    reason = f"{times} x 5e-5 x (2000 / width {width})^{exponent} x (batch {batch:.3g} / 32)^0.5"
    if steps < SHORT_RUN:
        rate *= 1.5
        reason += f", x 1.5 for a run of only {steps} steps"
    return Choice(float(f"{rate:.2g}"), reason)


def batch_rows(rows: int) -> Choice:
    """Rows a step: small, since adapters suffer from large batches earlier than full tuning."""
    value = min(32, max(4, 2 ** round(math.log2(max(rows, 1) / 32))))
    return Choice(value, f"about 1/32 of {rows} rows, between 4 and 32")


def text_rows(rows: int, tokens: int) -> Choice:
    """Passages a step by their tokens, which all are trained: lengths differ more than answers' do."""
    wanted = min(32_768, max(2_048, tokens // 100))
    value = min(rows, max(1, round(wanted * rows / max(tokens, 1))))
    return Choice(value, f"about {wanted:,} tokens: 1/100 of {tokens:,}, between 2,048 and 32,768")


def text_epochs(tokens: int) -> Choice:
    """Passes over text. All of its tokens teach, so that one pass does what several do for answers.

    A few passes are nearly as good as new text, more are not (Muennighoff et al. 2023,
    arXiv:2305.16264); who has much text has seen enough after one.
    """
    value = 2 if tokens < 10_000_000 else 1
    return Choice(value, f"{tokens:,} tokens of text; early stopping may end sooner")


def epochs(rows: int) -> Choice:
    """Passes: few rows need more; early stopping ends what is too many."""
    value = 3 if rows >= 1000 else 4 if rows >= 400 else 5
    return Choice(value, f"{rows} rows; early stopping may end sooner")


def rank(trained_tokens: int) -> Choice:
    """Rank by the information to be held: about two bits a weight, one a trained token."""
    value = 16 if trained_tokens < 1_000_000 else 32
    return Choice(value, f"{trained_tokens:,} trained tokens to hold")


def save_every(steps: int) -> Choice:
    """Steps between validations: about twelve in a run."""
    return Choice(max(1, math.ceil(steps / 12)), f"about 12 validations in {steps} steps")


def max_batch_tokens() -> Choice:
    """Distinct tokens in one pass: enough for fast products, little enough for memory."""
    return Choice(2048, "activations of about 2,048 tokens at a time")
