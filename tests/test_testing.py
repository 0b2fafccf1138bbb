from __future__ import annotations

import asyncio

from tunesmith.chat import Message, SamplingParams
from tunesmith.testing import scripted_chat


def test_scripted_chat_answers_what_the_script_says() -> None:
    model = scripted_chat(lambda messages: f"{len(messages)} turns")
    answer = asyncio.run(model.complete([Message("user", "one two")], SamplingParams()))
    assert (answer.text, answer.finish_reason) == ("1 turns", "stop")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 2)
