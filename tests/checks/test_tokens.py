from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.chat import Message, ToolCall
from tunesmith.checks.row import look, trains
from tunesmith.checks.template import Rendered, render, render_row
from tunesmith.checks.tokens import Lengths, TooLong, refiner
from tunesmith.data.examples import Conversation, Document, Preference, Source
from tunesmith.errors import RowError
from tunesmith.models.template import ChatTemplate

Talk = Callable[..., Conversation]


def longest(template: ChatTemplate, row: Conversation) -> int:
    return max(len(chain.ids) for chain in template.chains(row))


def test_a_row_that_fits_comes_back_as_it_is(template: ChatTemplate, talk: Talk) -> None:
    row = talk("Where is it?", "In Kiel.")
    assert refiner(template, 4096, "stop")(row) == (row,)


def test_a_row_that_has_passed_is_not_rendered_again(template: ChatTemplate, talk: Talk) -> None:
    refine = refiner(template, 4096, "stop")
    refine(talk("Where is it?", "In Kiel.", line=2))
    # Words that do not render show that the template was not asked.
    passed = talk("poison", "In Kiel.", line=2)
    assert refine(passed) == (passed,)
    for place in ({"line": 1}, {"line": 3}, {"line": 2, "file": "others.jsonl"}):
        with pytest.raises(RowError):
            refine(talk("poison", "In Kiel.", **place))


@pytest.mark.parametrize(
    ("mode", "says"),
    [("stop", "--set data.too_long=split"), ("drop", "Shorten it"), ("split", "no border")],
)
def test_trap_12_a_row_that_is_too_long_is_refused_and_counted_never_cut(
    template: ChatTemplate, talk: Talk, mode: TooLong, says: str
) -> None:
    row = talk("q" * 100, "a" * 1100)
    refine = refiner(template, 1000, mode)
    with pytest.raises(RowError) as caught:
        refine(row)
    tokens = longest(template, row)
    assert caught.value.found == f"too long: {tokens:,} tokens"
    assert caught.value.expected == "at most 1,000"
    assert says in caught.value.remedy
    assert "data.max_tokens" in caught.value.remedy
    with pytest.raises(RowError):
        refine(row)
    assert refine.dropped_tokens == tokens


def test_a_preference_pair_that_is_too_long_is_refused_whole(template: ChatTemplate) -> None:
    pair = Preference(
        (Message("user", "q"),),
        (Message("assistant", "short"),),
        (Message("assistant", "l" * 2000),),
        Source("pairs.jsonl", 4),
    )
    with pytest.raises(RowError, match="too long"):
        refiner(template, 1000, "split")(pair)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=2, max_size=9),
    system=st.booleans(),
)
def test_split_trains_every_answer_once_and_every_piece_fits(
    template: ChatTemplate, lengths: list[tuple[int, int]], system: bool
) -> None:
    turns = [Message("system", "Be brief.")] if system else []
    for index, (question, answer) in enumerate(lengths):
        turns += [Message("user", "q" * question), Message("assistant", f"{index}" * answer)]
    row = Conversation(tuple(turns), Source("rows.jsonl", 7))
    limit = 230
    pieces = refiner(template, limit, "split")(row)
    assert all(isinstance(piece, Conversation) for piece in pieces)
    trained = [m for piece in pieces for m in piece.messages if trains(m)]
    assert trained == [m for m in row.messages if m.role == "assistant"]
    for piece in pieces:
        assert longest(template, piece) <= limit
        assert piece.messages[-1].role == "assistant"
        assert piece.source == row.source
        assert (piece.messages[0].role == "system") is system


def test_a_piece_with_room_repeats_the_turns_before_it_without_weight(
    template: ChatTemplate, talk: Talk
) -> None:
    row = talk("q1", "a" * 50, "q2", "b" * 50, "q3", "c" * 20)
    two = longest(template, replace(row, messages=row.messages[:4]))
    first, second = refiner(template, two, "split")(row)
    assert first.messages == row.messages[:4]
    assert [(m.content or "")[0] for m in second.messages] == ["q", "b", "q", "c"]
    assert [m.weight for m in second.messages] == [None, 0.0, None, None]


def test_a_call_its_result_and_the_answer_stay_in_one_piece(template: ChatTemplate) -> None:
    call = ToolCall("1", "track", '{"parcel": 17}')
    exchange = (
        Message("user", "Where is 17?"),
        Message("assistant", None, tool_calls=(call,)),
        Message("tool", "Kiel", tool_call_id="1"),
        Message("assistant", "In Kiel."),
    )
    row = Conversation(exchange * 2, Source("rows.jsonl", 1))
    limit = longest(template, replace(row, messages=exchange))
    pieces = refiner(template, limit, "split")(row)
    assert [piece.messages for piece in pieces] == [exchange, exchange]


def test_lengths_name_rows_beyond_near_and_split(talk: Talk) -> None:
    lengths = Lengths(100)
    for line, tokens in [(1, 10), (2, 101), (3, 95), (4, 50), (4, 60), (4, 70)]:
        lengths.see(look(talk("q", "a", line=line)), Rendered(tokens, (tokens - 8,), 8))
    said = {finding.severity: finding for finding in lengths.findings()}
    assert said["error"].rows == ("rows.jsonl:2",)
    assert said["note"].rows == ("rows.jsonl:3",)
    assert said["warning"].rows == ("rows.jsonl:4",)
    assert "1 row longer than 100 tokens split into 3 pieces" in said["warning"].message
    ledger = lengths.ledger(7)
    assert (ledger.trained_tokens, ledger.masked_tokens) == (386 - 48, 48)
    assert ledger.dropped_tokens == 7
    assert lengths.tokens == Counter([10, 101, 95, 50, 60, 70])


def test_the_ledger_counts_the_bytes_of_the_answer_and_its_end(
    template: ChatTemplate, talk: Talk
) -> None:
    rendered = render(template, talk("where", "in Kiel", "thanks", "bye"))
    assert rendered.turns == (len("in Kiel") + 1, len("bye") + 1)


def test_a_document_is_split_into_passages_that_fit_and_only_the_last_one_ends(
    template: ChatTemplate,
) -> None:
    text = Document("One line.\n" * 30, Source("book.txt", 4))
    assert refiner(template, 301, "stop")(text) == (text,)
    made = refiner(template, 100, "split")(text)
    pieces = [piece for piece in made if isinstance(piece, Document)]
    assert "".join(piece.text for piece in pieces) == text.text
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert {piece.source for piece in pieces} == {text.source}
    assert all(render_row(template, look(piece)).tokens <= 100 for piece in pieces)
    going_on = refiner(template, 100, "split")(replace(text, ends=False))
    assert not any(piece.ends for piece in going_on if isinstance(piece, Document))
    with pytest.raises(RowError, match="too long: 301 tokens"):
        refiner(template, 100, "stop")(text)


def test_a_document_of_one_token_is_refused(template: ChatTemplate) -> None:
    with pytest.raises(RowError, match=r"no token .* expected two tokens or more"):
        refiner(template, 100, "split")(Document("a", Source("f", 1), ends=False))
