"""Two requests share a key only if nothing that a handler can tell apart is different."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast
from urllib.parse import unquote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.requests import Request

from app_cache.errors import ConfigurationError
from app_cache.keys import (
    POLICY,
    DefaultKeyGenerator,
    canonical_query,
    checked_namespace,
    digest,
    full_path,
    host_of,
    origin,
    origin_of,
    prefix,
    raw_path,
    request_parts,
    storage_key,
)
from app_cache.policy import CachePolicy

PLAIN = CachePolicy()


@dataclass(frozen=True)
class Asked:
    """A request, as the parts that a server gives."""

    method: str = "GET"
    scheme: str = "http"
    root_path: str = ""
    path: bytes = b"/"
    query: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ((b"host", b"h"),)
    body: bytes | None = None
    namespace: str = ""
    varied_by: str | None = None
    policy: CachePolicy = field(default=PLAIN)

    @property
    def scope(self) -> dict[str, Any]:
        """The scope that a server makes of it."""
        return {
            "type": "http",
            "method": self.method,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "path": self.path.decode("latin-1"),
            "raw_path": self.path,
            "query_string": self.query,
            "headers": [*self.headers],
            "server": ("s", 80),
        }

    @property
    def key(self) -> str:
        """The key under which its answer is kept."""
        scope, headers = self.scope, self.headers
        parts = request_parts(scope, headers, host_of(scope, headers), self.body, self.policy)
        return storage_key(self.namespace, self.method, parts, self.headers, self.policy, self.varied_by)


def by_body(body: bytes, *lines: tuple[bytes, bytes]) -> Asked:
    """Return a POST of *body* with the fields *lines*."""
    return Asked(method="POST", headers=((b"host", b"h"), *lines), body=body)


def with_fields(policy: CachePolicy, *lines: tuple[bytes, bytes]) -> Asked:
    """Return a request with the fields *lines* under *policy*."""
    return Asked(headers=((b"host", b"h"), *lines), policy=policy)


TENANT = CachePolicy(include_headers=("X-Tenant",))
TWO = CachePolicy(include_headers=("X-A", "X-B"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(Asked(query=b"a=1&a=2"), Asked(query=b"a=2&a=1"), id="values of one name, reordered"),
        pytest.param(Asked(query=b"%61=1&a=2"), Asked(query=b"a=2&%61=1"), id="values of one name, encoded"),
        pytest.param(
            Asked(query=b"a+b=1&a%20b=2"), Asked(query=b"a%20b=2&a+b=1"), id="values of one name, a blank"
        ),
        pytest.param(
            Asked(query=b"%ff=1&%fe=2"), Asked(query=b"%fe=2&%ff=1"), id="names that no handler can tell apart"
        ),
        pytest.param(Asked(query=b"a=1"), Asked(query=b"a=1&a=1"), id="a parameter cloned"),
        pytest.param(Asked(query=b"a=1"), Asked(query=b"A=1"), id="case of a name"),
        pytest.param(Asked(query=b"a="), Asked(query=b"a"), id="empty and no value"),
        pytest.param(Asked(query=b"a=1"), Asked(query=b"a=1&"), id="an empty parameter"),
        pytest.param(Asked(query=b"a=1&b=2"), Asked(query=b"a=1;b=2"), id="semicolon"),
        pytest.param(Asked(query=b"a=1%26b=2"), Asked(query=b"a=1&b=2"), id="cloaked by encoding"),
        pytest.param(Asked(query=b"a=%31"), Asked(query=b"a=1"), id="a value encoded"),
        pytest.param(Asked(query=b"a=\xff"), Asked(query=b"a=\xfe"), id="query that is no UTF-8"),
        pytest.param(Asked(path=b"/a|b", query=b"c"), Asked(path=b"/a", query=b"b|c"), id="border by a bar"),
        pytest.param(Asked(path=b"/a", query=b"b"), Asked(path=b"/a?b"), id="border of path and query"),
        pytest.param(Asked(path=b"/a%3Fb"), Asked(path=b"/a", query=b"b"), id="question mark encoded"),
        pytest.param(Asked(path=b"/a"), Asked(path=b"/a/"), id="slash last"),
        pytest.param(Asked(path=b"/a"), Asked(path=b"//a"), id="slash twice"),
        pytest.param(Asked(path=b"/a%2Fb"), Asked(path=b"/a/b"), id="slash encoded"),
        pytest.param(Asked(path=b"/%61"), Asked(path=b"/a"), id="path encoded"),
        pytest.param(Asked(path=b"/\xff"), Asked(path=b"/\xfe"), id="path that is no UTF-8"),
        pytest.param(Asked(path=b"/\xff"), Asked(path=b"/\xc3\xbf"), id="path in two encodings"),
        pytest.param(
            Asked(root_path="/a", path=b"/b"), Asked(root_path="", path=b"/a/b"), id="border of root path and path"
        ),
        pytest.param(Asked(root_path="/a", path=b"/b"), Asked(root_path="/c", path=b"/b"), id="mounts"),
        pytest.param(Asked(), Asked(headers=((b"host", b"i"),)), id="host"),
        pytest.param(Asked(), Asked(headers=((b"host", b"h:8000"),)), id="port"),
        pytest.param(
            Asked(headers=((b"host", b"ha"),), path=b"/b"), Asked(path=b"a/b"), id="border of host and path"
        ),
        pytest.param(Asked(), Asked(scheme="https"), id="scheme"),
        pytest.param(Asked(method="QUERY", body=b""), Asked(method="POST", body=b""), id="methods with a body"),
        pytest.param(Asked(), Asked(method="POST"), id="methods"),
        pytest.param(by_body(b"a"), by_body(b"b"), id="body"),
        pytest.param(by_body(b""), Asked(method="POST"), id="empty body and none"),
        pytest.param(by_body(b"\xff"), by_body(b"\xfe"), id="body that is no UTF-8"),
        pytest.param(by_body(b"\xff"), by_body("\xff".encode()), id="body in two encodings"),
        pytest.param(
            by_body(b"a", (b"content-type", b"text/plain")),
            by_body(b"a", (b"content-type", b"application/json")),
            id="content type",
        ),
        pytest.param(
            by_body(b"a", (b"content-type", b"a"), (b"content-type", b"b")),
            by_body(b"a", (b"content-type", b"a, b")),
            id="content type in two lines",
        ),
        pytest.param(by_body(b"a"), by_body(b"a", (b"content-type", b"")), id="no content type and an empty one"),
        pytest.param(by_body(b"a"), by_body(b"a", (b"content-encoding", b"gzip")), id="content coding"),
        pytest.param(by_body(b"a"), by_body(b"a", (b"content-language", b"de")), id="content language"),
        pytest.param(
            by_body(b"a", (b"content-encoding", b"de")),
            by_body(b"a", (b"content-language", b"de")),
            id="coding and language",
        ),
        pytest.param(
            with_fields(TENANT, (b"x-tenant", b"a")),
            with_fields(TENANT, (b"x-tenant", b"b")),
            id="header in the key",
        ),
        pytest.param(with_fields(TENANT, (b"x-tenant", b"")), with_fields(TENANT), id="header empty and absent"),
        pytest.param(
            with_fields(TENANT, (b"x-tenant", b"a")),
            with_fields(TENANT, (b"x-tenant", b"a,")),
            id="header by a comma",
        ),
        pytest.param(
            with_fields(TENANT, (b"x-tenant", b"a"), (b"x-tenant", b"b")),
            with_fields(TENANT, (b"x-tenant", b"a, b")),
            id="a header in two lines",
        ),
        pytest.param(
            with_fields(TWO, (b"x-a", b"1"), (b"x-b", b"2")),
            with_fields(TWO, (b"x-a", b"2"), (b"x-b", b"1")),
            id="headers swapped",
        ),
        pytest.param(
            with_fields(TWO, (b"x-a", b"1")), with_fields(TWO, (b"x-b", b"1")), id="one header for the other"
        ),
        pytest.param(
            with_fields(CachePolicy(include_headers=("X-A",)), (b"x-a", b"1"), (b"x-b", b"2")),
            with_fields(CachePolicy(include_headers=("X-B",)), (b"x-a", b"2"), (b"x-b", b"1")),
            id="header of a policy that has changed",
        ),
        pytest.param(Asked(varied_by="a"), Asked(varied_by="b"), id="vary_by"),
        pytest.param(Asked(varied_by=""), Asked(), id="vary_by of nothing and none"),
        pytest.param(Asked(), Asked(namespace="a"), id="namespace"),
        pytest.param(Asked(namespace="a"), Asked(namespace="a:b"), id="namespace within another"),
    ],
)
def test_different_requests(one: Asked, other: Asked) -> None:
    """What is different has different keys (S15)."""
    assert one.key != other.key


UNKEYED = CachePolicy(exclude_query=frozenset({"utm_source", "a b"}))
KEYED = CachePolicy(include_query=frozenset({"q"}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(Asked(query=b"a=1&b=2"), Asked(query=b"b=2&a=1"), id="parameters of two names"),
        pytest.param(
            Asked(query=b"b=2&a=1&b=1"), Asked(query=b"a=1&b=2&b=1"), id="parameters among those of a name"
        ),
        pytest.param(Asked(), Asked(method="HEAD"), id="HEAD and GET"),
        pytest.param(Asked(), Asked(headers=((b"host", b"H"),)), id="case of the host"),
        pytest.param(
            Asked(), Asked(headers=((b"x-a", b"1"), (b"host", b"h"))), id="a header that is not in the key"
        ),
        pytest.param(
            with_fields(TENANT, (b"x-tenant", b"a")),
            with_fields(TENANT, (b"X-Tenant", b"a"), (b"x-b", b"1")),
            id="case of a header in the key",
        ),
        pytest.param(
            Asked(query=b"q=1&utm_source=x&a+b=2&a%20b", policy=UNKEYED),
            Asked(query=b"q=1", policy=UNKEYED),
            id="parameters left out",
        ),
        pytest.param(
            Asked(query=b"x=1&q=1&&Q=2&%71=2", policy=KEYED),
            Asked(query=b"q=1&%71=2&y", policy=KEYED),
            id="parameters not taken",
        ),
    ],
)
def test_same_request(one: Asked, other: Asked) -> None:
    """Parameters that differ in the order of names alone share a key, and so does what is not selected."""
    assert one.key == other.key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(b"q=1", b"q=2", id="a value"),
        pytest.param(b"q=1", b"q=1&q=1", id="a clone"),
        pytest.param(b"q=1&%71=2", b"%71=2&q=1", id="the order of one name"),
    ],
)
def test_parameters_that_are_taken(one: bytes, other: bytes) -> None:
    """Of the parameters that join the key nothing is lost."""
    assert Asked(query=one, policy=KEYED).key != Asked(query=other, policy=KEYED).key


few = st.text("ab", max_size=2)
queries = st.lists(
    st.sampled_from([b"a=1", b"a=2", b"%61=1", b"b", b"b=", b"%ff=1", b"%fe=1", b""]), max_size=4
).map(b"&".join)
lines = st.lists(
    st.tuples(
        st.sampled_from([b"X-A", b"x-a", b"x-b", b"content-type"]), st.sampled_from([b"", b"a", b"a,", b"a, b"])
    ),
    max_size=3,
).map(tuple)
requests = st.builds(
    Asked,
    method=st.sampled_from(["GET", "HEAD", "POST"]),
    scheme=st.sampled_from(["http", "https"]),
    root_path=st.sampled_from(["", "/a"]),
    path=st.sampled_from([b"/", b"/a", b"/a/", b"/a|", b"/\xff"]),
    query=queries,
    headers=lines,
    body=st.sampled_from([None, b"", b"a", b"\xff"]),
    namespace=st.sampled_from(["", "n"]),
    varied_by=st.sampled_from([None, "", "a"]),
    policy=st.just(TWO),
)


@given(requests, requests)
@example(Asked(query=b"a&a&b&"), Asked(query=b"b&a&&a"))
def test_one_key_for_one_request(one: Asked, other: Asked) -> None:
    """Keys are equal just if the requests are the same in all that tells them apart."""
    assert (one.key == other.key) is (identity(one) == identity(other))


@given(requests, queries)
def test_the_query_alone(one: Asked, query: bytes) -> None:
    """Requests that differ in the query alone share a key just if each name has the same values in order."""
    other = Asked(**{**vars(one), "query": query})
    assert (one.key == other.key) is (identity(one) == identity(other))


@given(st.lists(st.sampled_from([b"a=1", b"a=2", b"b=1", b"c", b"%61"]), max_size=5), st.data())
def test_names_reordered(pieces: list[bytes], data: st.DataObject) -> None:
    """However parameters are reordered, as long as those of one name keep their order, the key is the same."""
    shuffled = data.draw(st.permutations(pieces))
    name_of = parameter_name
    in_order = {name: iter([each for each in pieces if name_of(each) == name]) for name in map(name_of, pieces)}
    kept = [next(in_order[name_of(piece)]) for piece in shuffled]
    assert canonical_query(b"&".join(kept), PLAIN) == canonical_query(b"&".join(pieces), PLAIN)


@given(st.binary(max_size=30), st.binary(max_size=30), st.binary(max_size=30))
def test_any_bytes(path: bytes, query: bytes, host: bytes) -> None:
    """Bytes that are no UTF-8 in path, query and host have a key as others have (S33)."""
    asked = Asked(path=b"/" + path, query=query, headers=((b"host", host),), policy=KEYED)
    assert re.fullmatch("cache:[0-9a-f]{64}", asked.key)
    assert f"{origin_of(asked.scope)}{full_path(asked.scope)}".encode()


class Own(str):
    """A text that says of itself what it likes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "own"


