"""TRL's SFTTrainer with PEFT, on the same ids, adapter, order and rate, one turn at a time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer
from turn import THREADS, Clock, Turns

RATE = 5e-4


class OnTurn(TrainerCallback):
    """Holds the trainer's loop before a step until it is its turn."""

    def __init__(self, turns: Turns, steps: int, rows: int) -> None:
        self.turns, self.steps, self.rows = turns, steps, rows
        self.losses: list[float] = []
        self.clock: Clock | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Wait for the turn."""
        if self.clock is None:
            if not self.turns.wait():
                raise SystemExit
            self.losses, self.clock = [], Clock()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """A step is over; the turn's last one hands it back."""
        if logs and "loss" in logs and self.clock is not None:
            self.losses.append(logs["loss"])
            if len(self.losses) == self.steps:
                units = self.rows * self.steps
                self.turns.say({"units": units, "losses": self.losses, **self.clock.read()})
                self.clock = None


class InOrder(SFTTrainer):
    """The rows as they come."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def main() -> None:
    """`python peer_trl.py sft FOLDER NAME SETTINGS`."""
    folder, name, settings = Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
    turns = Turns()
    torch.set_num_threads(THREADS)
    asked = json.loads((folder / "work.json").read_text()) | settings
    work = json.loads((folder / f"sft-{name}.json").read_text())
    # What is not trained has the label -100.
    rows = [
        {
            "input_ids": row["ids"],
            "labels": [i if on else -100 for i, on in zip(row["ids"], row["trained"], strict=True)],
        }
        for row in work["rows"]
    ]
    dtype = torch.bfloat16 if asked["weights"] == "bfloat16" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=dtype)
    model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True)
    config = SFTConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=work["batch"],
        max_steps=len(rows) // work["batch"],
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=asked["autocast"],
        use_cpu=True,
        padding_free=asked["padding_free"],
        max_length=None,
        gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        shuffle_dataset=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        optim="adamw_torch_fused",
        seed=0,
    )
    trainer = InOrder(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(asked["model"]),
        callbacks=[OnTurn(turns, asked["steps"], work["batch"])],
    )
    turns.say({"ready": True})
    trainer.train()


if __name__ == "__main__":
    main()
