from __future__ import annotations

from typing import Any

from tunesmith.pipeline.results import result_csv


def step(number: int, loss: float) -> dict[str, Any]:
    return {"type": "step", "step": number, "loss": loss, "accuracy": loss / 10}


def test_the_result_file_has_a_row_a_step_and_leaves_empty_what_was_not_measured() -> None:
    events = [
        {"type": "training", "rows": 4},
        {"type": "validation", "step": 0, "loss": 9.0, "metrics": {"accuracy": 0.0}},
        step(2, 1.5),
        {"type": "validation", "step": 2, "loss": 1.23456789, "metrics": {"accuracy": 0.5}},
        {"type": "checkpoint", "step": 2, "best": 2},
        step(1, 4.0),
        step(1, 3.0),
        {"type": "trained", "step": 2, "best_step": 2},
    ]
    assert result_csv(events) == (
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n"
        "1,3.0,0.3,,\n"
        "2,1.5,0.15,1.23457,0.5\n"
    )


def test_the_result_file_of_a_job_without_steps_is_its_header() -> None:
    assert result_csv([]).count("\n") == 1
