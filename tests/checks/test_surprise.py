from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer

from tunesmith.checks import surprise
from tunesmith.data.examples import Conversation
from tunesmith.models.template import ChatTemplate

Talk = Callable[..., Conversation]


def test_the_header_is_what_the_template_writes_behind_the_last_turn(
    template: ChatTemplate, talk: Talk
) -> None:
    found = surprise.header(template, talk("hello", "hi", system="Be brief."))
    assert found is not None
    read = template.tokenizer.decode(list(found.ids[found.start :]), skip_special_tokens=False)
    # The first token behind the text, <|im_end|>, is left out.
    assert read == "\n<|im_start|>assistant\n"
    assert found.ids == template.prompt(talk("hello", "hi", system="Be brief.").prompt).ids


def test_a_template_without_a_header_has_nothing_to_measure(
    byte_tokenizer: Tokenizer, talk: Talk
) -> None:
    bare = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    template = ChatTemplate(byte_tokenizer, bare, specials={}, stops=(257,), context=64)
    assert surprise.header(template, talk("hello", "hi")) is None


def test_a_template_that_surprises_is_a_warning_unless_the_model_ships_none() -> None:
    assert surprise.template_findings([0.0, 0.1], fallback=False) == ()
    assert surprise.template_findings([], fallback=False) == ()
    assert surprise.template_findings([3.0], fallback=True) == ()
    (finding,) = surprise.template_findings([3.0, 2.0], fallback=False)
    assert (finding.check, finding.severity) == ("template", "warning")
    assert "2.5 nats a token" in finding.message


def test_answers_of_noise_and_answers_that_are_known_are_told_apart() -> None:
    logprobs = [[-1.0 - n / 20, -1.0] for n in range(20)]
    logprobs += [[-9.0, -8.0], [math.log(0.9), math.log(0.8)]]
    where = [f"f:{n}" for n in range(22)]
    strange, known = surprise.answers(logprobs, ["text"] * 22, where)
    assert [suspect.row for suspect in strange] == ["f:20"]
    assert strange[0].why == "'text' (8.5 nats a token, usual 1.2)"
    assert [suspect.row for suspect in known] == ["f:21"]
    assert known[0].score == pytest.approx(0.72)
    assert surprise.answers([], [], []) == ([], [])
