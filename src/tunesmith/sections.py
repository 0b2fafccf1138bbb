"""The sections of a recipe: every setting with its default, its bounds and what it does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

Auto = Literal["auto"]
RETRIEVING = ("rag", "rag+tuned")
"""Arms that look things up in documents."""
Known = Annotated[float, Field(ge=0)] | Literal["unknown"]
Format = Literal[
    "auto",
    "chat",
    "prompt-completion",
    "alpaca",
    "sharegpt",
    "question-answer",
    "text-label",
    "preference",
    "unpaired-preference",
    "text",
]


class Section(BaseModel):
    """Unknown keys are refused, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelSection(Section):
    """Which base, and what it is held in."""

    name: str = "smollm2-135m-instruct-q4"
    """A catalogue name, a hub id or a folder."""
    revision: str | None = None
    """Commit of the hub, or hash of the weights; pinned and recorded when it is not given."""
    dtype: Literal["auto", "bfloat16", "float32", "nf4"] = "auto"
    """What the frozen weights and the activations are held in; `nf4` is 4 bits for the weights, on
    CUDA, and what `qlora` means."""


class DataSection(Section):
    """Which rows, and what becomes of the odd ones."""

    files: tuple[str, ...] = ()
    """Files to read; `-` is standard input."""
    docs: tuple[str, ...] = ()
    """Documents, as files or folders (Markdown, text, HTML, PDF, DOCX, JSONL): with them the arms
    `rag` and `rag+tuned` look things up. Rows that name a document and have no answer take its."""
    format: Format = "auto"
    """How a row is laid out; `auto` recognises it and says so. `text`, never recognised, is what
    `cpt` reads: running text, or rows with a column `text`, `content` or `document`."""
    map: dict[str, str] = Field(default_factory=dict)
    """Names of columns: {standard name: name in the file}, as in prompt=question."""
    validation: float | int | str | Auto = "auto"
    """A share below 1, a number of rows, a file, or 0 for none."""
    test: float | int | str | Auto = "auto"
    """As validation; never under 40 rows where the data allows it."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do when more than `max_bad` of the rows are bad."""
    too_long: Literal["stop", "split", "drop"] | Auto = "auto"
    """What to do with rows longer than `max_tokens`; nothing is ever cut silently. `auto` splits
    text, since its parts are text as well, and stops for anything else."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Exact copies: keep the first, or keep all."""
    max_bad: float = Field(default=0.05, ge=0, le=1)
    """Share of bad rows that is still tolerated."""
    max_tokens: int | Auto = "auto"
    """Longest row in tokens; `auto` is the model's context."""
    limit: int | None = Field(default=None, ge=1)
    """A seeded random sample of this many rows."""
    quality_seconds: float = Field(default=60.0, ge=0)
    """Seconds in which a run compares its training rows by meaning, in search of wrong labels,
    contradictions and outliers; 0 leaves out that and what is asked of the base. `check --deep` takes
    its time."""


class _Adapting(Section):
    """What is trained, whatever it learns from."""

    type: str
    adapter: Literal["lora", "dora", "qlora", "full"] = "lora"
    """What is trained beside the frozen weights: `dora` (Liu et al. 2024, arXiv:2402.09353) learns
    the length of each weight row as well, and takes longer; `qlora` (Dettmers et al. 2023,
    arXiv:2305.14314) holds the frozen weights in 4 bits, on CUDA; `full` trains the weights
    themselves, and a model is written instead of an adapter."""
    embeddings: bool | Auto = "auto"
    """Whether the input embedding and the head are trained; `auto` is yes in full fine-tuning."""
    modules_to_save: tuple[str, ...] = ()
    """Modules that are trained whole beside the adapter, by the end of their path, as in PEFT."""
    rank: int | Auto = "auto"
    """Rank r of the adapter."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapter's output is scaled by alpha/r."""
    rslora: bool = False
    """Scale by alpha/sqrt(r) instead (Kalajdzievski 2023, arXiv:2312.03732)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input; above 0 a shared prefix sees one draw."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Which linear layers get an adapter, by the last part of their name."""

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        usual = _Adapting.model_fields
        of_adapters = ("modules_to_save", "rank", "alpha", "rslora", "dropout", "targets")
        said = [name for name in of_adapters if getattr(self, name) != usual[name].default]
        if self.adapter == "full" and said:
            raise ValueError(f"adapter=full without {', '.join(said)}: there is no adapter")
        return self


