"""What an endpoint declares to read is part of what its answer depends on."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from fastapi import APIRouter, Cookie, Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.openapi.models import APIKey, APIKeyIn
from fastapi.security import APIKeyCookie, APIKeyHeader, APIKeyQuery, HTTPBearer, OAuth2PasswordBearer
from fastapi.security.base import SecurityBase
from pydantic import AliasChoices, BaseModel, Field
from starlette.middleware import Middleware

from app_cache import CachePolicy, KeyGenerator, cache
from containers import CacheContainer, install
from tests.clients import client_of, told
from tests.middleware.apps import put_cache

if TYPE_CHECKING:
    from app_cache.testing import FakeClock

pytestmark = pytest.mark.anyio


class Wanted(BaseModel):
    x_tenant: str = ""


class Aliased(BaseModel):
    tenant: str = Field("", validation_alias=AliasChoices("X-Tenant", "X-Old-Tenant"))


class Anything(BaseModel):
    model_config = {"extra": "allow"}


class OwnScheme(SecurityBase):
    """A security scheme of one's own, which says in OpenAPI where it looks."""

    def __init__(self, place: APIKeyIn, name: str) -> None:
        self.key = APIKey.model_validate({"in": place, "name": name})
        self.model, self.scheme_name = self.key, "own"

    async def __call__(self, request: Request) -> str:
        given = request.query_params if self.key.in_ is APIKeyIn.query else request.headers
        return given.get(self.key.name, "")


def in_the_signature(x_tenant: Annotated[str, Header()] = "") -> str:
    """Read the header as a parameter."""
    return x_tenant


def under_another_name(tenant: Annotated[str, Header(alias="X-Tenant")] = "") -> str:
    """Read it as a parameter of another name."""
    return tenant


def in_a_model(wanted: Annotated[Wanted, Header()]) -> str:
    """Read it as a field of a model."""
    return wanted.x_tenant


def as_an_api_key(key: Annotated[str | None, Depends(APIKeyHeader(name="X-Tenant", auto_error=False))]) -> str:
    """Read it as the key of an API."""
    return key or ""


def as_an_api_key_by_a_method(
    key: Annotated[str | None, Depends(APIKeyHeader(name="X-Tenant", auto_error=False).__call__)],
) -> str:
    """Read it as the key of an API, of which a method is the dependency."""
    return key or ""


def as_an_api_key_by_a_partial(
    key: Annotated[str | None, Depends(partial(APIKeyHeader(name="X-Tenant", auto_error=False).__call__))],
) -> str:
    """Read it as the key of an API, of which a partial is the dependency."""
    return key or ""


def by_a_scheme(key: Annotated[str, Depends(OwnScheme(APIKeyIn.header, "X-Tenant"))]) -> str:
    """Read it by a security scheme of one's own."""
    return key


def by_a_part_of_a_scheme(key: Annotated[str, Depends(partial(OwnScheme(APIKeyIn.header, "X-Tenant")))]) -> str:
    """Read it by what is made of such a scheme."""
    return key


def in_the_query(key: Annotated[str | None, Depends(APIKeyQuery(name="key", auto_error=False))]) -> str:
    """Read a query parameter as the key of an API."""
    return key or ""


def in_the_query_by_a_scheme(key: Annotated[str, Depends(OwnScheme(APIKeyIn.query, "key"))]) -> str:
    """Read it by a security scheme of one's own."""
    return key


def by_a_validation_alias(tenant: Annotated[str, Header(validation_alias="X-Tenant")] = "") -> str:
    """Read it as a parameter that is validated under another name."""
    return tenant


def in_a_model_with_aliases(wanted: Annotated[Aliased, Header()]) -> str:
    """Read it as a field of a model that has other names for it."""
    return wanted.tenant


def in_a_model_or_not(wanted: Annotated[Wanted | None, Header()] = None) -> str:
    """Read it as a field of a model that need not be there."""
    return wanted.x_tenant if wanted else ""


def in_a_model_of_any_fields(wanted: Annotated[Anything, Header()]) -> str:
    """Read whatever is there."""
    return str((wanted.model_extra or {}).get("x-tenant", ""))


