from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tunesmith.errors import RowError
from tunesmith.models.constrain import DIGITS, Constraint, Grammar, Vocabulary, check
from tunesmith.models.generate import Request, Sampler, ScoreRequest, Token
from tunesmith.models.load import load
from tunesmith.models.template import ChatTemplate
from tunesmith.testing import byte_template

END = 257


def schema(value: dict[str, Any]) -> str:
    return "start: %json " + json.dumps({**value, "x-guidance": {"whitespace_flexible": False}})


@pytest.fixture(scope="module")
def letters() -> Vocabulary:
    """A token a byte, and logits for more tokens than there are."""
    return Vocabulary(byte_template(), 300)


def follow(grammar: Grammar, text: str) -> Constraint | None:
    """The place behind a text; None when it does not follow the grammar."""
    constraint = grammar.begin()
    ids = byte_template().encode(text)
    for token in ids:
        allowed = constraint.allowed()
        if allowed is None or not allowed[token]:
            return None
        constraint.take(token)
    return constraint


def may_end(constraint: Constraint | None) -> bool:
    allowed = constraint.allowed() if constraint else None
    return allowed is not None and bool(allowed[END])


OBJECT = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
    "required": ["a"],
    "additionalProperties": False,
}


def test_an_answer_ends_where_the_schema_is_fulfilled_and_nowhere_else(letters: Vocabulary) -> None:
    grammar = letters.compile(schema(OBJECT))
    assert may_end(follow(grammar, '{"a":1}'))
    assert may_end(follow(grammar, '{"a":1,"b":"né"}'))
    for half in ("", "{", '{"a":1', '{"a":1,"b":"n'):
        assert not may_end(follow(grammar, half))
    for wrong in ('{"b"', '{"a":"', '{"a": 1', '{"a":1}x', "[", '{"c"'):
        assert follow(grammar, wrong) is None


def test_a_mask_is_as_wide_as_the_logits_and_special_tokens_are_no_text(
    letters: Vocabulary,
) -> None:
    constraint = follow(letters.compile(schema(OBJECT)), '{"a":1,"b":"')
    assert constraint is not None
    allowed = constraint.allowed()
    assert allowed is not None
    assert allowed.shape == (300,)
    assert not allowed[256:].any()
    finished = follow(letters.compile(schema(OBJECT)), '{"a":1,"b":""}')
    assert finished is not None
    last = finished.allowed()
    assert last is not None
    assert np.flatnonzero(last).tolist() == [END]


@pytest.mark.parametrize("start", ["-", "0.", "1", ""])
def test_numbers_end(letters: Vocabulary, start: str) -> None:
    grammar = letters.compile(schema({"type": "array", "items": {"type": "number"}}))
    text = "[" + start + "9" * (DIGITS - sum(c.isdigit() for c in start))
    full = follow(grammar, text)
    assert full is not None
    allowed = full.allowed()
    assert allowed is not None
    assert not any(allowed[byte_template().encode(c)[0]] for c in "0123456789eE")
    assert allowed[byte_template().encode("]")[0]]
    assert follow(grammar, text + ',12,"') is None
    assert follow(grammar, "[1e") is None


def test_digits_in_strings_and_digits_that_are_asked_for_are_free(letters: Vocabulary) -> None:
    text = letters.compile(schema({"type": "string"}))
    assert may_end(follow(text, '"' + "1" * 40 + '\\"' + "2" * 40 + 'e5"'))
    asked = "1" + "0" * 17
    constant = letters.compile(schema({"const": int(asked)}))
    assert may_end(follow(constant, asked))
    prose = letters.compile("start: /[0-9]*/", numbers=False)
    assert follow(prose, "3" * 40) is not None


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "type": ({"type": "foo"}, "Invalid type: foo"),
    "keyword": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "reference": ({"$ref": "https://example.com/x"}, "not present"),
    "nothing": ({"type": "string", "minLength": 5, "maxLength": 2}, "Unsatisfiable"),
    "itself": ({"$ref": "#"}, "NoExtension"),
    "for ever": (
        {"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]},
        "nothing can be written",
    ),
    "divisor": ({"type": "integer", "multipleOf": 99_999_989}, "too complex"),
    "patterns": (
        {"allOf": [{"type": "string", "pattern": f"^.*a.{{{i}}}b.*$"} for i in range(20, 60)]},
        "too complex",
    ),
    "ways": (
        {"type": "object", "properties": {f"p{i}": {} for i in range(1500)}},
        "nothing can be written",
    ),
    "size": ({"enum": ["x" * 100] * 1000}, "characters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_with_a_reason_and_soon(
    letters: Vocabulary, name: str
) -> None:
    value, said = REFUSED[name]
    started = time.process_time()
    with pytest.raises(RowError, match=said):
        letters.compile(schema(value))
    assert time.process_time() - started < 2


def test_what_can_be_said_again_may_go_on(letters: Vocabulary) -> None:
    tree = {"type": "object", "properties": {"x": {"$ref": "#"}}, "additionalProperties": False}
    assert may_end(follow(letters.compile(schema(tree)), '{"x":' * 20 + "{}" + "}" * 20))


def test_a_grammar_is_read_apart_before_it_is_compiled() -> None:
    check(schema(OBJECT))
    with pytest.raises(RowError):
        check("start: (")


def spelt(model: Any, decoder: Any) -> ChatTemplate:
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoder
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["</s>"])
    end = tokenizer.token_to_id("</s>")
    return ChatTemplate(tokenizer, None, specials={"eos_token": "</s>"}, stops=(end,), context=64)


