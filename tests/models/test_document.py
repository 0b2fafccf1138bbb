from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from tunesmith.models import document
from tunesmith.models.template import ChatTemplate
from tunesmith.testing import byte_template

END, BOS = 257, 256


def with_bos() -> ChatTemplate:
    """A tokenizer that writes bos before every text, and eos behind it."""
    template = byte_template()
    template.tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>",
        special_tokens=[("<|im_start|>", BOS), ("<|im_end|>", END)],
    )
    return template


def test_every_token_is_trained_but_the_first() -> None:
    template = byte_template()
    a, b = template.encode("ab")
    whole = document.chain(template, "ab", ends=True)
    assert (whole.ids, whole.trained) == ((a, b, END), (False, True, True))
    passage = document.chain(template, "ab", ends=False)
    assert (passage.ids, passage.trained) == ((a, b), (False, True))
    assert document.chain(template, "a", ends=False).trained_count == 0


def test_bos_is_the_first_token_where_the_tokenizer_writes_one() -> None:
    template = with_bos()
    a, b = template.encode("ab")
    passage = document.chain(template, "ab", ends=False)
    assert (passage.ids, passage.trained) == ((BOS, a, b), (False, True, True))
    assert document.chain(template, "ab", ends=True).ids == (BOS, a, b, END)


def test_a_text_ends_with_the_stop_that_is_older_than_the_chat() -> None:
    template = byte_template()
    template.end_of_turn = frozenset((259, 258, 257))
    assert document.end_of_text(template) == 257


def test_the_bytes_of_what_is_predicted() -> None:
    template = byte_template()
    assert document.predicted_bytes(template, "abc") == 2
    assert document.predicted_bytes(template, "aé") == 2
    # The first of the two tokens of é stands for the whole character.
    assert document.predicted_bytes(template, "éa") == 1
    assert document.predicted_bytes(template, "") == 0
    assert document.predicted_bytes(with_bos(), "éa") == 3


def test_a_long_text_is_cut_in_like_pieces_at_its_best_borders() -> None:
    template = byte_template()
    text = "One two.\n\nThree four. Five\nsix seven eight nine"
    assert document.cut(template, text, 100) == [text]
    assert document.cut(template, text, 31) == [
        "One two.\n\nThree four. ",
        "Five\nsix seven eight nine",
    ]
    assert document.cut(template, "x" * 10, 6) == ["xxxxx", "xxxxx"]
    assert document.cut(template, "x", 1) == []


@pytest.mark.parametrize("template", [byte_template(), with_bos()])
@given(text=st.text(max_size=200), most=st.integers(6, 40))
def test_pieces_fit_and_are_the_text(template: ChatTemplate, text: str, most: int) -> None:
    pieces = document.cut(template, text, most)
    assert "".join(pieces) == text
    assert all(len(document.chain(template, piece, ends=True).ids) <= most for piece in pieces)
