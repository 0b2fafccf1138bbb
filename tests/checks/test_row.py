from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tunesmith.chat import Message
from tunesmith.checks.row import Marked, look, prompt_key
from tunesmith.data.examples import Conversation, Preference, Source


def test_only_the_first_twenty_rows_are_named_but_all_are_counted() -> None:
    marked = Marked()
    assert marked.told("form", "note", "seen", "") == ()
    for line in range(1, 1235):
        marked.add(f"f:{line}")
    (finding,) = marked.told("form", "note", "seen", "Look.")
    assert (finding.count, len(finding.rows), finding.rows[0]) == (1234, 20, "f:1")
    assert finding.message == "1,234 rows seen"


def test_a_pair_is_rendered_twice_and_its_prompt_carries_no_loss() -> None:
    prompt = (Message("user", "q"), Message("assistant", "w"), Message("user", "r"))
    row = look(
        Preference(
            prompt, (Message("assistant", "a"),), (Message("assistant", "b"),), Source("f", 8)
        )
    )
    assert row.where == "f:8"
    assert [c.answer.content for c in row.conversations] == ["a", "b"]
    assert all(c.messages[1].weight == 0 for c in row.conversations)
    assert (row.answer, row.texts()) == ("a", ["q", "w", "r", "a", "b"])


def test_a_prompt_is_the_same_whatever_its_case_and_spacing(
    talk: Callable[..., Conversation],
) -> None:
    key = prompt_key(talk("Where is it?", "x"))
    assert prompt_key(talk("  where IS\nit? ", "y")) == key
    assert prompt_key(talk("Where is it?", "x", system="s")) != key
    assert prompt_key(replace(talk("Where is it?", "x"), tools=({"type": "function"},))) != key
