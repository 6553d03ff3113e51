"""The cities application over HTTP, with the cache in memory and in each Redis-compatible server."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from app_cache.config import CacheSettings
from containers import CacheContainer
from examples.cities import database
from examples.cities.main import create_app
from examples.cities.settings import Settings
from tests.conftest import BINARIES
from tests.http_server import client_of, http_server, listening_socket
from tests.servers import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

ROOT = Path(__file__).parents[2]
TOKEN = "token of the test"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
PARIS, VERSAILLES = "/cities/2988507", "/cities/2969679"
MISS, HIT = "app-cache; fwd=uri-miss; stored", "app-cache; hit; ttl="
DIFFER = {"age", "cache-status", "date"}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as the first start builds it; tests use copies."""
    path = tmp_path_factory.mktemp("cities") / "cities.sqlite3"
    assert database.build(path) > 10_000
    return path


@pytest.fixture
def settings(built: Path, tmp_path: Path) -> Settings:
    """Settings with a database of the test's own."""
    return Settings(database=Path(shutil.copy(built, tmp_path / "cities.sqlite3")), admin_token=SecretStr(TOKEN))


@pytest.fixture(scope="module", params=["memory", *BINARIES])
def environ(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Variables that choose a backend, one after the other."""
    if request.param == "memory":
        yield {}
    else:
        with Server(BINARIES[request.param]) as server:
            yield {"CACHE_BACKEND": "redis", "REDIS_URL": server.url}


@pytest.fixture
def container(environ: dict[str, str], tmp_path: Path) -> CacheContainer:
    """A container as the environment shapes it, with a namespace of the test's own."""
    return container_of({**environ, "CACHE_NAMESPACE": tmp_path.name})


@pytest.fixture
def client(settings: Settings, container: CacheContainer) -> Iterator[httpx.Client]:
    """A client of the running application."""
    with http_server(create_app(settings, container)) as url, client_of(url) as client:
        yield client


def container_of(environ: dict[str, str]) -> CacheContainer:
    """Return a container that sees *environ* alone."""
    container = CacheContainer()
    container.settings.override(CacheSettings(environ))
    return container


def status_of(response: httpx.Response) -> str:
    """Return what the cache says of *response*."""
    return str(response.headers["Cache-Status"])


@pytest.mark.parametrize(
    "path", [PARIS, "/cities?country=FR&limit=3", "/cities/search?q=springfield", "/countries"]
)
def test_hit_is_the_first_answer(client: httpx.Client, path: str) -> None:
    """A hit has the status, the fields in their order and the bytes of the first answer, and says its age."""
    first, second = client.get(path), client.get(path)

    assert (status_of(first), status_of(second)[: len(HIT)]) == (MISS, HIT)
    assert second.status_code == first.status_code == 200
    assert second.content == first.content
    assert kept_fields(second) == kept_fields(first)
    assert int(second.headers["Age"]) >= 0
    assert "Age" not in first.headers


def kept_fields(response: httpx.Response) -> list[tuple[bytes, bytes]]:
    """Return the fields in their order, but for those that tell a hit from a first answer."""
    return [(name, value) for name, value in response.headers.raw if name.decode().lower() not in DIFFER]


def test_what_the_client_has_is_not_sent_again(client: httpx.Client) -> None:
    """A client that sends the ETag of the first answer gets a 304 without a body."""
    tag = client.get(PARIS).headers["ETag"]

    answer = client.get(PARIS, headers={"If-None-Match": tag})

    assert (answer.status_code, answer.content) == (304, b"")
    assert status_of(answer).startswith(HIT)


def test_detail_is_right(client: httpx.Client) -> None:
    """A city comes with its other names and with its neighbours by distance, from the cache too."""
    for _ in range(2):
        city = client.get(PARIS).json()

        assert (city["name"], city["country"]) == ("Paris", "FR")
        assert "Lutetia" in " ".join(city["also_known_as"])
        distances = [neighbour["km"] for neighbour in city["nearest"]]
        assert distances == sorted(distances)
        assert 0 < distances[0] < 20


def test_search_takes_text_as_it_is(client: httpx.Client) -> None:
    """Search finds other names whatever the case, puts the exact name first, and knows no wildcards."""
    found = client.get("/cities/search", params={"q": "MÜNCHEN"}).json()["cities"]

    assert found[0]["name"] == "Munich"
    assert client.get("/cities/search", params={"q": "%%"}).json() == {"total": 0, "cities": []}
    assert client.get("/cities/search", params={"q": "__"}).json() == {"total": 0, "cities": []}


def test_update_is_seen_at_once(client: httpx.Client) -> None:
    """After an update the city, the lists and the cities that name it as a neighbour are new; others stay."""
    paths = [PARIS, VERSAILLES, "/cities?country=FR", "/cities/search?q=paris"]
    other = "/cities/1850147"
    for path in [*paths, other]:
        client.get(path)

    answer = client.patch(VERSAILLES, json={"name": "Versailles-sur-Cache", "population": 3_000_000})

    assert answer.status_code == 200
    for path in (VERSAILLES, "/cities?country=FR", "/cities/search?q=versailles-sur"):
        response = client.get(path)
        assert status_of(response) == MISS, path
        assert "Versailles-sur-Cache" in response.text
    assert status_of(client.get("/cities/search?q=paris")) == MISS
    assert status_of(client.get(other)).startswith(HIT)


def test_update_of_a_neighbour_is_seen(client: httpx.Client) -> None:
    """A city's answer is tagged with the neighbours that it names, so that none shows an old name."""
    neighbour = client.get(PARIS).json()["nearest"][0]["id"]
    assert status_of(client.get(PARIS)).startswith(HIT)

    client.patch(f"/cities/{neighbour}", json={"name": "Renamed"})

    assert client.get(PARIS).json()["nearest"][0]["name"] == "Renamed"


def test_failed_update_invalidates_nothing(client: httpx.Client) -> None:
    """An update that is refused leaves the cache as it is."""
    client.get(PARIS)

    assert client.patch(PARIS, json={}).status_code == 422
    assert client.patch("/cities/1", json={"population": 1}).status_code == 404
    assert status_of(client.get(PARIS)).startswith(HIT)


def test_readers_during_updates_never_see_the_past(client: httpx.Client) -> None:
    """Whoever asks after an update was answered sees it, however many read meanwhile."""
    done = threading.Event()
    readers = [threading.Thread(target=read_until, args=(client, done)) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for population in range(1, 11):
            client.patch(PARIS, json={"population": population})
            assert client.get(PARIS).json()["population"] == population
    finally:
        done.set()
        for reader in readers:
            reader.join()


def read_until(client: httpx.Client, done: threading.Event) -> None:
    """Read again and again."""
    while not done.is_set():
        client.get(PARIS)


def test_admin_invalidates_by_pattern(client: httpx.Client) -> None:
    """With the token a pattern drops the paths that it matches, and no others."""
    for path in (PARIS, "/countries"):
        client.get(path)

    answer = client.post("/admin/invalidate-cache", params={"pattern": "/cities/*"}, headers=ADMIN)

    assert (answer.status_code, answer.json()["durable"]) == (200, True)
    assert status_of(client.get(PARIS)) == MISS
    assert status_of(client.get("/countries")).startswith(HIT)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="none"),
        pytest.param({"Authorization": "Bearer wrong"}, id="wrong"),
        pytest.param({"Authorization": "Bearer ÿ".encode("latin-1")}, id="not ASCII"),
    ],
)
def test_admin_needs_the_token(client: httpx.Client, headers: dict[str, str]) -> None:
    """Without the token nothing is invalidated and nothing is told, but for the health."""
    client.get(PARIS)

    refused = client.post("/admin/invalidate-cache?pattern=/*", headers=headers)

    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert client.get("/admin/cache-stats", headers=headers).status_code == 401
    assert client.get("/admin/health/cache", headers=headers).json()["status"] == "healthy"
    assert status_of(client.get(PARIS)).startswith(HIT)


