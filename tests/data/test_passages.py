from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.passages import Passage, passages

PLAY = "First:\nSpeak.\n\nAll:\nSpeak,\nspeak.\n\n\nFirst:\nOne word.\n"


def test_whole_paragraphs_are_joined_while_they_fit() -> None:
    # Paragraphs of 15, 21 and 17 characters, their blank lines included.
    assert list(passages(io.StringIO(PLAY), 36)) == [
        Passage(1, "First:\nSpeak.\n\nAll:\nSpeak,\nspeak.\n\n\n", ends=False),
        Passage(9, "First:\nOne word.\n", ends=True),
    ]
    assert [passage.line for passage in passages(io.StringIO(PLAY), 21)] == [1, 4, 9]
    assert list(passages(io.StringIO(PLAY))) == [Passage(1, PLAY, ends=True)]


def test_a_long_paragraph_is_cut_after_a_line_and_a_long_line_after_a_word() -> None:
    lines = list(passages(io.StringIO("one two\nthree\nfour five\n"), 14))
    assert [passage.text for passage in lines] == ["one two\nthree\n", "four five\n"]
    words = list(passages(io.StringIO("one two three four"), 9))
    assert [passage.text for passage in words] == ["one two ", "three ", "four"]
    assert [passage.line for passage in words] == [1, 1, 1]
    letters = list(passages(io.StringIO("x" * 20), 9))
    assert [len(passage.text) for passage in letters] == [9, 9, 2]


texts = st.text(st.sampled_from("ab .\n\u00a0é"), min_size=1, max_size=300)


@given(texts, st.integers(2, 40))
def test_nothing_is_lost_and_nothing_is_too_long(text: str, size: int) -> None:
    made = list(passages(io.StringIO(text, newline="\n"), size))
    assert "".join(passage.text for passage in made) == text
    assert all(0 < len(passage.text) <= size for passage in made)
    assert [passage.ends for passage in made] == [False] * (len(made) - 1) + [True]
    before = ""
    for passage in made:
        assert passage.line == 1 + before.count("\n")
        before += passage.text
