from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tunesmith.chat import Message, SamplingParams, Tool
from tunesmith.data.examples import Conversation, Source
from tunesmith.rag import retrieval
from tunesmith.rag.chunks import Chunk
from tunesmith.rag.index import Index
from tunesmith.rag.retrieval import Library, Retrieval
from tunesmith.testing import scripted_chat

TEXTS = {
    "otter": "Otters eat fish.",
    "heron": "Herons eat frogs and fish.",
    "zebra": "Zebras eat grass.",
    "whale": "Whales eat krill.",
}
CHUNKS = [Chunk(n, Source("zoo.md", i), n, text, True) for i, (n, text) in enumerate(TEXTS.items())]
NAMED = frozenset(TEXTS)


def fits(messages: Sequence[Message], tools: Sequence[Tool]) -> bool:
    return True


@pytest.fixture
def library() -> Library:
    index = asyncio.run(Index.build(CHUNKS, None))
    return Library(index, None, 2, cites=True, fits=fits)


def row(question: str, answer: str, document: str = "", line: int = 1) -> Conversation:
    turns = (
        Message("system", "Be brief."),
        Message("user", question),
        Message("assistant", answer),
    )
    return Conversation(turns, Source("r", line), (), document)


def test_the_question_is_looked_up_and_asked_behind_numbered_passages(library: Library) -> None:
    model = Retrieval(scripted_chat(lambda messages: messages[-1].content or ""), library)
    asked = [Message("system", "Be brief."), Message("user", "What do otters eat?")]
    answer = asyncio.run(model.complete(asked, SamplingParams())).text
    assert answer == (
        "Answer the question from these passages. After the answer, cite the passage that it is "
        "from by its number, as in [1].\n\n"
        "[1] otter: Otters eat fish. (zoo.md:0)\n\n[2] zebra: Zebras eat grass. (zoo.md:2)\n\n"
        "Question: What do otters eat?"
    )


def test_what_has_no_room_is_left_out_from_the_end(library: Library) -> None:
    asked = [Message("user", "otters and herons and fish")]
    assert len(asyncio.run(library.shown(asked))) == 2
    tight = replace(library, fits=lambda messages, _: len(messages[-1].content or "") < 220)
    assert len(asyncio.run(tight.shown(asked))) == 1
    none = replace(library, fits=lambda messages, _: False)
    assert asyncio.run(none.shown(asked)) == []
    assert retrieval.ask(asked, [], cites=True) == asked


def test_citations_are_read_back_and_taken_off() -> None:
    said = "Fish [1], and frogs [1, 2]. See [7] and [2024]."
    assert retrieval.read_citations(said, CHUNKS[:2]) == (
        "Fish, and frogs. See [7] and [2024].",
        ("zoo.md:0", "zoo.md:1"),
    )
    assert retrieval.read_citations("None.", CHUNKS) == ("None.", ())
    assert retrieval.has_citations("as in [3]")
    assert not retrieval.has_citations("a[i] = [x]")


def lesson(library: Library, asked: Conversation) -> Conversation:
    (ranked,) = asyncio.run(library.rank([retrieval.question(asked.prompt)]))
    return retrieval.lesson(asked, ranked, library, NAMED, 0)


def test_lessons_show_the_right_passage_to_four_of_five_rows_and_cite_it(library: Library) -> None:
    rows = [row("Who eats fish?", "Herons", "heron", line) for line in range(200)]
    lessons = [lesson(library, each) for each in rows]
    shown = [CHUNKS[1].text in (each.prompt[-1].content or "") for each in lessons]
    assert 0.7 < sum(shown) / 200 < 0.9
    for each, right in zip(lessons, shown, strict=True):
        prompt = each.prompt[-1].content or ""
        assert each.prompt[0] == rows[0].prompt[0]
        assert CHUNKS[0].text in prompt
        number = 1 if "[1] heron: " in prompt else 2
        assert each.answer.content == (f"Herons [{number}]" if right else "Herons")
    assert [lesson(library, each) for each in rows] == lessons


def test_a_right_passage_that_was_not_found_is_put_among_the_distractors(library: Library) -> None:
    rows = [row("Who eats fish?", "They", "whale", line) for line in range(60)]
    answers = {lesson(library, each).answer.content for each in rows}
    assert answers == {"They", "They [1]", "They [2]"}


def test_rows_that_name_no_document_cite_the_passage_with_their_answer(library: Library) -> None:
    answers = {
        lesson(library, row("Who eats fish?", "frogs", line=n)).answer.content for n in range(40)
    }
    assert answers <= {"frogs", "frogs [1]", "frogs [2]"}
    assert len(answers) == 2
    lost = lesson(library, row("Who eats fish?", "nobody knows"))
    assert lost.answer.content == "nobody knows"
    assert "[2]" in (lost.prompt[-1].content or "")


def test_the_right_passage_is_the_last_to_go_where_there_is_little_room(library: Library) -> None:
    tight = replace(library, fits=lambda messages, _: len(messages[-1].content or "") < 220)
    asked = row("Who eats fish?", "frogs", "heron")
    found = retrieval.as_asked(asked, [CHUNKS[0], CHUNKS[1]], tight, [CHUNKS[1]])
    assert found.answer.content == "frogs [1]"
    assert CHUNKS[0].text not in (found.prompt[-1].content or "")


def test_without_citing_answers_stay_as_they_are(library: Library) -> None:
    quiet = replace(library, cites=False)
    found = retrieval.as_asked(row("q", "frogs", "heron"), CHUNKS[:2], quiet, [CHUNKS[1]])
    assert found.answer.content == "frogs"
    assert "cite" not in (found.prompt[-1].content or "")
