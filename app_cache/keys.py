"""Keys: which requests are the same request.

A key generator gives the *logical key*. Whatever it gives is hashed with the method and the fields that the
policy selects, as msgpack, in which each part stands behind its type and length, so that two different requests
never share a key: ``cache:{sha256}``, or ``cache:{namespace}:{sha256}``.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

import msgspec

from app_cache.errors import ConfigurationError
from app_cache.rules.decisions import DEFAULT_PORTS
from app_cache.rules.messages import combined
from app_cache.rules.variants import variant

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Mapping

    from starlette.requests import Request

    from app_cache.policy import CachePolicy
    from app_cache.rules.messages import Headers

Part = str | bytes | None
POLICY = "app_cache.policy"
"""Where the middleware keeps, in the scope, the policy of the request."""
_OF_CONTENT = frozenset({"content-type", "content-encoding", "content-language"})
_encode = msgspec.msgpack.Encoder().encode


class KeyGenerator(ABC):
    """Gives the logical key of a request; subclass it, plain or ``async``.

    >>> class PerTenant(KeyGenerator):
    ...     def generate_cache_key(self, request):
    ...         return f"{request.headers['x-tenant']}:{request.url.path}"
    """

    @abstractmethod
    def generate_cache_key(self, request: Request) -> str | Awaitable[str | None] | None:
        """Return the logical key of *request*, or None to pass it by: no look-up, no store, no coalescing.

        ``await request.body()`` gives the body of a POST that is cached by it.
        """


class DefaultKeyGenerator(KeyGenerator):
    """Tells requests apart by scheme, host, root path, path, query, and a POST's body, type and coding.

    The path counts as it came, and as the application has it, for middleware may have rewritten it. Query
    parameters are sorted by name; values of one name keep their order.
    """

    async def generate_cache_key(self, request: Request) -> str | None:
        """Return the logical key of *request*: the digest of all that tells it apart."""
        body = await request.body() if request.method not in ("GET", "HEAD") else None
        scope, headers = request.scope, tuple(request.scope["headers"])
        return digest(request_parts(scope, headers, host_of(scope, headers), body, scope.get(POLICY)))


def request_parts(
    scope: Mapping[str, Any], headers: Headers, host: str, body: bytes | None, policy: CachePolicy | None
) -> list[Part]:
    """Return what tells requests apart by default, without method and selected headers.

    Args:
        scope: The ASGI scope.
        headers: Its fields.
        host: What `host_of` says of both.
        body: The content that the key depends on, or None.
        policy: Filters the query; None takes all of it.
    """
    parts: list[Part] = [
        scope.get("scheme", "http"),
        host,
        scope.get("root_path", ""),
        scope["path"],
        raw_path(scope),
        canonical_query(scope.get("query_string", b""), policy),
    ]
    if body is not None:
        parts += [hashlib.sha256(body).digest(), *(part for _, part in variant(_OF_CONTENT, headers))]
    return parts


def storage_key(
    namespace: str,
    method: str,
    logical: str | Iterable[Part],
    headers: Headers,
    policy: CachePolicy,
    varied_by: str | None,
) -> str:
    """Return the key under which a response is kept.

    Args:
        namespace: Comes between ``cache:`` and the digest; may be empty.
        method: HEAD shares the key of GET.
        logical: What a generator returned, or the parts of the default one.
        headers: The request's, of which `include_headers` join the key.
        policy: Names those headers.
        varied_by: What `vary_by` returned, or None where there is none.
    """
    own = ["custom", logical] if isinstance(logical, str) else ["default", *logical]
    parts: list[Part] = ["GET" if method == "HEAD" else method, str(len(own)), *own, varied_by]
    if policy.include_headers:
        parts += [part for pair in variant(frozenset(policy.include_headers), headers) for part in pair]
    return f"{prefix(namespace)}{digest(parts)}"


def prefix(namespace: str) -> str:
    """Return what the keys of *namespace* begin with."""
    return f"cache:{namespace}:" if namespace else "cache:"


def checked_namespace(namespace: object) -> str:
    """Return *namespace* if it can stand in a key.

    Raises:
        ConfigurationError: If it is not a string, or has blanks, braces or control characters.
    """
    if not isinstance(namespace, str) or any(
        char in "{}" or char.isspace() or not char.isprintable() for char in namespace
    ):
        raise ConfigurationError(f"namespace must be a string without blanks and braces, not {namespace!r}")
    return namespace


def digest(parts: Iterable[Part]) -> str:
    """Return the sha256 of *parts* as hex; different lists never give the same text to hash.

    >>> digest(["ab", "c"]) == digest(["a", "bc"])
    False
    """
    listed = [*parts]
    try:
        content = _encode(listed)
    except (TypeError, UnicodeEncodeError):
        content = _encode([*map(_plain, listed)])
    return hashlib.sha256(content).hexdigest()


def _plain(part: Part) -> Any:
    """Return *part* as one of the types that msgpack has: text beyond Unicode as a list of its bytes."""
    if not isinstance(part, str):
        return None if part is None else bytes(part)
    content = part.encode("utf-8", "surrogatepass")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return [content]


def host_of(scope: Mapping[str, Any], headers: Headers) -> str:
    """Return the Host of a request in lower case, or the server's address where the field is absent."""
    value = combined(headers, b"host")
    if value is not None:
        return value.lower()
    server = scope.get("server")
    return f"{server[0]}:{server[1]}" if server else ""