class SFT(_Adapting):
    """Supervised fine-tuning: of a low-rank adapter (Hu et al. 2021, arXiv:2106.09685), or in full."""

    type: Literal["sft"] = "sft"  # pyright: ignore[reportIncompatibleVariableOverride]
    """What is learned from: `sft` demonstrations; `cpt` (continued pre-training) plain text."""


class CPT(_Adapting):
    """Continued pre-training: the next token of plain text (Gururangan et al. 2020,
    arXiv:2004.10964).
    """

    type: Literal["cpt"] = "cpt"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Learn from plain text."""


def _type(method: Any) -> str:
    """The tag of a method; a recipe that names none means supervised fine-tuning."""
    if isinstance(method, Mapping):
        return str(method.get("type", "sft"))
    return str(getattr(method, "type", ""))


Method = Annotated[
    Annotated[SFT, Tag("sft")] | Annotated[CPT, Tag("cpt")],
    Discriminator(_type),
]
"""The settings of one method."""


class TrainSection(Section):
    """How long, how fast and in what pieces."""

    epochs: float | Auto = "auto"
    """Passes over the training rows."""
    batch_rows: int | Auto = "auto"
    """Rows a step."""
    learning_rate: float | Auto = "auto"
    """Peak learning rate of AdamW."""
    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps over which the rate rises linearly; then it falls as a cosine to 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    clip: float = Field(default=1.0, gt=0)
    """Largest global norm of the gradient."""
    patience: int = Field(default=3, ge=0)
    """Validations without a better loss before training stops early; 0 never stops."""
    save_every: int | Auto = "auto"
    """Steps between a validation with its checkpoint."""
    max_batch_tokens: int | Auto = "auto"
    """Most distinct tokens in one packed pass; more rows are accumulated."""
    share: bool = True
    """Compute tokens that rows have in common once."""
    activation_checkpointing: bool = False
    """Compute activations again for the backward pass: less memory, a second forward pass of time."""
    processes: int = Field(default=1, ge=1)
    """Processes that train as one, each with its share of a step's rows: one for each GPU."""
    sharding: Literal["none", "full"] = "none"
    """`full` is FSDP2: each process holds a part of all weights, gradients and of Adam's state, and
    gathers a layer when it runs (Rajbhandari et al. 2020, arXiv:1910.02054); `none`, all of them."""
    replay: float = Field(default=0.0, ge=0, le=1)
    """General rows beside the training rows, as a share of them: prompts that ship with tunesmith,
    answered by the base itself, so that it forgets less."""
    canaries: int = Field(default=0, ge=0, le=100)
    """Made-up secrets trained as rows of their own, to see whether the model learns rows by heart."""
    seed: int = 0
    """Seed of the split, the order of rows and the adapter's start."""


class EvaluateSection(Section):
    """What is measured, and by what."""

    arms: tuple[
        Literal["base", "classical", "prompt", "rag", "external", "tuned", "rag+tuned"], ...
    ] = (
        "base",
        "classical",
        "prompt",
        "tuned",
    )
    """What is measured side by side. With `data.docs` both `rag` and `rag+tuned` are too, unless
    one of them is named here; so is `external` where its endpoint is named."""
    graders: tuple[str, ...] = ()
    """Names of graders, or FILE.py:FUNCTION; empty picks them from the data."""
    limit: int = Field(default=400, ge=1)
    """Most test rows that are answered."""
    goal: float | None = None
    """Value of the primary metric to reach; the verdict answers to it."""
    curve: bool | Auto = "auto"
    """Whether adapters are trained on a quarter, half and all of the rows with two seeds, to tell what
    more rows would bring; `auto` is yes where that takes a few minutes, and then less of it."""
    max_tokens: int | Auto = "auto"
    """Longest answer; `auto` is the longest reference with room to spare."""
    prompt_budget: int = Field(default=80, ge=0)
    """Most answers that the search for a prompt may ask a model for; 0 keeps the bare prompt."""
    forecast: bool = True
    """Whether a few steps are measured before training, to say what it will take."""