def test_unknown_city_is_not_stored(client: httpx.Client) -> None:
    """A 404 is answered as such each time, and never from the cache."""
    for _ in range(2):
        answer = client.get("/cities/1")

        assert (answer.status_code, answer.json()) == (404, {"detail": "there is no city 1"})
        assert status_of(answer) == "app-cache; fwd=uri-miss; detail=status"


def test_cookies_and_credentials_do_not_keep_from_a_hit(client: httpx.Client) -> None:
    """What is the same for everybody is a hit for a browser with cookies too."""
    client.get(PARIS)

    assert status_of(client.get(PARIS, headers={"Cookie": "theme=dark", **ADMIN})).startswith(HIT)


def test_environment_chooses_the_backend(client: httpx.Client, environ: dict[str, str]) -> None:
    """The same application keeps its answers in memory or in Redis, as the variables say."""
    told = client.get("/admin/cache-stats", headers=ADMIN).json()

    assert told["backend"] == ("RedisBackend" if environ else "MemoryBackend")


@pytest.mark.parametrize("environ", BINARIES, indirect=True)
def test_processes_share_redis(settings: Settings, environ: dict[str, str]) -> None:
    """Two applications on one Redis see each other's updates at once."""
    environ = {**environ, "CACHE_NAMESPACE": settings.database.parent.name}
    one, two = (create_app(settings, container_of(environ)) for _ in "12")
    with http_server(one) as url, http_server(two) as other_url, client_of(url) as a, client_of(other_url) as b:
        assert (status_of(b.get(PARIS)), status_of(b.get(PARIS))[: len(HIT)]) == (MISS, HIT)

        a.patch(PARIS, json={"population": 1})

        assert b.get(PARIS).json()["population"] == 1


