"""Values of the application's own as msgpack, and back as the type that is asked for.

msgspec does what it knows: what is plain, dataclasses, TypedDicts, Structs, dates, Decimals, UUIDs, sets, tuples.
Pydantic does its own models, and whatever else it has a schema for. Nothing is ever pickled.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

import msgspec
from pydantic import BaseModel, PydanticUndefinedAnnotation, PydanticUserError, TypeAdapter, ValidationError

from app_cache.differences import first_difference
from app_cache.errors import EncodingError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

MAX_READERS = 512
"""Types for which a process remembers how they are read."""
_PLAIN = (type(None), bool, int, float, str, bytes)
"""Types whose values come back as they were without a named type; lists and dicts of them do too, and datetimes
with a zone."""


class _NoSchemaError(Exception):
    """A type that neither msgspec nor pydantic can give back."""


@dataclass(frozen=True, slots=True)
class _Reader:
    """How bytes become a value; *takes_rows*: a dict may have been given for an object of a class with fields."""

    decode: Callable[[bytes], Any]
    takes_rows: bool = True


def encode_value(value: object) -> bytes:
    """Return *value* as msgpack.

    Raises:
        EncodingError: If it, or something in it, cannot be encoded; its type is named.
    """
    try:
        return _encoder.encode(value)
    except EncodingError:
        raise
    except Exception as error:  # a model may have serializers of the application's own
        raise EncodingError(f"a value of type {name_of(type(value))} cannot be kept: {error}") from error


def decode_value(content: bytes, kind: Any) -> Any:
    """Return what *content* holds as *kind*.

    Raises:
        EncodingError: If there is no way to give back *kind*.
        Exception: If it does not hold one: a validator of the application's own may raise anything.
    """
    try:
        return _reader(kind).decode(content)
    except _NoSchemaError as error:
        raise EncodingError(f"values of type {name_of(kind)} cannot be kept: {error}") from None


def settled(value: object, kind: Any) -> tuple[bytes, Any]:
    """Return *value* as msgpack, and what every caller gets back from that, as *kind*.

    Raises:
        EncodingError: If it does not come back as *kind*, or not as it is.
    """
    content = encode_value(value)
    if _is_untyped(kind):
        changed = _first_changed(value)
        if changed is not None:
            raise EncodingError(
                f"a value of type {name_of(changed)} does not come back as one unless its type is named: "
                "annotate what the factory returns, or give type=…"
            )
    try:
        given = decode_value(content, kind)
    except EncodingError:
        raise
    except Exception as error:
        raise EncodingError(
            f"a value of type {name_of(type(value))} does not come back as {name_of(kind)}: {error}"
        ) from error
    if not _is_untyped(kind):
        _check_same(value, given, rows=_reader(kind).takes_rows)
    return content, given


def _check_same(value: object, given: object, *, rows: bool) -> None:
    found = first_difference(value, given, rows=rows)
    if found is None:
        return
    was, became = ("nothing" if kind is None else name_of(kind) for kind in (found.given, found.back))
    raise EncodingError(
        f"a value of type {name_of(type(value))} does not come back as it is: "
        f"{was} at {found.where or 'the top'} comes back as {'another ' * (was == became)}{became}"
    )


def returned_by(factory: Callable[[], object]) -> Any:
    """Return the type that *factory* is annotated to return or to be awaited for; Any if that cannot be read."""
    function = function_of(factory)
    if isinstance(function, type):
        return function
    try:
        hint: Any = function.__annotations__["return"]
        if isinstance(hint, str):
            hint = inspect.get_annotations(function, eval_str=True)["return"]
        origin = get_origin(hint) or hint
        if isinstance(origin, type) and issubclass(origin, Awaitable):
            hint = get_args(hint)[-1]
    except Exception:  # noqa: BLE001  what only a type checker can read may fail here in any way
        return Any
    return Any if isinstance(hint, TypeVar) else hint


def function_of(factory: Callable[[], object]) -> Callable[..., object]:
    """Return the function that a call of *factory* runs, or the class of which it makes an object."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    return factory if isinstance(factory, type) or inspect.isroutine(factory) else type(factory).__call__


