from __future__ import annotations

import torch
from torch import Tensor

from tunesmith.models.kernels import exact
from tunesmith.models.logprobs import BLOCK, token_logprobs


def test_blocks_give_the_log_softmax_and_its_gradient() -> None:
    rows = 2 * BLOCK + 17
    weight = torch.randn(31, 8, dtype=torch.float64)
    hidden = torch.randn(rows, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 31, (rows,))
    weigh = torch.randn(rows, dtype=torch.float64)

    def head(x: Tensor) -> Tensor:
        return x @ weight.T

    ours = token_logprobs(hidden, targets, head)
    theirs = head(hidden).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad((ours * weigh).sum(), hidden),
        torch.autograd.grad((theirs * weigh).sum(), hidden),
    )


def test_a_head_that_learns_gets_the_gradient_of_all_blocks() -> None:
    rows = 2 * BLOCK + 17
    weight = torch.randn(31, 8, dtype=torch.float64, requires_grad=True)
    hidden = torch.randn(rows, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 31, (rows,))
    ours = token_logprobs(hidden, targets, lambda x: x @ weight.T, [weight])
    theirs = (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(
        torch.autograd.grad(ours.square().sum(), [hidden, weight]),
        torch.autograd.grad(theirs.square().sum(), [hidden, weight]),
    )


def test_never_more_than_a_block_of_logits_is_made() -> None:
    seen: list[int] = []

    def head(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x

    hidden = torch.randn(3 * BLOCK, 5, requires_grad=True)
    token_logprobs(hidden, torch.zeros(3 * BLOCK, dtype=torch.int64), head).sum().backward()
    assert max(seen) == BLOCK


def test_a_softmax_is_taken_in_float32_at_least() -> None:
    assert exact(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert exact(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
