"""How surprised the base is by answers, and by its chat template's own tokens."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.checks.report import Finding
from tunesmith.checks.suspects import Suspect, shortened
from tunesmith.data.examples import Conversation
from tunesmith.models.template import ChatTemplate

FAR = 5.0
NATS = 2.0
"""An answer is noise only where each token costs so much more than is usual."""
KNOWN = 0.5
"""The base gives an answer word for word more often than not: nothing to learn."""
TEMPLATE_NATS = 1.0
"""A model that was trained on its template gives the header of an answer 0.0 to 0.1 nats a token."""


@dataclass(frozen=True, slots=True)
class Header:
    """A prompt's ids and which of them, from `start` on, its template wrote before the answer.

    The first token behind the last turn's text is not among them: where a person ends is nobody's
    to know.
    """

    ids: tuple[int, ...]
    start: int


def header(template: ChatTemplate, row: Conversation) -> Header | None:
    """The answer's header in a rendered prompt; None where it is one token or none.

    Raises:
        RowError: the template refuses the row.
    """
    text = template.render(row.prompt, row.tools, generation=True)
    last = (row.prompt[-1].content or "").strip() if row.prompt else ""
    end = text.rfind(last) + len(last)
    found = template.tokenizer.encode(text, add_special_tokens=False)
    behind = [place for place, (start, _) in enumerate(found.offsets) if start >= end]
    if len(behind) < 2 or not last or not behind[0]:
        return None
    return Header(tuple(found.ids), behind[1])


def template_findings(surprises: Sequence[float], *, fallback: bool) -> tuple[Finding, ...]:
    """The finding that a chat template is not the model's own.

    Args:
        surprises: mean nats of the header's tokens, a number a row.
        fallback: the model ships no template, so that any template surprises it.
    """
    if not surprises or fallback:
        return ()
    mean = statistics.fmean(surprises)
    if mean <= TEMPLATE_NATS:
        return ()
    message = (
        f"the chat template's own tokens surprise the model ({mean:.1f} nats a token, where a model "
        "that was trained on its template has under 0.1): it is another model's template, or the "
        "model was never trained on one"
    )
    remedy = (
        "Compare chat_template in the model's folder with the one its makers publish; for a base "
        "that was never trained to chat, choose an instruction-tuned --model or expect to need more "
        "rows."
    )
    return (Finding("template", "warning", (), message, remedy, len(surprises)),)


def answers(
    logprobs: Sequence[Sequence[float]], said: Sequence[str], where: Sequence[str]
) -> tuple[list[Suspect], list[Suspect]]:
    """Answers that cost the base far more a token than is usual, and those that it knows already.

    Args:
        logprobs: the natural-log probability of each token of each answer.
    """
    costs = [-statistics.fmean(tokens) for tokens in logprobs]
    if not costs:
        return [], []
    usual = statistics.median(costs)
    spread = 1.4826 * statistics.median(abs(cost - usual) for cost in costs)
    cut = usual + max(NATS, FAR * spread)
    strange = [
        Suspect(
            place,
            where[place],
            "surprise",
            cost,
            f"{shortened(said[place])} ({cost:.1f} nats a token, usual {usual:.1f})",
        )
        for place, cost in enumerate(costs)
        if cost > cut
    ]
    known = [
        Suspect(place, where[place], "surprise", math.exp(sum(tokens)), f"{shortened(said[place])}")
        for place, tokens in enumerate(logprobs)
        if sum(tokens) > math.log(KNOWN)
    ]
    return strange, known
