"""Before training: the model found, the data read, checked and split, `auto` made numbers."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from tunesmith.chat import answer_text
from tunesmith.checks.check import check
from tunesmith.checks.report import Finding, Report, distribution
from tunesmith.checks.tokens import Refiner, TooLong
from tunesmith.data.dataset import Dataset, read
from tunesmith.data.examples import Conversation, Document, Example, Rejected
from tunesmith.data.split import Split, split, write_jsonl
from tunesmith.errors import DataError, UsageError
from tunesmith.models import document
from tunesmith.models.catalog import ModelSpec
from tunesmith.models.template import Chain, ChatTemplate
from tunesmith.pipeline.folder import RunFolder
from tunesmith.rag import documents as rag
from tunesmith.rag.documents import Documents
from tunesmith.recipe import Recipe, with_values
from tunesmith.sections import RETRIEVING, DataSection
from tunesmith.train import auto
from tunesmith.train.spec import steps

Told = Callable[[int], None]


@dataclass(frozen=True)
class Prepared:
    """The data of a run, read and divided; nothing of it is held in memory."""

    dataset: Dataset
    held_out: tuple[Dataset, ...]
    """The user's own validation and test files."""
    split: Split
    refiner: Refiner | None
    documents: Documents | None = None
    """What the arms that retrieve look things up in."""

    @property
    def files(self) -> tuple[Dataset, ...]:
        """Everything that was read."""
        return (self.dataset, *self.held_out)

    @property
    def key(self) -> str:
        """Hash of all rows."""
        prints = [part.fingerprint for part in self.files]
        return hashlib.sha256("".join(prints).encode()).hexdigest()

    def rejected(self) -> Iterator[Rejected]:
        """Every row that is not used, read anew."""
        for part in self.files:
            yield from part.rejected()
            yield from part.duplicate_rows()
        yield from self.split.leaked_rows()

    def counts(self) -> dict[str, int]:
        """The rows of report.json: rows = used + rejected + duplicates."""
        rows = sum(part.rows for part in self.files)
        duplicates = sum(part.duplicates for part in self.files)
        bad = sum(part.bad for part in self.files) + self.split.leaked
        return {
            "rows": rows,
            "used": rows - bad - duplicates,
            "rejected": bad,
            "duplicates": duplicates,
            "train": len(self.split.train),
            "validation": len(self.split.validation),
            "test": len(self.split.test),
        }


def learnable(recipe: Recipe) -> None:
    """Refuse rows that the method does not learn from, before any is read.

    Raises:
        UsageError: text, with a method that learns from demonstrations; or the other way round.
    """
    if recipe.data.format == "text" and recipe.method.type != "cpt":
        raise UsageError(
            f"data.format=text with method.type={recipe.method.type}",
            expected="demonstrations",
            remedy="To learn from text as it is, type --set method.type=cpt.",
        )
    if recipe.method.type == "cpt" and (recipe.train.replay or recipe.train.canaries):
        raise UsageError(
            "train.replay or train.canaries with method.type=cpt",
            expected="method.type=sft: their rows are demonstrations",
        )


def comparable(recipe: Recipe) -> None:
    """Refuse to compare answers where none are learned, and to look things up in nothing.

    Raises:
        UsageError: pre-training, which has its own measure; an arm that needs documents without any.
    """
    asked = [arm for arm in RETRIEVING if arm in recipe.arms]
    if asked and not recipe.data.docs:
        raise UsageError(f"evaluate.arms={asked[0]} without documents", remedy="Give --docs.")
    if recipe.method.type == "cpt":
        raise UsageError(
            "method.type=cpt learns from text, in which there is nothing to answer",
            remedy="Type tunesmith train: it measures held-out text before and after.",
        )


def measurable(prepared: Prepared) -> None:
    """A run compares; without rows for it, it would train for hours and then fail.

    Raises:
        UsageError: neither test nor validation rows.
    """
    if not len(prepared.split.test) and not len(prepared.split.validation):
        raise UsageError(
            "there are neither test nor validation rows",
            expected="rows to compare the arms on",
            remedy="Give --test N, or train without comparing: tunesmith train.",
        )


