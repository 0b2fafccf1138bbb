from __future__ import annotations

import torch
from torch import Tensor

from tunesmith.models.kernels import exact
from tunesmith.models.logprobs import BLOCK, score_tokens


def test_blocks_give_the_log_softmax_and_its_gradient() -> None:
    rows = 2 * BLOCK + 17
    weight = torch.randn(31, 8, dtype=torch.float64)
    hidden = torch.randn(rows, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 31, (rows,))
    weigh = torch.randn(rows, dtype=torch.float64)

    def head(x: Tensor) -> Tensor:
        return x @ weight.T

    ours = score_tokens(hidden, targets, head).logprobs
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
    ours = score_tokens(hidden, targets, lambda x: x @ weight.T, [weight]).logprobs
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
    targets = torch.zeros(3 * BLOCK, dtype=torch.int64)
    score_tokens(hidden, targets, head).logprobs.sum().backward()
    assert max(seen) == BLOCK


def test_the_sum_of_exponentials_is_torchs_own_bit_for_bit() -> None:
    logits = 30 * torch.randn(2 * BLOCK + 3, 257)
    targets = torch.randint(0, 257, (len(logits),))
    wanted = logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(1)
    assert torch.equal(score_tokens(logits, targets, lambda x: x).logprobs, wanted)


def test_a_hit_is_a_token_that_no_other_one_surpasses() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [5.0, 2.0, 5.0], [5.0, 2.0, 5.0], [0.0, 1.0, 9.0]])
    scored = score_tokens(logits.requires_grad_(), torch.tensor([1, 2, 1, 0]), lambda x: x)
    assert scored.hits.tolist() == [True, True, False, False]
    assert not scored.hits.requires_grad


def test_hits_are_the_largest_logits_over_all_blocks() -> None:
    hidden, weight = torch.randn(3 * BLOCK + 5, 8), torch.randn(31, 8)
    best = (hidden @ weight.T).argmax(1)
    targets = torch.where(torch.rand(len(hidden)) < 0.5, best, torch.zeros_like(best))
    scored = score_tokens(hidden, targets, lambda x: x @ weight.T)
    assert torch.equal(scored.hits, targets == best)


def test_a_softmax_is_taken_in_float32_at_least() -> None:
    assert exact(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert exact(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
