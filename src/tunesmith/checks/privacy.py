"""Personal data and secrets in the rows; what was found is named by row and never repeated."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Literal

import phonenumbers

from tunesmith.checks.report import Finding
from tunesmith.checks.row import Marked, Row

Kind = Literal["key", "card", "iban", "email", "phone"]

_KEYS = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9_]{22,}"
    r"|\bsk-[A-Za-z0-9_-]{20,}"
    r"|\bxox[abeprs]-[A-Za-z0-9-]{10,}"
    r"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
)
# Looked for first: a plain search is some twenty times as fast as the pattern.
_KEY_MARKS = (
    *("AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    *("sk-", "xox", "PRIVATE KEY", "eyJ"),
)
_SEVEN_DIGITS = re.compile(r"(?:\d\D*+){7}")
_EMAIL = re.compile(r"\b([\w.+-]{1,64})@((?:[\w-]{1,63}\.){1,4}[a-zA-Z]{2,24})\b")
_NOBODY = re.compile(r"(?:^|\.)example\.\w+$|\.(?:example|test|invalid|localhost)$", re.IGNORECASE)
_NO_PERSON = re.compile(r"(?:git|no-?reply|do-?not-?reply)$", re.IGNORECASE)
_CARD = re.compile(
    r"(?<![\w.-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}|\d{4}[ -]\d{6}[ -]\d{5})(?!\w)"
)
# Prefix and length of Visa, Mastercard, American Express, Discover, JCB and Diners Club.
_ISSUER = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|6(?:011|5\d\d|4[4-9]\d)\d{12}"
    r"|35\d{14}|3(?:0[0-5]|[68]\d)\d{11}"
)
_TEST_CARDS = frozenset(
    ["4111111111111111", "4242424242424242", "5555555555554444", "378282246310005"]
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_PHONE_SHAPE = re.compile(r"(?<![\w.])\+?\(?\d[\d ()./-]{5,20}\d(?!\w)")
_DATE = re.compile(r"\b\d{4}-\d\d-\d\d(?!\d)|\b\d{1,2}[./]\d{1,2}[./]\d{4}\b|\d\d:\d\d")
_FICTIONAL = re.compile(r"\d{3}55501\d\d")

_WORDS: dict[Kind, tuple[str, str]] = {
    "key": ("keys or tokens", "Revoke them, then replace them by [KEY]."),
    "card": ("payment card numbers", "Replace them by [CARD]."),
    "iban": ("bank account numbers (IBAN)", "Replace them by [IBAN]."),
    "email": ("e-mail addresses", "Replace them by [EMAIL], unless they are the model's to know."),
    "phone": ("phone numbers", "Replace them by [PHONE], unless they are the model's to know."),
}


class Privacy:
    """Counts rows with personal data or secrets, a row once a kind."""

    def __init__(self) -> None:
        self._marked: dict[Kind, Marked] = {kind: Marked() for kind in _WORDS}

    def see(self, row: Row) -> None:
        """Search every turn of a row."""
        for kind in frozenset[Kind]().union(*map(kinds, row.texts())):
            self._marked[kind].add(row.where)

    def findings(self) -> Iterator[Finding]:
        """One warning a kind, keys first."""
        for kind, marked in self._marked.items():
            what, remedy = _WORDS[kind]
            what = f"with {what}; a tuned model can repeat them"
            yield from marked.told("privacy", "warning", what, remedy)


@lru_cache(maxsize=64)  # a system message stands in every row
def kinds(text: str) -> frozenset[Kind]:
    """What stands in a text: numbers count when their checksum holds, placeholders never.

    Phone numbers are those of any country in international form, and North American ones that
    are written in groups: bare digits are more often orders than phones.
    """
    return frozenset(kind for kind, _ in matches(text))


def matches(text: str) -> Iterator[tuple[Kind, str]]:
    """Each find of `kinds` with the text that was found."""
    for name, domain in _EMAIL.findall(text) if "@" in text else ():
        if _is_person(name, domain):
            yield "email", f"{name}@{domain}"
    for found in _KEYS.findall(text) if any(mark in text for mark in _KEY_MARKS) else ():
        if "EXAMPLE" not in found:
            yield "key", found
    if _SEVEN_DIGITS.search(text):
        yield from _numbers(text)


def _numbers(text: str) -> Iterator[tuple[Kind, str]]:
    rest = text
    checked: tuple[tuple[Kind, re.Pattern[str], Callable[[str], bool]], ...]
    checked = (("iban", _IBAN, is_iban), ("card", _CARD, is_card))
    for kind, pattern, holds in checked:
        for match in pattern.finditer(rest):
            if holds(match.group()):
                yield kind, match.group()
                rest = rest.replace(match.group(), " ")
    for shape in _PHONE_SHAPE.findall(_DATE.sub("|", rest)):
        if _is_phone(shape):
            yield "phone", shape


def _is_person(name: str, domain: str) -> bool:
    return not _NOBODY.search(domain) and not _NO_PERSON.match(name)


def is_card(text: str) -> bool:
    """An issuer's prefix and length, and the Luhn check digit (ISO/IEC 7812-1, annex B)."""
    digits = re.sub(r"\D", "", text)
    if digits in _TEST_CARDS or not _ISSUER.fullmatch(digits):
        return False
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether the check digits hold (ISO 7064, mod 97-10); trailing words may have been caught."""
    blocks = text.split(" ")
    for end in range(len(blocks), 0, -1):
        iban = "".join(blocks[:end])
        if len(iban) < 15:
            return False
        if int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1:
            return True
    return False


def _is_phone(shape: str) -> bool:
    for match in phonenumbers.PhoneNumberMatcher(shape, "US"):
        national = str(match.number.national_number)
        fictional = match.number.country_code == 1 and _FICTIONAL.fullmatch(national)
        if not match.raw_string.isdigit() and not fictional:
            return True
    return False
