"""Fine-tune with nothing but the openai package: python finetune.py TRAINING.jsonl [BASE_URL [MODEL]].

Start `tunesmith serve` first. All but the base_url is what one writes for OpenAI.
"""

import json
import sys
import time
from pathlib import Path

from openai import OpenAI

training = Path(sys.argv[1])
client = OpenAI(
    base_url=sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8000/v1", api_key="none"
)
base = sys.argv[3] if len(sys.argv) > 3 else "gpt-4o-mini-2024-07-18"

# Upload, create, follow.
lines = training.read_text(encoding="utf-8").splitlines(keepends=True)
held = len(lines) // 10
files = [
    client.files.create(file=(name, "".join(part).encode()), purpose="fine-tune")
    for name, part in (("train.jsonl", lines[held:]), ("held.jsonl", lines[:held]))
]
job = client.fine_tuning.jobs.create(
    model=base,
    training_file=files[0].id,
    validation_file=files[1].id,
    suffix="example",
    method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
)
seen: set[str] = set()
while True:
    job = client.fine_tuning.jobs.retrieve(job.id)
    for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=100).data):
        if event.id not in seen:
            seen.add(event.id)
            print(f"{event.level:>5}  {event.message}", flush=True)
    if job.status in ("succeeded", "failed", "cancelled"):
        break
    time.sleep(1)
if job.status != "succeeded" or job.fine_tuned_model is None:
    sys.exit(f"the job {job.status}: {job.error}")
print(f"{job.fine_tuned_model}, {job.trained_tokens} tokens, {job.method}")

# What it left.
for checkpoint in client.fine_tuning.jobs.checkpoints.list(job.id):
    print(checkpoint.fine_tuned_model_checkpoint, checkpoint.metrics.full_valid_loss)
print(client.files.content(job.result_files[0]).text.splitlines()[-1])

# Talk to it: streamed, with a schema, with a tool.
messages = [
    message for message in json.loads(lines[0])["messages"] if message["role"] != "assistant"
]
stream = client.chat.completions.create(
    model=job.fine_tuned_model, messages=messages, temperature=0, max_tokens=120, stream=True
)
print("".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))

schema = {
    "type": "object",
    "properties": {"topic": {"type": "string", "maxLength": 20}, "urgent": {"type": "boolean"}},
    "required": ["topic", "urgent"],
    "additionalProperties": False,
}
answer = client.chat.completions.create(
    model=job.fine_tuned_model,
    messages=messages,
    max_tokens=240,
    response_format={
        "type": "json_schema",
        "json_schema": {"name": "ticket", "schema": schema, "strict": True},
    },
)
print(json.loads(answer.choices[0].message.content or ""))

tool = {
    "type": "function",
    "function": {
        "name": "open_ticket",
        "description": "Open a ticket for a person.",
        "parameters": schema,
    },
}
answer = client.chat.completions.create(
    model=job.fine_tuned_model,
    messages=messages,
    tools=[tool],
    tool_choice="required",
    max_tokens=240,
)
for call in answer.choices[0].message.tool_calls or []:
    print(call.function.name, json.loads(call.function.arguments))

# Leave nothing behind.
client.models.delete(job.fine_tuned_model)
for file_id in (*(file.id for file in files), *job.result_files):
    client.files.delete(file_id)
