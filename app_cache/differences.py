"""Where a value that came back differs from the one that was given: types and contents, all the way down.

Private attributes, and fields that take no part in a comparison, are the application's own affair. Objects without
an `==` of their own, and without content that is known here, are compared by their class alone.
"""

from __future__ import annotations

import dataclasses
import functools
import marshal
from collections import deque
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from operator import attrgetter
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    Path = tuple["Path", object] | None
    Pair = tuple[Any, Any, object]

MAX_CLASSES = 512
"""Classes for which a process remembers which fields they have."""
_ATOMS = frozenset([type(None), bool, int, float, str, bytes, date, time, timedelta, Decimal, UUID])
"""Types whose values have no others in them, and are the same where they are equal."""
_ABSENT: Any = object()


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """Something in a value that came back as something else.

    Args:
        where: The way to it, as ``items.0.price``; empty for the value itself.
        given: The type that it had; None if it was not there.
        back: The type that it has now; None if it is gone.
    """

    where: str
    given: type | None
    back: type | None


def first_difference(value: object, back: object, *, rows: bool = False) -> Difference | None:
    """Return where *back* is not what *value* is, or None.

    An int may have become the float that is equal to it. With *rows*, a dict that is in nothing but dicts and
    lists may have become an object of a class with fields.
    """
    try:
        if _are_same_plain(value, back) or _is_same(value, back):
            return None
    except (RecursionError, AttributeError, ArithmeticError):
        pass  # deeply nested, without a field, or no number that may be compared
    return _first_difference(value, back, rows=rows)


def _are_same_plain(given: Any, came: Any) -> bool:
    """Return whether two are lists or dicts of Python's plain types alone, and `marshal` writes them alike."""
    if type(given) not in (list, dict):
        return False
    try:
        return marshal.dumps(given, 2) == marshal.dumps(came, 2)
    except ValueError:
        return False


def _is_same(given: Any, came: Any) -> bool:
    """Return whether two are the same: quickly, where their class is known; else by `_first_difference`."""
    kind, other = _kinds(given, came)
    if kind is not other:
        return False
    if kind in _ATOMS:
        return bool(given == came)
    here: Sequence[Any]
    there: Sequence[Any]
    if kind is dict:
        if [*given] != [*came] or {*map(type, given)} != {*map(type, came)}:
            return False
        here, there = [*given.values()], [*came.values()]
    elif kind is list or kind is tuple:
        here, there = given, came
    elif (contents := _contents_of(kind)) is not None:
        here, there = contents(given), contents(came)
    else:
        return _first_difference(given, came) is None
    kinds = [*map(type, here)]
    if kinds != [*map(type, there)]:
        return False
    if _ATOMS.issuperset(kinds):
        return bool(here == there)
    return all(map(_is_same, here, there))


def _first_difference(value: object, back: object, *, rows: bool = False) -> Difference | None:
    todo: list[tuple[Any, Any, Path, bool]] = [(value, back, None, rows)]
    while todo:
        given, came, path, plain = todo.pop()
        kind, other = _kinds(given, came)
        if kind is not other:
            if not (_is_that_float(given, came) or (plain and kind is dict and _fields(other) is not None)):
                return _difference(given, came, path)
        elif kind in _ATOMS:
            if not _is_equal(given, came):
                return _difference(given, came, path)
        elif (pairs := _pairs(given, came)) is None:
            return _difference(given, came, path)
        else:
            plain = plain and kind in (dict, list)
            todo += [(this, that, (path, step), plain) for this, that, step in pairs]
    return None


def _is_that_float(given: Any, came: Any) -> bool:
    return type(given) is int and type(came) is float and given == came


def _kinds(given: Any, came: Any) -> tuple[Any, Any]:
    return type(given), type(came)


