"""What is kept comes back as the type that is asked for, or its type is named in one error."""
# ruff: noqa: D103 - factories as their authors write them

from __future__ import annotations

import asyncio
import collections
import enum
import functools
import ipaddress
import pathlib
import re
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from types import FunctionType
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, NoReturn, TypedDict, TypeVar
from uuid import UUID

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app_cache.errors import AppCacheError, EncodingError
from app_cache.typed import decode_value, encode_value, returned_by, settled

if TYPE_CHECKING:
    from fractions import Fraction

T = TypeVar("T")
FAR = timezone(timedelta(hours=5, minutes=30))


class Color(enum.Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: float


class Row(TypedDict):
    name: str
    at: datetime


@dataclass
class Hen:
    name: str


@dataclass
class Cock:
    name: str


class Struct(msgspec.Struct):
    a: int
    b: set[Decimal] = msgspec.field(default_factory=set)


@dataclass
class Cat:
    name: str
    born: date = date(2020, 2, 29)


@dataclass
class Dog:
    name: str
    toys: tuple[str, ...] = field(default=())


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    number: int = pydantic.Field(alias="theNumber", ge=0)
    at: datetime
    raw: bytes
    tags: set[str] = set()
    address: ipaddress.IPv4Address | None = None
    inner: Cat | None = None
    validated: str = pydantic.Field(default="", validation_alias="in", serialization_alias="out")

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        """A field that cannot be given."""
        return 2 * self.number


class Page(pydantic.BaseModel, Generic[T]):
    items: list[T]


class Names(pydantic.RootModel[list[str]]):
    pass


@pydantic.dataclasses.dataclass
class Checked:
    model: Model


class Meow(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"


class Woof(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"


MODEL = Model(theNumber=3, at=datetime(2024, 5, 1, 12, tzinfo=UTC), raw=b"\xff\0", tags={"a"}, inner=Cat("Tom"))

dates = st.dates()
aware = st.datetimes(timezones=st.sampled_from([UTC, FAR]))
decimals = st.decimals(allow_nan=False)
cats = st.builds(Cat, st.text(), dates)
texts = st.text(max_size=9)
models = st.builds(
    Model,
    theNumber=st.integers(0, 2**62),
    at=st.datetimes(),
    raw=st.binary(max_size=9),
    tags=st.sets(texts, max_size=3),
    address=st.none() | st.ip_addresses(v=4),
    inner=st.none() | cats,
)
structs = st.builds(Struct, st.integers(-(2**62), 2**62), st.sets(decimals, max_size=3))
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | texts
    | st.binary(max_size=9)
    | aware,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)

TYPES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (Any, plain),
    (object, plain),
    (int | None, st.none() | st.integers(0, 9)),
    (float, st.floats(allow_nan=False)),
    (datetime, st.datetimes() | aware),
    (date, dates),
    (time, st.times()),
    (timedelta, st.timedeltas(timedelta(-999), timedelta(999))),
    (Decimal, decimals),
    (UUID, st.uuids()),
    (Color, st.sampled_from(Color)),
    (Point, st.builds(Point, st.integers(0, 9), st.floats(allow_nan=False))),
    (Row, st.fixed_dictionaries({"name": st.text(), "at": st.datetimes()})),
    (set[UUID], st.sets(st.uuids(), max_size=3)),
    (frozenset[int], st.frozensets(st.integers(0, 9))),
    (tuple[int, Decimal], st.tuples(st.integers(0, 9), decimals)),
    (tuple[date, ...], st.lists(dates, max_size=3).map(tuple)),
    (dict[int, list[date]], st.dictionaries(st.integers(0, 9), st.lists(dates, max_size=2), max_size=2)),
    (Sequence[int], st.lists(st.integers(0, 9))),
    (Mapping[str, UUID], st.dictionaries(texts, st.uuids(), max_size=2)),
    (Cat, cats),
    (list[Dog], st.lists(st.builds(Dog, texts, st.lists(texts, max_size=2).map(tuple)), max_size=3)),
    (Struct, structs),
    (Model, models),
    (dict[str, Model | None], st.dictionaries(texts, st.none() | models, max_size=3)),
    (Page[Model], st.lists(models, max_size=2).map(lambda items: Page[Model](items=items))),
    (Names, st.lists(texts).map(Names)),
    (Checked, models.map(Checked)),
    (ipaddress.IPv6Address, st.ip_addresses(v=6)),
    (pathlib.PurePosixPath, st.just(pathlib.PurePosixPath("a/b"))),
    (collections.deque[int], st.lists(st.integers(0, 9)).map(collections.deque)),
    (complex, st.complex_numbers(allow_nan=False, allow_infinity=False)),
    (int | Model, st.integers(0, 9) | models),
    (Meow | Woof, st.builds(Meow) | st.builds(Woof)),
    (Annotated[Meow | Woof, pydantic.Field(discriminator="kind")], st.builds(Meow) | st.builds(Woof)),
    (Annotated[int, ["no", "hash"]], st.integers(0, 9)),
]


@pytest.mark.parametrize(("kind", "values"), TYPES, ids=lambda each: str(each)[:40])
def test_round_trip(kind: Any, values: st.SearchStrategy[Any]) -> None:
    """A value comes back equal, of the same class, and as another object with the same content."""

    @settings(max_examples=40)
    @given(values)
    def comes_back(value: Any) -> None:
        content, returned = settled(value, kind)
        assert (returned, type(returned)) == (value, type(value))
        assert decode_value(content, kind) == value

    comes_back()


def test_zone() -> None:
    """A datetime with a zone comes back as the same moment, in UTC."""
    _, returned = settled(datetime(2024, 1, 1, 5, 30, tzinfo=FAR), datetime)
    assert (returned, returned.tzinfo) == (datetime(2024, 1, 1, tzinfo=UTC), UTC)


class SetBack(tzinfo):
    """A zone whose clock is set back from three to two."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        """Return what is ahead of UTC."""
        return timedelta(hours=1 if moment is None or moment.fold else 2)

    def dst(self, moment: datetime | None) -> timedelta:
        """Return what of it is for the summer."""
        return self.utcoffset(moment) - timedelta(hours=1)

    def tzname(self, moment: datetime | None) -> str:
        """Return its name."""
        return "set back"


@pytest.mark.parametrize("fold", [0, 1])
@pytest.mark.parametrize("kind", [datetime, list[datetime], Model], ids=["alone", "in a list", "in a model"])
def test_hour_that_comes_twice(kind: Any, fold: int) -> None:
    """A moment of the hour in which a clock is set back comes back as that moment (PEP 495)."""
    moment = datetime(2024, 10, 27, 2, 30, fold=fold, tzinfo=SetBack())
    as_utc = datetime(2024, 10, 27, 1 if fold else 0, 30, tzinfo=UTC)
    if kind is Model:
        assert settled(MODEL.model_copy(update={"at": moment}), Model)[1].at == as_utc
    elif kind is datetime:
        assert settled(moment, datetime)[1] == as_utc
    else:
        assert settled([moment], kind)[1] == [as_utc]


def test_made_of_rows() -> None:
    """What is given as plain rows comes back as the type that is named."""
    assert settled([{"name": "Tom", "born": "2020-02-29"}], list[Cat])[1] == [Cat("Tom")]


class Cycle(list[Any]):
    def __init__(self) -> None:
        super().__init__([self])


class Stubborn(pydantic.BaseModel):
    at: int

    @pydantic.field_serializer("at")
    def refuse(self, at: int) -> int:
        raise LookupError("no")


@pytest.mark.parametrize(
    ("value", "named"),
    [
        pytest.param(object(), "object", id="object"),
        pytest.param((each for each in [1]), "generator", id="generator"),
        pytest.param(lambda: None, "function", id="function"),
        pytest.param(FunctionType, "type", id="class"),
        pytest.param({"a": [object()]}, "object", id="deep within"),
        pytest.param(Page[Any](items=[object()]), "object", id="within a model"),
        pytest.param(pydantic.SecretStr("s3cret"), "SecretStr", id="secret that would come back masked"),
        pytest.param(re, "module", id="module"),
        pytest.param(2**64, "int", id="too large"),
        pytest.param("\udcff", "str", id="half of a pair"),
        pytest.param(Cycle(), "Cycle", id="within itself"),
        pytest.param(ValueError("x"), "ValueError", id="exception"),
        pytest.param(Stubborn(at=1), "Stubborn", id="serializer that raises"),
        pytest.param(sys.stdout, "", id="file"),
    ],
)
def test_cannot_be_encoded(value: Any, named: str) -> None:
    """What cannot be encoded is one error, which names the type, and says nothing secret."""
    with pytest.raises(EncodingError, match=f"a value of type .*{named}.* cannot be kept") as raised:
        encode_value(value)
    assert isinstance(raised.value, AppCacheError | TypeError)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        pytest.param((1, 2), "tuple", id="tuple"),
        pytest.param([{"a": {1}}], "set", id="set within"),
        pytest.param(date(2024, 1, 1), "date", id="date"),
        pytest.param(datetime(2024, 1, 1), "datetime", id="datetime without a zone"),  # noqa: DTZ001
        pytest.param(Decimal(1), "Decimal", id="Decimal"),
        pytest.param(Cat("Tom"), "Cat", id="dataclass"),
        pytest.param(MODEL, "Model", id="model"),
        pytest.param(Struct(1), "Struct", id="Struct"),
        pytest.param(collections.OrderedDict(), "OrderedDict", id="subclass"),
        pytest.param(Color.RED, "Color", id="enum"),
        pytest.param({(1, 2): 3}, "tuple", id="key"),
    ],
)
def test_untyped(value: Any, named: str) -> None:
    """Without a type, what would come back as something else is an error that says what to do."""
    with pytest.raises(EncodingError, match=f"type {named} does not come back .* type="):
        settled(value, Any)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        pytest.param({"a": 1}, Model, "dict does not come back as Model", id="model"),
        pytest.param("text", int, "str does not come back as int", id="plain"),
        pytest.param(None, Cat, "NoneType does not come back as Cat", id="None"),
        pytest.param(Cock(""), Hen | Cock, "Cock at the top comes back as Hen", id="look alike"),
        pytest.param(
            Decimal(1), Decimal | str, "Decimal at the top comes back as str", id="texts that look alike"
        ),
    ],
)
def test_other_type(value: Any, kind: Any, message: str) -> None:
    """What does not come back as the type that is named, or as another one, is an error."""
    with pytest.raises(EncodingError, match=message):
        settled(value, kind)


class Wide(pydantic.BaseModel):
    when: date | str = ""
    price: float | Decimal = 0.0
    ids: set[int] | list[int] = []
    payload: dict[str, Any] = {}
    secret: str = pydantic.Field(default="", exclude=True)
    animal: Meow | Woof | None = None
    point: Point | None = None


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")


class Doubled(pydantic.BaseModel):
    number: int

    @pydantic.field_validator("number")
    @classmethod
    def doubled(cls, number: int) -> int:
        """Return something else each time."""
        return 2 * number


@dataclass
class Taxed:
    net: float

    def __post_init__(self) -> None:
        self.net *= 1.2

    def __eq__(self, other: object) -> bool:
        return True


@dataclass
class Holder:
    what: Any = None
    cat: Cat | None = None


class Kitten(Cat):
    """A cat of a class of its own."""


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        pytest.param(
            {"a": [date(2024, 1, 1)]}, dict[str, Any], "date at a.0 comes back as str", id="date for Any"
        ),
        pytest.param({"a": (1, 2)}, dict, "tuple at a comes back as list", id="tuple in a bare dict"),
        pytest.param(
            {"a": Decimal(1)}, dict[str, object], "Decimal at a comes back as str", id="Decimal for object"
        ),
        pytest.param([MODEL], list[Any], "Model at 0 comes back as dict", id="model for Any"),
        pytest.param((1, 2), Sequence[int], "tuple at the top comes back as list", id="tuple for a sequence"),
        pytest.param(collections.defaultdict(int, a=1), dict[str, int], "defaultdict at the top", id="own dict"),
        pytest.param([1], collections.abc.Iterable[int], "list at the top comes back as", id="iterable"),
        pytest.param(Kitten("Tom"), Cat, "Kitten at the top comes back as Cat", id="subclass"),
        pytest.param(Holder(cat=Kitten("Tom")), Holder, "Kitten at cat comes back as Cat", id="subclass within"),
        pytest.param(Holder(what=date(2024, 1, 1)), Holder, "date at what comes back as str", id="field for Any"),
        pytest.param(Holder(what={"name": ""}, cat={"name": ""}), Holder, "dict at cat comes", id="row within"),  # type: ignore[arg-type]
        pytest.param(Wide(when=date(2024, 1, 1)), Wide, "date at when comes back as str", id="date or text"),
        pytest.param(Wide(price=Decimal(1)), Wide, "Decimal at price comes back as float", id="float or Decimal"),
        pytest.param(Wide(ids={1}), Wide, "set at ids comes back as list", id="set or list"),
        pytest.param(Wide(payload={"a": UUID(int=1)}), Wide, "UUID at payload.a comes back as str", id="payload"),
        pytest.param(Wide(secret="s3cret"), Wide, "str at secret comes back as another str", id="left out"),
        pytest.param([Wide(), Wide(secret="s3cret")], list[Wide], "str at 1.secret", id="within a list"),
        pytest.param(Open(at=date(2024, 1, 1)), Open, "date at at comes back as str", id="extra"),  # type: ignore[call-arg]
        pytest.param(Doubled(number=1), Doubled, "int at number comes back as another int", id="validator"),
        pytest.param(Taxed(100), Taxed, "float at net comes back as another float", id="made otherwise"),
        pytest.param(Page(items=[MODEL]), Page, "Model at items.0 comes back as dict", id="generic"),
    ],
)
def test_changed(value: Any, kind: Any, message: str) -> None:
    """What would come back as something else is an error, which says where, and shows no value."""
    with pytest.raises(EncodingError, match=f"does not come back as .*{message}") as raised:
        settled(value, kind)
    assert "s3cret" not in str(raised.value)


class Locked(pydantic.BaseModel):
    number: int
    _lock: Any = pydantic.PrivateAttr(default_factory=object)


@dataclass
class Cached:
    number: int
    noted: float = field(default=0.0, compare=False)


class Alone(msgspec.Struct, eq=False):
    number: int
    other: float = 0.0


NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        pytest.param([NAN, 1.0], list[float], id="not a number"),
        pytest.param({"a": {"b": NAN}}, dict[str, Any], id="not a number within"),
        pytest.param(Point(1, NAN), Point, id="not a number in a tuple"),
        pytest.param({NAN}, set[float], id="not a number in a set"),
        pytest.param(Decimal("NaN"), Decimal, id="Decimal that is none"),
        pytest.param([3, 2.5], list[float], id="int for a float"),
        pytest.param({1, 2}, set[float], id="ints for floats in a set"),
        pytest.param(Point(1, 2), Point, id="int for a float in a tuple"),
        pytest.param(
            [{(1, "a"): {frozenset({2}), frozenset({3, 4})}}],
            list[dict[tuple[int, str], set[frozenset[int]]]],
            id="sets of sets",
        ),
        pytest.param({"b": 1, "a": [1, "x", None, True, 2.5, b"y"]}, dict[str, Any], id="JSON"),
        pytest.param(Alone(1), Alone, id="without =="),
        pytest.param(Locked(number=1), Locked, id="private attribute"),
        pytest.param(Cached(1, 2.5), Cached, id="field out of comparison"),
        pytest.param([datetime(2024, 1, 1, tzinfo=FAR)], list[datetime], id="zone"),
        pytest.param(msgspec.json.decode("[" * 400 + "]" * 400), list[Any], id="deeply nested"),
    ],
)
def test_fine(value: Any, kind: Any) -> None:
    """What comes back as it was, as far as that can be told, is kept."""
    settled(value, kind)


class Buyer(pydantic.BaseModel):
    name: str


class Seller(pydantic.BaseModel):
    name: str


@pytest.mark.parametrize(
    ("kind", "one"),
    [
        pytest.param(Buyer | Seller, Buyer, id="union"),
        pytest.param(Seller | Buyer, Seller, id="the other way round"),
        pytest.param(list[Buyer | Seller], list[Buyer], id="list"),
        pytest.param(list[Seller | Buyer], list[Seller], id="list, the other way round"),
    ],
)
def test_union_as_written(kind: Any, one: Any) -> None:
    """Of a union the first that fits comes back, as it is written, whatever this process asked for before."""
    content = encode_value({"name": "a"} if isinstance(one, type) else [{"name": "a"}])
    assert decode_value(content, kind) == decode_value(content, one)


class Session:
    """Something for which nobody has a schema."""


class Waiting(pydantic.BaseModel):
    later: Undefined  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize("kind", [Session, dict[str, Session], Session | int, Cat | Struct, NoReturn, Waiting, 7])
def test_impossible_type(kind: Any) -> None:
    """A type that nothing can come back as is an error, not a miss for ever."""
    with pytest.raises(EncodingError, match="cannot be kept"):
        decode_value(encode_value({"a": {}}), kind)


def test_no_values_in_errors() -> None:
    """An error says what is wrong and where, without the value, also where it comes from."""
    with pytest.raises(EncodingError, match="number") as raised:
        settled({"number": "s3cret", "at": "2024-01-01", "raw": b""}, Model)
    chain: BaseException | None = raised.value
    while chain is not None:
        assert "s3cret" not in str(chain)
        assert not isinstance(chain, pydantic.ValidationError)
        chain = chain.__cause__


# What a factory returns.


async def coroutine() -> list[int]:
    return []


def function() -> Cat:
    return Cat("")


def awaitable() -> Awaitable[Dog]:
    return asyncio.Future()


def generic() -> Coroutine[Any, Any, T]:
    raise NotImplementedError


def unannotated():  # type: ignore[no-untyped-def]
    return 1


def only_for_checkers() -> Fraction:
    raise NotImplementedError


def bare() -> Awaitable:  # type: ignore[type-arg]
    raise NotImplementedError


def with_arguments(number: int, *, of: Undefined = None) -> Model:  # type: ignore[name-defined]  # noqa: F821
    raise NotImplementedError


@functools.cache
def cached() -> Point:
    return Point(1, 2)


def decorated(inner: Callable[..., T]) -> Callable[..., T]:
    @functools.wraps(inner)
    def wrapper() -> Any:
        return inner()

    return wrapper


class Loader:
    def load(self) -> Row:
        raise NotImplementedError

    @classmethod
    def of_class(cls) -> Color:
        return Color.RED

    async def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("factory", "kind"),
    [
        pytest.param(coroutine, list[int], id="async"),
        pytest.param(function, Cat, id="plain"),
        pytest.param(awaitable, Dog, id="gives an awaitable"),
        pytest.param(generic, Any, id="type variable"),
        pytest.param(unannotated, Any, id="unannotated"),
        pytest.param(lambda: 1, Any, id="lambda"),
        pytest.param(only_for_checkers, Any, id="name that only a type checker sees"),
        pytest.param(bare, Any, id="awaitable of nothing said"),
        pytest.param(functools.partial(functools.partial(function)), Cat, id="partial"),
        pytest.param(with_arguments, Any, id="other annotations cannot be read"),
        pytest.param(cached, Point, id="cached"),
        pytest.param(decorated(function), Cat, id="decorated"),
        pytest.param(Loader().load, Row, id="method"),
        pytest.param(Loader.of_class, Color, id="class method"),
        pytest.param(Loader(), None, id="callable object"),
        pytest.param(Struct, Struct, id="class"),
        pytest.param(dict, dict, id="builtin class"),
        pytest.param({}.copy, Any, id="builtin method"),
        pytest.param(functools.partial(iter, [1]), Any, id="builtin function"),
    ],
)
def test_returned_by(factory: Any, kind: Any) -> None:
    """The type of what a factory makes is what it is annotated to return."""
    assert returned_by(factory) == kind


def test_returned_by_local() -> None:
    """A factory in a function is read as far as its module knows the names."""

    class Local(pydantic.BaseModel):
        a: int

    def of_module() -> Model:
        raise NotImplementedError

    def of_function() -> Local:
        raise NotImplementedError

    async def iterator() -> Iterator[Local]:
        raise NotImplementedError

    assert (returned_by(of_module), returned_by(of_function), returned_by(iterator)) == (Model, Any, Any)
