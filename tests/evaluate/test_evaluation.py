from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tunesmith.chat import (
    ChatModel,
    Completion,
    Message,
    SamplingParams,
    Tool,
    ToolCall,
    Usage,
    write_tool_calls,
)
from tunesmith.data.examples import Conversation, Source
from tunesmith.errors import EngineError
from tunesmith.evaluate.evaluation import Answered, Arm, Measured, evaluate, row_ids, written
from tunesmith.graders.labels import LABELS
from tunesmith.graders.text import TEXT
from tunesmith.testing import scripted_chat

PARAMS = SamplingParams(max_tokens=8)


def row(question: str, answer: str, line: int = 1) -> Conversation:
    turns = (Message("user", question), Message("assistant", answer))
    return Conversation(turns, Source("rows.jsonl", line))


ROWS = [row(f"is {i} even?", "yes" if i % 2 == 0 else "no", i + 1) for i in range(12)]


def measure(model: ChatModel, rows: Sequence[Conversation] = ROWS, **settings: object) -> Measured:
    arm = Arm("base", "base", model)
    return asyncio.run(evaluate(arm, rows, [LABELS], params=PARAMS, **settings))  # type: ignore[arg-type]


def test_scores_by_hand() -> None:
    found = measure(scripted_chat(lambda messages: "yes"))
    assert [sample.scores["exact"] for sample in found.samples] == [1.0, 0.0] * 6
    assert (found.scores["exact"].value, found.scores["exact"].n) == (0.5, 12)
    # yes has 6 hits of 12 given and 6 wanted, no has none
    assert found.scores["f1"].value == pytest.approx((2 / 3) / 2)
    assert found.scores["f1"].low <= 1 / 3 <= found.scores["f1"].high


def test_a_sample_says_where_it_is_from_and_what_was_asked() -> None:
    sample = measure(scripted_chat(lambda messages: "yes it is")).samples[1]
    assert (sample.id, sample.prompt, sample.reference) == ("rows.jsonl:2", "is 1 even?", "no")
    assert (sample.output, sample.tokens_in, sample.tokens_out) == ("yes it is", 3, 3)
    assert sample.finish_reason == "stop"
    assert sample.seconds >= 0


def test_trap_32_evaluating_twice_in_any_order_and_batch_gives_the_same_numbers() -> None:
    model = scripted_chat(lambda messages: "yes" if "2" in (messages[-1].content or "") else "no")
    once, again = measure(model), measure(model)
    assert once.scores == again.scores
    turned = measure(model, ROWS[::-1], concurrency=1)
    assert turned.scores["exact"] == once.scores["exact"]
    assert {s.id: s.output for s in turned.samples} == {s.id: s.output for s in once.samples}


class _Counting:
    def __init__(self) -> None:
        self.now, self.most = 0, 0

    async def complete(
        self, messages: Sequence[Message], params: SamplingParams, tools: Sequence[Tool] = ()
    ) -> Completion:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.001)
        self.now -= 1
        return Completion(str(params.max_tokens), "length", Usage(1, 1))


def test_requests_run_side_by_side_but_no_more_than_asked() -> None:
    model, told = _Counting(), []
    found = measure(model, concurrency=5, progress=lambda done, total: told.append((done, total)))
    assert model.most == 5
    assert told == [(i, 12) for i in range(1, 13)]
    assert {sample.output for sample in found.samples} == {"8"}


def test_an_engine_error_is_raised_not_scored() -> None:
    def script(messages: Sequence[Message]) -> str:
        if "7" in (messages[-1].content or ""):
            raise EngineError("the engine is gone")
        return "yes"

    with pytest.raises(EngineError, match="gone"):
        measure(scripted_chat(script))


class _Scorer:
    async def logprobs(
        self, messages: Sequence[Message], answer: Message, tools: Sequence[Tool] = ()
    ) -> list[float]:
        return [-1.0, -2.0] if answer.content == "yes" else [-4.0]


def test_logprob_is_there_where_the_arm_has_a_scorer() -> None:
    model = scripted_chat(lambda messages: "yes")
    assert "logprob" not in measure(model).scores
    arm = Arm("tuned", "tuned", model, scorer=_Scorer())
    found = asyncio.run(evaluate(arm, ROWS, [TEXT], params=PARAMS))
    assert found.scores["logprob"].value == pytest.approx((-1.5 - 4.0) / 2)
    assert found.scores["logprob"].n == 12


def test_build_decides_what_is_sent_and_clusters_follow_the_rows_own_prompt() -> None:
    model = scripted_chat(lambda messages: messages[0].content or "")
    arm = Arm("prompt", "prompt", model, build=lambda row: (Message("system", "no"), *row.prompt))
    rows = [row("same", "no", 1), row("same", "yes", 2), row("other", "no", 3)]
    found = asyncio.run(evaluate(arm, rows, [LABELS], params=PARAMS))
    assert {sample.output for sample in found.samples} == {"no"}
    first, second, third = (sample.cluster for sample in found.samples)
    assert first == second != third


def test_rows_of_one_line_have_ids_that_do_not_depend_on_their_order() -> None:
    short, long = row("a", "b", 4), row("a longer one", "b", 4)
    assert row_ids([row("x", "y", 1), short]) == ["rows.jsonl:1", "rows.jsonl:4"]
    assert row_ids([short, long]) == row_ids([long, short])[::-1]
    assert set(row_ids([short, long])) == {"rows.jsonl:4", "rows.jsonl:4#2"}


def test_calls_are_part_of_what_was_written_once() -> None:
    calls = (ToolCall("1", "find", "{}"),)
    text = write_tool_calls(calls)
    usage = Usage(1, 1)
    assert written(Completion("", "tool_calls", usage, 0, calls)) == text
    assert written(Completion(text, "tool_calls", usage, 0, calls)) == text
    assert written(Completion("hello", "stop", usage)) == "hello"


def test_what_is_read_of_an_answer_is_graded_and_what_it_cites_is_kept() -> None:
    async def read(asked: Conversation, output: str) -> Answered:
        assert asked in ROWS
        return Answered(output.removesuffix(" [1]"), ("a.md:1",), ("a passage",))

    arm = Arm("rag", "rag", scripted_chat(lambda messages: "yes [1]"), read=read)
    found = asyncio.run(evaluate(arm, ROWS, [LABELS], params=PARAMS))
    assert found.scores["exact"].value == 0.5
    sample = found.samples[0]
    assert (sample.output, sample.cited, sample.passages) == ("yes", ("a.md:1",), ("a passage",))