def _pairs(given: Any, came: Any) -> Iterable[Pair] | None:
    """Return the contents of two objects of one class in pairs, each with its place; None if the two differ."""
    kind: Any = type(given)
    names = _fields(kind)
    if names is not None:
        pairs: list[Pair] = [(getattr(given, name, _ABSENT), getattr(came, name, _ABSENT), name) for name in names]
        if isinstance(given, BaseModel):
            pairs += _pairs_of_dicts(given.__pydantic_extra__ or {}, came.__pydantic_extra__ or {})
        return pairs
    if isinstance(given, dict):
        same_keys = {*map(type, given)} == {*map(type, came)}
        return _pairs_of_dicts(given, came) if same_keys else None
    if isinstance(given, list | tuple | deque):
        if len(given) != len(came):
            return None
        return () if _are_same_atoms(given, came) else zip(given, came, range(len(given)), strict=True)
    if isinstance(given, set | frozenset):
        if len(given) != len(came):
            return None
        return () if _are_same_atoms(given, came) else _pairs_of_sets(given, came)
    return () if _is_equal(given, came) else None


@functools.lru_cache(maxsize=MAX_CLASSES)
def _fields(kind: type) -> tuple[str, ...] | None:
    """Return the names of the fields that make up an object of *kind*; None if it is made of something else."""
    if issubclass(kind, BaseModel):
        return tuple(kind.model_fields)
    if issubclass(kind, msgspec.Struct):
        return tuple(kind.__struct_fields__)
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind) if field.compare)
    return None


@functools.lru_cache(maxsize=MAX_CLASSES)
def _contents_of(kind: Any) -> Callable[[Any], tuple[Any, ...]] | None:
    """Return a function that gives the values of all fields of a *kind*; None if that is not all there is in it.

    None, too, if there are fewer than two.
    """
    names = _fields(kind)
    if (
        names is None
        or len(names) < 2
        or (issubclass(kind, BaseModel) and kind.model_config.get("extra") == "allow")
    ):
        return None
    return attrgetter(*names)


def _pairs_of_dicts(given: dict[Any, Any], came: dict[Any, Any]) -> list[Pair]:
    pairs: list[Pair] = [(value, came.get(key, _ABSENT), key) for key, value in given.items()]
    if len(given) != len(came):
        pairs += [(_ABSENT, value, key) for key, value in came.items() if key not in given]
    return pairs


def _pairs_of_sets(given: Collection[Any], came: Collection[Any]) -> list[Pair]:
    """Return the members of two sets in pairs: those that are equal, and the others by how they are written."""
    left = {each: each for each in came}
    pairs = [(each, left.pop(each), "") for each in given if each in left]
    others = sorted((each for each in given if each not in came), key=repr)
    return pairs + [(*each, "") for each in zip(others, sorted(left, key=repr), strict=True)]


def _are_same_atoms(given: Collection[Any], came: Collection[Any]) -> bool:
    """Return whether two collections are equal and hold values of one simple type, which is found out at once."""
    kinds = {*map(type, given)}
    return len(kinds) == 1 and kinds <= _ATOMS and kinds == {*map(type, came)} and _is_equal(given, came)


def _is_equal(given: Any, came: Any) -> bool:
    """Return whether two of one class are equal, as far as their class can tell; a NaN is equal to another."""
    kind: Any = type(given)
    if kind.__eq__ is object.__eq__:
        return True
    if kind is datetime and given.tzinfo is not None and came.tzinfo is not None:
        # In the hour in which a clock is set back, Python calls no times of different zones equal (PEP 495).
        return bool(given.astimezone(UTC) == came.astimezone(UTC))
    try:
        return bool(given == came or (given != given and came != came))
    except Exception:  # noqa: BLE001  arrays, and what else may be compared to no single answer
        return True


def _difference(given: Any, came: Any, path: Path) -> Difference:
    steps: list[str] = []
    while path is not None:
        path, step = path
        steps.append(str(step))
    return Difference(".".join(filter(None, reversed(steps))), _type_of(given), _type_of(came))


def _type_of(value: Any) -> type | None:
    return None if value is _ABSENT else type(value)
