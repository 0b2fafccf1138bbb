from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.chat import ToolCall, write_tool_calls
from tunesmith.errors import UsageError
from tunesmith.graders.choose import choose

CALL = write_tool_calls((ToolCall("x", "find", '{"q": 1}'),))


def desk(n: int) -> list[str]:
    """Answers as a parcel desk wants them: closed fields and a reply in its own words."""
    return [
        json.dumps(
            {
                "intent": ("track", "claim", "return")[i % 3],
                "order": None if i % 2 else f"PD-{i}",
                "reply": f"We have looked at parcel {i} and it will be there soon.",
            }
        )
        for i in range(n)
    ]


def test_few_short_answers_that_recur_are_labels() -> None:
    chosen = choose(["refund", "card lost", "refund", "card lost"] * 5, with_tools=False)
    assert (chosen.task, chosen.primary) == ("labels", "exact")
    assert "2 short labels" in chosen.reason


def test_answers_that_all_differ_are_text() -> None:
    chosen = choose([f"ls -{i}" for i in range(50)], with_tools=False)
    assert (chosen.task, chosen.primary) == ("text", "chrf")


def test_answers_that_recur_but_are_long_are_text() -> None:
    assert choose(["We are sorry to hear. " * 5] * 20, with_tools=False).task == "text"


def test_json_is_recognised_and_its_prose_field_is_told() -> None:
    chosen = choose(desk(30), with_tools=False)
    assert (chosen.task, chosen.primary, chosen.prose) == ("json", "exact", ("reply",))
    assert "the wording of reply is left out of both and scored by chrF" in chosen.reason
    assert "chrf:reply" in chosen.graders[0].metrics


def test_a_few_broken_answers_do_not_hide_json() -> None:
    assert choose([*desk(40), "sorry"], with_tools=False).task == "json"


def test_a_json_field_with_a_few_recurring_long_values_is_not_prose() -> None:
    rows = [json.dumps({"policy": "send it back within thirty days"})] * 20
    assert choose(rows, with_tools=False).prose == ()


def test_answers_that_call_functions_are_calls() -> None:
    assert choose([CALL, "No function fits."], with_tools=False).task == "calls"
    assert choose([CALL] + ["Hello there."] * 30, with_tools=True).task == "calls"
    assert choose(["Write <tool_call> to call."] * 2, with_tools=True).task != "calls"


def test_named_graders_overrule_and_the_first_decides(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def polite(output, reference):\n    return 'please' in output\n")
    chosen = choose(["a", "b"] * 10, with_tools=False, named=(f"{file}:polite", "text"))
    assert (chosen.task, chosen.primary) == ("labels", "polite")
    assert [grader.name for grader in chosen.graders] == ["polite", "text"]


def test_an_unknown_grader_is_refused() -> None:
    with pytest.raises(UsageError, match="bleu is not known"):
        choose(["a"], with_tools=False, named=("bleu",))


def test_two_graders_that_give_one_metric_are_refused() -> None:
    with pytest.raises(UsageError, match="labels and json both give exact"):
        choose(["a"], with_tools=False, named=("labels", "json"))


def test_trap_35_graders_are_chosen_without_a_test_split() -> None:
    assert set(inspect.signature(choose).parameters) == {"references", "with_tools", "named"}


@pytest.mark.parametrize(
    ("name", "task"),
    [("banking77", "labels"), ("snips_slots", "json"), ("shell_commands", "text"), ("function_calls", "calls")],
)  # fmt: skip
def test_real_data_is_recognised(shared: Callable[[str], Path], name: str, task: str) -> None:
    references: list[str] = []
    for line in shared(f"{name}/train.jsonl").read_text(encoding="utf-8").splitlines()[:900]:
        row = json.loads(line)
        last = row["messages"][-1] if "messages" in row else {"content": row["label"]}
        calls = tuple(
            ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
            for call in last.get("tool_calls") or ()
        )
        references.append((last["content"] or "") + write_tool_calls(calls))
    assert choose(references, with_tools=name == "function_calls").task == task
