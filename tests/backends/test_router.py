"""Each key belongs to one backend, and the router offers what all of them can."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from app_cache.backends.base import (
    OPERATION_TIMEOUT_S,
    BytesBackend,
    CacheBackend,
    LocalBackend,
    PatternBackend,
    PingBackend,
    SizedBackend,
    budget_of,
    capability,
)
from app_cache.backends.memory import MemoryBackend
from app_cache.backends.redis import RedisBackend
from app_cache.backends.router import BackendRouter
from app_cache.errors import BackendError, ConfigurationError

if TYPE_CHECKING:
    from app_cache.backends.router import Route

pytestmark = pytest.mark.anyio


class TextBackend(CacheBackend):
    """Four verbs that keep nothing, and count how often it is closed."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.closed = 0

    async def get(self, key: str) -> str | None:
        return None

    async def set(self, key: str, value: str, timeout: int) -> None: ...

    async def delete(self, key: str) -> None: ...

    async def close(self) -> None:
        self.closed += 1
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def session() -> MemoryBackend:
    """Give the backend for sessions."""
    return MemoryBackend()


@pytest.fixture
def data() -> MemoryBackend:
    """Give the backend for the rest."""
    return MemoryBackend()


async def where(router: CacheBackend, key: str, backends: dict[str, MemoryBackend]) -> list[str]:
    """Return the names of the *backends* that hold *key* once it was set through *router*."""
    await router.set(key, "value", 60)
    assert await router.get(key) == "value"
    names = [name for name, backend in backends.items() if await backend.get(key) is not None]
    await router.delete(key)
    assert await router.get(key) is None
    return names


@pytest.mark.parametrize(
    ("key", "name"),
    [("session:7", "session"), ("data:7", "data"), ("user:7", "data"), ("session", "data"), ("", "data")],
)
async def test_by_name(session: MemoryBackend, data: MemoryBackend, key: str, name: str) -> None:
    """A key goes to the backend named before its first colon, as in the document, or to the default."""
    backends = {"session": session, "data": data}
    assert await where(BackendRouter(backends), key, backends) == [name]


@pytest.mark.parametrize(("key", "name"), [("s:1", "session"), ("long enough", "session"), ("session:7", "data")])
async def test_by_routes(session: MemoryBackend, data: MemoryBackend, key: str, name: str) -> None:
    """A key goes to the first route that fits it, a prefix or a predicate, or to the default."""
    backends = {"session": session, "data": data}
    routes: list[Route] = [("s:", "session"), (lambda key: len(key) > 10, "session"), ("s:1", "data")]
    assert await where(BackendRouter(backends, "data", routes=routes), key, backends) == [name]


@pytest.mark.parametrize(("key", "name"), [("s:1", "session"), ("x", "data")])
async def test_routes_to_backends(session: MemoryBackend, data: MemoryBackend, key: str, name: str) -> None:
    """Routes and the default may be backends themselves, without names."""
    router = BackendRouter(routes=[("s:", session)], default=data)
    assert await where(router, key, {"session": session, "data": data}) == [name]


class DocumentsRouter(BackendRouter):
    """The router of the user's document, its own constructor included."""

    def __init__(self, backends: dict[str, CacheBackend]) -> None:
        self.backends = backends

    def _get_backend_for_key(self, key: str) -> str:
        if key.startswith("session:"):
            return "session"
        return "data"


@pytest.mark.parametrize(("key", "name"), [("session:7", "session"), ("other:7", "data")])
async def test_by_override(session: MemoryBackend, data: MemoryBackend, key: str, name: str) -> None:
    """A subclass decides by `_get_backend_for_key`, as the document shows."""
    router = DocumentsRouter({"session": session, "data": data, "other": MemoryBackend()})
    assert await where(router, key, {"session": session, "data": data}) == [name]
    await router.close()


async def test_override_needs_no_default(session: MemoryBackend) -> None:
    """A subclass that decides by itself need not have a default among its backends."""

    class ToSession(BackendRouter):
        def _get_backend_for_key(self, key: str) -> str:
            return "session"

    assert await where(ToSession({"session": session}), "key", {"session": session}) == ["session"]


async def test_default_beside_one_of_that_name(session: MemoryBackend, data: MemoryBackend) -> None:
    """A default that is a backend takes nothing from one that is called so; both are closed."""
    router = BackendRouter({"default": session}, data)
    assert await where(router, "default:7", {"session": session, "data": data}) == ["session"]
    assert await where(router, "key", {"session": session, "data": data}) == ["data"]
    assert {*router._parts()} == {session, data}


async def test_override_keeps_the_default(session: MemoryBackend, data: MemoryBackend) -> None:
    """A subclass that decides for some keys leaves the others to the default that was given."""

    class Some(BackendRouter):
        def _get_backend_for_key(self, key: str) -> str:
            return "session" if key == "s" else super()._get_backend_for_key(key)

    backends = {"session": session, "other": data}
    assert await where(Some(backends, default="other"), "key", backends) == ["other"]
    own = type("Own", (Some,), {"default": "other"})
    assert await where(own(backends), "key", backends) == ["other"]


async def test_unknown_name(session: MemoryBackend) -> None:
    """A key that is routed to a name without a backend is an error that says which there are."""

    class Wrong(BackendRouter):
        def _get_backend_for_key(self, key: str) -> str:
            return "sesion"

    with pytest.raises(ConfigurationError, match="routed to 'sesion'; the backends are 'session'"):
        await Wrong({"session": session}).get("key")


