r"""Globs as Redis knows them, matched in time linear in the text.

``*`` stands for any run of characters, ``/`` and none included; ``?`` for one; ``[ab]``, ``[a-z]`` and ``[^a]``
for one of a class; a backslash takes the meaning from the next character. A malformed pattern means what it means
to Redis: a class that is not closed ends with the pattern, a last backslash stands for itself. A character is that
of Unicode, where Redis has bytes.

Nothing here backtracks. A pattern is an automaton of at most 257 states, all followed at once as the bits of one
integer, so that a character costs one look-up and a few operations, whatever the pattern.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, takewhile
from operator import xor
from typing import TYPE_CHECKING

from app_cache.checks import MAX_PATTERN
from app_cache.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LONGEST_START = 100
"""Characters that are kept from the start of a pattern that is too long, each of them perhaps escaped."""


def compile_glob(pattern: str) -> Callable[[str], bool]:
    """Return the function that tells whether a text matches *pattern* as a whole.

    >>> of_users = compile_glob("/users/*")
    >>> of_users("/users/7/orders"), of_users("/items/7")
    (True, False)

    Raises:
        ConfigurationError: If *pattern* has more than 256 characters.
    """
    tokens = _parsed(pattern)
    literal = _literal_start(tokens)
    rest = tokens[len(literal) :]
    if not rest:
        return literal.__eq__
    if rest == [STAR]:
        return lambda text: text.startswith(literal)
    return _Automaton.of(literal, rest).matches


def checked_pattern(pattern: object) -> str:
    """Return *pattern* if it is a glob that may name something.

    Raises:
        ConfigurationError: If it is no string, is empty, or has more than 256 characters.
    """
    if not isinstance(pattern, str) or not pattern:
        raise ConfigurationError(f"a pattern must be a glob such as '/users/*', not {pattern!r}")
    _check_length(pattern)
    return pattern


def literal_directory(pattern: str) -> str:
    """Return the longest directory, with its last slash, that every path which matches *pattern* lies in.

    That is ``/``, where all paths lie, when *pattern* spells out no directory.

    >>> literal_directory("/users/*/orders"), literal_directory("/users/7"), literal_directory("*")
    ('/users/', '/users/', '/')

    Raises:
        ConfigurationError: If *pattern* has more than 256 characters.
    """
    literal = _literal_start(_parsed(pattern))
    return literal[: literal.rfind("/") + 1] or "/"


def fitted(pattern: str) -> str:
    """Return *pattern*, or if it is too long, one that matches all that it does: its literal start and a star.

    >>> fitted("/users/*"), fitted("/a?" + "b" * 300)
    ('/users/*', '/a*')
    """
    if len(pattern) <= MAX_PATTERN:
        return pattern
    start: list[str] = []
    at = 0
    while at < len(pattern) and pattern[at] not in "*?[" and len(start) < LONGEST_START:
        at += pattern[at] == "\\" and at + 1 < len(pattern)
        start.append(f"\\{pattern[at]}" if pattern[at] in "*?[]\\" else pattern[at])
        at += 1
    return "".join(start) + "*"


@dataclass(frozen=True, slots=True)
class _Token:
    """A character in *ranges* of code points, or outside them if *negated*; any number of these if *repeated*."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False
    repeated: bool = False

    @property
    def literal(self) -> str | None:
        """The one character that this stands for, if there is only one."""
        if len(self.ranges) != 1 or self.negated:
            return None
        first, last = self.ranges[0]
        return chr(first) if first == last else None

    def edges(self) -> set[int]:
        """Return the code points at which what this stands for begins or ends."""
        edges = {0} if self.negated else set[int]()
        beyond = 0
        for first, last in sorted(self.ranges):
            if last >= beyond:
                edges ^= {max(first, beyond), last + 1}
                beyond = last + 1
        return edges


ANY = _Token((), negated=True)
STAR = _Token((), negated=True, repeated=True)


def _parsed(pattern: str) -> list[_Token]:
    """Return the tokens of *pattern*, in order."""
    _check_length(pattern)
    tokens: list[_Token] = []
    at = 0
    while at < len(pattern):
        token, at = _token(pattern, at)
        tokens.append(token)
    return tokens


def _check_length(pattern: str) -> None:
    if len(pattern) > MAX_PATTERN:
        raise ConfigurationError(
            f"a pattern may have {MAX_PATTERN} characters, not {len(pattern)}: {pattern[:40]!r}…"
        )


def _token(pattern: str, at: int) -> tuple[_Token, int]:
    """Return the token that begins at *at*, and where the next one does."""
    match pattern[at]:
        case "*":
            return STAR, at + 1
        case "?":
            return ANY, at + 1
        case "[":
            return _one_of(pattern, at + 1)
    char, at = _unescaped(pattern, at)
    return _Token(((ord(char), ord(char)),)), at


def _one_of(pattern: str, at: int) -> tuple[_Token, int]:
    """Return the class whose members begin at *at*, and where the next token does."""
    negated = pattern.startswith("^", at)
    at += negated
    ranges: list[tuple[int, int]] = []
    while at < len(pattern) and pattern[at] != "]":
        first, after = _unescaped(pattern, at)
        last = first
        if after == at + 1 and pattern.startswith("-", after) and after + 1 < len(pattern):
            last, after = pattern[after + 1], after + 2
        ranges.append((ord(min(first, last)), ord(max(first, last))))
        at = after
    return _Token(tuple(ranges), negated), at + 1


def _unescaped(pattern: str, at: int) -> tuple[str, int]:
    """Return the character that *pattern* means at *at*, and where the next one begins."""
    if pattern[at] == "\\" and at + 1 < len(pattern):
        return pattern[at + 1], at + 2
    return pattern[at], at + 1


def _literal_start(tokens: Sequence[_Token]) -> str:
    """Return the text that every match begins with, as far as it is spelled out."""
    return "".join(takewhile(bool, (token.literal or "" for token in tokens)))


@dataclass(frozen=True, slots=True)
class _Automaton:
    """The text *literal*, then states: bit *i* is set while the text so far may be the first *i* tokens."""

    literal: str
    bounds: tuple[int, ...]
    """The code points, ascending from 0, at which other tokens accept a character than before."""
    accepts: tuple[int, ...]
    """For the code points from each bound on: the states that such a character takes one step further."""
    stays: int
    """The states that every character leaves as they are, for a star stands there."""
    end: int
    """The state in which all tokens were seen."""

    @classmethod
    def of(cls, literal: str, tokens: Sequence[_Token]) -> _Automaton:
        """Return the automaton for *literal* followed by *tokens*."""
        state = 1
        stays = 0
        changes = {0: 0}
        for token in tokens:
            if token.repeated:
                stays |= state
                continue
            for edge in token.edges():
                changes[edge] = changes.get(edge, 0) ^ state
            state <<= 1
        bounds = sorted(changes)
        accepts = accumulate((changes[bound] for bound in bounds), xor)
        return cls(literal, tuple(bounds), tuple(accepts), stays, state)

    def matches(self, text: str) -> bool:
        """Return whether *text*, from its first character to its last, is what the pattern asks for."""
        if not text.startswith(self.literal):
            return False
        bounds, accepts, stays = self.bounds, self.accepts, self.stays
        states = 1
        for code in map(ord, text[len(self.literal) :]):
            states = (states & accepts[bisect_right(bounds, code) - 1]) << 1 | states & stays
            if not states:
                return False
        return bool(states & self.end)