def app_with(reader: Any, **options: Any) -> FastAPI:
    """Return an application whose one endpoint, which is cached by *options*, says what a dependency has read."""
    return app_that_reads(reader, cache(timeout=60, **options))


def app_that_reads(
    reader: Any, decorator: Any, default_policy: CachePolicy | None = None, said: str = "max-age=60"
) -> FastAPI:
    """Return an application whose one endpoint says what a dependency has read."""
    app, router = FastAPI(), APIRouter(prefix="/in")

    @router.get("/")
    @decorator
    async def answer(response: Response, read: str = Depends(reader)) -> str:
        if read == "nobody":
            raise HTTPException(403)
        response.headers["Cache-Control"] = said
        return read

    app.include_router(router)
    install(app, CacheContainer(), default_policy=default_policy)
    return app


READERS = [
    in_the_signature,
    under_another_name,
    by_a_validation_alias,
    in_a_model,
    in_a_model_with_aliases,
    in_a_model_or_not,
    as_an_api_key,
    as_an_api_key_by_a_method,
    as_an_api_key_by_a_partial,
    by_a_scheme,
    by_a_part_of_a_scheme,
]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
async def test_joins_the_key(reader: Any) -> None:
    """Each value of a header that a dependency declares has an answer of its own, and is hit by it alone."""
    async with client_of(app_with(reader)) as client:
        for tenant, status in (("a", "uri-miss"), ("b", "uri-miss"), ("a", "hit"), ("b", "hit")):
            answer = await client.get("/in/", headers={"X-Tenant": tenant})
            assert (answer.json(), status in answer.headers["cache-status"]) == (tenant, True)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
async def test_joins_the_key_by_the_rfc_alone(reader: Any) -> None:
    """What is cached by the RFC alone has it in the key too."""
    async with client_of(app_that_reads(reader, lambda endpoint: endpoint, CachePolicy.http())) as client:
        for tenant, status in (("a", "uri-miss"), ("b", "uri-miss"), ("a", "hit")):
            answer = await client.get("/in/", headers={"X-Tenant": tenant})
            assert (answer.json(), status in answer.headers["cache-status"]) == (tenant, True)


def authorization_by_name(authorization: Annotated[str, Header()] = "") -> str:
    """Read the credentials as a header."""
    return authorization


def authorization_by_oauth2(
    token: Annotated[str | None, Depends(OAuth2PasswordBearer("/token", auto_error=False))],
) -> str:
    """Read them by a scheme that gives the token."""
    return f"Bearer {token}" if token else ""


def authorization_by_bearer(given: Annotated[Any, Depends(HTTPBearer(auto_error=False))]) -> str:
    """Read them by a scheme that gives what was sent."""
    return f"{given.scheme} {given.credentials}" if given else ""


def cookies_by_name(cookie: Annotated[str, Header()] = "") -> str:
    """Read all cookies as a header."""
    return cookie


def one_cookie(sid: Annotated[str, Cookie()] = "") -> str:
    """Read one cookie."""
    return f"sid={sid}" if sid else ""


def cookie_of_a_scheme(sid: Annotated[str | None, Depends(APIKeyCookie(name="sid", auto_error=False))]) -> str:
    """Read one cookie as the key of an API."""
    return f"sid={sid}" if sid else ""


READERS_OF_AUTHORIZATION = [authorization_by_name, authorization_by_bearer, authorization_by_oauth2]
READERS_OF_COOKIES = [cookies_by_name, one_cookie, cookie_of_a_scheme]


@pytest.mark.parametrize("reader", READERS_OF_COOKIES, ids=lambda reader: reader.__name__)
async def test_declared_cookies_by_the_rfc_alone(reader: Any) -> None:
    """Where cookies keep nothing from being shared, those that an endpoint declares join the key and Vary."""
    async with client_of(app_that_reads(reader, lambda endpoint: endpoint, CachePolicy.http())) as client:
        for cookie, status in (("", "uri-miss"), ("sid=a", "uri-miss"), ("sid=b", "uri-miss"), ("sid=a", "hit")):
            answer = await client.get("/in/", headers={"cookie": cookie} if cookie else {})
            assert (answer.json(), answer.headers["vary"]) == (cookie, "cookie")
            assert status in answer.headers["cache-status"]


