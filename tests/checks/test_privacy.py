from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.checks import privacy
from tunesmith.checks.privacy import Privacy, is_card, is_iban, kinds
from tunesmith.checks.row import look
from tunesmith.data.examples import Conversation

# Written in halves, so that no scanner of this repository takes them for real.
FOUND = [
    ("write to jo.meier@posteo.de please", "email"),
    ("call +49 30 901820", "phone"),
    ("call (650) 253-0000 after ten", "phone"),
    ("it was 4539 1488 0343 6467, valid 12/27", "card"),
    ("paid with 371449635398431", "card"),
    ("to DE89 3704 0044 0532 0130 00 PLEASE", "iban"),
    ("IBAN GB82WEST12345698765432", "iban"),
    ("AKIA" + "Q3EGRWT5XJ2LZP7M", "key"),
    ("ghp_" + "a1B2c3D4" * 5, "key"),
    ("sk-" + "proj-" + "a1B2c3D4" * 4, "key"),
    ("xoxb-" + "1234567890-abcdef", "key"),
    ("-----BEGIN " + "OPENSSH PRIVATE KEY-----", "key"),
    ("eyJ" + "hbGciOiJIUzI1NiJ9" + ".eyJ" + "zdWIiOiIxMjM0In0" + ".dBjftJeZ4CVPmB92K27u", "key"),
]
NOTHING = [
    "write to help@example.com or {{email}}",
    "someone@shop.example",
    "git@github.com:owner/name",
    "call 555-0134 or 212-555-0134",
    "call {{phone}} or [PHONE]",
    "order 6502530000 of 2024-01-15 10:30",
    "it was 4539 1488 0343 6468",
    "the test card 4242 4242 4242 4242",
    "DE88 3704 0044 0532 0130 00",
    "AKIA" + "IOSFODNN7EXAMPLE",
    "sk-short",
    "version 10.4.0.1 of 1,234,567,890 bytes",
    "",
]


@pytest.mark.parametrize(("text", "kind"), FOUND)
def test_it_is_found_and_nothing_else_with_it(text: str, kind: str) -> None:
    assert kinds(text) == {kind}


@pytest.mark.parametrize("text", NOTHING)
def test_placeholders_and_numbers_with_wrong_checksums_are_not_counted(text: str) -> None:
    assert kinds(text) == frozenset()


@given(digits=st.text("0123456789", min_size=14, max_size=14), change=st.integers(1, 9))
def test_exactly_one_last_digit_makes_a_card_number(digits: str, change: int) -> None:
    numbers = [f"4{digits}{last}" for last in range(10)]
    assert sum(map(is_card, numbers)) == 1


@given(account=st.text("0123456789", min_size=18, max_size=18), place=st.integers(0, 17))
def test_an_iban_holds_until_one_digit_changes(account: str, place: int) -> None:
    check = 98 - int(account + "131400") % 97
    assert is_iban(f"DE{check:02d}{account}")
    wrong = account[:place] + str((int(account[place]) + 1) % 10) + account[place + 1 :]
    assert not is_iban(f"DE{check:02d}{wrong}")


def test_rows_are_named_once_a_kind_and_what_was_found_is_not_repeated(
    talk: Callable[..., Conversation],
) -> None:
    privacy = Privacy()
    mail = "jo.meier@posteo.de"
    privacy.see(look(talk(f"{mail} and anna@posteo.de", mail, line=5)))
    privacy.see(look(talk("nothing", "here", line=6)))
    (finding,) = privacy.findings()
    assert (finding.severity, finding.rows, finding.count) == ("warning", ("rows.jsonl:5",), 1)
    assert mail not in finding.message + finding.remedy


def test_what_was_found_is_told_to_those_who_ask_for_it() -> None:
    text = "ann@corp.org, nobody@example.org, +49 30 901820 and 5500 0055 5555 5559"
    assert set(privacy.matches(text)) == {
        ("email", "ann@corp.org"),
        ("phone", "+49 30 901820"),
        ("card", "5500 0055 5555 5559"),
    }
