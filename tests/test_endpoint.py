from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.chat import Completion, Message, SamplingParams
from tunesmith.endpoint import EndpointChat, Spent, cost, open_endpoint
from tunesmith.errors import EngineError, OverBudget, UsageError
from tunesmith.sections import Endpoint

PARAMS = SamplingParams(max_tokens=10)
PRICED = {"usd_per_1m_in": 10.0, "usd_per_1m_out": 100.0}


def ask(
    theirs: Any,
    folder: Path,
    questions: Sequence[str],
    params: SamplingParams = PARAMS,
    **values: Any,
) -> tuple[list[Completion | BaseException], Spent]:
    """What came of questions that were asked at once, and what they cost."""
    endpoint = Endpoint(base_url=theirs.url, model="large", **values)

    async def go() -> Any:
        async with open_endpoint(endpoint, "external", folder / "answers") as chat:
            asked = (chat.complete([Message("user", text)], params) for text in questions)
            return await asyncio.gather(*asked, return_exceptions=True), chat.spent

    return asyncio.run(go())


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)


def test_tokens_and_prices_by_hand(theirs: Any, tmp_path: Path) -> None:
    theirs.script = lambda body, number: "one two three"
    answers, spent = ask(theirs, tmp_path, ["what is this"], **PRICED)
    # 3 words in at US$ 10 and 3 out at US$ 100 a million
    assert spent == Spent(1, 0, 0, 3, 3, pytest.approx(330e-6))  # pyright: ignore[reportArgumentType]
    assert isinstance(answers[0], Completion)
    assert (answers[0].text, answers[0].kept) == ("one two three", False)


def test_an_unknown_price_stays_unknown(theirs: Any, tmp_path: Path) -> None:
    assert ask(theirs, tmp_path, ["a"], usd_per_1m_in=1.0)[1].usd is None
    endpoint = Endpoint(base_url=theirs.url, model="m", usd_per_1m_in=0.0, usd_per_1m_out=0.0)
    assert cost(endpoint, 5, 5) == 0.0
    assert cost(endpoint.model_copy(update={"usd_per_1m_out": None}), 5, 5) is None


def test_an_answer_is_paid_for_once_and_keeps_its_first_seconds(
    theirs: Any, tmp_path: Path
) -> None:
    (first,), _ = ask(theirs, tmp_path, ["a"], **PRICED)
    (again,), spent = ask(theirs, tmp_path, ["a"], **PRICED)
    assert isinstance(first, Completion)
    assert again == replace(first, kept=True)
    assert first.seconds > 0
    assert (len(theirs.seen), spent.kept) == (1, 1)
    # It still counts towards the budget: a run that is begun again has no second one.
    assert spent.usd == pytest.approx(
        cost(Endpoint(base_url=theirs.url, model="m", **PRICED), 1, 1)
    )


def test_another_question_length_or_model_is_asked_anew(theirs: Any, tmp_path: Path) -> None:
    ask(theirs, tmp_path, ["a", "b"])
    ask(theirs, tmp_path, ["a"], replace(PARAMS, max_tokens=11))
    ask(theirs, tmp_path, ["a"], max_tokens=500)
    assert [seen["max_tokens"] for seen in theirs.seen] == [10, 10, 11, 500]


def test_a_kept_answer_that_was_cut_is_asked_for_again(theirs: Any, tmp_path: Path) -> None:
    ask(theirs, tmp_path, ["a"])
    (path,) = (tmp_path / "answers").iterdir()
    path.write_bytes(path.read_bytes()[:20])
    (answer,), _ = ask(theirs, tmp_path, ["a"])
    assert isinstance(answer, Completion)
    assert (answer.text, len(theirs.seen)) == ("yes", 2)


def test_the_key_comes_from_the_variable_and_from_nowhere_else(
    theirs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of-somebody-else")
    monkeypatch.setenv("THEIR_KEY", "secret")
    ask(theirs, tmp_path, ["a"])
    ask(theirs, tmp_path, ["b"], key_env="THEIR_KEY")
    assert theirs.keys == ["Bearer none", "Bearer secret"]
    monkeypatch.delenv("THEIR_KEY")
    with pytest.raises(UsageError, match=r"THEIR_KEY is not set.*Type export THEIR_KEY="):
        ask(theirs, tmp_path, ["c"], key_env="THEIR_KEY")
    assert not [path for path in (tmp_path / "answers").iterdir() if b"secret" in path.read_bytes()]


def test_a_server_that_throttles_or_fails_or_hangs_up_is_asked_again(
    theirs: Any, tmp_path: Path
) -> None:
    first = [(429, {"Retry-After": "0.01"}, {}), (503, {}, {}), None]
    theirs.script = lambda body, number: first[number - 1] if number <= 3 else "yes"
    (answer,), spent = ask(theirs, tmp_path, ["a"])
    assert isinstance(answer, Completion)
    assert (answer.text, spent.answers, len(theirs.seen)) == ("yes", 1, 4)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((500, {}, {}), "answered 500"),
        (None, "did not answer.*Is the server running"),
        ((401, {}, {"error": {"message": "no such key"}}), "401 .*: no such key"),
        ((404, {}, {"error": {"message": "no model large"}}), "404 .*: no model large"),
        ((200, {}, {"choices": [], "usage": None}), "has no choice"),
    ],
)
def test_what_is_no_answer_says_so(theirs: Any, tmp_path: Path, answer: Any, said: str) -> None:
    theirs.script = lambda body, number: answer
    (error,), _ = ask(theirs, tmp_path, ["a"])
    assert isinstance(error, EngineError)
    with pytest.raises(EngineError, match=said):
        raise error