def raw_path(scope: Mapping[str, Any]) -> bytes:
    """Return the path as it came, percent-encoding kept; the decoded one where the server gives no other."""
    raw = scope.get("raw_path")
    return bytes(raw) if raw else scope["path"].encode("utf-8", "surrogatepass")


def full_path(scope: Mapping[str, Any]) -> str:
    """Return the decoded path with the root path before it, as in the client's URL, without lone surrogates."""
    path: str = scope["path"]
    if path[:1] not in ("", "/"):
        path = f"/{path}"  # of a root path that was given without its slash
    root = scope.get("root_path", "")
    root = _rooted(root) if root else ""
    whole = path if not root or _is_under(root, path) else root + path
    return whole if whole.isascii() else encodable(whole)


def root_paths(scope: Mapping[str, Any], own: str = "") -> list[str]:
    """Return the root paths that the full path begins with: of a mount, of what it is mounted in, and *own*."""
    given = {scope.get("root_path", ""), scope.get("app_root_path", ""), own}
    if given == {""}:
        return []
    whole, roots = full_path(scope), {encodable(_rooted(root)) for root in given}
    return sorted(root for root in roots if root and _is_under(root, whole))


def without_root(path: str, root: str) -> str:
    """Return *path* as the application's routes have it: without the root path *root* that it begins with."""
    return path.removeprefix(root) or "/"


def _rooted(root: str) -> str:
    """Return a root path as it stands in a path, whatever slashes it was given with."""
    inner = root.strip("/")
    return f"/{inner}" if inner else ""


def _is_under(root: str, path: str) -> bool:
    return path == root or path.startswith(root + "/")


def encodable(text: str) -> str:
    """Return *text* with a question mark for each lone surrogate, which no encoding has."""
    return text.encode("utf-8", "replace").decode("utf-8")


def origin_of(scope: Mapping[str, Any]) -> str:
    """Return the origin of a request's URL (RFC 9110 §4.3.1)."""
    return origin(scope.get("scheme", "http"), host_of(scope, tuple(scope["headers"])))


def origin(scheme: str, host: str) -> str:
    """Return the origin of *scheme* and *host*, a default port left out (RFC 9110 §4.2.3, §4.3.1).

    >>> origin("http", "Example.org:80"), origin("https", "example.org:08443"), origin("http", "[::1]:")
    ('http://example.org', 'https://example.org:8443', 'http://[::1]')
    """
    name, colon, port = host.lower().rpartition(":")
    if not colon or port.endswith("]"):
        return f"{scheme}://{host.lower()}"
    port = port.lstrip("0")
    return f"{scheme}://{name}" if port in ("", DEFAULT_PORTS.get(scheme)) else f"{scheme}://{name}:{port}"


def canonical_query(query: bytes, policy: CachePolicy | None) -> bytes:
    """Return *query* with its parameters sorted by name, those of one name in their order, filtered by *policy*.

    If *policy* goes by the RFC alone, URLs that differ in that order are two (RFC 9111 §4), and nothing is sorted.

    >>> canonical_query(b"b=1&a=2&a=1", None)
    b'a=2&a=1&b=1'
    """
    if not query:
        return b""
    pieces: list[bytes] = query.split(b"&")
    if policy is not None and (policy.include_query is not None or policy.exclude_query):
        pieces = [piece for piece in pieces if _joins_key(piece, policy)]
    if len(pieces) > 1 and (policy is None or not policy.http_only):
        pieces.sort(key=_parameter_name)
    return b"&".join(pieces)


def _parameter_name(piece: bytes) -> str:
    """Return the name of a parameter as the application sees it: two that it cannot tell apart are one."""
    return unquote_plus(piece.partition(b"=")[0].decode("latin-1"))


def _joins_key(piece: bytes, policy: CachePolicy) -> bool:
    name = _parameter_name(piece)
    if policy.include_query is not None:
        return name in policy.include_query
    return name not in policy.exclude_query
