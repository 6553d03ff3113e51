"""What the container gives: by environment, late, and to its own application alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, assert_type

import pytest
from dependency_injector import containers, providers
from fastapi import FastAPI

from app_cache import (
    ENVIRONMENTS,
    CacheBackend,
    CacheSettings,
    ConfigurationError,
    DefaultKeyGenerator,
    Environment,
    InvalidationService,
    KeyGenerator,
    MemoryBackend,
    RedisBackend,
    cache,
    invalidates,
)
from app_cache.config import BACKENDS
from app_cache.helpers import create_backend_from_env
from app_cache.store import StoredResponses
from app_cache.testing import FakeClock
from containers import CacheContainer, install
from tests.clients import HIT, MISS, counting_app, get, post, told_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from tests.servers import Server

pytestmark = pytest.mark.anyio


class ByPath(KeyGenerator):
    """Tells requests apart by path."""

    def generate_cache_key(self, request: Request) -> str:
        return request.url.path


class OwnInvalidation(InvalidationService):
    """Another service."""


def container_for(environ: dict[str, str], **parts: Any) -> CacheContainer:
    """Return a container for an environment that consists of *environ* alone."""
    return CacheContainer(settings=CacheSettings(environ), **parts)


def installed(app: FastAPI, **parts: Any) -> tuple[FastAPI, Any]:
    """Return *app* with a container, and the container."""
    container = container_for({}, **parts)
    install(app, container)
    return app, container


class TestEnvironments:
    OWN = Environment(
        "own",
        lambda _: MemoryBackend(max_size=7),
        key_generator=ByPath,
        namespace="own-space",
        invalidation=OwnInvalidation,
    )
    """Everything that an environment may say."""

    @pytest.fixture
    def container(self) -> CacheContainer:
        """A container in that environment."""
        return container_for({"ENVIRONMENT": "own"}, environments={**ENVIRONMENTS, "own": self.OWN})

    @pytest.mark.parametrize(
        ("ask", "own", "testing"),
        [
            pytest.param(lambda c: c.backend().max_size, 7, 50, id="backend"),
            pytest.param(lambda c: type(c.key_generator()), ByPath, DefaultKeyGenerator, id="key generator"),
            pytest.param(lambda c: c.namespace(), "own-space", "", id="namespace"),
            pytest.param(
                lambda c: type(c.invalidation()), OwnInvalidation, InvalidationService, id="invalidation"
            ),
            pytest.param(lambda c: c.environment().name, "own", "testing", id="environment"),
        ],
    )
    def test_value(self, container: CacheContainer, ask: Callable[[Any], Any], own: Any, testing: Any) -> None:
        """Backend, key generator, namespace and invalidation service differ by environment."""
        assert ask(container) == own
        assert ask(container_for({"ENVIRONMENT": "testing"})) == testing

    async def test_in_force(self, container: Any) -> None:
        """An application uses what its environment says."""
        app = counting_app()
        install(app, container)
        assert await told_of(app, "/count", "/count?ignored=1") == [MISS, HIT]
        assert await container.backend().delete_pattern("cache:own-space:*") == 1

    def test_namespace_by_variable(self) -> None:
        """``CACHE_NAMESPACE`` goes before the namespace of the environment."""
        environ = {"ENVIRONMENT": "own", "CACHE_NAMESPACE": "shop"}
        assert container_for(environ, environments={"own": self.OWN}).namespace() == "shop"

    @pytest.mark.parametrize(
        "environ",
        [
            pytest.param({}, id="development"),
            pytest.param({"ENVIRONMENT": "testing"}, id="testing"),
            pytest.param({"USE_REDIS": "true"}, id="development with Redis"),
            pytest.param({"CACHE_BACKEND": "redis"}, id="redis"),
            pytest.param({"ENVIRONMENT": "staging"}, id="staging"),
            pytest.param({"ENVIRONMENT": "staging", "CACHE_BACKEND": "memory"}, id="memory in staging"),
            pytest.param({"ENVIRONMENT": "production", "REDIS_URL": "rediss://h:1/3"}, id="production"),
        ],
    )
    def test_same_choice_as_the_helper(self, environ: dict[str, str]) -> None:
        """The container and `create_backend_from_env` choose the same backend."""
        chosen, helped = container_for(environ).backend(), create_backend_from_env(environ)
        assert type(chosen) is type(helped)
        if isinstance(chosen, RedisBackend):
            assert repr(chosen) == repr(helped)
        else:
            assert chosen.max_size == helped.max_size  # type: ignore[attr-defined]

    def test_reads_the_process_late(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The variables of the process are read when a part is first asked for, not when the container is made."""
        container = CacheContainer()
        monkeypatch.setenv("ENVIRONMENT", "nowhere")
        with pytest.raises(ConfigurationError, match="Unknown environment: nowhere"):
            container.backend()