def gather(
    data: DataSection, template: ChatTemplate | None, *, seed: int, told: Told | None = None
) -> Prepared:
    """Read and split the data as the recipe says.

    Raises:
        DataError: no files, or none that can be read.
    """
    if not data.files:
        raise UsageError("no data was named", expected="one or more files, or - for standard input")
    limit = max_tokens(data, template)
    refiner = Refiner(template, limit, too_long(data)) if template else None
    own = [x for x in (*data.files, data.validation, data.test) if isinstance(x, str)]
    documents = rag.read(data.docs, own=own) if data.docs else None

    def take(files: tuple[str, ...], most: int | None) -> Dataset:
        return read(
            files,
            format=data.format,
            columns=data.map,
            limit=most,
            seed=seed,
            keep_duplicates=data.duplicates == "keep",
            refine=refiner,
            progress=told,
            answers=documents.answers if documents else {},
        )

    dataset = take(data.files, data.limit)
    sizes = {
        name: take((value,), None) if isinstance(value, str) and value != "auto" else value
        for name, value in (("validation", data.validation), ("test", data.test))
    }
    held_out = tuple(part for part in sizes.values() if isinstance(part, Dataset))
    divided = split(dataset, validation=sizes["validation"], test=sizes["test"], seed=seed)  # pyright: ignore[reportArgumentType]
    return Prepared(dataset, held_out, divided, refiner, documents)


def max_tokens(data: DataSection, template: ChatTemplate | None) -> int:
    """The longest row that is accepted, in tokens."""
    context = template.context if template else 2**31
    return context if data.max_tokens == "auto" else min(int(data.max_tokens), context)


def too_long(data: DataSection) -> TooLong:
    """What becomes of rows that are too long: half a text is a text, half an answer is none."""
    if data.too_long == "auto":
        return "split" if data.format == "text" else "stop"
    return data.too_long


def examine(
    prepared: Prepared, data: DataSection, template: ChatTemplate | None, told: Told | None = None
) -> Report:
    """All checks over what was gathered."""
    dropped = prepared.refiner.dropped_tokens if prepared.refiner else 0
    report = check(
        prepared.dataset,
        prepared.split,
        template,
        max_tokens=max_tokens(data, template),
        too_long=too_long(data),
        dropped_tokens=dropped,
        progress=told,
    )
    return replace(report, findings=(*report.findings, *_of_documents(prepared)))


def _of_documents(prepared: Prepared) -> Iterator[Finding]:
    """What there is to say of the documents, and of the answers that rows have from them."""
    documents = prepared.documents
    if documents is None:
        return
    for note in documents.notes:
        yield Finding("documents", "note", (), f"{note}.", "", 0)
    rows = (row for part in prepared.files for row in part if isinstance(row, Conversation))
    same = [r for r in rows if r.document and documents.answers.get(r.document) == r.answer.content]
    if same:
        places = tuple(f"{row.source.file}:{row.source.line}" for row in same[:20])
        said = f"{len(same):,} rows are answered by what the document says that they name."
        yield Finding("documents", "note", places, said, "", len(same))


def refuse(prepared: Prepared, data: DataSection, report: Report) -> None:
    """Stop before any training where the data is not fit for it.

    Raises:
        DataError: an error among the findings, no row left, or more bad rows than `data.max_bad`.
    """
    rows, bad = (sum(getattr(part, name) for part in prepared.files) for name in ("rows", "bad"))
    if data.on_error == "stop" and bad > data.max_bad * rows:
        raise DataError(
            f"{bad:,} of {rows:,} rows are bad ({bad / rows:.0%})",
            expected=f"at most {data.max_bad:.0%}",
            remedy="Mend them, or go on without them with --set data.on_error=skip.",
        )
    errors = report.errors
    if errors:
        raise DataError(errors[0].message, remedy=errors[0].remedy)
    if not len(prepared.split.train):
        raise DataError("no row is left to train on", expected="examples")


def write_data(prepared: Prepared, folder: RunFolder) -> None:
    """data/*.jsonl: the rows used, and every row not used with its reason."""
    folder.data.mkdir(parents=True, exist_ok=True)
    for name in ("train", "validation", "test"):
        write_jsonl(getattr(prepared.split, name), folder.data / f"{name}.jsonl")
    with (folder.data / "rejected.jsonl").open("w", encoding="utf-8", newline="\n") as out:
        for item in prepared.rejected():
            out.write(json.dumps(_entry(item), ensure_ascii=False) + "\n")


def _entry(item: Rejected) -> dict[str, Any]:
    return {
        "file": item.source.file,
        "line": item.source.line,
        "reason": item.reason,
        "row": item.row,
    }


def demonstrations(examples: Iterable[Example]) -> list[Conversation]:
    """Examples as conversations.

    Raises:
        DataError: a row is a preference or a rating, which supervised fine-tuning does not take.
    """
    out: list[Conversation] = []
    for example in examples:
        if not isinstance(example, Conversation):
            text = isinstance(example, Document)
            where = f"{example.source.file}:{example.source.line}"
            raise DataError(
                f"{where} is a text" if text else f"{where} is a preference or a rating",
                expected="demonstrations (a prompt with the answer that is wanted)",
                remedy="tunesmith train --set method.type=cpt learns from text."
                if text
                else "method.type=sft learns from demonstrations; keep the preferred answers.",
            )
        out.append(example)
    return out


