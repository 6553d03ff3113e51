"""The invalidation service: what each of its methods names, and what it refuses."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, cast

import pytest
from starlette.datastructures import URL

from app_cache.backends.memory import MemoryBackend
from app_cache.clock.base import Order
from app_cache.errors import ConfigurationError
from app_cache.invalidation import InvalidationService
from app_cache.store import StoredResponses
from tests.stored import FourMethods, Page, body_of, fill, look_up, written

pytestmark = pytest.mark.anyio

PAGES = {
    "7": Page("/users/7", tags=("users", "7")),
    "8": Page("/users/8", tags=("users", "8")),
    "news": Page("/news", tags=("news",), logical_key="front:news"),
}


async def filled_store(backend: Any) -> StoredResponses:
    """Return a store that has all pages."""
    store = StoredResponses(backend)
    for page in PAGES.values():
        await fill(store, page)
    await written(store)
    return store


CALLS = [
    pytest.param("by_tag", ["7"], {}, {"8", "news"}, id="a tag"),
    pytest.param("by_tag", ["7", "news"], {}, {"8"}, id="any of two tags"),
    pytest.param("by_tag", ["users", "7"], {"match": "all"}, {"8", "news"}, id="all of two tags"),
    pytest.param("by_tag", ["users", "news"], {"match": "all"}, {"7", "8", "news"}, id="all of tags none has"),
    pytest.param("by_tag", ["unknown"], {}, {"7", "8", "news"}, id="a tag that nothing has"),
    pytest.param("by_pattern", ["/users/*"], {}, {"news"}, id="a pattern"),
    pytest.param("by_pattern", ["/users/?"], {}, {"news"}, id="one character"),
    pytest.param("by_pattern", ["front:*"], {}, {"7", "8"}, id="a pattern over logical keys"),
    pytest.param("by_pattern", ["/user"], {}, {"7", "8", "news"}, id="a pattern is of the whole path"),
    pytest.param("by_url", ["/users/7"], {}, {"8", "news"}, id="a path"),
    pytest.param("by_url", ["/users/7?page=2"], {}, {"8", "news"}, id="a path with a query"),
    pytest.param("by_url", ["/users/%37"], {}, {"8", "news"}, id="a path that is encoded"),
    pytest.param("by_url", [URL("/users/7?page=2")], {}, {"8", "news"}, id="a URL object"),
    pytest.param("by_key", ["front:news"], {}, {"7", "8"}, id="a logical key"),
    pytest.param("by_key", [PAGES["7"].key], {}, {"8", "news"}, id="a stored key"),
    pytest.param("everything", [], {}, set(), id="everything"),
]


@pytest.mark.parametrize(("method", "names", "options", "kept"), CALLS)
async def test_names(method: str, names: list[str], options: dict[str, Any], kept: set[str]) -> None:
    """Each method invalidates what it names and nothing else."""
    store = await filled_store(MemoryBackend())
    result = await getattr(InvalidationService(store), method)(*names, **options)
    assert {name for name, page in PAGES.items() if await body_of(store, page) is not None} == kept
    assert (result.durable, result.widened_to) == (True, None)


@pytest.mark.parametrize(("method", "names", "options", "kept"), CALLS)
async def test_four_methods(method: str, names: list[str], options: dict[str, Any], kept: set[str]) -> None:
    """A backend of four methods invalidates at least that, and says so where it can only do more."""
    store = await filled_store(FourMethods())
    result = await getattr(InvalidationService(store), method)(*names, **options)
    left = {name for name, page in PAGES.items() if await body_of(store, page) is not None}
    assert left <= kept
    assert result.widened_to is not None or left == kept


@pytest.mark.parametrize(("method", "names", "options", "kept"), CALLS)
async def test_soft(method: str, names: list[str], options: dict[str, Any], kept: set[str]) -> None:
    """Softly, what is named is still found, marked as stale."""
    store = await filled_store(MemoryBackend())
    await getattr(InvalidationService(store), method)(*names, **options, soft=True)
    found = {name: await look_up(store, page) for name, page in PAGES.items()}
    assert all(each.entry is not None for each in found.values())
    assert {name for name, each in found.items() if not each.marked_stale} == kept


async def test_epochs() -> None:
    """Each invalidation begins an epoch of its own."""
    service = InvalidationService(await filled_store(MemoryBackend()))
    epochs = [(await service.by_tag("users")).epoch, (await service.everything()).epoch]
    assert epochs == sorted({*epochs}, key=int)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "names", "options", "message"),
    [
        pytest.param("by_tag", [], {}, "at least one tag", id="no tag"),
        pytest.param("by_tag", [""], {}, "a tag must be", id="empty tag"),
        pytest.param("by_tag", [7], {}, "not int", id="tag that is no string"),
        pytest.param("by_tag", ["a"], {"match": "some"}, "'any' or 'all', not 'some'", id="wrong match"),
        pytest.param("by_pattern", [""], {}, "a pattern must be", id="empty pattern"),
        pytest.param("by_pattern", ["x" * 257], {}, "256", id="long pattern"),
        pytest.param("by_pattern", [None], {}, "not None", id="pattern that is no string"),
        pytest.param("by_url", ["users/7"], {}, "not 'users/7'", id="relative URL"),
        pytest.param("by_url", ["//host/x"], {}, "not '//host/x'", id="URL without a scheme"),
        pytest.param("by_url", ["ftp://host/x"], {}, "not 'ftp://host/x'", id="wrong scheme"),
        pytest.param("by_url", ["http://[::1/x"], {}, "a URL must be", id="broken URL"),
        pytest.param("by_url", ["http://ü..example/x"], {}, "a URL must be", id="host that is none"),
        pytest.param("by_url", ["http://h:abc/x"], {}, "a port of at most 65535", id="port that is no number"),
        pytest.param("by_url", ["http://h:99999/x"], {}, "not 'http://h:99999/x'", id="port that cannot be"),
        pytest.param("by_url", ["https://u:s3cret@h/x"], {}, r"not 'https://\*\*\*@h/x'", id="URL with a user"),
        pytest.param("by_url", ["http://u:s3cret@h:a/x"], {}, r"not 'http://\*\*\*@h:a/x'", id="both"),
        pytest.param("by_url", [None], {}, "not None", id="URL that is nothing"),
        pytest.param("by_key", [""], {}, "a key must be", id="empty key"),
    ],
)
async def test_wrong_arguments(method: str, names: list[Any], options: dict[str, Any], message: str) -> None:
    """What cannot work is refused in a sentence that names it."""
    service = InvalidationService(StoredResponses(MemoryBackend()))
    with pytest.raises(ConfigurationError, match=message):
        await getattr(service, method)(*names, **options)


@pytest.mark.parametrize("soft", [None, "true", 1, 0, []], ids=repr)
@pytest.mark.parametrize(("method", "names", "options", "kept"), CALLS)
async def test_neither_soft_nor_hard(
    method: str, names: list[str], options: dict[str, Any], kept: set[str], soft: Any
) -> None:
    """What is neither True nor False in the place of *soft* is refused, and nothing is invalidated."""
    del kept
    store = await filled_store(MemoryBackend())
    with pytest.raises(ConfigurationError, match=f"^soft must be True or False, not {re.escape(repr(soft))}$"):
        await getattr(InvalidationService(store), method)(*names, **options, soft=soft)
    assert all([await body_of(store, page) is not None for page in PAGES.values()])


def test_order_of_no_flags() -> None:
    """An order is refused as it is made, and as it is replaced."""
    with pytest.raises(ConfigurationError, match=r"^everything must be True or False, not None$"):
        Order(everything=cast("Any", None))
    with pytest.raises(ConfigurationError, match=r"^soft must be True or False, not 'yes'$"):
        replace(Order(everything=True), soft=cast("Any", "yes"))


def test_no_store() -> None:
    """A service over a backend, which has no stored responses, is refused, and how to get them is said."""
    given: Any = MemoryBackend()
    with pytest.raises(ConfigurationError, match=r"container\.store\(\) or .*, not a MemoryBackend$"):
        InvalidationService(given)
