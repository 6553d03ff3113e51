"""Structured fields, as strict as RFC 8941 wants them: one error, and the whole field counts as absent (§4.2).

The grammar is regular, and at each character only one of its rules can go on. So the patterns below are the rules
of §3, as the algorithms of §4.2 change them: a field is matched as a whole, in time linear in its length, and then
taken apart. Parameters must be valid, and are dropped. Dates and Display Strings fail: RFC 8941 has none.
"""

from __future__ import annotations

import re
from base64 import b64decode
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from app_cache.rules.messages import combined

if TYPE_CHECKING:
    from app_cache.rules.messages import Headers


@dataclass(frozen=True, slots=True)
class Token:
    """A Token, which is not the String of the same text (RFC 8941 §3.3.4)."""

    text: str


BareItem = int | Decimal | str | Token | bytes | bool
"""Integer, Decimal, String, Token, Byte Sequence or Boolean, without parameters (RFC 8941 §3.3)."""
Member = BareItem | tuple[BareItem, ...]
"""A member of a List or Dictionary; a tuple is an Inner List (RFC 8941 §3.1.1)."""

_BARE_ITEM = (
    r"(?:-?(?:[0-9]{1,12}\.[0-9]{1,3}|[0-9]{1,15})"  # Decimal, Integer (§4.2.4)
    r'|"(?:[ !#-\[\]-~]|\\["\\])*"'  # String (§4.2.5)
    r"|[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]*"  # Token (§4.2.6)
    r"|:(?:(?:[A-Za-z0-9+/]{4})*[A-Za-z0-9+/]{2,4}={0,2})?:"  # Byte Sequence, its padding optional (§4.2.7)
    r"|\?[01])"  # Boolean (§4.2.8)
)
_KEY = r"[a-z*][a-z0-9_.*-]*"
_PARAMETERS = rf"(?:; *{_KEY}(?:={_BARE_ITEM})?)*"
_ITEM = rf"({_BARE_ITEM}){_PARAMETERS}"
_INNER_LIST = rf"\( *(?:{_ITEM}(?: +{_ITEM})* *)?\)"
_MEMBER = rf"({_BARE_ITEM}|{_INNER_LIST}){_PARAMETERS}"
_ENTRY = rf"({_KEY})(?:={_MEMBER}|{_PARAMETERS})"
_ONE_ITEM, _ONE_MEMBER, _ONE_ENTRY = (re.compile(each) for each in (_ITEM, _MEMBER, _ENTRY))
_LIST, _DICTIONARY = (re.compile(rf" *(?:{each}(?:[ \t]*,[ \t]*{each})*[ \t]*)?") for each in (_MEMBER, _ENTRY))
_ESCAPED = re.compile(r"\\(.)")


def parse_list(value: str) -> list[Member] | None:
    """Return the members of a List, or None if *value* does not parse (RFC 8941 §4.2.1).

    >>> parse_list('sugar, "tea";hot, (1 2.5)')
    [Token(text='sugar'), 'tea', (1, Decimal('2.5'))]
    """
    if _LIST.fullmatch(value) is None:
        return None
    return [_member(match[1]) for match in _ONE_MEMBER.finditer(value)]


def parse_dictionary(value: str) -> dict[str, Member] | None:
    """Return a Dictionary, or None if *value* does not parse; the last of equal keys counts (RFC 8941 §4.2.2).

    >>> parse_dictionary("max-age=60, private;x=1")
    {'max-age': 60, 'private': True}
    """
    if _DICTIONARY.fullmatch(value) is None:
        return None
    return {match[1]: True if match[2] is None else _member(match[2]) for match in _ONE_ENTRY.finditer(value)}


def strings(headers: Headers, name: bytes) -> tuple[str, ...]:
    """Return the different members of the List of Strings *name* (lower case), in order (RFC 9875 §2, §3).

    There are none where the field is absent, does not parse, or has a member that is no String.
    """
    value = combined(headers, name)
    members = parse_list(value) if value else None
    if not members:
        return ()
    texts = [member for member in members if isinstance(member, str)]
    return tuple(dict.fromkeys(texts)) if len(texts) == len(members) else ()


def _member(text: str) -> Member:
    if text.startswith("("):
        return tuple(_bare_item(match[1]) for match in _ONE_ITEM.finditer(text))
    return _bare_item(text)


def _bare_item(text: str) -> BareItem:
    """Return what *text*, which is valid, stands for; its first character tells the type (RFC 8941 §4.2.3.1)."""
    first = text[0]
    if first == '"':
        return _ESCAPED.sub(r"\1", text[1:-1])
    if first == ":":
        return b64decode(text[1:-1] + "==")  # padding that is not needed means nothing
    if first == "?":
        return text == "?1"
    if first in "-0123456789":
        return Decimal(text) if "." in text else int(text)
    return Token(text)
