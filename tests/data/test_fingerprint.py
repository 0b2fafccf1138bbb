from __future__ import annotations

import numpy as np

from tunesmith.chat import Message, ToolCall
from tunesmith.data import fingerprint
from tunesmith.data.examples import Conversation, Document, Preference, Source, UnpairedPreference


def _row(asked: str, answer: str = "fine", system: str = "", line: int = 1) -> Conversation:
    first = (Message("system", system),) if system else ()
    turns = (*first, Message("user", asked), Message("assistant", answer))
    return Conversation(turns, Source("f", line))


def _groups(*rows: Conversation) -> list[int]:
    keys = np.array([fingerprint.prompt_key(row, normal=True) for row in rows], np.uint64)
    return fingerprint.group(fingerprint.Signer().sign(rows), keys).tolist()


_LONG = "my parcel from Lisbon has not arrived and the tracking page shows nothing since Monday "


def test_a_digest_passes_over_place_ids_and_the_order_of_keys_in_arguments() -> None:
    def call(id: str, arguments: str, line: int) -> Conversation:
        made = Message("assistant", None, tool_calls=(ToolCall(id, "f", arguments),))
        return Conversation((Message("user", "a"), made), Source("f", line))

    one = fingerprint.digest(call("a", '{"x": 1, "y": 2}', 1))
    assert one == fingerprint.digest(call("b", '{"y":2,"x":1}', 9))
    assert one != fingerprint.digest(call("a", '{"x": 1, "y": 3}', 1))
    assert len(one) == 16


def test_a_digest_tells_kinds_labels_weights_and_answers_apart() -> None:
    asked, good, poor = Message("user", "a"), Message("assistant", "b"), Message("assistant", "c")
    at = Source("f", 1)
    rows = [
        Conversation((asked, good), at),
        Conversation((asked, poor), at),
        Conversation((asked, Message("assistant", "b", weight=0.5)), at),
        Preference((asked,), (good,), (poor,), at),
        Preference((asked,), (poor,), (good,), at),
        UnpairedPreference((asked,), (good,), True, at),
        UnpairedPreference((asked,), (good,), False, at),
    ]
    assert len({fingerprint.digest(row) for row in rows}) == len(rows)


def test_prompts_that_differ_in_case_punctuation_or_system_are_one_group() -> None:
    rows = (
        _row("Where is it?"),
        _row("where is it", "elsewhere"),
        _row("WHERE, is it!", system="s"),
    )
    assert len(set(_groups(*rows))) == 1
    assert fingerprint.prompt_key(rows[0]) != fingerprint.prompt_key(rows[1])


def test_near_copies_are_one_group_and_others_are_not() -> None:
    one, two, three, four = _groups(
        _row(_LONG + "and nobody answers the phone"),
        _row(_LONG + "and nobody answers the phones"),
        _row("please change the address of order 12 to the one of my office in the centre"),
        _row("日本語の問い合わせです"),
    )
    assert one == two
    assert len({one, three, four}) == 3


def test_a_prompt_that_most_rows_have_joins_nobody() -> None:
    rows = [_row("Write a post.", f"{n * 7919} is about {n**5} things") for n in range(25)]
    others = (_row("another prompt"), _row("a third prompt"), _row("a third, prompt", "no"))
    assert len(set(_groups(*rows, *others))) == 27
    assert len(set(_groups(*rows[:19], *others))) == 3


def test_a_template_around_the_text_makes_no_near_copies() -> None:
    template = "Read the message below, decide what the customer wants and answer in one word: "
    words = ["lamp", "river", "judge", "violin", "cactus", "engine", "marble", "pigeon"]
    rows = [_row(template + f"{words[n % 8]} {words[n // 8]} {n * 7919}") for n in range(40)]
    plain = fingerprint.Signer().sign(rows)
    known = fingerprint.Signer(rows).sign(rows)
    keys = np.array([fingerprint.prompt_key(row) for row in rows], np.uint64)
    assert len(set(fingerprint.group(plain, keys).tolist())) < 10
    assert len(set(fingerprint.group(known, keys).tolist())) > 35


def test_signatures_estimate_the_jaccard_similarity_of_shingles() -> None:
    def shingles(text: str) -> set[str]:
        padded = f" {text} fine "
        return {padded[at : at + 5] for at in range(len(padded) - 4)}

    off: list[float] = []
    for n in range(40):
        left = f"{_LONG}{n} " + "abc " * n
        right = f"{_LONG}{n} " + "xyz w" * (n // 2)
        signed = fingerprint.Signer().sign([_row(left), _row(right)])
        left, right = " ".join(left.split()), " ".join(right.split())
        a, b = shingles(left), shingles(right)
        off.append(float((signed[0] == signed[1]).mean()) - len(a & b) / len(a | b))
    assert abs(float(np.mean(off))) < 0.05
    assert float(np.abs(off).max()) < 0.35


def test_nearest_finds_the_copy_in_another_set() -> None:
    signer = fingerprint.Signer()
    left = signer.sign([_row(_LONG), _row("something else altogether, about cats")])
    right = signer.sign([_row("dogs"), _row(_LONG.upper()), _row("birds of the north")])
    assert fingerprint.nearest(left, right).tolist() == [1, -1]
    assert fingerprint.nearest(left, right[:0]).tolist() == [-1, -1]


def test_the_shortest_texts_have_signatures() -> None:
    signed = fingerprint.Signer().sign([_row("", ""), _row("?", "!"), _row("a", "b")])
    assert signed.shape == (3, 32)
    assert fingerprint.Signer().sign([]).shape == (0, 32)


def test_a_document_is_known_by_its_text_wherever_it_ends() -> None:
    one, two = (Document("To be, or not to be.", Source("f", n), n == 1) for n in (1, 2))
    assert (
        fingerprint.digest(one)
        == fingerprint.digest(two)
        != fingerprint.digest(Document("To be", Source("f", 1)))
    )
    assert fingerprint.prompt_key(one, normal=True) == fingerprint.prompt_key(
        Document("to be or not to be", Source("g", 1)), normal=True
    )
    signed = fingerprint.Signer().sign([one, two])
    assert (signed[0] == signed[1]).all()


def test_rows_join_what_their_numbers_do() -> None:
    texts = [Document(f"{n} {n * 7919} {n**5}", Source("f", n)) for n in range(6)]
    signatures = fingerprint.Signer().sign(texts)
    prompts = np.array([fingerprint.prompt_key(text) for text in texts], np.uint64)
    joined = fingerprint.group(signatures, prompts, np.array([4, 2, 4, 3, 2, 2])).tolist()
    assert joined[0] == joined[2]
    assert joined[1] == joined[4] == joined[5]
    assert len(set(joined)) == 3
    assert len(set(fingerprint.group(signatures, prompts).tolist())) == 6
