from __future__ import annotations

from collections.abc import Callable

import pytest

from tunesmith.chat import Message
from tunesmith.data.examples import Conversation, Document, Preference, Source
from tunesmith.errors import DataError
from tunesmith.testing import byte_template
from tunesmith.train import methods

SOURCE = Source("rows.jsonl", 7)


def test_a_demonstration_is_one_chain_in_the_order_of_the_rows(
    rows: Callable[[int], list[Conversation]],
) -> None:
    template = byte_template()
    made = methods.sft(rows(5), template)
    assert made == [template.chains(row) for row in rows(5)]
    assert all(len(chains) == 1 for chains in made)


def test_trap_04_a_row_without_anything_to_learn_is_refused_by_its_place() -> None:
    silent = (Message("user", "q"), Message("assistant", "a", weight=0))
    with pytest.raises(DataError, match=r"rows\.jsonl:7 trains none or all of its tokens"):
        methods.sft([Conversation(silent, SOURCE)], byte_template())


def test_a_preference_is_no_demonstration() -> None:
    good, bad = (Message("assistant", "a"),), (Message("assistant", "b"),)
    pair = Preference((Message("user", "q"),), good, bad, SOURCE)
    with pytest.raises(DataError, match=r"rows\.jsonl:7 is a Preference"):
        methods.sft([pair], byte_template())


def test_a_document_is_one_chain_trained_from_its_second_token() -> None:
    template = byte_template()
    ((whole,), (passage,)) = methods.cpt(
        [Document("abc", SOURCE), Document("abc", SOURCE, ends=False)], template
    )
    assert whole.ids == (*passage.ids, 257)
    assert (whole.trained, passage.trained) == ((False, *[True] * 3), (False, True, True))


def test_what_is_no_text_is_refused_by_its_place(
    rows: Callable[[int], list[Conversation]],
) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1 is a Conversation"):
        methods.cpt(rows(1), byte_template())
    with pytest.raises(DataError, match=r"rows\.jsonl:7 trains none of its tokens"):
        methods.cpt([Document("a", SOURCE, ends=False)], byte_template())
    with pytest.raises(DataError, match=r"rows\.jsonl:7 is a Document"):
        methods.sft([Document("abc", SOURCE)], byte_template())
