from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence

import pytest

from tunesmith.chat import Message
from tunesmith.errors import EngineError
from tunesmith.evaluate.evaluation import Sample
from tunesmith.evaluate.judge import Judgement, Pair, judge, outcome, pairs, question, read, summary
from tunesmith.testing import scripted_chat

RUBRIC = "The longer one is better."


def pair(i: int, a: str = "good", b: str = "bad") -> Pair:
    return Pair(f"t:{i}", f"q{i}", f"q{i}", "ref", a, b)


def asked(messages: Sequence[Message]) -> tuple[str, str]:
    found = re.search(r"<answer-1>\n(.*)\n</answer-1>\n\n<answer-2>\n(.*)\n</answer-2>",
                      messages[-1].content or "", re.DOTALL)  # fmt: skip
    assert found is not None
    return found[1], found[2]


def by(prefer: Callable[[str, str], str], rows: Sequence[Pair]) -> list[Judgement]:
    """Judged by a script that is shown the first answer and the second."""
    model = scripted_chat(lambda messages: prefer(*asked(messages)))
    return asyncio.run(judge(model, rows, rubric=RUBRIC))


def test_an_honest_judge_is_followed() -> None:
    found = by(lambda first, _: '{"better": "1"}' if first == "good" else '{"better": "2"}',
               [pair(i) for i in range(10)])  # fmt: skip
    assert [item.outcome for item in found] == ["a"] * 10
    told = summary(found, "tuned", "base")
    assert (told["wins"], told["ties"], told["losses"], told["invalid"]) == (10, 0, 0, 0)
    assert told["win_rate"]["value"] == 1.0
    assert told["win_rate"]["low"] == pytest.approx(0.025**0.1)
    assert told["flips"]["value"] == 0.0


@pytest.mark.parametrize(("place", "firsts"), [("1", 10), ("2", 0)])
def test_a_judge_that_favours_a_place_decides_nothing_and_is_found_out(
    place: str, firsts: int
) -> None:
    found = by(lambda *_: place, [pair(i) for i in range(10)])
    told = summary(found, "tuned", "base")
    assert (told["wins"], told["ties"], told["losses"]) == (0, 10, 0)
    assert told["win_rate"]["value"] == 0.5
    assert told["flips"]["value"] == 1.0
    assert told["flips_to_first"] == firsts


def test_a_bias_on_some_rows_costs_only_their_wins() -> None:
    def leaning(first: str, second: str) -> str:
        if "close" in first + second:
            return "1"
        return "1" if first.startswith("good") else "2"

    rows = [pair(i, "good close" if i < 3 else "good", "bad") for i in range(10)]
    told = summary(by(leaning, rows), "tuned", "base")
    assert (told["wins"], told["ties"], told["flips_to_first"]) == (7, 3, 3)
    assert told["flips"]["value"] == pytest.approx(0.3)
    assert told["win_rate"]["value"] == pytest.approx(0.85)


def test_judgements_that_cannot_be_read_are_counted_and_not_rated() -> None:
    rows = [pair(i, a=f"good {i}") for i in range(4)]
    found = by(lambda first, second: "Both are nice." if "0" in first + second else
               ("1" if first.startswith("good") else "2"), rows)  # fmt: skip
    told = summary(found, "a", "b")
    assert (told["rows"], told["invalid"], told["wins"], told["win_rate"]["n"]) == (4, 1, 3, 3)
    nothing = summary(by(lambda *_: "?", rows), "a", "b")
    assert nothing["invalid"] == 4
    assert nothing["win_rate"]["value"] is None
    assert nothing["flips"]["value"] is None


def test_equal_answers_tie_without_asking() -> None:
    def never(*_: str) -> str:
        raise AssertionError

    told = summary(by(never, [pair(0, "same", "same ")]), "a", "b")
    assert (told["ties"], told["same_text"]) == (1, 1)
    assert told["flips"]["value"] is None


def test_rows_of_one_prompt_are_one_cluster() -> None:
    rows = [Pair(str(i), str(i % 3), "q", "", "good", "bad") for i in range(30)]
    said = by(lambda first, _: "1" if first == "good" else "2", rows)
    assert summary(said, "a", "b")["win_rate"]["low"] < 0.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"better": "1"}', "first"),
        ('{"better": 2}', "second"),
        ('```json\n{"better": "tie"}\n```', "tie"),
        ("1", "first"),
        ("Tie.", "tie"),
        ("", "invalid"),
        ("Answer 1 is better", "invalid"),
        ('{"best": "1"}', "invalid"),
        ('{"better": true}', "invalid"),
        ("[" * 5000, "invalid"),
    ],
)
def test_a_judgement_is_the_form_that_was_asked_for(text: str, said: str) -> None:
    assert read(text) == said


def test_both_orders_have_to_agree() -> None:
    assert outcome("first", "second") == "a"
    assert outcome("second", "first") == "b"
    for said in (("first", "first"), ("second", "second"), ("tie", "tie"), ("first", "tie")):
        assert outcome(*said) == "tie"  # type: ignore[arg-type]
    assert outcome("invalid", "second") == outcome("first", "invalid") == "invalid"


def test_the_question_has_the_rubric_and_fences_the_answers() -> None:
    system, user = question(pair(1), "one", "two", RUBRIC)
    assert (system.content or "").startswith(RUBRIC)
    assert "<reference>\nref\n</reference>" in (user.content or "")
    assert asked([user]) == ("one", "two")
    bare = question(Pair("i", "c", "p", " ", "a", "b"), "a", "b", RUBRIC)
    assert "<reference>" not in (bare[1].content or "")


def test_pairs_are_the_rows_of_both_up_to_a_number() -> None:
    def sample(i: int, output: str) -> Sample:
        return Sample(f"t:{i}", "q", "r", output, {}, 1, 1, 0.0, "stop", f"c{i}")

    a, b = [sample(i, "a") for i in range(5)], [sample(i, "b") for i in (4, 3, 2)]
    assert [(p.id, p.a, p.b, p.cluster) for p in pairs(a, b, 2)] == [
        ("t:2", "a", "b", "c2"), ("t:3", "a", "b", "c3"),
    ]  # fmt: skip


def test_progress_is_told_and_a_failure_ends_it() -> None:
    seen: list[tuple[int, int]] = []
    model = scripted_chat(lambda _: "1")
    asyncio.run(judge(model, [pair(0), pair(1)], rubric=RUBRIC,
                      progress=lambda *counts: seen.append(counts)))  # fmt: skip
    assert seen == [(1, 2), (2, 2)]

    def broken(_: Sequence[Message]) -> str:
        raise EngineError("gone")

    with pytest.raises(EngineError, match="gone"):
        asyncio.run(judge(scripted_chat(broken), [pair(0)], rubric=RUBRIC))
