from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.chat import Message
from tunesmith.checks.duplicates import Fingerprints
from tunesmith.checks.report import Finding
from tunesmith.checks.row import look
from tunesmith.data.examples import Conversation, Preference, Source

Talk = Callable[..., Conversation]


def findings(
    rows: Iterable[Conversation], groups: list[int] | None = None, copies: int = 0
) -> list[Finding]:
    prints = Fingerprints()
    for row in rows:
        prints.see(look(row))
    ids = np.arange(len(prints)) if groups is None else np.array(groups)
    return list(prints.findings(ids.astype(np.int64), copies, labels=False))


def test_rows_that_differ_raise_nothing(talk: Talk) -> None:
    assert findings(talk(f"q{n}", f"a{n}", line=n) for n in range(1, 60)) == []
    assert findings([]) == []


def test_the_same_prompt_with_different_answers_is_told_with_its_rows(talk: Talk) -> None:
    pairs = [("Hello  there", "Hi!"), ("x", "y"), ("hello there", "Go away."), ("x", "y")]
    (finding,) = findings(talk(q, a, line=line) for line, (q, a) in enumerate(pairs, 1))
    assert finding.rows == ("rows.jsonl:1", "rows.jsonl:3")
    assert (finding.severity, finding.count) == ("warning", 2)
    assert "2 rows share 1 prompts" in finding.message


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=30))
def test_contradictions_are_those_that_a_plain_count_finds(pairs: list[tuple[int, int]]) -> None:
    rows = [
        Conversation((Message("user", f"q{q}"), Message("assistant", f"a{a}")), Source("f", line))
        for line, (q, a) in enumerate(pairs, 1)
    ]
    several = {q for q, _ in pairs if len({a for p, a in pairs if p == q}) > 1}
    named = [f"f:{line}" for line, (q, _) in enumerate(pairs, 1) if q in several]
    found = [f for f in findings(rows) if "different answers" in f.message]
    assert [list(f.rows) for f in found] == ([named[:20]] if named else [])
    assert [f.count for f in found] == ([len(named)] if named else [])


def test_two_ranked_answers_to_one_prompt_do_not_contradict() -> None:
    prompt = (Message("user", "q"),)
    pair = Preference(
        prompt, (Message("assistant", "a"),), (Message("assistant", "b"),), Source("f", 1)
    )
    prints = Fingerprints()
    prints.see(look(pair))
    prints.see(look(Preference(prompt, pair.rejected, pair.chosen, Source("f", 2))))
    assert list(prints.findings(np.arange(2), 0, labels=False)) == []


def test_copies_and_near_groups_are_counted(talk: Talk) -> None:
    rows = [talk(f"q{n}", f"a{n}", line=n) for n in range(1, 7)]
    copies, alike = findings(rows, groups=[0, 1, 0, 2, 0, 2], copies=4)
    assert copies.message == "4 rows removed as exact copies of an earlier one"
    assert alike.message.startswith(
        "5 rows in groups of near duplicates: 2 groups, the largest of 3"
    )
    assert alike.rows == tuple(f"rows.jsonl:{n}" for n in (1, 3, 4, 5, 6))
    assert alike.severity == "warning"


def test_different_system_messages_are_noted(talk: Talk) -> None:
    rows = [
        talk(f"q{n}", f"a{n}", system="Be brief." if n < 4 else None, line=n) for n in range(1, 5)
    ]
    (finding,) = findings(rows)
    assert finding.severity == "note"
    assert "2 different system messages" in finding.message
    assert "75%" in finding.message
    assert finding.rows == ("rows.jsonl:1", "rows.jsonl:4")


def test_one_answer_for_most_rows_is_told_unless_answers_are_labels(talk: Talk) -> None:
    prints = Fingerprints()
    for line in range(1, 31):
        answer = "Thanks for asking." if line <= 20 else f"a{line}"
        prints.see(look(talk(f"q{line}", answer, line=line)))
    (finding,) = prints.findings(np.arange(30), 0, labels=False)
    assert "20 rows (67%) have one and the same answer" in finding.message
    assert list(prints.findings(np.arange(30), 0, labels=True)) == []
