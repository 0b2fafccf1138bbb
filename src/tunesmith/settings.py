"""What the owner of the machine decides: settings.yaml in TUNESMITH_HOME, or TUNESMITH_* variables.

Unlike a recipe, which belongs to a run, these hold for every command and for the server.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from tunesmith.errors import UsageError

FILE = "settings.yaml"
MIB = 2**20
MAX_WAITING = 256
HOSTED = (
    *("gpt-3.5-turbo", "gpt-3.5-turbo-0125", "gpt-3.5-turbo-1106", "babbage-002", "davinci-002"),
    *("gpt-4o-mini", "gpt-4o-mini-2024-07-18", "gpt-4o-2024-08-06"),
    *("gpt-4.1-2025-04-14", "gpt-4.1-mini-2025-04-14", "gpt-4.1-nano-2025-04-14"),
)
"""Names of OpenAI's models that could be fine-tuned, as people have them in their code."""


class Settings(BaseSettings):
    """The settings in force. Environment variables go before the file."""

    model_config = SettingsConfigDict(
        env_prefix="TUNESMITH_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    database: str = ""
    """SQLAlchemy URL, as in postgresql+psycopg://USER@HOST/NAME; empty: SQLite in TUNESMITH_HOME."""
    organization: str = Field(default="local", pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")
    """The part of tuned models' names that says whose they are."""
    model_aliases: dict[str, str] = {}
    """Names in people's code and the local bases that they stand for, as in
    `gpt-4o-mini-2024-07-18: qwen/qwen3-0.6b`; "" takes a name away. Hosted models that are not
    named stand for the server's own base."""
    slots: int = Field(default=1, ge=1)
    """Jobs that one worker trains at once."""
    lease_seconds: float = Field(default=30.0, gt=0)
    """How long a job waits for a worker that does not beat before another one takes it."""
    attempts: int = Field(default=5, ge=1)
    """How often a job may crash without getting further before it fails."""
    max_body_bytes: int = Field(default=8 * MIB, ge=1)
    """Largest body of a request that is no file."""
    max_file_bytes: int = Field(default=512 * MIB, ge=1)
    """Largest file."""
    max_project_bytes: int = Field(default=64 * 1024 * MIB, ge=1)
    """All files of a project together."""
    min_free_bytes: int = Field(default=1024 * MIB, ge=0)
    """Room on the disk that uploads leave."""
    max_open_jobs: int = Field(default=1_000, ge=1)
    """Jobs of a project that wait or run."""
    requests_per_minute: int = Field(default=6_000, ge=1)
    """Requests of one key, or of one address where no key is asked for."""
    max_concurrent: int = Field(default=256, ge=1)
    """Requests of one key at once."""
    max_waiting: int = Field(default=MAX_WAITING, ge=1)
    """Answers that wait for their turn in one engine."""
    patience_seconds: float = Field(default=30.0, gt=0)
    """How long a client may keep the server waiting for a request, or for its answer to be read."""
    completion_days: float = Field(default=30.0, gt=0)
    """How long stored completions are kept."""
    private_hosts: tuple[str, ...] = ()
    """Hosts of this network that webhooks may reach."""
    python_graders: bool = False
    """Whether graders may run Python, in a process of their own without network."""

    @classmethod
    def settings_customise_sources(  # noqa: D102
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings

    @classmethod
    def read(cls, home: Path) -> Settings:
        """The settings of a TUNESMITH_HOME folder.

        Raises:
            UsageError: a setting is not known, or its value is not one.
        """
        path = home / FILE
        try:
            return cls(**YamlConfigSettingsSource(cls, path)())
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise UsageError(
                f"the setting {name} is {first.get('input')!r}",
                expected=first["msg"].lower(),
                remedy=f"Mend it in {path} or in TUNESMITH_{name.upper()}.",
            ) from None

    def base_of(self, name: str, default: str) -> str | None:
        """The local base that a hosted model's name stands for; None where it stands for none."""
        if name in self.model_aliases:
            return self.model_aliases[name] or None
        return default if name in HOSTED else None