def test_no_token_admits_nobody(settings: Settings) -> None:
    """Where no token is set, nobody may invalidate, not even with an empty one."""
    app = create_app(settings.model_copy(update={"admin_token": None}), container_of({}))
    with http_server(app) as url, client_of(url) as client:
        for headers in ({}, {"Authorization": "Bearer"}, ADMIN):
            assert client.post("/admin/invalidate-cache?pattern=/*", headers=headers).status_code == 403


def test_first_start_builds_the_database(tmp_path: Path) -> None:
    """The database is made at the first start, whole or not at all, and nothing else is left beside it."""
    settings = Settings(database=tmp_path / "new.sqlite3")
    with http_server(create_app(settings, container_of({}))) as url, client_of(url) as client:
        assert client.get(PARIS).json()["name"] == "Paris"

    assert [path.name for path in tmp_path.iterdir()] == ["new.sqlite3"]


def run_demo(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the demo as ``make demo`` does, with the variables *environ* alone."""
    return subprocess.run(
        [sys.executable, "-m", "examples.cities", *arguments],
        cwd=ROOT,
        env={"PATH": "", "PYTHONUTF8": "1", **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_demo_proves_itself(settings: Settings, environ: dict[str, str]) -> None:
    """With ``--once`` it shows first requests, hits, an update and an invalidation, and ends well."""
    done = run_demo("--port", "0", "--once", CITIES_DATABASE=str(settings.database), **environ)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(MISS) == 5
    assert done.stdout.count(HIT) == 5
    assert ("RedisBackend" if environ else "MemoryBackend") in done.stdout


def test_demo_says_that_the_port_is_taken() -> None:
    """A port that is taken is one sentence, not a traceback."""
    with listening_socket() as taken:
        port = str(taken.getsockname()[1])
        done = run_demo("--port", port)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Port {port} is taken: choose another, such as PORT=8001.\n"


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        pytest.param({"ENVIRONMENT": "prod"}, "Unknown environment: prod;", id="environment"),
        pytest.param({"CACHE_BACKEND": "disk"}, "CACHE_BACKEND must be memory or redis, not 'disk'", id="backend"),
        pytest.param({"CACHE_BACKEND": "redis", "REDIS_URL": "http://x"}, "REDIS_URL=", id="url"),
    ],
)
def test_demo_says_what_is_wrong_in_the_environment(environ: dict[str, str], sentence: str) -> None:
    """A wrong variable is one sentence that names it."""
    done = run_demo("--port", "0", "--once", **environ)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1


def test_demo_says_that_redis_is_away(settings: Settings) -> None:
    """Where Redis is away the demo says so in a sentence and fails."""
    with listening_socket() as taken:
        url = f"redis://127.0.0.1:{taken.getsockname()[1]}"
    environ = {"CACHE_BACKEND": "redis", "REDIS_URL": url, "CITIES_DATABASE": str(settings.database)}
    done = run_demo("--port", "0", "--once", **environ)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("The cache cannot be shown at work: ")