def test_parameters_that_newer_models_refuse_are_not_sent_and_it_is_told(
    theirs: Any, tmp_path: Path
) -> None:
    def new(body: dict[str, Any], number: int) -> Any:
        for name in ("max_tokens", "temperature"):
            if name in body:
                said = {"message": f"{name} is not supported", "param": name, "type": "x"}
                return 400, {}, {"error": said}
        return "yes"

    theirs.script = new
    answers, spent = ask(theirs, tmp_path, ["a", "b", "c"])
    assert all(isinstance(answer, Completion) for answer in answers)
    assert spent.left_out == ("max_tokens", "temperature")
    assert set(theirs.seen[-1]) == {"model", "messages", "max_completion_tokens"}
    theirs.script = lambda body, number: (
        400,
        {},
        {"error": {"message": "no", "param": "messages"}},
    )
    (error,), _ = ask(theirs, tmp_path, ["d"])
    assert isinstance(error, EngineError)


def test_answers_that_are_all_empty_stop_with_what_to_type(theirs: Any, tmp_path: Path) -> None:
    theirs.script = lambda body, number: ""
    _, spent = ask(theirs, tmp_path, "abc")
    assert (spent.answers, spent.empty) == (3, 3)
    answers, _ = ask(theirs, tmp_path, "ijklm")
    errors = [item for item in answers if isinstance(item, EngineError)]
    assert "--set external.max_tokens=2000" in str(errors[0])


def test_the_budget_stops_with_what_was_spent_and_goes_on_where_it_is_raised(
    theirs: Any, tmp_path: Path
) -> None:
    questions = [f"what is {n}" for n in range(20)]
    answers, spent = ask(theirs, tmp_path, questions, **PRICED, budget_usd=0.006)
    errors = [item for item in answers if isinstance(item, OverBudget)]
    assert 0 < spent.answers == 20 - len(errors) < 20
    assert spent.usd is not None
    assert spent.usd <= 0.006
    assert "All answers are kept" in str(errors[0])
    assert "--set external.budget_usd=0.012" in str(errors[0])
    answers, spent = ask(theirs, tmp_path, questions, **PRICED, budget_usd=1)
    assert (spent.answers, len(theirs.seen)) == (20, 20)
    with pytest.raises(UsageError, match="max_tokens=1000"):
        raise ask(theirs, tmp_path, ["z"], SamplingParams(), **PRICED, budget_usd=1)[0][0]  # type: ignore[misc]


@settings(max_examples=60, deadline=None)
@given(
    budget=st.floats(0, 0.05),
    before=st.floats(0, 0.02),
    answers=st.lists(st.tuples(st.text(max_size=40), st.integers(0, 10)), min_size=1, max_size=25),
)
def test_the_budget_is_never_passed(
    tmp_path_factory: pytest.TempPathFactory,
    budget: float,
    before: float,
    answers: list[tuple[str, int]],
) -> None:
    """Whatever a server counts as tokens: at most the bytes of what is sent, and max_tokens."""

    def serve(request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        place, _, text = body["messages"][0]["content"].partition(":")
        used = {
            "prompt_tokens": len(text.encode()) + 8,
            "completion_tokens": answers[int(place)][1],
        }
        choice = {"message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
        value = {"choices": [{"index": 0, **choice}], "usage": {**used, "total_tokens": 0}}
        return httpx2.Response(200, json=value)

    endpoint = Endpoint(base_url="http://there/v1", model="m", budget_usd=budget, **PRICED)

    async def go() -> tuple[list[Any], Spent]:
        http = httpx2.AsyncClient(transport=httpx2.MockTransport(serve))
        async with openai.AsyncOpenAI(
            base_url="http://there/v1", api_key="k", http_client=http
        ) as c:
            folder = tmp_path_factory.mktemp("answers")
            chat = EndpointChat(c, endpoint, section="judge", folder=folder, before=before)
            asked = [
                chat.complete([Message("user", f"{place}:{text}")], PARAMS)
                for place, (text, _) in enumerate(answers)
            ]
            return await asyncio.gather(*asked, return_exceptions=True), chat.spent

    got, spent = asyncio.run(go())
    assert spent.usd is not None
    assert spent.answers == 0 or before + spent.usd <= budget
    assert all(isinstance(item, Completion | OverBudget) for item in got), got
    assert spent.answers == sum(isinstance(item, Completion) for item in got)
    assert asdict(spent)["kept"] == 0