class OwnBytes(bytes):
    """Bytes with something more."""


class OwnEnum(StrEnum):
    """A text with a name."""

    A = "a"


parts = st.lists(
    st.none() | st.text(max_size=3) | st.binary(max_size=3) | st.sampled_from(["s1:a", "-;", "\udcff"])
)


@pytest.mark.parametrize(
    ("given_parts", "written"),
    [
        pytest.param([], b"\x90", id="none"),
        pytest.param(["GET", "", b"/a", None], b"\x94\xa3GET\xa0\xc4\x02/a\xc0", id="each kind"),
        pytest.param(["\u00fc", b"\xfc"], b"\x92\xa2\xc3\xbc\xc4\x01\xfc", id="beyond ASCII"),
        pytest.param(["a", "\udcff"], b"\x92\xa1a\x91\xc4\x03\xed\xb3\xbf", id="beyond Unicode"),
        pytest.param([Own("a"), OwnEnum.A, "a"], b"\x93\xa1a\xa1a\xa1a", id="text of a class of one's own"),
        pytest.param([OwnBytes(b"a"), None], b"\x92\xc4\x01a\xc0", id="bytes of a class of one's own"),
    ],
)
def test_digest(given_parts: list[str | bytes | None], written: bytes) -> None:
    """A digest is the SHA-256 of all parts as msgpack, the same in each version: keys outlive a process."""
    assert digest(given_parts) == hashlib.sha256(written).hexdigest()


