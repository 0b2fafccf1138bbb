"""The kernels against the softmax written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tunesmith.models import kernels
from tunesmith.models.kernels import SoftmaxPair, behind, flash, hide, join, softmax_backward
from tunesmith.models.serving import SPAN


def written_out(
    q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of q (n, H, L, D) with its log-sum-exp; key heads repeated."""
    wide_k, wide_v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ wide_k.transpose(2, 3) * scale
    if hidden is not None:
        scores = scores.masked_fill(hidden, -math.inf)
    return torch.softmax(scores, -1) @ wide_v, scores.logsumexp(-1)


@pytest.mark.parametrize("width", [8, 6], ids=["fused", "values of another width"])
def test_flash_gives_the_softmax_and_its_log_sum_exp(width: int) -> None:
    q = torch.randn(3, 4, 5, 8, dtype=torch.float64)
    k = torch.randn(3, 2, 11, 8, dtype=torch.float64)
    v = torch.randn(3, 2, 11, width, dtype=torch.float64)
    distance = torch.arange(6, 11)[:, None] - torch.arange(11)[None, :]
    bias = hide(distance.expand(3, -1, -1), 2, torch.float64)
    out, lse = flash(q, k, v, bias, 0.3)
    assert (out.dtype, lse.dtype) == (torch.float64, torch.float64)
    torch.testing.assert_close((out, lse), written_out(q, k, v, distance < 0, 0.3))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("width", [8, 6], ids=["fused", "values of another width"])
def test_tokens_first_a_run_sees_itself_and_what_came_before(width: int, causal: bool) -> None:
    q = torch.randn(3, 5, 4, 8, dtype=torch.float64)
    k = torch.randn(3, 5, 2, 8, dtype=torch.float64)
    v = torch.randn(3, 5, 2, width, dtype=torch.float64)
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    expected = written_out(*heads_first, later if causal else None, 0.3)
    for n in (3, 1):
        found = behind(q[:n], k[:n], v[:n], 0.3, causal=causal)
        torch.testing.assert_close(found, tuple(x[:n].transpose(1, 2) for x in expected))


def test_two_sets_of_keys_joined_are_their_union() -> None:
    q, k, v = (torch.randn(2, 3, 7, 4, dtype=torch.float64) for _ in range(3))
    parts = [written_out(q, k[:, :, x], v[:, :, x], None, 0.5) for x in (slice(5), slice(5, None))]
    torch.testing.assert_close(join(*parts[0], *parts[1]), written_out(q, k, v, None, 0.5))


@pytest.mark.parametrize("places", [[3, 126, 64, 99, 17], [3, 30, 0, 9, 17]], ids=["long", "short"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_trap_32_hidden_keys_and_other_rows_change_no_bit(
    dtype: torch.dtype, places: list[int]
) -> None:
    """Rows are read to the longest neighbour's span: what a row sees must not tell."""
    q, k, v = (
        torch.randn(5, heads, n, 64).to(dtype) for heads, n in ((9, 1), (3, 1024), (3, 1024))
    )
    distance = torch.tensor(places)[:, None, None] - torch.arange(1024)
    least = (max(places) // SPAN + 1) * SPAN

    def read(rows: slice, span: int) -> tuple[Tensor, Tensor]:
        bias = hide(distance[rows, :, :span], 3, dtype)
        return flash(q[rows], k[rows, :, :span], v[rows, :, :span], bias, 0.125)

    whole, lse = read(slice(None), least)
    for span in (least + SPAN, least + 3 * SPAN, 256, 640, 1024):
        assert all(map(torch.equal, read(slice(None), span), (whole, lse)))
    for row in range(5):
        out, alone = read(slice(row, row + 1), least)
        assert torch.equal(out, whole[row : row + 1])
        assert torch.equal(alone, lse[row : row + 1])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("block", [1 << 21, 4], ids=["at once", "in blocks"])
def test_softmax_backward_is_autograds(
    causal: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "BACKWARD_SCORES", block)
    monkeypatch.setattr(kernels, "BACKWARD_RUN", block)
    q = torch.randn(3, 6, 4, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(3, 6, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    later = torch.ones(6, 6, dtype=torch.bool).triu(1)
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    out, lse = (
        x.transpose(1, 2) for x in written_out(*heads_first, later if causal else None, 0.3)
    )
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(out, (q, k, v), grad)
    with torch.no_grad():
        grad_q, *rest = softmax_backward(
            SoftmaxPair.of(q, k, v, out, lse, grad, 0.3), causal=causal
        )
    torch.testing.assert_close((grad_q * 0.3, *rest), expected)


def test_log_sum_exp_and_delta_keep_their_precision_in_bfloat16() -> None:
    """Rounded to bfloat16 they would be off by up to 0.06; as two columns by less than 1e-3."""
    q, k, v, out, grad = (torch.zeros(4, 2, 8, dtype=torch.bfloat16) for _ in range(5))
    lse = torch.tensor([[10.03, -20.17], [0.3, 7.77], [1e-4, 15.9], [3.0, -0.1]])
    pair = SoftmaxPair.of(q, k, v, out, lse, grad, 0.3)
    found = (pair.q.float() * pair.k.float()).sum(-1)
    torch.testing.assert_close(found, -lse, rtol=0, atol=1e-3)
