from __future__ import annotations

import pytest
import torch

from tunesmith.models import draw


def draws(
    logits: list[float], temperature: float, top_p: float = 1.0, count: int = 4000
) -> list[float]:
    """Shares of each token in many draws."""
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor(logits)
    drawn = [draw.draw(values, temperature, top_p, generator) for _ in range(count)]
    return [drawn.count(token) / count for token in range(len(logits))]


def test_penalties_are_charged_to_what_was_sampled_and_to_nothing_else() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    found = draw.penalised(logits, [({0: 2, 2: 1}, 0.5, 1.0), ({1: 4}, 0.0, 0.0)])
    # 1 - 2 * 0.5 - 1, 2, 3 - 0.5 - 1; the second row asks for no penalty.
    assert found.tolist() == [[-1.0, 2.0, 1.5], [1.0, 2.0, 3.0]]


def test_temperature_and_top_p_draw_from_the_distribution_they_name() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert draws(logits, temperature=1.0) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    # p ** 2, made to sum to one.
    assert draws(logits, temperature=0.5) == pytest.approx([0.685, 0.247, 0.062, 0.007], abs=0.03)
    # The smallest set that reaches 0.7 is the first two.
    assert draws(logits, temperature=1.0, top_p=0.7) == pytest.approx(
        [5 / 8, 3 / 8, 0, 0], abs=0.03
    )
    assert draws(logits, temperature=1.0, top_p=0.01) == [1, 0, 0, 0]


def test_a_nucleus_of_more_tokens_than_are_ranked_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([0.3, 0.4, 0.2, 0.1]).log().tolist()
    wide = draws(logits, temperature=1.0, top_p=0.8)
    assert wide == pytest.approx([3 / 9, 4 / 9, 2 / 9, 0], abs=0.03)
    monkeypatch.setattr(draw, "NUCLEUS", 2)
    assert draws(logits, temperature=1.0, top_p=0.8) == wide