class TestLateResolution:
    async def test_override_of_a_started_application(self) -> None:
        """An override is in force at the next request of a started application, and ends with its block."""
        app, container = installed(counting_app())
        assert await told_of(app, "/count", "/count") == [MISS, HIT]
        with container.backend.override(MemoryBackend()):
            assert await told_of(app, "/count", "/count") == [MISS, HIT]
            assert (await get(app, "/count")).text == "2"
        assert await told_of(app, "/count") == [HIT]
        assert (await get(app, "/count")).text == "1"

    def test_what_belongs_to_a_backend(self) -> None:
        """Store, fills under way, invalidation, counts and health are those of the backend in force."""
        container = container_for({})
        own = container.store()
        with container.backend.override(other := MemoryBackend()):
            assert container.store().backend is other
            assert container.store() is container.store() is not own
            assert container.store().flight is not own.flight
            assert container.metrics() is container.store().stats is not own.stats
        assert container.store() is own

    async def test_health(self) -> None:
        """The health check asks the backend in force, also within the second in which it has asked another."""
        container = container_for({})
        assert (await container.health().check()).backend == "MemoryBackend"
        with container.backend.override(providers.ThreadSafeSingleton(RedisBackend, "redis://127.0.0.1:1")):
            assert (await container.health().check()).status == "degraded"
            await container.backend().close()

    async def test_invalidation(self) -> None:
        """An invalidation reaches the backend in force, and no other."""
        app = counting_app()

        @app.post("/forget")
        @invalidates(tags=["count"])
        async def forget() -> None: ...

        app, container = installed(app)
        await get(app, "/count")
        with container.backend.override(MemoryBackend()):
            await get(app, "/count")
            await post(app, "/forget")
            assert await told_of(app, "/count", "/count") == [MISS, HIT]
            await container.invalidation().by_tag("count")
            assert await told_of(app, "/count") == [MISS]
        assert await told_of(app, "/count") == [HIT]

    async def test_within_a_request(self) -> None:
        """A request that began before an override ends with the backend that it began with."""
        app, container = installed(counting_app())

        @app.get("/overrides")
        @cache(timeout=60)
        async def overrides() -> None:
            container.backend.override(other)

        other = MemoryBackend()
        await get(app, "/overrides")
        container.backend.reset_override()
        assert await other.size() == 0
        assert await told_of(app, "/overrides") == [HIT]

    async def test_key_generator(self) -> None:
        """Another key generator is in force at the next request."""
        app, container = installed(counting_app())
        assert await told_of(app, "/count", "/count?a=1") == [MISS, MISS]
        with container.key_generator.override(ByPath()):
            assert await told_of(app, "/count", "/count?a=2") == [MISS, HIT]

    async def test_namespace(self) -> None:
        """Another namespace is in force at the next request, over the same backend."""
        app, container = installed(counting_app())
        await get(app, "/count")
        with container.namespace.override("second"):
            assert await told_of(app, "/count", "/count") == [MISS, HIT]
        assert await told_of(app, "/count") == [HIT]

    async def test_clock(self) -> None:
        """Another clock is in force at the next request, over what is stored."""
        app, container = installed(counting_app())
        await get(app, "/count")
        with container.clock.override(clock := FakeClock(container.clock()())):
            assert await told_of(app, "/count") == [HIT]
            clock.advance(61)
            assert await told_of(app, "/count") == ["fwd=stale; stored"]

    async def test_more_overrides_than_are_remembered(self) -> None:
        """However many backends were in force before, what is stored in one's own is still hit."""
        app, container = installed(counting_app())
        await get(app, "/count")
        for _ in range(40):
            with container.backend.override(MemoryBackend()):
                assert await told_of(app, "/count", "/count") == [MISS, HIT]
        assert await told_of(app, "/count") == [HIT]

    def test_what_is_used_is_remembered(self) -> None:
        """A store that is asked for between overrides stays, with what it owes, however many there are."""
        container = container_for({})
        own = container.store()
        for _ in range(40):
            with container.backend.override(MemoryBackend()):
                container.store()
            assert container.store() is own

    async def test_settings(self) -> None:
        """Other settings are in force once the container forgets what it has built by the old ones."""
        app, container = installed(counting_app())
        await get(app, "/count")
        with container.settings.override(CacheSettings({"ENVIRONMENT": "testing", "CACHE_NAMESPACE": "t"})):
            container.reset_singletons()
            assert await told_of(app, "/count", "/count") == [MISS, HIT]
            assert (container.backend().max_size, container.store().namespace) == (50, "t")

    def test_types(self) -> None:
        """Each part has its type, for who checks types (mypy)."""
        container = container_for({})
        assert isinstance(assert_type(container.backend(), CacheBackend), CacheBackend)
        assert isinstance(assert_type(container.namespace(), str), str)
        assert isinstance(assert_type(container.store(), StoredResponses), StoredResponses)
        assert isinstance(assert_type(container.key_generator(), KeyGenerator), KeyGenerator)

    def test_what_was_built_stays(self) -> None:
        """Another environment or other settings change nothing that was built until it is forgotten."""
        container = container_for({})
        built = (container.backend(), container.key_generator(), container.namespace())
        preview = Environment("preview", BACKENDS["redis"], ByPath, "preview")
        other = CacheSettings({"ENVIRONMENT": "testing"})
        with container.environment.override(preview), container.settings.override(other):
            assert (container.backend(), container.key_generator(), container.namespace()) == built
            container.reset_singletons()
            assert type(container.key_generator()) is ByPath
            backend = container.backend()
            assert isinstance(backend, MemoryBackend)
            assert (backend.max_size, container.namespace()) == (50, "preview")


