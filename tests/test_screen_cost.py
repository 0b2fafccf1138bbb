from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from tunesmith import screen_cost
from tunesmith.cost import HIDDEN, Amount, here

KNOWN = Amount(0.02, 0.01, 0.04).to_json()
FOUND: dict[str, Any] = {
    "rows": {"train": 60, "validation": 10, "test": 40},
    "tokens": {"trained": 100, "masked": 900, "epochs": 2.0, "computed": 1000.0},
    "forecast": {"dry_run": {}, "memory_mb": 1200, "cpu_seconds": Amount(90, 80, 100).to_json()},
    "ways": [
        here(Amount.known(60), None).to_json(),
        *(
            {**here(Amount.known(60), n).to_json(), "place": "rented", "name": f"machine {n}"}
            for n in range(1, 9)
        ),
    ],
    "calls": [
        {
            **{"provider": "p", "model": "m", "tuned": True, "as_of": "2026-11"},
            **{"ends": "2027-01-14", "usd_per_1000": KNOWN},
        }
    ],
    "prices": "Prices as compiled on 2026-11-21, 1 days ago.",
    "assumptions": ["it is so"],
    "hidden": list(HIDDEN),
}


def shown(lines: Any) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(*lines, sep="\n")
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_costs_say_what_is_not_known_and_what_ends() -> None:
    text = shown(screen_cost.costs(FOUND))
    assert "1,000 tokens in 60 training rows, 100 of them trained, 2 times; 1,000 are" in text
    assert "unknown" in text
    assert "facts.usd_per_hour" in text
    assert "machine 4" in text
    assert "machine 5" not in text
    assert "ends on 2027-01-14" in text
    assert "0.02 (0.01 to 0.04)" in text
    assert all(part in text for part in (FOUND["prices"], "Assumed: it is so.", "Egress"))


def test_costs_without_a_forecast_say_why() -> None:
    bare = {key: value for key, value in FOUND.items() if key != "ways"}
    bare["forecast"] = {"value": None, "reason": "not asked for"}
    assert "not asked for" in shown(screen_cost.costs(bare))


def test_advice_is_shown_with_its_reasons_and_priors() -> None:
    said = {"approach": "rag", "reasons": ["It leads [red]."], "priors": ["Rule of thumb: so."]}
    text = shown(screen_cost.advice({"advice": said}))
    assert "advice: rag" in text
    assert "It leads [red]." in text
    assert "Rule of thumb: so." in text


@pytest.mark.parametrize(
    ("typed", "choices", "answer"),
    [
        ("weekly\n", ("weekly", "daily"), "weekly"),
        ("\n", ("weekly", "daily"), ""),
        ("often\ndaily\n", ("weekly", "daily"), "daily"),
        ("2500\n", (), "2500"),
        ("\n", (), ""),
        ("many\n0.5\n", (), "0.5"),
    ],
)
def test_questions_take_an_answer_or_enter(
    typed: str, choices: tuple[str, ...], answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert screen_cost.ask("How often?", choices) == answer
