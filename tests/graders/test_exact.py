from __future__ import annotations

from tunesmith.graders.exact import EXACT, same


def test_only_white_space_at_the_ends_is_forgiven() -> None:
    assert same(" ls -l\n", "ls -l") == 1.0
    assert same("ls  -l", "ls -l") == 0.0
    assert EXACT.grade("LS", "ls") == {"exact": 0.0}