class TestAssignments:
    def test_what_is_no_provider(self) -> None:
        """An object in the place of a provider is refused at once, with what would be right and no secret."""
        container = container_for({})
        with pytest.raises(
            ConfigurationError, match=r"container\.backend\.override\(…\).* a MemoryBackend in its"
        ):
            container.backend = MemoryBackend()  # type: ignore[assignment]
        with pytest.raises(ConfigurationError, match=r"CacheContainer\(settings=…\), puts a dict") as refused:
            container.settings = {"REDIS_URL": "redis://:s3cret@h"}  # type: ignore[assignment]
        assert "s3cret" not in str(refused.value)
        assert isinstance(container.backend(), MemoryBackend)

    def test_provider(self) -> None:
        """Another provider may take the place of one, and what is none of its parts may be anything."""
        container, backend = container_for({}), MemoryBackend()
        container.backend = providers.Object(backend)  # type: ignore[assignment]
        container.note = "ours"
        assert container.backend() is backend


class TestParts:
    def test_unknown(self) -> None:
        """A part that there is not is refused with those that there are."""
        with pytest.raises(ConfigurationError, match=r"^the container has no backnd; it has .*backend, .*health$"):
            CacheContainer(backnd=MemoryBackend())

    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            pytest.param({"environment": "testing"}, "not the text 'testing'; .*ENVIRONMENT", id="name"),
            pytest.param({"environments": [*ENVIRONMENTS]}, "environments must be a mapping .* a list", id="list"),
        ],
    )
    def test_no_environment(self, parts: dict[str, Any], message: str) -> None:
        """What is no environment is refused as the cache is installed, with what chooses one."""
        with pytest.raises(ConfigurationError, match=message):
            install(FastAPI(), container_for({}, **parts))