@given(parts, parts)
@example(["a", "b"], ["ab"])
@example(["a"], [b"a"])
@example([None], [])
@example([""], [None])
@example(["as1:b"], ["a", "b"])
def test_digests_differ(one: list[str | bytes | None], other: list[str | bytes | None]) -> None:
    """Two lists have one digest just if they are equal, borders and kinds included."""
    assert (digest(one) == digest(other)) is (one == other)


def test_own_keys() -> None:
    """What a generator of one's own returns is never taken for the parts of the default one."""

    def key(logical: Any, method: str = "GET", varied_by: str | None = None) -> str:
        return storage_key("", method, logical, (), PLAIN, varied_by)

    assert key("a") == key("a", "HEAD")
    different = [key("a"), key("b"), key(["a"]), key(["custom", "a"]), key("a", "POST"), key("a", varied_by="b")]
    assert len({*different}) == len(different)
    with_header = storage_key("", "GET", ["a"], (), TENANT, None)
    assert with_header != key(["a", None, "x-tenant"])


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_default_generator(method: str) -> None:
    """Called by an application's own generator, the default one tells by the body of a POST, and by the policy."""

    async def logical_key(body: bytes, **changes: Any) -> str | None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        scope = {**Asked(method=method, query=b"q=1&x=1").scope, **changes}
        return await DefaultKeyGenerator().generate_cache_key(Request(scope, cast("Any", receive)))

    plain = await logical_key(b"a")
    assert plain
    assert plain == await logical_key(b"a")
    assert (plain == await logical_key(b"b")) is (method == "GET")
    assert plain != await logical_key(b"a", **{POLICY: KEYED})


