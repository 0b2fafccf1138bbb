from __future__ import annotations

from tunesmith.chat import Message
from tunesmith.data.examples import Conversation, Source


def test_the_answer_is_the_last_turn_and_the_prompt_all_before() -> None:
    turns = (Message("user", "a"), Message("assistant", "b"))
    row = Conversation(turns, Source("f", 1))
    assert (*row.prompt, row.answer) == turns
