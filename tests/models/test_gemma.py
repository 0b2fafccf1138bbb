"""Gemma's turns, on a tokenizer of bytes that has Gemma's special tokens and adds its bos."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from tunesmith.chat import Message, ToolCall
from tunesmith.checks.template import render
from tunesmith.data.examples import Conversation, Source
from tunesmith.errors import RowError
from tunesmith.models import template as module
from tunesmith.models.template import ChatTemplate, Exchange

BOS, EOS, START, END = 256, 257, 258, 259
SPECIALS = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
JINJA = Path(module.__file__).with_name("gemma.jinja")

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={x: i for i, x in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIALS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS)]
    )
    made = tmp_path_factory.mktemp("gemma")
    tokenizer.save(str(made / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
    }
    (made / "tokenizer_config.json").write_text(json.dumps(settings))
    (made / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, END]}))
    (made / "config.json").write_text(json.dumps({"eos_token_id": EOS}))
    (made / "chat_template.jinja").write_text(JINJA.read_text(encoding="utf-8"))
    return made


@pytest.fixture(scope="module")
def gemma(folder: Path) -> ChatTemplate:
    return ChatTemplate.load(folder)


def talk(*turns: tuple[str, str]) -> tuple[Message, ...]:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return tuple(Message(roles[role], text) for role, text in turns)  # pyright: ignore[reportArgumentType]


def test_a_conversation_is_written_as_gemma_writes_it(gemma: ChatTemplate) -> None:
    said = talk(("s", "Be brief. "), ("u", " hi\n"), ("a", "hello"), ("u", "bye"))
    assert gemma.render(said, generation=True) == (
        "<bos><start_of_turn>user\nBe brief.\n\nhi<end_of_turn>\n"
        "<start_of_turn>model\nhello<eos>\n"
        "<start_of_turn>user\nbye<end_of_turn>\n"
        "<start_of_turn>model\n"
    )


def test_an_answer_ends_with_eos_which_the_base_knows_and_generation_stops_there(
    gemma: ChatTemplate,
) -> None:
    assert not gemma.fallback
    assert gemma.end_of_turn == {EOS, END}
    (chain,) = gemma.chains(Exchange(talk(("u", "hi"), ("a", "yes"), ("u", "so"), ("a", "no"))))
    trained = [token for token, on in zip(chain.ids, chain.trained, strict=True) if on]
    assert trained == [*gemma.encode("yes"), EOS, *gemma.encode("no"), EOS]


def test_bos_stands_once_though_the_tokenizer_adds_it_too(
    folder: Path, gemma: ChatTemplate
) -> None:
    said = talk(("s", "Be brief."), ("u", "hi"), ("a", "hello"))
    assert gemma.tokenizer.encode("").ids == [BOS]
    (chain,) = gemma.chains(Exchange(said))
    assert (chain.ids[0], chain.ids.count(BOS)) == (BOS, 1)
    prompt = gemma.prompt(said[:-1]).ids
    assert prompt.count(BOS) == 1
    theirs = AutoTokenizer.from_pretrained(folder)
    plain = [{"role": m.role, "content": m.content} for m in said[:-1]]
    assert prompt == tuple(
        theirs.apply_chat_template(plain, add_generation_prompt=True)["input_ids"]
    )


def test_the_system_text_is_the_part_that_prompts_share(gemma: ChatTemplate) -> None:
    prompt = gemma.prompt(talk(("s", "Be brief."), ("u", "hi")))
    shared = gemma.tokenizer.decode(list(prompt.prefix), skip_special_tokens=False)
    assert shared == "<bos><start_of_turn>user\nBe brief.\n\n"


@pytest.mark.parametrize(
    "said",
    [
        talk(("s", "Be brief.")),
        talk(("s", "Be brief."), ("a", "Hello.")),
        talk(("u", "hi"), ("a", "hello"), ("s", "Be brief."), ("u", "bye")),
        talk(("u", "hi"), ("u", "there")),
    ],
)
def test_no_text_of_a_conversation_is_lost(gemma: ChatTemplate, said: tuple[Message, ...]) -> None:
    text = gemma.render(said)
    assert all((message.content or "?") in text for message in said)
    assert text.count("<start_of_turn>") == text.count("<end_of_turn>") + text.count("<eos>")
    assert "system" not in text


def test_tools_are_written_as_text_and_their_results_as_the_users(gemma: ChatTemplate) -> None:
    call = ToolCall("call_0", "track", '{"parcel": "RR 12"}')
    said = (
        Message("user", "Where is it?"),
        Message("assistant", None, tool_calls=(call,)),
        Message("tool", "in Bern", tool_call_id="call_0"),
        Message("assistant", "In Bern."),
    )
    text = gemma.render(said)
    assert "<start_of_turn>user\n<tool_response>\nin Bern\n</tool_response><end_of_turn>" in text
    assert "<start_of_turn>model\n<tool_call>" in text


def test_a_role_that_gemma_has_no_turn_for_is_refused(gemma: ChatTemplate) -> None:
    with pytest.raises(RowError, match="no turn for the role critic"):
        gemma.render([Message("critic", "hm")])  # pyright: ignore[reportArgumentType]


@given(st.lists(texts, min_size=1, max_size=3), st.booleans())
def test_what_is_trained_is_what_is_served_and_the_check_accepts_it(
    gemma: ChatTemplate, said: list[str], with_system: bool
) -> None:
    turns = [("s", "Be brief.")] if with_system else []
    for text in said:
        turns += [("u", text), ("a", text[::-1])]
    messages = talk(*turns)
    (chain,) = gemma.chains(Exchange(messages))
    assert gemma.prompt(messages[:-1]).ids + gemma.answer(messages[-1]) == chain.ids
    assert chain.ids[-1] == EOS
    assert chain.ids.count(BOS) == 1
    found = render(gemma, Conversation(messages, Source("rows.jsonl", 1)))
    assert len(found.turns) == len(said)