async def test_a_cookie_that_another_endpoint_declares() -> None:
    """Where nobody can tell which endpoint answers, a cookie joins no key of what does not declare it."""
    app, inner = FastAPI(), FastAPI(middleware=[Middleware(GZipMiddleware)])
    shared = {"cache-control": "public, max-age=60"}
    inner.get("/page")(lambda: Response("page", headers=shared))

    @inner.get("/me")
    def me(sid: Annotated[str, Cookie()] = "") -> Response:
        return Response(sid, headers=shared)

    app.mount("/in", inner)
    put_cache(app, default_policy=CachePolicy.http())
    async with client_of(app) as client:
        pages = [await client.get("/in/page", headers={"cookie": f"a={number}"}) for number in range(3)]
        own = [(await client.get("/in/me", headers={"cookie": f"sid={sid}"})).text for sid in "abab"]
    assert [told(page) for page in pages] == ["fwd=uri-miss; stored", "hit", "hit"]
    assert own == list("abab")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        pytest.param("max-age=60", "fwd=uri-miss; detail=authorization", id="not shared"),
        pytest.param("max-age=60, public", "hit", id="shared"),
    ],
)
@pytest.mark.parametrize("reader", READERS_OF_AUTHORIZATION, ids=lambda reader: reader.__name__)
async def test_declared_authorization_by_the_rfc_alone(reader: Any, said: str, expected: str) -> None:
    """Declared credentials join the key; whether an answer to them is stored the response says (RFC 9111 §3.5)."""
    async with client_of(app_that_reads(reader, lambda endpoint: endpoint, CachePolicy.http(), said)) as client:
        for given in ("", "Bearer a", "Bearer b"):
            answer = await client.get("/in/", headers={"authorization": given} if given else {})
            assert (answer.json(), answer.headers["vary"]) == (given, "authorization")
        assert told(await client.get("/in/", headers={"authorization": "Bearer b"})) == expected


@pytest.mark.parametrize(("reader", "name"), [(authorization_by_bearer, "authorization"), (one_cookie, "cookie")])
async def test_declared_credentials_of_a_decorated_endpoint(reader: Any, name: str) -> None:
    """That a decorated endpoint declares credentials shares nothing: what they ask for runs each time."""
    async with client_of(app_with(reader)) as client:
        for _ in range(2):
            answer = await client.get("/in/", headers={name: "Bearer a" if name == "authorization" else "sid=a"})
            assert f"detail={name}" in answer.headers["cache-status"]


@pytest.mark.parametrize("reader", [in_the_query, in_the_query_by_a_scheme], ids=lambda reader: reader.__name__)
async def test_key_in_the_query(reader: Any) -> None:
    """A query parameter that a security scheme declares joins the key beside those that are named alone."""
    async with client_of(app_with(reader, include_query=["page"])) as client:
        for key, status in (("a", "uri-miss"), ("b", "uri-miss"), ("a", "hit")):
            answer = await client.get("/in/", params={"key": key, "other": status})
            assert (answer.json(), status in answer.headers["cache-status"]) == (key, True)
        assert (await client.get("/in/", params={"key": "nobody"})).status_code == 403


async def test_key_in_the_query_of_an_override() -> None:
    """What overrides a dependency has its query parameters in the key too."""
    app = app_with(in_the_signature, include_query=["page"])
    app.dependency_overrides[in_the_signature] = in_the_query
    async with client_of(app) as client:
        assert [(await client.get("/in/", params={"key": key})).json() for key in "ab"] == ["a", "b"]


async def test_key_in_the_query_excluded() -> None:
    """One that the author excludes does not join it."""
    async with client_of(app_with(in_the_query, exclude_query=["key"])) as client:
        assert [(await client.get("/in/", params={"key": key})).json() for key in "ab"] == ["a", "a"]


