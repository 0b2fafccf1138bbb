from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.errors import UsageError
from tunesmith.settings import Settings


def test_the_environment_goes_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings.yaml").write_text("organization: acme\nslots: 2\n")
    monkeypatch.setenv("TUNESMITH_SLOTS", "3")
    found = Settings.read(tmp_path)
    assert (found.organization, found.slots) == ("acme", 3)
    assert Settings.read(tmp_path / "nowhere").organization == "local"


@pytest.mark.parametrize(
    ("text", "said"),
    [("slots: 0", "slots is 0"), ("slotz: 1", "slotz"), ("organization: A b", "A b")],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(UsageError, match=said) as refused:
        Settings.read(tmp_path)
    assert "settings.yaml" in str(refused.value)


def test_hosted_names_stand_for_the_servers_base_unless_the_table_says_otherwise() -> None:
    found = Settings(model_aliases={"gpt-4o-mini": "other", "mine": "own", "gpt-3.5-turbo": ""})
    assert found.base_of("gpt-4o-mini-2024-07-18", "base") == "base"
    assert found.base_of("gpt-4o-mini", "base") == "other"
    assert found.base_of("mine", "base") == "own"
    assert found.base_of("gpt-3.5-turbo", "base") is None
    assert found.base_of("unheard-of", "base") is None
