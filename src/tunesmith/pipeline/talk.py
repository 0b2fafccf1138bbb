"""From a name to something that answers, and a conversation with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tunesmith.chat import Message, SamplingParams
from tunesmith.data.examples import Conversation
from tunesmith.data.split import read_jsonl
from tunesmith.models import fetch
from tunesmith.models.catalog import DEFAULT
from tunesmith.serve.router import Deployment, Router
from tunesmith.store import RegisteredModel, Store

LOOKED_AT = 200
ANSWER = 1024
"""Most tokens of an answer: a model that has not learned to stop would fill its context."""


def deployment(
    store: Store, name: str | None, *, say: Callable[[str], None] = lambda _: None
) -> Deployment:
    """The weights behind a name: a registered model, or a base that is fetched if need be.

    Raises:
        ModelError: there is no such model.
    """
    found = store.model(name) if name else None
    if found is None:
        spec = fetch.resolve(name or DEFAULT, say=say)
        return Deployment(spec.name, spec.name, spec.folder)
    return Deployment.registered(found.name, found.base, found.base_folder, found.adapter_folder)


def usual_system(model: RegisteredModel | None) -> str | None:
    """The system message that a tuned model saw most often in training, or None."""
    if model is None:
        return None
    rows = Path(model.adapter_folder or model.base_folder).parent / "data" / "train.jsonl"
    if not rows.is_file():
        return None
    seen: Counter[str | None] = Counter()
    for place, example in enumerate(read_jsonl(rows)):
        if place == LOOKED_AT:
            break
        if isinstance(example, Conversation):
            first = example.messages[0]
            seen[first.content if first.role == "system" else None] += 1
    return seen.most_common(1)[0][0] if seen else None


async def talk(
    place: Deployment,
    *,
    system: str | None,
    temperature: float,
    once: str | None,
    show: Callable[[str], None],
    note: Callable[[str], None] = lambda _: None,
    max_tokens: int = ANSWER,
) -> None:
    """Ask once, or go on until the end of input.

    Args:
        note: told when an answer was cut at `max_tokens`.
    """
    messages = [Message("system", system)] if system else []
    params = SamplingParams(temperature=temperature, max_tokens=max_tokens)
    async with Router(logs=fetch.home() / "logs", max_rows=1) as router:
        model = (await router.engine(place)).chat(place.name)
        while True:
            try:
                text = once if once is not None else input("> ")
            except EOFError:
                return
            messages.append(Message("user", text))
            answer = await model.complete(messages, params)
            show(answer.text + "\n")
            if answer.finish_reason == "length":
                note(f"cut at {max_tokens:,} tokens; --max-tokens N allows more")
            messages.append(Message("assistant", answer.text))
            if once is not None:
                return