async def test_is_announced() -> None:
    """Caches further out are told in Vary."""
    async with client_of(app_with(in_the_signature)) as client:
        assert (await client.get("/in/")).headers["vary"] == "x-tenant"
        assert (await client.get("/in/")).headers["vary"] == "x-tenant"


class UnlessPreviewed(KeyGenerator):
    """Passes previews by."""

    def generate_cache_key(self, request: Request) -> str | None:
        """Return the path, or None for a preview."""
        return None if request.query_params else request.url.path


@pytest.mark.parametrize("fails", [False, True], ids=["answered", "failed"])
@pytest.mark.parametrize(
    ("method", "query", "fields", "expected"),
    [
        pytest.param("GET", "?preview", {}, "fwd=bypass; detail=key", id="no key"),
        pytest.param("GET", "", {"if-match": "*"}, "fwd=bypass; detail=precondition", id="If-Match"),
        pytest.param(
            "GET", "", {"cache-control": "no-store"}, "fwd=bypass; detail=request-no-store", id="no-store"
        ),
        pytest.param("HEAD", "", {"x-tenant": "a"}, "fwd=uri-miss", id="HEAD"),
        pytest.param("HEAD", "", {}, "fwd=stale", id="HEAD of what may stand in"),
    ],
)
async def test_is_announced_where_the_cache_steps_aside(
    method: str, query: str, fields: dict[str, str], expected: str, *, fails: bool, clock: FakeClock
) -> None:
    """What joins the key is in Vary too where the cache neither answers nor stores."""
    app, status = FastAPI(), 200

    @app.api_route("/", methods=["GET", "HEAD"])
    @cache(timeout=60, stale_if_error=600, key=UnlessPreviewed())
    async def answer(x_tenant: Annotated[str, Header()] = "") -> Response:
        return Response(x_tenant, status, headers={"vary": "accept"})

    put_cache(app, clock)
    async with client_of(app) as client:
        await client.get("/")
        clock.advance(61)
        status = 404 if fails else 200
        passed = await client.request(method, f"/{query}", headers=fields)
    assert (passed.status_code, told(passed)) == (status, expected)
    assert passed.headers.get_list("vary") == ["accept", "x-tenant"]


async def test_refused_after_a_hit() -> None:
    """Who is refused by what the endpoint declares never gets the stored answer of who is not."""
    async with client_of(app_with(as_an_api_key)) as client:
        await client.get("/in/", headers={"X-Tenant": "a"})
        assert (await client.get("/in/", headers={"X-Tenant": "nobody"})).status_code == 403


async def test_excluded() -> None:
    """A declared header that the author excludes does not join the key, and is not announced."""
    async with client_of(app_with(in_the_signature, exclude_headers=["X-Tenant"])) as client:
        await client.get("/in/", headers={"X-Tenant": "a"})
        answer = await client.get("/in/", headers={"X-Tenant": "b"})
        assert (answer.json(), "vary" in answer.headers) == ("a", False)


async def test_any_header() -> None:
    """Where any header may be read no key tells the answers apart, and none is stored."""
    async with client_of(app_with(in_a_model_of_any_fields)) as client:
        for tenant in ("a", "b", "a"):
            answer = await client.get("/in/", headers={"X-Tenant": tenant})
            assert (answer.json(), "cache-status" in answer.headers) == (tenant, False)


@pytest.mark.parametrize(
    ("name", "value"), [("if-none-match", '"a"'), ("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT")]
)
async def test_a_condition(name: str, value: str) -> None:
    """An endpoint that declares a condition gets it, though a cache would evaluate it: it is in the key."""

    def answer(condition: str | None = Header(None, alias=name)) -> str | None:
        return condition

    app = FastAPI()
    app.get("/")(cache(timeout=60)(answer))
    install(app, CacheContainer())
    async with client_of(app) as client:
        asked = [await client.get("/", headers=fields) for fields in ({}, {name: value}, {name: value})]
    assert [each.json() for each in asked] == [None, value, value]
    assert [told(each) for each in asked] == ["fwd=uri-miss; stored", "fwd=uri-miss; stored", "hit"]