def name_of(kind: Any) -> str:
    """Return *kind* as its author writes it, as far as that is known.

    >>> name_of(int), name_of(list[int])
    ('int', 'list[int]')
    """
    return kind.__qualname__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def _remembered(make: Callable[[Any], T]) -> Callable[[Any], T]:
    """Return *make*, asked once for each type; an annotation may have metadata that has no hash."""
    remembering = functools.lru_cache(maxsize=MAX_READERS)(lambda kind, _: make(kind))

    def made(kind: Any) -> T:
        try:
            hash(kind)
        except TypeError:
            return make(kind)
        return remembering(kind, _order_of(kind))

    return made


def _order_of(kind: Any) -> Any:
    """Return what *kind* is made of in the order in which it is written: Python takes ``A | B`` for ``B | A``."""
    parts = () if isinstance(kind, type) else getattr(kind, "__args__", ())
    return (getattr(kind, "__origin__", None), *map(_order_of, parts)) if parts else kind


@_remembered
def _reader(kind: Any) -> _Reader:
    if _is_untyped(kind):
        return _Reader(_plain_decoder.decode)
    try:
        return _Reader(msgspec.msgpack.Decoder(kind, dec_hook=_from_plain).decode)
    except (TypeError, ValueError, NameError):
        _adapter(kind)
        return _Reader(lambda content: _from_plain(kind, _plain_decoder.decode(content)), takes_rows=False)


def _is_untyped(kind: Any) -> bool:
    return kind is Any or kind is object


def _to_plain(value: object) -> Any:
    """Return *value*, of a type that msgspec does not know, as values that it knows."""
    if isinstance(value, BaseModel):
        return value.model_dump(round_trip=True, by_alias=False, warnings=False)
    problem = EncodingError(
        f"a value of type {name_of(type(value))} cannot be kept: neither msgspec nor pydantic gives it back"
    )
    try:
        adapter = _adapter(type(value))
        plain = adapter.dump_python(value, mode="json")
        given = adapter.validate_python(plain)
    except (_NoSchemaError, ValueError):
        raise problem from None
    if given != value:
        raise problem
    return plain


def _from_plain(kind: Any, plain: Any) -> Any:
    """Return *plain* as a *kind* that msgspec does not know, whatever its aliases and however strict it is."""
    try:
        return _adapter(kind).validate_python(plain, strict=False, by_alias=False, by_name=True)
    except ValidationError as error:
        raise ValueError(_told(error)) from None
    except PydanticUserError as error:
        raise _no_schema(error) from None


def _told(error: ValidationError) -> str:
    """Return what is wrong, and where, without the values."""
    wrong = ((each["msg"], ".".join(map(str, each["loc"]))) for each in error.errors())
    return "; ".join(f"{message} at {where or 'the top'}" for message, where in wrong)


@_remembered
def _adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(kind)
    except (PydanticUserError, PydanticUndefinedAnnotation) as error:
        raise _no_schema(error) from None


def _no_schema(error: Exception) -> _NoSchemaError:
    return _NoSchemaError(str(error).partition("\n")[0])


def _first_changed(value: object) -> type | None:
    """Return the type of something in *value* that plain msgpack gives back as another, or None."""
    todo: list[Any] = [value]
    while todo:
        each = todo.pop()
        kind = type(each)
        if kind is dict:
            todo += each.keys()
            todo += each.values()
        elif kind is list:
            todo += each
        elif kind not in _PLAIN and not (kind is datetime and each.tzinfo is not None):
            return kind
    return None


_encoder = msgspec.msgpack.Encoder(enc_hook=_to_plain)
_plain_decoder = msgspec.msgpack.Decoder()