async def test_closes_each_once() -> None:
    """Each backend is closed once, however many names it has."""
    twice, once = TextBackend(), TextBackend()
    await BackendRouter({"a": twice, "b": twice, "data": once}).close()
    assert (twice.closed, once.closed) == (1, 1)


async def test_closes_all_though_one_fails() -> None:
    """A backend that cannot be closed keeps none of the others open, and its error is raised."""
    bad, good = TextBackend(BackendError("stuck")), TextBackend()
    with pytest.raises(BackendError, match="stuck"):
        await BackendRouter({"bad": bad, "data": good}).close()
    assert good.closed == 1


async def test_sums(session: MemoryBackend, data: MemoryBackend) -> None:
    """Sizes and the counts of deleted keys are those of all backends together, each counted once."""
    router = BackendRouter({"session": session, "data": data, "more": data})
    for key in ("session:a", "session:b", "more:a", "a"):
        await router.set(key, "value", 60)
    able, sized = capability(router, PatternBackend), capability(router, SizedBackend)
    assert able is not None
    assert sized is not None
    assert await sized.size() == 4
    assert await able.delete_pattern("*:a") == 2
    assert await sized.size() == 2


@pytest.mark.parametrize("kind", [BytesBackend, PatternBackend, PingBackend, SizedBackend])
def test_offers_what_all_can(kind: type[Any]) -> None:
    """A capability is there if all backends have it, and not if one does not."""
    assert capability(BackendRouter({"a": MemoryBackend(), "data": MemoryBackend()}), kind)
    assert not capability(BackendRouter({"a": MemoryBackend(), "data": TextBackend()}), kind)


def test_is_not_local() -> None:
    """Nothing can be kept beside the values of several backends."""
    assert capability(BackendRouter({"data": MemoryBackend()}), LocalBackend) is None


def test_has_the_time_of_the_slowest() -> None:
    """An operation may take as long as the backend may that is given most, which a subclass may say otherwise."""

    class Slow(TextBackend):
        operation_timeout = 2.0

    class Patient(BackendRouter):
        operation_timeout = 3.0

    backends = {"slow": Slow(), "fast": RedisBackend(operation_timeout=0.1), "data": MemoryBackend()}
    assert budget_of(BackendRouter(backends)) == 2.0
    assert budget_of(BackendRouter({"data": RedisBackend(operation_timeout=0.1)})) == 0.1
    assert budget_of(BackendRouter({"fast": backends["fast"], "data": TextBackend()})) == OPERATION_TIMEOUT_S
    assert budget_of(Patient(backends)) == 3.0


async def test_default_timeouts(session: MemoryBackend) -> None:
    """A value that is set with the timeout None is kept for the default of its own backend."""

    class Recording(TextBackend):
        default_timeout = 7
        timeouts: list[int] = []  # noqa: RUF012

        async def set(self, key: str, value: str, timeout: int) -> None:
            self.timeouts.append(timeout)

    recording = Recording()
    router = BackendRouter({"session": session, "data": recording})
    await router.set("key", "value", None)
    assert recording.timeouts == [7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backends": {"a": TextBackend()}}, "default must be one of 'a', not 'data'"),
        ({"backends": {"a": TextBackend()}, "default": "b"}, "default must be one of 'a', not 'b'"),
        ({}, "default must be one of none, not 'data'"),
        (
            {"backends": {"data": TextBackend()}, "routes": [("s:", "x")]},
            r"routes\[0\] must be one of 'data', not 'x'",
        ),
    ],
)
def test_wrong_names(options: dict[str, Any], message: str) -> None:
    """A default or a route without a backend is refused, with the names that there are."""
    with pytest.raises(ConfigurationError, match=message):
        BackendRouter(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            {"backends": {"data": None}}, r"backends\['data'\] must be an instance .*, not None", id="none"
        ),
        pytest.param(
            {"backends": {"data": TextBackend}},
            r"backends\['data'\] must be an instance .*, not <class",
            id="a class",
        ),
        pytest.param({"backends": "redis://:s3cret@h"}, r"dictionary .*, not 'redis://\*\*\*@h'", id="a URL"),
        pytest.param({"routes": ["s:"]}, r"^routes must be a list of pairs .*, not \['s:'\]", id="a prefix alone"),
        pytest.param({"routes": 5}, "^routes must be a list of pairs .*, not 5", id="no routes"),
        pytest.param(
            {"routes": [(5, TextBackend())]}, r"^routes\[0\] must begin with a prefix .*, not 5", id="no prefix"
        ),
        pytest.param({"routes": [("s:", {})]}, r"^routes\[0\] must be one of none, not {}", id="no name"),
    ],
)
def test_no_backend(options: dict[str, Any], message: str) -> None:
    """What is no backend, and a route that is none, is refused with its place; no secret is shown."""
    with pytest.raises(ConfigurationError, match=message):
        BackendRouter(**{"default": TextBackend(), **options})


def test_pairs_of_any_kind() -> None:
    """Routes may come as anything that gives pairs."""
    mine = TextBackend()
    router = BackendRouter(routes={"s:": mine}.items(), default=TextBackend())  # type: ignore[arg-type]
    assert router._backend_for("s:7") is mine


def test_no_backends() -> None:
    """A router without any backend is refused."""
    with pytest.raises(ConfigurationError, match="have one at least"):
        type("Mine", (BackendRouter,), {"_get_backend_for_key": lambda self, key: "a"})({})
