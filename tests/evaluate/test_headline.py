from __future__ import annotations

from typing import Any

import pytest

from tunesmith.evaluate.headline import duration, headline


def pair(a: str, b: str, difference: float) -> dict[str, Any]:
    low, high = difference - 0.1, difference + 0.1
    return {
        **{"a": a, "b": b, "metric": "exact"},
        **{"difference": difference, "low": low, "high": high, "n": 150},
    }


def report() -> dict[str, Any]:
    figure = {"value": 245.0, "low": 200.0, "high": 300.0}
    return {
        "primary": "exact",
        "advice": {"approach": "fine-tuning", "reasons": ["scores", "it leads by 0.3"]},
        "verdict": {"ship": True, "sentence": "Ship it."},
        "comparisons": [pair("tuned", "base", 0.5), pair("prompt", "tuned", -0.2)],
        "arms": [
            {"kind": "tuned", "tokens_in": 40.0, "usd_per_1000": 0.012},
            {"kind": "prompt", "tokens_in": 900.0, "usd_per_1000": {"value": None, "reason": ""}},
        ],
        "cost": {
            "training_seconds": 250.0,
            "forecast": {"seconds": figure},
            "break_even": [{"instead_of": "big", "calls_per_month": {"value": 12_000.0}}],
        },
        "forgetting": {
            "kl": 0.25,
            "general": {
                "score": {
                    **{"base": 0.6, "tuned": 0.5, "difference": -0.1},
                    **{"low": -0.15, "high": -0.05},
                }
            },
        },
        "data_enough": {
            "doubling": {"sentence": "Twice the rows would bring +0.03."},
            "rows_for_goal": {"value": None, "reason": "no goal"},
            "power": {"sentence": "150 test rows tell differences above 0.11 only."},
        },
    }


def test_the_five_questions_are_answered_with_their_numbers() -> None:
    should, better, cost, lost, more = headline(report())
    assert (should.answer, should.more) == ("Yes, fine-tune", ("it leads by 0.3",))
    assert better.answer == "+0.50"
    assert better.more == (
        "95 % interval +0.40 to +0.60 exact, over base on 150 unseen rows.",
        "Over prompt, the strongest rival: +0.20 (+0.10 to +0.30).",
    )
    assert cost.answer == "4 min 10 s"
    assert cost.more == (
        "training here (forecast 4 min 05 s)",
        "40 tokens in a call, 900 when prompting; US$ 0.012 per 1,000 calls.",
        "Pays from 12,000 calls a month, against big.",
    )
    assert lost.answer == "-0.10"
    assert "0.60 before, 0.50 after (-0.15 to -0.05)" in lost.more[0]
    assert more.answer == "Ship it"
    assert [text.split()[0] for text in more.more] == ["Twice", "150"]


def test_a_loss_that_may_be_chance_is_none_that_shows() -> None:
    found = report()
    found["forgetting"]["general"]["score"]["high"] = 0.01
    assert headline(found)[3].answer == "Nothing that shows"


def test_what_was_not_measured_says_why() -> None:
    missing = {"value": None, "reason": "it was left out"}
    names = ("advice", "verdict", "comparisons", "arms", "cost", "forgetting", "data_enough")
    told = headline(dict.fromkeys(names, missing))
    assert [part.answer for part in told[:4]] == ["Not measured"] * 4
    assert all(part.more for part in told)
    assert len(headline({})) == 5


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.41, "0.41 s"), (59, "59 s"), (65, "1 min 05 s"), (7500, "2 h 05 min")]
)
def test_a_duration_is_said_as_people_do(seconds: float, said: str) -> None:
    assert duration(seconds) == said
