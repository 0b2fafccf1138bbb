from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from tunesmith.chat import Message, Tool, ToolCall
from tunesmith.errors import ModelError, RowError
from tunesmith.models.template import Chain, ChatTemplate, Exchange
from tunesmith.testing import CHATML, byte_template, write_byte_tokenizer

END = 257
TOOL: Tool = {
    "type": "function",
    "function": {"name": "track", "parameters": {"type": "object", "properties": {}}},
}
CALL = ToolCall("call_0", "track", '{"parcel": "RR 12"}')

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% set text = m['content'] %}"
    "{% if m['role'] == 'assistant' and not loop.last and '</think>' in text %}"
    "{% set text = text.split('</think>')[-1] %}{% endif %}"
    "{{ text }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""History is not a prefix of what follows: thoughts of earlier turns are dropped."""

TOOLS = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


def talk(*contents: str, system: str | None = None) -> tuple[Message, ...]:
    """Turns of user and assistant, one after the other."""
    turns = [
        Message("assistant" if place % 2 else "user", text) for place, text in enumerate(contents)
    ]
    return (*([Message("system", system)] if system else []), *turns)


def trained_runs(template: ChatTemplate, chain: Chain) -> list[str]:
    """The text of each run of trained tokens, special tokens shown."""
    runs: list[list[int]] = []
    for place, (token, on) in enumerate(zip(chain.ids, chain.trained, strict=True)):
        if on and (place == 0 or not chain.trained[place - 1]):
            runs.append([])
        if on:
            runs[-1].append(token)
    return [template.tokenizer.decode(run, skip_special_tokens=False) for run in runs]


def only(chains: Sequence[Chain]) -> Chain:
    (chain,) = chains
    return chain


@given(st.lists(texts, min_size=1, max_size=3), st.booleans())
def test_trap_01_what_is_trained_is_what_is_served(said: list[str], with_system: bool) -> None:
    template = BYTES
    turns = [text for said_text in said for text in (said_text, said_text[::-1])]
    messages = talk(*turns, system="Be brief." if with_system else None)
    chain = only(template.chains(Exchange(messages)))
    served = template.prompt(messages[:-1])
    answer = template.answer(messages[-1])
    assert served.ids + answer == chain.ids
    assert chain.trained[: len(served.ids)][-1] is False
    assert all(chain.trained[len(served.ids) :])
    assert template.encode(template.render(messages)) == (*chain.ids, *template.encode("\n"))


BYTES = byte_template()


@pytest.mark.parametrize("conversation", ["plain", "system", "several", "digits"])
def test_trap_01_ids_are_those_of_transformers(tmp_path: Path, conversation: str) -> None:
    messages = CONVERSATIONS[conversation]
    write_byte_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": 257}')
    _assert_as_transformers(tmp_path, messages)


@pytest.mark.slow
@pytest.mark.parametrize("conversation", ["plain", "system", "several", "digits"])
def test_trap_01_ids_of_the_default_model_are_those_of_transformers(
    default_model: Path, conversation: str
) -> None:
    _assert_as_transformers(default_model, CONVERSATIONS[conversation])


CONVERSATIONS = {
    "plain": talk("Where is my parcel?", "On its way."),
    "system": talk("hi", "hello", system="You answer in JSON."),
    "several": talk("one\n\ntwo", "three 🙂", "  vier ", "fünf\n"),
    "digits": talk("RR 123456\n\n\n7 pieces, ½ kg", "12:30, 2024-01-31"),
}


def _assert_as_transformers(folder: Path, messages: tuple[Message, ...]) -> None:
    template, theirs = ChatTemplate.load(folder), AutoTokenizer.from_pretrained(folder)
    plain = [{"role": m.role, "content": m.content} for m in messages]
    prompt = theirs.apply_chat_template(plain[:-1], add_generation_prompt=True)["input_ids"]
    whole = tuple(theirs.apply_chat_template(plain)["input_ids"])
    assert template.prompt(messages[:-1]).ids == tuple(prompt)
    chain = only(template.chains(Exchange(messages)))
    assert chain.ids == whole[: len(chain.ids)]
    # Only what the template writes behind the end of turn is left out.
    assert theirs.decode(whole[len(chain.ids) :]) == "\n"
    assert template.prompt(messages[:-1]).ids + template.answer(messages[-1]) == chain.ids