@dataclass(frozen=True, slots=True)
class Ledger:
    """Tokens of one pass over the training rows, and how long answers are, end of turn included."""

    trained: int
    masked: int
    longest_answer: int
    usual_answer: int
    """95 % of the answers are no longer."""


def weigh(prepared: Prepared, template: ChatTemplate) -> Ledger:
    """Count what will be trained and what is only read."""
    trained = masked = 0
    lengths = Counter[int]()
    for example in prepared.split.train:
        for path in _chains(example, template):
            trained += path.trained_count
            masked += len(path.ids) - path.trained_count
    for example in chain(prepared.split.train, prepared.split.validation):
        if isinstance(example, Conversation):
            lengths[template.tokens(answer_text(example.answer)) + 1] += 1
    found = distribution(lengths)
    return Ledger(trained, masked, found.largest if found else 0, found.p95 if found else 0)


def _chains(example: Example, template: ChatTemplate) -> Sequence[Chain]:
    if isinstance(example, Document):
        return [document.chain(template, example.text, ends=example.ends)]
    return template.chains(example) if isinstance(example, Conversation) else ()


def resolve_auto(
    recipe: Recipe, parts: Split, ledger: Ledger, model: ModelSpec, template: ChatTemplate
) -> tuple[Recipe, list[str]]:
    """The recipe with every `auto` made a number, and the reasons."""
    train, values, rows = recipe.train, dict[str, Any](), len(parts.train)
    reasons: list[str] = []

    def settle(key: str, given: Any, choice: auto.Choice) -> Any:
        if given != "auto":
            return given
        values[key] = choice.value
        reasons.append(f"{key} = {choice.value:g} ({choice.reason})")
        return choice.value

    of_text = recipe.method.type == "cpt"
    passes, pieces = (
        (auto.text_epochs(ledger.trained), auto.text_rows(rows, ledger.trained))
        if of_text
        else (auto.epochs(rows), auto.batch_rows(rows))
    )
    epochs = settle("train.epochs", train.epochs, passes)
    batch = settle("train.batch_rows", train.batch_rows, pieces)
    count = steps(rows, batch, epochs)
    full = recipe.method.adapter == "full"
    weight = ledger.trained / rows / auto.TEXT_ROW if of_text else 1
    rate = auto.learning_rate(width(model.folder), count, batch * weight, full=full)
    settle("train.learning_rate", train.learning_rate, rate)
    settle("train.save_every", train.save_every, auto.save_every(count))
    settle("train.max_batch_tokens", train.max_batch_tokens, auto.max_batch_tokens())
    if not full:
        settle("method.rank", recipe.method.rank, auto.rank(ledger.trained))
    if recipe.method.embeddings == "auto":
        values["method.embeddings"] = full
    if recipe.method.adapter == "qlora":
        values["model.dtype"] = "nf4"
    if not of_text:
        settle("evaluate.max_tokens", recipe.evaluate.max_tokens, _room(ledger, template.context))
    for name in ("validation", "test"):
        if getattr(recipe.data, name) == "auto":
            values[f"data.{name}"] = len(getattr(parts, name))
    values["data.format"] = recipe.reading.format
    values["data.too_long"] = too_long(recipe.reading)
    values["data.max_tokens"] = max_tokens(recipe.data, template)
    values["model.revision"] = model.revision
    return with_values(recipe, values), reasons


def _room(ledger: Ledger, context: int) -> auto.Choice:
    """Tokens that an answer may have when it is measured: the longest reference and a quarter.

    Long texts have outliers, and a model that rambles takes all the room it is given: beyond 256
    tokens the usual reference decides.
    """
    longest, usual = (math.ceil(n * 1.25) + 8 for n in (ledger.longest_answer, ledger.usual_answer))
    if longest <= max(256, usual):
        return auto.Choice(
            min(longest, context // 2),
            f"the longest reference has {ledger.longest_answer} tokens, and a quarter more",
        )
    return auto.Choice(
        min(max(256, usual), context // 2),
        f"95 % of the references have at most {ledger.usual_answer} tokens, and a quarter more",
    )


def run_key(recipe: Recipe, prepared: Prepared, model: ModelSpec, template: ChatTemplate) -> str:
    """What makes two runs the same: recipe as asked for, rows, documents, weights, template."""
    asked: Mapping[str, Any] = recipe.model_dump(mode="json")
    for name in ("files", "docs"):
        asked["data"].pop(name)
    for section in asked.values():
        # More may be spent on a run that has stopped for it.
        (section or {}).pop("budget_usd", None)
    said = json.dumps(asked, sort_keys=True)
    parts = [said, prepared.key, model.weights_hash, template.fingerprint]
    parts += [prepared.documents.key] if prepared.documents else []
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def width(folder: Path) -> int:
    """Of a model's hidden states."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(config.get("text_config", config)["hidden_size"])
