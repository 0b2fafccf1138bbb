"""What others ask for training and answering: a dated table that ships, and a user's own over it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunesmith.errors import UsageError

FILE = "prices.yaml"
SHIPPED = Path(__file__).with_name(FILE)
OLD_DAYS = 180
"""Prices of this age are told as old."""


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: str
    as_of: str = Field(pattern=r"^\d{4}-\d\d(-\d\d)?$")
    """Day or month of the source."""
    confidence: Literal["high", "medium", "low"]
    source: str
    note: str = ""

    def age(self, today: date) -> int:
        """Days since its source was written; of a month, since its first day."""
        return (today - date.fromisoformat(f"{self.as_of}-01"[:10])).days


class TokenPrice(_Row):
    """US dollars for a million tokens of one model; None is unknown, never free."""

    model: str
    tuned: bool = False
    """A price of training on it, or of answering by what was trained."""
    train: float | None = Field(default=None, ge=0)
    train_high: float | None = Field(default=None, ge=0)
    """The dearest of a range that `train` begins."""
    input: float | None = Field(default=None, ge=0)
    output: float | None = Field(default=None, ge=0)
    minimum: float | None = Field(default=None, ge=0)
    """Least that a training job costs."""
    hosting_per_hour: float | None = Field(default=None, ge=0)
    """What a deployment of the tuned model costs an hour, called or not."""
    counts_validation: bool = False
    """Validation tokens are charged as trained ones."""
    ends: date | None = None
    """When the provider ends it."""

    @property
    def key(self) -> tuple[str, ...]:
        """What a row of another table replaces."""
        return self.provider, self.model


class GpuPrice(_Row):
    """US dollars for an hour of one rented GPU."""

    gpu: str
    tier: str
    memory_gb: float = Field(gt=0)
    tflops: float = Field(gt=0)
    """Dense bfloat16, by the maker's data sheet."""
    per_hour: float | None = Field(default=None, ge=0)

    @property
    def key(self) -> tuple[str, ...]:
        """What a row of another table replaces."""
        return self.provider, self.gpu, self.tier


class Prices(BaseModel):
    """A table of prices."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    compiled: date
    sources: dict[str, str] = {}
    """What the rows' sources stand for."""
    tokens: tuple[TokenPrice, ...] = ()
    gpus: tuple[GpuPrice, ...] = ()

    def age(self, today: date) -> str:
        """How old the table is, as a sentence."""
        ages = sorted(row.age(today) for row in (*self.tokens, *self.gpus))
        days = (today - self.compiled).days
        told = f"Prices as compiled on {self.compiled}, {days:,} day{'s' * (days != 1)} ago"
        if ages:
            told += f"; the oldest source is {ages[-1]:,} days old"
        old = " They are old: look them up before you decide." if days > OLD_DAYS else ""
        return f"{told}.{old}"

    def model(self, name: str) -> TokenPrice | None:
        """The row of a model by its name, with or without `provider/` before it."""
        rows = (row for row in self.tokens if name in (row.model, f"{row.provider}/{row.model}"))
        return next(rows, None)

    def over(self, other: Prices) -> Prices:
        """This table with the rows of another one over it."""
        return Prices(
            compiled=max(self.compiled, other.compiled),
            sources={**self.sources, **other.sources},
            tokens=tuple({row.key: row for row in (*self.tokens, *other.tokens)}.values()),
            gpus=tuple({row.key: row for row in (*self.gpus, *other.gpus)}.values()),
        )


def read(own: Sequence[Path] = ()) -> Prices:
    """The table that ships, with a user's tables over it, the later ones last.

    Raises:
        UsageError: a table cannot be read, or has a row that is none.
    """
    table = _table(SHIPPED)
    for path in own:
        table = table.over(_table(path))
    return table


def _table(path: Path) -> Prices:
    try:
        tree: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Prices.model_validate(tree)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"the prices in {path} cannot be read: {error}", expected="YAML") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"the prices in {path}: {where or 'the table'}: {first['msg'].lower()}",
            expected=f"rows as in {SHIPPED}",
        ) from None