@pytest.mark.parametrize("kind", ["unigram", "pairs"])
def test_a_tokenizer_that_llguidance_does_not_know_is_spelt_out(kind: str) -> None:
    plain = ["{", "}", '"', ":", "a", "b", "1", "▁1", '{"']
    if kind == "unigram":
        model = models.Unigram([("<unk>", 0.0), *((token, -1.0) for token in plain)], unk_id=0)
        template = spelt(model, decoders.Metaspace())
    else:
        # Byte pairs over words, without a token for each byte.
        model = models.BPE({token: place for place, token in enumerate([*plain, "▁"])}, [])
        template = spelt(model, decoders.Metaspace())
    vocabulary = Vocabulary(template, template.tokenizer.get_vocab_size())
    allowed = vocabulary.compile(schema(OBJECT)).begin().allowed()
    assert allowed is not None
    found = {template.tokenizer.id_to_token(int(i)) for i in np.flatnonzero(allowed)}
    # What is sure to come is written as the tokenizer would write it.
    assert found == {'{"'}


def answers(sampler: Sampler, asked: list[Request]) -> dict[str, list[Token]]:
    for request in asked:
        sampler.submit(request)
    out: dict[str, list[Token]] = {request.id: [] for request in asked}
    while not sampler.idle:
        for token in sampler.step():
            out[token.request].append(token)
    return out


def test_rows_with_a_grammar_follow_it_and_those_without_answer_as_ever(
    tiny: Callable[..., Path],
) -> None:
    model = load(tiny())
    vocabulary = Vocabulary(model.template, model.vocabulary)
    held = {**OBJECT, "properties": {"a": {"enum": [1, 22, 333]}, "b": {"enum": ["x", "né"]}}}
    grammar = vocabulary.compile(schema(held))
    free = [
        Request(f"free{n}", (), (n, 2, 3), max_tokens=12, temperature=float(n % 2), seed=n)
        for n in range(4)
    ]
    bound = [
        Request(f"bound{n}", (), (n, 2, 3), 40, temperature=float(n % 2), seed=n, grammar=grammar)
        for n in range(6)
    ]
    alone = answers(Sampler(model), free)
    mixed = [row for pair in zip(bound, free, strict=False) for row in pair] + bound[4:]
    together = answers(Sampler(model), mixed)
    for request in free:
        # Every id and every log-probability, to the last bit.
        assert together[request.id] == alone[request.id]
    for request in bound:
        tokens = together[request.id]
        assert tokens[-1].finish == "stop"
        said = json.loads(model.template.decode([token.id for token in tokens[:-1]]))
        assert said["a"] in (1, 22, 333)
        assert said.get("b", "x") in ("x", "né")


def test_log_probabilities_are_the_models_own(tiny: Callable[..., Path]) -> None:
    model = load(tiny(), dtype="float32")
    grammar = Vocabulary(model.template, model.vocabulary).compile(schema({"const": "ab"}))
    asked = Request("r", (), (1, 2), 20, grammar=grammar, top_logprobs=1)
    tokens = answers(Sampler(model), [asked])["r"]
    assert model.template.decode([token.id for token in tokens[:-1]]) == '"ab"'
    given = ScoreRequest((), (1, 2), tuple(token.id for token in tokens))
    [scored] = Sampler(model).score([given])
    assert [token.logprob for token in tokens] == pytest.approx(scored, abs=1e-4)
    assert all(token.top[0][1] >= token.logprob for token in tokens)


def test_a_bias_is_added_before_the_choice_and_not_reported(tiny: Callable[..., Path]) -> None:
    model = load(tiny())
    plain = answers(Sampler(model), [Request("r", (), (1, 2), 4)])["r"]
    pushed = answers(Sampler(model), [Request("r", (), (1, 2), 4, bias=((65, 100.0),))])["r"]
    assert [token.id for token in pushed] == [65] * 4
    banned = Request("r", (), (1, 2), 4, bias=((plain[0].id, -100.0),))
    assert answers(Sampler(model), [banned])["r"][0].id != plain[0].id
    top = answers(Sampler(model), [replace(banned, top_logprobs=1)])["r"][0].top
    assert top[0] == (plain[0].id, pytest.approx(plain[0].logprob, abs=1e-6))


def test_a_grammar_that_becomes_too_complex_ends_its_row_alone(tiny: Callable[..., Path]) -> None:
    model = load(tiny())
    grammar = Vocabulary(model.template, model.vocabulary).compile(schema({"type": "string"}))

    class Lost:
        def allowed(self) -> None:
            return None

    class Losing(Grammar):
        def __init__(self) -> None:
            pass

        def begin(self) -> Any:
            return Lost()

    both = [
        Request("lost", (), (1, 2), 5, grammar=Losing()),
        Request("fine", (), (1, 2), 5, grammar=grammar),
    ]
    got = answers(Sampler(model), both)
    assert [token.finish for token in got["lost"]] == ["failed"]
    assert len(got["fine"]) > 1