class TestTwoApplications:
    async def test_do_not_see_each_other(self) -> None:
        """Two applications with containers of their own share nothing in one process."""
        (app, container), (other, _) = installed(counting_app()), installed(counting_app())
        assert await told_of(app, "/count", "/count") == [MISS, HIT]
        assert await told_of(other, "/count") == [MISS]
        await container.invalidation().everything()
        assert await told_of(other, "/count") == [HIT]

    async def test_override_reaches_one(self) -> None:
        """An override in one container is none in another."""
        (app, container), (other, _) = installed(counting_app()), installed(counting_app())
        await get(other, "/count")
        with container.backend.override(MemoryBackend()):
            assert await told_of(other, "/count") == [HIT]
            assert await told_of(app, "/count") == [MISS]

    @pytest.mark.parametrize(
        ("namespace", "expected"),
        [pytest.param("b", MISS, id="namespaces of their own"), pytest.param("a", HIT, id="one namespace")],
    )
    async def test_over_one_server(self, redis_server: Server, namespace: str, expected: str) -> None:
        """Over one server, applications share what is in one namespace, and nothing else."""
        environ = {"CACHE_BACKEND": "redis", "REDIS_URL": redis_server.url}
        one = container_for({**environ, "CACHE_NAMESPACE": "a"})
        two = container_for({**environ, "CACHE_NAMESPACE": namespace})
        app, other = counting_app(), counting_app()
        install(app, one)
        install(other, two)
        assert await told_of(app, "/count", "/count") == [MISS, HIT]
        await one.stores().close()
        assert await told_of(other, "/count") == [expected]
        for container in (one, two):
            await container.stores().close()
            await container.backend().close()


class ApplicationContainer(containers.DeclarativeContainer):
    """An application's own container, with a cache in it."""

    backend = providers.ThreadSafeSingleton(MemoryBackend, max_size=7)
    cache = providers.Container(CacheContainer, backend=backend)
    plain = providers.Container(CacheContainer)


class TestSubContainer:
    async def test_used(self) -> None:
        """The cache may be a sub-container of the application's own container."""
        container, app = ApplicationContainer(), counting_app()
        install(app, container.plain)
        assert await told_of(app, "/count", "/count") == [MISS, HIT]

    async def test_given_a_part(self) -> None:
        """The application's own container may give it its backend."""
        container, app = ApplicationContainer(), counting_app()
        install(app, container.cache)
        await get(app, "/count")
        assert container.cache.store().backend is container.backend()
        assert await container.backend().size() == 1

    async def test_part_overridden(self) -> None:
        """An override within the sub-container, or of what it was given, is in force at the next request."""
        container, app = ApplicationContainer(), counting_app()
        install(app, container.cache)
        await get(app, "/count")
        with container.cache.backend.override(MemoryBackend()):
            assert await told_of(app, "/count") == [MISS]
        with container.backend.override(MemoryBackend()):
            assert await told_of(app, "/count") == [MISS]
        assert await told_of(app, "/count") == [HIT]

    async def test_overridden_as_a_whole(self) -> None:
        """The sub-container may be overridden by another one."""
        container, app = ApplicationContainer(), counting_app()
        install(app, container.plain)
        await get(app, "/count")
        with container.plain.override(CacheContainer()):
            assert await told_of(app, "/count", "/count") == [MISS, HIT]
        assert await told_of(app, "/count") == [HIT]

    @pytest.mark.parametrize(
        "provider",
        [
            pytest.param(providers.ThreadSafeSingleton(CacheContainer), id="a singleton"),
            pytest.param(providers.Object(CacheContainer()), id="an object"),
            pytest.param(lambda one=CacheContainer(): one, id="a function"),  # noqa: B008
        ],
    )
    async def test_provider(self, provider: Any) -> None:
        """Anything that gives a container when it is called will do."""
        app = counting_app()
        install(app, provider)
        assert await told_of(app, "/count", "/count") == [MISS, HIT]


class TestThreads:
    @pytest.mark.parametrize("part", ["settings", "environment", "backend", "key_generator", "store", "health"])
    def test_one_for_all(self, part: str) -> None:
        """Eight threads that ask at once get one object, and one backend is built."""
        built: list[CacheBackend] = []

        def build(_: CacheSettings) -> CacheBackend:
            backend = MemoryBackend()
            sum(range(50_000))  # long enough for another thread to come in between
            built.append(backend)
            return backend

        environment = Environment("slow", build)
        container = container_for({"ENVIRONMENT": "slow"}, environments={"slow": environment})
        barrier = threading.Barrier(8)

        def ask(_: int) -> Any:
            barrier.wait()
            return getattr(container, part)()

        with ThreadPoolExecutor(8) as threads:
            given = list(threads.map(ask, range(8)))
        assert len({id(each) for each in given}) == 1
        assert len(built) <= 1


def test_metrics_count_what_happened() -> None:
    """`metrics` is the counts of the store in force, which a reader may copy at any time."""
    container = container_for({})
    container.store().stats["hit"] += 1
    assert dict(container.metrics()) == {"hit": 1}
