"""Answers that are held to a grammar: which tokens may come next, by llguidance.

A grammar comes from a client, so it is first read in a process of its own with limits on time and
memory; what passes there is compiled for the model's tokenizer. Each row then has a matcher of its
own, whose masks cost the rows that have none nothing.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from functools import cached_property
from typing import Any, cast

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from tunesmith.errors import RowError
from tunesmith.models.template import ChatTemplate

LONGEST = 100_000
"""Characters of a grammar."""
SECONDS, BYTES = 1, 1 << 30
"""What reading a grammar may take: some of a hundred characters take for ever."""
STATES = 10_000
"""States of a row's lexer, of one or two kilobytes each."""
KEPT = 16
"""Compiled grammars that are kept."""
DIGITS = 16
"""Of one number: a small model would write them without end."""

READ = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
resource.setrlimit(resource.RLIMIT_AS, ({BYTES}, {BYTES}))
from llguidance import LLMatcher, LLTokenizer
matcher = LLMatcher(LLTokenizer("byte"), sys.stdin.read(), log_level=0)
if not matcher.is_error():
    matcher.compute_bitmask()
sys.stdout.write(matcher.get_error())
"""
"""Reads a grammar over bytes: what takes for ever over a model's tokens takes for ever over these."""


class Vocabulary:
    """The tokens of one model as grammars see them, made at the first grammar.

    Args:
        template: whose tokenizer, and the tokens that end an answer.
        width: how many tokens the model's logits are for.
    """

    def __init__(self, template: ChatTemplate, width: int) -> None:
        self._template, self._width = template, width
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, bool], Grammar] = {}

    def compile(self, grammar: str, *, numbers: bool = True) -> Grammar:
        """A grammar made ready; takes a second at first, so not where others wait.

        Args:
            grammar: in the Lark dialect of llguidance.
            numbers: the text is JSON throughout, and its numbers are to end.

        Raises:
            RowError: it is malformed, cannot be followed or is too large.
        """
        key = grammar, numbers
        found = self._kept.get(key)
        if found is None:
            # One at a time, and what many ask for at once is compiled once.
            with self._lock:
                found = self._kept.get(key) or self._compile(grammar, numbers)
                self._kept[key] = found
                for old in list(self._kept)[:-KEPT]:
                    del self._kept[old]
        return found

    def _compile(self, grammar: str, numbers: bool) -> Grammar:
        check(grammar)
        tokens = self._tokens
        limits = LLParserLimits(max_lexer_states=STATES, verbose_errors=False)
        matcher = LLMatcher(tokens.trie, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise RowError(_first_line(matcher.get_error()))
        made = Grammar(grammar, tokens, matcher, numbers)
        _try(made.begin(), 2 if numbers else 1)
        return made

    @cached_property
    def _tokens(self) -> _Tokens:
        return _Tokens(self._template, self._width)


class _Tokens:
    """What each token of a vocabulary is, to a grammar and in a number."""

    def __init__(self, template: ChatTemplate, width: int) -> None:
        self.width = width
        tokenizer = template.tokenizer
        count, ends = max(width, tokenizer.get_vocab_size()), sorted(template.end_of_turn)
        try:
            self.trie = LLTokenizer(tokenizer.to_str(), count, ends)
        except ValueError:
            # It knows two kinds of decoders; any other is asked what it makes of each token.
            self.trie = LLTokenizer(cast("Any", _Spelt(template)), count, ends)
        spell, special = self.trie.decode_bytes, self.trie.is_special_token
        self.spelling = [b"" if special(i) else spell([i]) for i in range(width)]
        digits = [len(text) - len(text.lstrip(b"0123456789")) for text in self.spelling]
        self.digits = np.array(digits, np.int16)
        """How many digits each token begins with."""
        exponent = re.compile(rb"[0-9]*[eE]")
        self.exponents = np.array([exponent.match(text) is not None for text in self.spelling])
        """Tokens that go on with a number by its exponent."""


class Grammar:
    """A compiled grammar; rows share it and each begins anew. `text` is what it was compiled from."""

    def __init__(self, text: str, tokens: _Tokens, matcher: LLMatcher, numbers: bool) -> None:
        self.text = text
        self._tokens, self._matcher, self._numbers = tokens, matcher, numbers

    def begin(self) -> Constraint:
        """The state of a row that has no token yet."""
        return Constraint(
            self._tokens, self._matcher.deep_copy(), _Number() if self._numbers else None
        )


class Constraint:
    """One row's place in its grammar."""

    def __init__(self, tokens: _Tokens, matcher: LLMatcher, number: _Number | None) -> None:
        self._tokens, self._matcher, self._number = tokens, matcher, number

    def allowed(self) -> NDArray[np.bool_] | None:
        """Which tokens (vocabulary,) may come next; those that end the turn once the answer is whole.

        None: the grammar has become too complex to follow.
        """
        if self._matcher.is_error():
            return None
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        bits = np.unpackbits(packed, count=self._tokens.width, bitorder="little")
        mask = bits.view(np.bool_)
        if self._matcher.is_error() or not mask.any():
            return None
        if self._number is not None and self._number.digits:
            return self._ending(mask, self._number.digits)
        return mask

    def take(self, token: int) -> None:
        """The row has sampled a token that was allowed."""
        self._matcher.consume_token(token)
        if self._number is not None:
            self._number.feed(self._tokens.spelling[token])

    def _ending(self, mask: NDArray[np.bool_], digits: int) -> NDArray[np.bool_]:
        """Without what would make a number endless, unless the grammar asks for it."""
        leading = self._tokens.digits
        short = mask & ~self._tokens.exponents & ((leading == 0) | (digits + leading <= DIGITS))
        return short if short.any() else mask


class _Number:
    """Follows JSON text as far as to say how many digits the number at its end has."""

    def __init__(self) -> None:
        self.digits = 0
        self._quoted = self._escaped = False

    def feed(self, text: bytes) -> None:
        for char in text:
            if self._quoted:
                self._quoted = self._escaped or char != ord('"')
                self._escaped = not self._escaped and char == ord("\\")
            elif char in b"0123456789":
                self.digits += 1
            elif char not in b".+-eE":
                self.digits, self._quoted = 0, char == ord('"')


class _Spelt:
    """A tokenizer as LLTokenizer takes one: what each token adds to a text."""

    is_tokenizer_wrapper = True

    def __init__(self, template: ChatTemplate) -> None:
        tokenizer = template.tokenizer
        special = tokenizer.get_added_tokens_decoder()
        self.special_token_ids = [id for id, token in special.items() if token.special]
        self.eos_token_id, self.bos_token_id = min(template.end_of_turn), None
        count = tokenizer.get_vocab_size()
        letter = next(i for i in range(count) if tokenizer.decode([i]).isalnum())
        before = tokenizer.decode([letter])
        joint = tokenizer.decode_batch([[letter, i] for i in range(count)])
        self.tokens = [text.removeprefix(before).encode() for text in joint]
        self._ids = {token: id for id, token in enumerate(self.tokens) if token}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: bytes | str) -> list[int]:
        """Ids of a text in the midst of another, the longest token first."""
        rest = text.encode() if isinstance(text, str) else text
        ids: list[int] = []
        while rest:
            known = [n for n in range(self._longest, 0, -1) if rest[:n] in self._ids]
            if known:
                ids.append(self._ids[rest[: known[0]]])
            rest = rest[known[0] if known else 1 :]
        return ids


def check(grammar: str) -> None:
    """Read a grammar where it can do no harm.

    Raises:
        RowError: it is malformed or too large.
    """
    if len(grammar) > LONGEST:
        raise RowError(
            f"it has {len(grammar):,} characters", expected=f"at most {LONGEST:,} of them"
        )
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", READ],
            input=grammar.encode(),
            capture_output=True,
            timeout=20 * SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _too_complex() from None
    if done.returncode:
        raise _too_complex()
    if done.stdout:
        raise RowError(_first_line(done.stdout.decode()))


def _try(constraint: Constraint, tokens: int) -> None:
    """Write the first tokens: there a schema shows that has no end, or too many ways to go on."""
    for _ in range(tokens):
        allowed = constraint.allowed()
        if allowed is None:
            raise RowError("nothing can be written that follows it, or too much at once")
        constraint.take(int(allowed.argmax()))


def _too_complex() -> RowError:
    return RowError("it is too complex to be followed")


def _first_line(said: str) -> str:
    """What llguidance says, without the place in a grammar that the client has not written."""
    line = re.sub(r"^at \d+\(\d+\): ", "", said.strip().split("\n")[0])
    return line.removeprefix("failed to compile JSON schema: ")[:300]