# Namespaces, paths and hosts.


@pytest.mark.parametrize(
    ("namespace", "beginning"),
    [pytest.param("", "cache:", id="none"), pytest.param("a:b", "cache:a:b:", id="one")],
)
def test_prefix(namespace: str, beginning: str) -> None:
    """Keys are ``cache:`` and a digest, with the namespace between them."""
    assert prefix(namespace) == beginning
    assert re.fullmatch(re.escape(beginning) + "[0-9a-f]{64}", Asked(namespace=namespace).key)


@pytest.mark.parametrize("namespace", ["", "a", "prod:eu-1", "\xe4"])
def test_right_namespaces(namespace: str) -> None:
    """A namespace is any text that can stand in a key."""
    assert checked_namespace(namespace) == namespace


@pytest.mark.parametrize("namespace", ["a b", "a\n", "{a}", "a}", "\x00", "\u2028", "\udcff", None, 5, b"a"])
def test_wrong_namespaces(namespace: Any) -> None:
    """A namespace with blanks, braces or control characters is refused, and shown (S26)."""
    with pytest.raises(ConfigurationError) as raised:
        checked_namespace(namespace)
    assert str(raised.value) == f"namespace must be a string without blanks and braces, not {namespace!r}"


@pytest.mark.parametrize(
    ("changes", "host"),
    [
        pytest.param({"headers": [(b"host", b"Example.ORG:80")]}, "example.org:80", id="lower case"),
        pytest.param({"headers": [(b"Host", b" h ")]}, "h", id="blanks"),
        pytest.param({"headers": [(b"host", b"a"), (b"host", b"b")]}, "a, b", id="two"),
        pytest.param({"headers": [(b"host", b"")]}, "", id="empty"),
        pytest.param({"headers": [], "server": ("127.0.0.1", 8000)}, "127.0.0.1:8000", id="the server's"),
        pytest.param({"headers": [], "server": ("/run/socket", None)}, "/run/socket:None", id="a socket's"),
        pytest.param({"headers": [], "server": None}, "", id="none"),
        pytest.param({"headers": [(b"host", b"\xff")]}, "\xff", id="no ASCII"),
    ],
)
def test_host_of(changes: dict[str, Any], host: str) -> None:
    """The host is that of the request, else the server's."""
    scope = {**Asked().scope, **changes}
    assert host_of(scope, tuple(scope["headers"])) == host


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        pytest.param({"raw_path": b"/a%2Fb", "path": "/a/b"}, b"/a%2Fb", id="as it came"),
        pytest.param({"raw_path": memoryview(b"/a"), "path": "/a"}, b"/a", id="as bytes"),
        pytest.param({"raw_path": None, "path": "/\xe4"}, b"/\xc3\xa4", id="none given"),
        pytest.param({"raw_path": b"", "path": "/a"}, b"/a", id="an empty one given"),
        pytest.param({"raw_path": None, "path": "/\udcff"}, b"/\xed\xb3\xbf", id="no UTF-8"),
    ],
)
def test_raw_path(changes: dict[str, Any], path: bytes) -> None:
    """The path is that which came, else the decoded one."""
    assert raw_path({**Asked().scope, **changes}) == path


