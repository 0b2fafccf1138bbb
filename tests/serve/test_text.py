from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from tunesmith.serve.text import AnswerText, Detokenizer, StopScanner


def decode_bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


@given(st.text())
@example("🙂👩‍👩‍👧 né Ωمرحبا")
@example("a real \ufffd in the text")
def test_pieces_join_to_the_text_and_none_ends_inside_a_character(text: str) -> None:
    detokenizer = Detokenizer(decode_bytes)
    pieces = [detokenizer.feed(byte) for byte in text.encode()]
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text
    assert "".join(pieces) + detokenizer.flush(cut=False) == text


@given(st.lists(st.integers(0, 255)))
def test_pieces_join_to_what_the_decoder_makes_of_any_bytes(ids: list[int]) -> None:
    detokenizer = Detokenizer(decode_bytes)
    pieces = [detokenizer.feed(byte) for byte in ids]
    assert "".join(pieces) + detokenizer.flush(cut=False) == decode_bytes(ids)


def test_a_decoder_that_looks_at_the_token_before_is_shown_it() -> None:
    words = ["▁one", "▁two", "▁three"]

    def decode(ids: Sequence[int]) -> str:
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    detokenizer = Detokenizer(decode)
    assert [detokenizer.feed(i) for i in range(3)] == ["one", " two", " three"]


def test_an_answer_cut_off_inside_a_character_ends_before_it() -> None:
    answer = AnswerText(decode_bytes, ())
    smile = "🙂".encode()
    pieces = [answer.feed(byte, None, None) for byte in b"ok" + smile[:2]]
    pieces.append(answer.feed(smile[2], None, "length"))
    assert "".join(piece.text for piece in pieces) == "ok"
    assert pieces[-1].finish == "length"


def test_a_stop_string_over_several_pieces_is_never_let_through() -> None:
    scanner = StopScanner(("STOP",))
    assert [scanner.feed(piece) for piece in ("a S", "T", "ONE ", "ST", "OP", "x")][:5] == [
        "a ",
        "",
        "STONE ",
        "",
        "",
    ]
    assert scanner.stopped


def test_of_two_stop_strings_the_one_complete_first_ends_the_text() -> None:
    scanner = StopScanner(("bcd", "c"))
    assert scanner.feed("abcd") == "ab"


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(ends)]


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(0, 99)),
)
def test_what_is_sent_does_not_depend_on_how_the_text_was_cut(
    text: str, stops: list[str], places: list[int]
) -> None:
    def sent(pieces: list[str]) -> str:
        scanner, out = StopScanner(stops), ""
        for piece in pieces:
            out += scanner.feed(piece)
            if scanner.stopped:
                return out
        return out + scanner.flush()

    whole = sent(list(text))
    assert sent(cut(text, places)) == whole
    assert not any(stop in whole for stop in stops)
    assert text.startswith(whole)


def test_log_probabilities_go_with_their_text_and_none_with_a_stop_string() -> None:
    answer = AnswerText(decode_bytes, ("##",))
    pieces = [answer.feed(byte, {"byte": chr(byte)}, None) for byte in b"a#b##"]
    assert ["".join(e["byte"] for e in piece.entries) for piece in pieces] == [
        "a",
        "",
        "#b",
        "",
        "",
    ]
    assert pieces[-1].finish == "stop"
    assert answer.tokens == 5


def test_the_end_of_turn_is_counted_but_is_no_text() -> None:
    answer = AnswerText(decode_bytes, ("hi!",))
    pieces = [answer.feed(byte, None, None) for byte in b"hi"] + [answer.feed(0, None, "stop")]
    assert [piece.text for piece in pieces] == ["", "", "hi"]
    assert answer.tokens == 3
