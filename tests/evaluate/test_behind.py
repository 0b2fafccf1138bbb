from __future__ import annotations

import numpy as np

from tunesmith.chat import Message
from tunesmith.data.examples import Conversation, Source
from tunesmith.evaluate.behind import Pairs, behind, sentence, wrong
from tunesmith.evaluate.evaluation import Sample


def sample(name: str, output: str, score: float, prompt: str = "where is my card") -> Sample:
    return Sample(name, prompt, "right", output, {"exact": score}, 1, 1, 0.1, "stop")


def row(line: int, prompt: str, answer: str) -> Conversation:
    messages = (Message("user", prompt), Message("assistant", answer))
    return Conversation(messages, Source("train.jsonl", line))


def test_the_wrong_answers_are_those_of_score_zero_or_of_the_lowest_quarter() -> None:
    binary = [sample(f"t:{n}", "x", float(n % 2)) for n in range(6)]
    assert [found.id for found in wrong(binary, "exact")] == ["t:0", "t:2", "t:4"]
    assert [found.id for found in wrong(binary, "exact", most=2)] == ["t:0", "t:2"]
    graded = [sample(f"t:{n}", "x", n / 10) for n in range(1, 10)]
    assert [found.id for found in wrong(graded, "exact")] == ["t:1", "t:2", "t:3"]
    assert wrong([sample("t:1", "x", 1.0)], "exact") == []
    assert wrong(binary, "other") == []


def test_rows_behind_an_answer_are_nearest_by_prompt_and_by_answer_and_say_who_carries_it() -> None:
    train = [
        row(12, "where is the card", "lost"),
        row(40, "my card is where", "lost"),
        row(7, "a card from where", "right"),
        row(9, "top up", "lost"),
    ]
    prompts = np.array([[1, 0], [0.96, 0.28], [0.8, 0.6], [0, 1]], np.float32)
    answers = np.eye(2, dtype=np.float32)[[0, 0, 1, 0]]
    pairs = Pairs(prompts, answers, np.eye(2, dtype=np.float32)[:1], answers[:1])
    (found,) = behind([sample("t:3", " lost ", 0.0)], train, pairs)
    rows = [(near["row"], near["carries"]) for near in found["by_prompt"]]
    assert rows == [("train.jsonl:12", True), ("train.jsonl:40", True), ("train.jsonl:7", False)]
    rows = [near["row"] for near in found["by_answer"]]
    assert rows == ["train.jsonl:12", "train.jsonl:40", "train.jsonl:9"]
    assert [near["cosine"] for near in found["by_prompt"]] == [1.0, 0.96, 0.8]
    assert found["sentence"] == "answered as train.jsonl:12 and train.jsonl:40 do, asked alike"
    assert (found["id"], found["output"], found["reference"]) == ("t:3", " lost ", "right")


def test_the_sentence_tells_rows_that_ask_alike_from_others_and_from_none() -> None:
    train = [row(1, "a", "lost"), row(2, "b", "right")]
    eye = np.eye(2, dtype=np.float32)
    (found,) = behind([sample("t:1", "made up", 0.0)], train, Pairs(eye, eye, eye[:1], -eye[:1]))
    assert found["sentence"] == "no training row answers so"
    assert not any(near["carries"] for near in (*found["by_prompt"], *found["by_answer"]))
    others = [row(1, "a", "right"), row(2, "b", "right"), row(3, "c", "right"), row(4, "d", "lost")]
    eye = np.eye(4, dtype=np.float32)
    (found,) = behind([sample("t:1", "lost", 0.0)], others, Pairs(eye, eye, eye[:1], eye[3:]))
    assert found["sentence"] == "answered as train.jsonl:4, where other things are asked"
    assert sentence([], []) == "no training row answers so"