@pytest.mark.parametrize(
    ("root_path", "path", "full"),
    [
        pytest.param("", "/a", "/a", id="no root path"),
        pytest.param("/r", "/r/a", "/r/a", id="a server that leaves it in the path"),
        pytest.param("/r", "/a", "/r/a", id="a server that takes it out"),
        pytest.param("/r/", "/a", "/r/a", id="slash last"),
        pytest.param("r", "/a", "/r/a", id="no slash"),
        pytest.param("r", "r/a", "/r/a", id="no slash, left in the path"),
        pytest.param("/", "/a", "/a", id="slash alone"),
        pytest.param("/r", "/r", "/r", id="the root path itself"),
        pytest.param("/r", "/ra", "/r/ra", id="a name that begins so"),
        pytest.param("", "/\xe4", "/\xe4", id="decoded"),
        pytest.param("", "/\udcff", "/?", id="what cannot be encoded"),
    ],
)
def test_full_path(root_path: str, path: str, full: str) -> None:
    """The full path is that of the client's URL, decoded, with the root path once."""
    scope = {**Asked().scope, "root_path": root_path, "path": path}
    assert full_path(scope) == full


@pytest.mark.parametrize(
    ("scheme", "host", "expected"),
    [
        pytest.param("http", "h", "http://h", id="plain"),
        pytest.param("http", "H:80", "http://h", id="default port"),
        pytest.param("https", "h:443", "https://h", id="default port of TLS"),
        pytest.param("https", "h:80", "https://h:80", id="the other's default port"),
        pytest.param("http", "h:", "http://h", id="no port behind the colon"),
        pytest.param("http", "h:080", "http://h", id="a zero before the default port"),
        pytest.param("http", "h:08080", "http://h:8080", id="a zero before another"),
        pytest.param("http", "[::1]", "http://[::1]", id="an address with colons"),
        pytest.param("http", "[::80]:80", "http://[::80]", id="and a port"),
        pytest.param("http", "h:8080", "http://h:8080", id="another port"),
        pytest.param("http", "[::1]:80", "http://[::1]", id="IPv6"),
    ],
)
def test_origin(scheme: str, host: str, expected: str) -> None:
    """An origin is scheme, host and port, the default one left out (RFC 9110 §4.3.1)."""
    assert origin(scheme, host) == expected


def parameter_name(piece: bytes) -> str:
    """Return the name of a parameter as an application sees it."""
    return unquote_plus(piece.split(b"=")[0].decode("latin-1"))


def identity(asked: Asked) -> tuple[object, ...]:
    """Return all that tells *asked* apart, written down without care for time."""
    pieces = asked.query.split(b"&") if asked.query else []
    names = sorted({parameter_name(piece) for piece in pieces})
    values = {}
    for name in [b"host", b"content-type", b"x-a", b"x-b"]:
        found = [value for each, value in asked.headers if each.lower() == name]
        values[name] = found or None
    return (
        "GET" if asked.method == "HEAD" else asked.method,
        asked.scheme,
        asked.root_path,
        asked.path,
        [[piece for piece in pieces if parameter_name(piece) == name] for name in names],
        asked.body,
        asked.namespace,
        asked.varied_by,
        values[b"host"],
        values[b"content-type"] if asked.body is not None else None,
        values[b"x-a"],
        values[b"x-b"],
    )
