from __future__ import annotations

import torch

from tunesmith.train.objectives import Branches, sft


def test_sft_by_hand() -> None:
    logprobs = torch.tensor([0.5, 0.25, 0.125]).log2()
    hits = torch.tensor([True, False, True])
    loss = sft(Branches(logprobs, hits, torch.tensor([1.0, 1.0, 2.0]), torch.tensor([0, 0, 1])))
    assert float(loss.sum) == 1 + 2 + 2 * 3
    assert loss.count == 4
    assert loss.hits == 3


def test_sums_and_counts_are_additive_over_any_cut() -> None:
    whole = Branches(-torch.rand(10), torch.rand(10) < 0.5, torch.rand(10), torch.arange(10) // 3)
    parts = [
        Branches(whole.logprobs[cut], whole.hits[cut], whole.weight[cut], whole.branch[cut])
        for cut in (slice(0, 3), slice(3, 10))
    ]
    losses = [sft(part) for part in parts]
    torch.testing.assert_close(losses[0].sum + losses[1].sum, sft(whole).sum)
    assert abs(losses[0].count + losses[1].count - sft(whole).count) < 1e-6
    assert abs(losses[0].hits + losses[1].hits - sft(whole).hits) < 1e-6
