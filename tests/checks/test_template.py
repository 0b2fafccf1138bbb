from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from tokenizers import Tokenizer

from tunesmith.chat import Message
from tunesmith.checks.row import look
from tunesmith.checks.template import TemplateCheck, render
from tunesmith.checks.tokens import refiner
from tunesmith.data.examples import Conversation, Source, UnpairedPreference
from tunesmith.errors import RowError
from tunesmith.models.template import Chain, ChatTemplate

Talk = Callable[..., Conversation]


class Broken(ChatTemplate):
    """A template whose chains are spoilt in one way, as real ones have been."""

    def __init__(self, whole: ChatTemplate, spoil: Callable[[Chain], Chain]) -> None:
        super().__init__(
            whole.tokenizer,
            "{{ messages[0]['content'] }}",
            specials={},
            stops=whole.end_of_turn,
            context=whole.context,
        )
        self.whole, self.spoil = whole, spoil

    def chains(self, conversation: Conversation) -> tuple[Chain, ...]:
        return tuple(self.spoil(chain) for chain in self.whole.chains(conversation))


def test_trap_02_a_trained_turn_that_does_not_end_with_the_stop_token_is_refused(
    template: ChatTemplate, talk: Talk
) -> None:
    def without_stop(chain: Chain) -> Chain:
        trained = tuple(
            on and token not in template.end_of_turn
            for token, on in zip(chain.ids, chain.trained, strict=True)
        )
        return replace(chain, trained=trained)

    with pytest.raises(RowError, match="never learn to stop"):
        refiner(Broken(template, without_stop), 4096, "stop")(talk("q", "a", "q", "a"))
    for row in (talk("q", "a"), talk("q", "a", "q", "longer", system="s")):
        for chain in template.chains(row):
            places = [i for i, on in enumerate(chain.trained) if on]
            ends = [i for i in places if i + 1 not in places]
            assert {chain.ids[i] for i in ends} <= template.end_of_turn


@pytest.mark.parametrize(("value", "says"), [(False, "no token"), (True, "every one of its")])
def test_trap_04_a_mask_of_all_zeros_or_all_ones_is_refused(
    template: ChatTemplate, talk: Talk, value: bool, says: str
) -> None:
    def constant(chain: Chain) -> Chain:
        end = next(i for i, token in enumerate(chain.ids) if token in template.end_of_turn)
        return Chain(chain.ids[: end + 1], (value,) * (end + 1))

    with pytest.raises(RowError, match=says):
        refiner(Broken(template, constant), 4096, "stop")(talk("q", "a"))


def test_trap_04_a_row_whose_every_turn_has_weight_0_is_refused(
    template: ChatTemplate,
) -> None:
    row = Conversation(
        (Message("user", "q"), Message("assistant", "a", weight=0.0)), Source("f", 3)
    )
    with pytest.raises(RowError, match="no token"):
        refiner(template, 4096, "stop")(row)


def test_trap_13_a_row_that_does_not_render_is_refused_by_name_not_trained_empty(
    template: ChatTemplate, talk: Talk
) -> None:
    with pytest.raises(RowError, match="poisoned"):
        refiner(template, 4096, "stop")(talk("poison", "a"))
    check = TemplateCheck(template)
    seen = [
        check.see(look(talk("fine" if line != 3 else "poison", "a", line=line)))
        for line in range(1, 6)
    ]
    assert [rendered is None for rendered in seen] == [False, False, True, False, False]
    (finding,) = check.findings()
    assert (finding.severity, finding.rows, finding.count) == ("error", ("rows.jsonl:3",), 1)


def test_a_template_that_shows_only_the_last_turn_is_refused(
    template: ChatTemplate, talk: Talk
) -> None:
    def last_only(chain: Chain) -> Chain:
        first = chain.ids.index(257, chain.trained.index(True)) + 1
        return replace(chain, trained=(False,) * first + chain.trained[first:])

    with pytest.raises(RowError, match="1 of its assistant turns"):
        render(Broken(template, last_only), talk("q", "a", "q", "b"))


def test_turns_of_weight_0_are_masked_and_told(template: ChatTemplate) -> None:
    turns = (
        Message("user", "q"),
        Message("assistant", "draft", weight=0.0),
        Message("user", "again"),
        Message("assistant", "final"),
    )
    check = TemplateCheck(template)
    rendered = check.see(look(Conversation(turns, Source("f", 9))))
    assert rendered is not None
    assert rendered.turns == (len("final") + 1,)
    (finding,) = check.findings()
    assert (finding.severity, finding.rows) == ("note", ("f:9",))


def test_the_prompt_of_a_rated_answer_is_not_trained(template: ChatTemplate) -> None:
    prompt = (Message("user", "q"), Message("assistant", "before"), Message("user", "more"))
    rated = UnpairedPreference(prompt, (Message("assistant", "now"),), True, Source("f", 1))
    check = TemplateCheck(template)
    rendered = check.see(look(rated))
    assert rendered is not None
    assert rendered.turns == (len("now") + 1,)
    assert list(check.findings()) == []


def test_a_missing_template_and_tools_without_a_place_are_told(byte_tokenizer: Tokenizer) -> None:
    plain = ChatTemplate(
        byte_tokenizer, None, specials={"eos_token": "<|im_end|>"}, stops=(257,), context=512
    )
    tool = {"type": "function", "function": {"name": "track", "parameters": {}}}
    row = Conversation(
        (Message("user", "q"), Message("assistant", "a")), Source("f", 2), tools=(tool,)
    )
    check = TemplateCheck(plain)
    assert check.see(look(row)) is not None
    said = [finding.message for finding in check.findings()]
    assert "no chat template" in said[0]
    assert "written as text" in said[1]