@given(st.lists(texts, min_size=2, max_size=6).filter(lambda said: len(said) % 2 == 0))
def test_trap_02_every_trained_turn_ends_with_the_end_of_turn(said: list[str]) -> None:
    for chain in BYTES.chains(Exchange(talk(*said))):
        for run in trained_runs(BYTES, chain):
            assert run.endswith("<|im_end|>")
        assert chain.ids[-1] in BYTES.end_of_turn


def test_trap_03_a_pad_token_that_is_the_end_of_turn_is_still_learned(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["pad_token"] = settings["eos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    chain = only(ChatTemplate.load(tmp_path).chains(Exchange(talk("hi", "ho"))))
    assert (chain.ids[-1], chain.trained[-1]) == (END, True)


@given(st.lists(texts, min_size=2, max_size=6).filter(lambda said: len(said) % 2 == 0))
def test_trap_04_a_mask_is_never_all_zero_nor_all_one(said: list[str]) -> None:
    for chain in BYTES.chains(Exchange(talk(*said))):
        assert 0 < chain.trained_count < len(chain.ids)


def _with_bos(folder: Path, chat_template: str | None) -> ChatTemplate:
    """A tokenizer that puts <|im_start|> before every text by itself, as Llama's does."""
    write_byte_tokenizer(folder, chat_template=chat_template)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 256)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    assert tokenizer.encode("a").ids[0] == 256
    return ChatTemplate.load(folder)


@pytest.mark.parametrize(
    ("source", "count"),
    [("{{ bos_token }}" + CHATML.replace("<|im_start|>", "<|pad|>"), 1), (None, 1)],
    ids=["template", "plain"],
)
def test_trap_09_one_bos_in_train_and_served_ids(
    tmp_path: Path, source: str | None, count: int
) -> None:
    template = _with_bos(tmp_path, source)
    messages = talk("a", "b", "c", "d")
    chain = only(template.chains(Exchange(messages)))
    assert chain.ids.count(256) == count
    assert chain.ids[0] == 256
    assert template.prompt(messages[:3]).ids.count(256) == count


def test_trap_09_no_bos_where_template_and_tokenizer_have_none() -> None:
    for source in (CHATML.replace("<|im_start|>", "<|pad|>"), None):
        template = byte_template(chat_template=source)
        messages = talk("a", "b")
        assert 256 not in only(template.chains(Exchange(messages))).ids
        assert 256 not in template.prompt(messages[:1]).ids


def test_trap_10_the_assistants_header_carries_no_loss() -> None:
    messages = talk("q1", "a1", "q2", "a2", system="s")
    chain = only(BYTES.chains(Exchange(messages)))
    assert trained_runs(BYTES, chain) == ["a1<|im_end|>", "a2<|im_end|>"]
    masked = [token for token, on in zip(chain.ids, chain.trained, strict=True) if not on]
    text = BYTES.tokenizer.decode(masked, skip_special_tokens=False)
    assert text.count("<|im_start|>assistant\n") == 2


def test_turns_of_weight_zero_are_history_and_carry_no_loss() -> None:
    q1, a1, q2, a2 = talk("q1", "a1", "q2", "a2")
    silent = Message("assistant", "a1", weight=0)
    chain = only(BYTES.chains(Exchange((q1, silent, q2, a2))))
    assert trained_runs(BYTES, chain) == ["a2<|im_end|>"]
    assert chain.ids == only(BYTES.chains(Exchange((q1, a1, q2, a2)))).ids
    assert BYTES.chains(Exchange((q1, silent))) == ()


def test_trap_11_history_that_is_no_prefix_gives_one_chain_a_turn() -> None:
    template = byte_template(chat_template=THINKING)
    turns = talk("q1", "<think>x</think>a1", "q2", "<think>y</think>a2", "q3", "a3")
    chains = template.chains(Exchange(turns))
    assert [trained_runs(template, chain) for chain in chains] == [
        ["<think>x</think>a1<|im_end|>"],
        ["<think>y</think>a2<|im_end|>"],
        ["a3<|im_end|>"],
    ]
    for chain, end in zip(chains, (1, 3, 5), strict=True):
        assert chain.ids == template.prompt(turns[:end]).ids + template.answer(turns[end])


def test_trap_11_history_that_is_a_prefix_stays_one_chain() -> None:
    template = byte_template(chat_template=THINKING)
    chain = only(template.chains(Exchange(talk("q1", "a1", "q2", "a2"))))
    assert trained_runs(template, chain) == ["a1<|im_end|>", "a2<|im_end|>"]


def test_functions_are_written_as_text_where_the_template_has_no_place_for_them() -> None:
    messages = (
        Message("system", "Be kind."),
        Message("user", "where is it?"),
        Message("assistant", None, tool_calls=(CALL,)),
        Message("tool", '{"at": "Oslo"}', tool_call_id="call_0"),
        Message("assistant", "In Oslo."),
    )
    assert not BYTES.supports_tools
    text = BYTES.render(messages, [TOOL])
    assert text.startswith("<|im_start|>system\nBe kind.\n\nYou can call functions.")
    assert '"name": "track"' in text
    assert '<tool_call>\n{"name": "track", "arguments": {"parcel": "RR 12"}}\n</tool_call>' in text
    assert "<|im_start|>user\n<tool_response>\n" in text
    chain = only(BYTES.chains(Exchange(messages, (TOOL,))))
    first, second = trained_runs(BYTES, chain)
    assert "RR 12" in first
    assert second == "In Oslo.<|im_end|>"
    alone = BYTES.render([Message("user", "hi")], [TOOL])
    assert alone.startswith("<|im_start|>system\nYou can call functions.")


def test_functions_go_through_a_template_that_has_a_place_for_them() -> None:
    template = byte_template(chat_template=TOOLS)
    assert template.supports_tools
    text = template.render(
        [Message("user", "q"), Message("assistant", None, tool_calls=(CALL,))], [TOOL]
    )
    assert text.startswith("<|im_start|>tools\n")
    # Arguments reach the template decoded, as transformers' templates expect.
    assert '<call>{"name": "track", "arguments": {"parcel": "RR 12"}}</call>' in text


def test_names_and_special_looking_texts_come_through() -> None:
    template = byte_template(
        chat_template=CHATML.replace("{{ m['role'] }}", "{{ m['role'] }} {{ m['name'] }}")
    )
    name = 'Zoë "<&>" 名'
    text = template.render([Message("user", "<b>{{ 7 * 7 }}</b>", name=name)])
    assert text == f"<|im_start|>user {name}\n<b>{{{{ 7 * 7 }}}}</b><|im_end|>\n"
    assert template.decode(template.encode(text)) == f"user {name}\n<b>{{{{ 7 * 7 }}}}</b>\n"


def test_the_prefix_of_a_prompt_is_what_stands_before_the_first_content() -> None:
    first, second = (
        BYTES.prompt([Message("system", "same"), Message("user", text)])
        for text in ("Apples", "Apricots")
    )
    assert first.prefix == second.prefix
    text = BYTES.tokenizer.decode(list(first.prefix), skip_special_tokens=False)
    assert text == "<|im_start|>system\nsame<|im_end|>\n<|im_start|>user\n"
    assert BYTES.decode(first.prompt).startswith("Apples")
    assert BYTES.prompt(talk("Apples", "b", "c")).prefix == BYTES.encode("<|im_start|>user\n")


def test_a_mark_ends_the_prefix_behind_the_turn_that_has_it() -> None:
    shown = [Message("user", "What?"), Message("assistant", "This.", cache=True)]
    prompt = BYTES.prompt([*shown, Message("user", "Apples")])
    text = BYTES.tokenizer.decode(list(prompt.prefix), skip_special_tokens=False)
    assert text.endswith("This.<|im_end|>\n<|im_start|>user\n")
    plain = [replace(message, cache=False) for message in shown]
    assert prompt.ids == BYTES.prompt([*plain, Message("user", "Apples")]).ids
    # A mark on the last turn says nothing: the answer itself has to be computed.
    last = replace(Message("user", "Apples"), cache=True)
    assert BYTES.prompt([last]) == BYTES.prompt([replace(last, cache=False)])


def test_a_prompt_always_leaves_a_token_to_compute() -> None:
    template = byte_template(chat_template="{{ messages[0]['content'] }}")
    assert template.prompt([Message("user", "a")]).prompt
    assert BYTES.prompt([Message("system", "only")]).prefix == ()


def test_a_model_without_a_template_gets_the_plain_one_and_says_so() -> None:
    template = byte_template(chat_template=None)
    assert template.fallback
    assert not BYTES.fallback
    assert template.render(talk("q", "a")) == "[user]\nq\n[assistant]\na<|im_end|>\n"


def test_a_template_that_loses_the_answer_is_refused_with_the_turn() -> None:
    lost = CHATML.replace("{{ m['content'] }}", "{{ m['content'] if m['role'] == 'user' }}")
    with pytest.raises(RowError, match="leaves nothing of turn 2"):
        byte_template(chat_template=lost).chains(Exchange(talk("q", "a")))


def test_a_template_whose_prompt_is_no_prefix_is_refused() -> None:
    odd = CHATML + "{% if add_generation_prompt %}<think>{% endif %}"
    with pytest.raises(RowError, match="unlike its generation prompt"):
        byte_template(chat_template=odd).chains(Exchange(talk("q", "a")))


def test_a_template_that_refuses_a_row_says_why() -> None:
    strict = "{{ raise_exception('roles must alternate') }}"
    template = byte_template(chat_template=strict)
    with pytest.raises(RowError, match="roles must alternate"):
        template.render(talk("q"))


def test_ordinary_text_behind_an_answer_is_no_end_of_turn() -> None:
    template = byte_template(chat_template=CHATML.replace("<|im_end|>", "#"))
    assert template.end_of_turn == {END}


def test_every_stop_that_the_model_names_ends_a_turn(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [257, 258]}')
    assert ChatTemplate.load(tmp_path).end_of_turn == {257, 258}


def test_the_token_behind_an_answer_ends_a_turn_though_no_config_names_it() -> None:
    template = byte_template(chat_template=CHATML.replace("<|im_end|>", "<|end|>"))
    assert 258 in template.end_of_turn
    assert only(template.chains(Exchange(talk("q", "a")))).ids[-1] == 258


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"text_config": {"max_position_embeddings": 256}}, 256),
        (
            {
                "max_position_embeddings": 8192,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "original_max_position_embeddings": 1024,
                },
            },
            1024,
        ),
        (
            {
                "max_position_embeddings": 8192,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope"},
            },
            4096,
        ),
        (
            {
                "max_position_embeddings": 8192,
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default"},
                    "full_attention": {
                        "rope_type": "longrope",
                        "original_max_position_embeddings": 2048,
                    },
                },
            },
            2048,
        ),
        (
            {
                "max_position_embeddings": 8192,
                "rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 1024},
            },
            8192,
        ),
    ],
)
def test_trap_37_rows_stay_below_where_rotary_factors_follow_the_longest_row(
    tmp_path: Path, config: dict[str, object], context: int
) -> None:
    write_byte_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ChatTemplate.load(tmp_path).context == context


