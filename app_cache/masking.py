"""Texts as they may be shown: without secrets, and with nothing that a terminal takes for an order."""

from __future__ import annotations

import re

SECRET_NAME = re.compile(r"password|passwd|pwd|secret|token|api[_-]?key|authorization|cookie", re.IGNORECASE)
"""What the name of a secret has in it."""
_VALUE = r"\*{3}|'[^']*'|\"[^\"]*\""
_SECRET_PAIR = re.compile(
    rf"((?:{SECRET_NAME.pattern})['\"]?)(?:(=)(?:{_VALUE}|[^&\s]+)|(:\s*)(?:{_VALUE}|[^\s'\"].*))", re.IGNORECASE
)
"""A secret after its name: to the next blank or ``&`` after ``=``, to the end of the line after a colon."""
_WORD = re.compile(r"'[^'\n]*://[^'\n]*'|\"[^\"\n]*://[^\"\n]*\"|\S+")
"""What may be a URL: one in quotes may have blanks in it."""


def without_secrets(text: str) -> str:
    """Return *text* with ``***`` for what precedes a URL's ``@`` and what follows ``password=`` and its like."""
    if "://" in text:
        text = _WORD.sub(_without_userinfo, text)
    return _SECRET_PAIR.sub(_without_value, text)


def escaped(text: str) -> str:
    r"""Return *text* with each character that is not printable as its escape: ``\n``, ``\x1b``, ``\u202e``."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _without_userinfo(word: re.Match[str]) -> str:
    scheme, mark, rest = word[0].partition("://")
    _, at, place = rest.rpartition("@")
    return f"{scheme}{mark}***@{place}" if at else word[0]


def _without_value(pair: re.Match[str]) -> str:
    return f"{pair[1]}{pair[2] or pair[3]}***"
