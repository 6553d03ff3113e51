"""Texts as they may be shown: without secrets, and with nothing that a terminal takes for an order.

What may be anybody's text is read in time linear in its length.
"""

from __future__ import annotations

import re
import string

SECRET_NAME = re.compile(r"password|passwd|pwd|secret|token|api[_-]?key|authorization|cookie", re.IGNORECASE)
"""What the name of a secret has in it."""
_QUOTED = r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\""
_SECRET_PAIR = re.compile(
    rf"""
    (
      (?:{SECRET_NAME.pattern}) =                                      # an argument, a query
    | (?:{SECRET_NAME.pattern}) ['"] : \s*                             # JSON, a dictionary
    | (?: password|passwd|pwd|api[_-]?key | (?<![a-z0-9])secret | (?<=[_-])token ) : [ ]+  # YAML
    )
    (?: \*{{3}} | b?(?:{_QUOTED}) | \[[^\]\n]{{0,1000}}\] | [^&\s]+ )
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""The name of a secret, and the secret: a text in quotes, or what goes to the next blank or ``&``."""
_SECRET_FIELD = re.compile(r"(?<![a-z0-9_{])((?:authorization|cookie): *)\S.*", re.IGNORECASE)
"""A field of a message, which goes to the end of the line."""
_SCHEME = frozenset(string.ascii_letters + string.digits + "+-.")
_UNTIL = {
    "": re.compile(r"\S*"),
    "'": re.compile(r"(?:[^'\\\n]|\\.)*"),
    '"': re.compile(r'(?:[^"\\\n]|\\.)*'),
}
"""What goes to the end of a URL, by the quotation mark before it: in quotes there may be blanks in it."""


def without_secrets(text: str) -> str:
    """Return *text* with ``***`` for what precedes a URL's ``@`` and what follows ``password=`` and its like.

    >>> without_secrets("redis://shop:s3cret@host:6379, token=abc")
    'redis://***@host:6379, token=***'
    """
    return _SECRET_FIELD.sub(r"\1***", _SECRET_PAIR.sub(r"\1***", _without_userinfo(text)))


def escaped(text: str) -> str:
    r"""Return *text* with each character that is not printable as its escape: ``\n``, ``\x1b``, ``\u202e``."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _without_userinfo(text: str) -> str:
    shown: list[str] = []
    at = 0
    unclosed = dict.fromkeys(_UNTIL, 0)  # to where a quotation mark of each kind is known not to be closed
    while (mark := text.find("://", at)) >= 0:
        start = mark + len("://")
        quote = _quotation_mark(text, mark, at)
        end = _end_of(quote, text, start) if start >= unclosed[quote] else start
        if text[end : end + 1] != quote:
            unclosed[quote] = max(end, unclosed[quote])
            end = _end_of("", text, start)
        _, sign, place = text[start:end].rpartition("@")
        shown += (text[at:start], "***@" if sign else "", place)
        at = end
    return "".join(shown) + text[at:]


def _quotation_mark(text: str, mark: int, at: int) -> str:
    """Return the quotation mark before the scheme that ends at *mark*, if there is one after *at*."""
    while mark > at and text[mark - 1] in _SCHEME:
        mark -= 1
    return text[mark - 1] if mark > at and text[mark - 1] in _UNTIL else ""


def _end_of(quote: str, text: str, start: int) -> int:
    return _UNTIL[quote].match(text, start).end()  # type: ignore[union-attr]  # it matches nothing, too