def test_the_fingerprint_changes_with_template_and_tokenizer() -> None:
    same, other = byte_template(), byte_template(chat_template=THINKING)
    assert BYTES.fingerprint == same.fingerprint != other.fingerprint


def test_a_folder_without_a_fast_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json.*save_pretrained"):
        ChatTemplate.load(tmp_path)


def test_a_tokenizer_without_any_end_is_refused(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path, chat_template="{{ messages[0]['content'] }}")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="names no end-of-turn token"):
        ChatTemplate.load(tmp_path)


@pytest.mark.slow
def test_trap_36_the_default_model_reads_digits_one_by_one(default_model: Path) -> None:
    template = ChatTemplate.load(default_model)
    encoded = template.tokenizer.encode("order 40712, 3.5 kg", add_special_tokens=False)
    assert [token for token in encoded.tokens if any(c.isdigit() for c in token)] == list("4071235")
    # Blank lines before a digit are one token, as the original's splitting gives; byte-level
    # splitting alone takes the last of them away from the others.
    lines = template.tokenizer.encode("a\n\n\n7", add_special_tokens=False).tokens
    assert lines == ["a", "ĊĊĊ", "7"]
    for text in ("½ ² ³", "12\n\n34", "名 7 🙂 8"):
        assert template.decode(template.encode(text)) == text
