"""Is this data fit to learn from? One pass over the rows, every check looking at each."""

from __future__ import annotations

from collections.abc import Callable

from tunesmith.checks.balance import Labels
from tunesmith.checks.duplicates import Fingerprints
from tunesmith.checks.form import Form
from tunesmith.checks.leakage import leakage
from tunesmith.checks.privacy import Privacy
from tunesmith.checks.report import Report, by_severity, distribution
from tunesmith.checks.row import look
from tunesmith.checks.template import TemplateCheck
from tunesmith.checks.tokens import Lengths, TooLong
from tunesmith.data.dataset import Dataset
from tunesmith.data.split import Split
from tunesmith.models.template import ChatTemplate

STRIDE = 500


def check(
    dataset: Dataset,
    split: Split | None,
    template: ChatTemplate | None,
    *,
    max_tokens: int,
    too_long: TooLong = "stop",
    dropped_tokens: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Look at every row of a dataset once, and at its split for leakage.

    Rows are never held: per row 32 bytes of fingerprints stay.

    Args:
        split: None where there is none yet; leakage is then not looked for.
        template: None where no model is at hand; tokens and template are then not looked at.
        max_tokens: longest row, in tokens.
        too_long: how the data was read: rows refused for their length are an error on `stop`.
        dropped_tokens: what `Refiner.dropped_tokens` says after reading, for the ledger.
        progress: told how many rows have been seen, every 500 rows and at the end.
    """
    form, labels, privacy, prints = Form(), Labels(), Privacy(), Fingerprints()
    rendering = TemplateCheck(template) if template is not None else None
    lengths = Lengths(max_tokens)
    count = 0
    for count, example in enumerate(dataset, 1):
        row = look(example)
        for part in (form, labels, privacy, prints):
            part.see(row)
        rendered = rendering.see(row) if rendering is not None else None
        if rendered is not None:
            lengths.see(row, rendered)
        if progress is not None and count % STRIDE == 0:
            progress(count)
    if progress is not None:
        progress(count)
    findings = [
        *form.findings(dataset, too_long),
        *lengths.findings(),
        *prints.findings(dataset.groups, dataset.duplicates, labels=labels.counts is not None),
        *(leakage(split) if split is not None else ()),
        *privacy.findings(),
        *labels.findings(),
        *(rendering.findings() if rendering is not None else ()),
    ]
    return Report(
        by_severity(findings),
        lengths.ledger(dropped_tokens) if rendering is not None else None,
        distribution(form.turns),
        distribution(lengths.tokens),
        # Documents have no answers.
        distribution(lengths.answers) if form.turns else None,
        labels.counts,
    )