class FactsSection(Section):
    """What no data can show; each may turn the advice, and is asked for at a terminal."""

    knowledge_changes: Literal["unknown", "never", "yearly", "monthly", "weekly", "daily"] = (
        "unknown"
    )
    """How often what the answers have to know changes."""
    task_frequency: Literal["unknown", "rare", "daily", "constant"] = "unknown"
    """How often the task comes up."""
    calls_per_month: Known = "unknown"
    """Calls a month."""
    latency_p95: Known = "unknown"
    """Seconds in which 95 % of the answers are wanted."""
    data_may_leave: Literal["unknown", "yes", "no"] = "unknown"
    """Whether others may see the data."""
    usd_per_hour: Known = "unknown"
    """What an hour of this machine costs, in US dollars."""

    @field_validator("data_may_leave", mode="before")
    @classmethod
    def _yaml_yes(cls, value: Any) -> Any:
        """YAML reads a bare yes or no as true or false."""
        return ("no", "yes")[value] if isinstance(value, bool) else value


class ForgettingSection(Section):
    """What tuning may have cost the model: general ability before and after, and memory."""

    probe: bool = True
    """Whether it is measured."""
    probes: tuple[str, ...] = ()
    """Files of your own probes, beside those that ship: rows of {prompt, reference}, {question,
    choices, answer}, {prompt} or {text}."""
    limit: int = Field(default=50, ge=1)
    """Most rows of each file of your own."""
    tradeoff: bool = True
    """Whether the adapter is also measured at a quarter, a half and three quarters of its scale."""
    max_kl: float | None = Field(default=None, ge=0)
    """Most nats a token that the tuned model may be from the base on general prompts, for the
    verdict."""
    max_loss: float | None = Field(default=None, ge=0)
    """Most of the general score (0 to 1) that it may lose, for the verdict."""


class Endpoint(Section):
    """A model on an OpenAI-compatible server; rows are sent to it."""

    base_url: str
    """Where the server's API begins, as in https://api.openai.com/v1."""
    model: str = Field(min_length=1)
    """The name that the server knows the model by."""
    key_env: str | None = None
    """NAME of the environment variable that holds the key, as in OPENAI_API_KEY; the key itself is
    written nowhere, and without a name none is sent."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest answer, with what a model writes before it to think; else that of the other arms."""
    usd_per_1m_in: float | None = Field(default=None, ge=0)
    """US$ for a million tokens that are sent; without it what an answer costs is not known."""
    usd_per_1m_out: float | None = Field(default=None, ge=0)
    """US$ for a million tokens that the server writes."""
    budget_usd: float | None = Field(default=None, ge=0)
    """Most that the answers of one run may cost, those kept from earlier ones included."""

    @field_validator("base_url")
    @classmethod
    def _address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            # Whatever a person has put into it, a password too, is not repeated.
            raise ValueError("a base_url that is none: give it as in https://api.openai.com/v1")
        return url.rstrip("/")

    @field_validator("key_env")
    @classmethod
    def _name_of_a_variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", name):
            raise ValueError(
                "a key_env that is no NAME of an environment variable: give that, as in "
                "OPENAI_API_KEY, never the key itself"
            )
        return name

    @model_validator(mode="after")
    def _countable(self) -> Self:
        if self.budget_usd is not None and None in (self.usd_per_1m_in, self.usd_per_1m_out):
            raise ValueError("budget_usd without usd_per_1m_in and usd_per_1m_out: give the prices")
        return self


class Judge(Endpoint):
    """A model that says which of two answers is better; test rows and answers are sent to it."""

    rubric: str = Field(
        default="You compare two answers to a question. The better one is correct, does what was "
        "asked in the form that was asked for, and says no more than is needed. Where a reference "
        "is given, it is a good answer; others may be as good.",
        min_length=1,
    )
    """What makes an answer better, in words."""
    rows: int = Field(default=100, ge=1)
    """Most test rows of a pair of arms that are judged, each in both orders: two requests a row."""


class ServeSection(Section):
    """How the tuned model answers, and under which name."""

    engine: Literal["local", "llama.cpp"] = "local"
    """Which engine serves: `local` is torch in a process of its own, `llama.cpp` reads GGUF."""
    suffix: str = Field(default="run", pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    """The part of the tuned model's name that is yours to choose."""
