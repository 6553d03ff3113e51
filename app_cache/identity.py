"""Which request it is: its key, and what an invalidation may name its answer by."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
from starlette.requests import Request

from app_cache.checks import checked_tags, kind_of
from app_cache.clock.names import Subject, key_stamp, root_stamp, tag_stamp, url_stamp
from app_cache.keys import (
    POLICY,
    DefaultKeyGenerator,
    KeyGenerator,
    encodable,
    full_path,
    host_of,
    origin,
    raw_path,
    request_parts,
    storage_key,
    without_root,
)
from app_cache.rules.decisions import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from app_cache.asgi import Message, Scope
    from app_cache.policy import CachePolicy
    from app_cache.routes.table import Plan
    from app_cache.rules.messages import RequestHead
    from app_cache.store import StoredResponses


class Identity(msgspec.Struct, frozen=True):
    """What tells a request apart, for the store and for those who invalidate.

    Args:
        key: Its key, that of all requests that count as the same.
        subject: What an invalidation may name its answer by, as far as that is known before the handler ran.
        origin: Scheme, host and port of its URL (RFC 9110 §4.3.1).
    """

    key: str
    subject: Subject
    origin: str


async def identify(
    request: RequestHead,
    plan: Plan,
    policy: CachePolicy,
    keys: KeyGenerator,
    store: StoredResponses,
    scope: Scope,
    body: bytes | None,
) -> Identity | Refusal:
    """Return the identity of a request, or why it has none and is passed by.

    Args:
        request: Its head.
        plan: Fills in the templates of its tags.
        policy: Selects what joins the key.
        keys: Gives the logical key.
        store: Where its answer may be.
        scope: Its ASGI scope.
        body: The content that the key depends on, or None.
    """
    try:
        host = host_of(scope, request.headers)
        varied_by = None if policy.vary_by is None else await _asked("vary_by", policy.vary_by, plan, scope, body)
        if type(keys) is DefaultKeyGenerator:
            logical: Any = request_parts(scope, request.headers, host, body, policy)
        else:
            keyed = {**scope, POLICY: policy}
            logical = await _asked("generate_cache_key", keys.generate_cache_key, plan, keyed, body)
        tags = await tags_of(policy.tags, plan, scope)
    except Exception as error:  # noqa: BLE001  the application's own hooks: what they raise costs the cache alone
        store.log.failed("cache.hook_failed", plan.route, error, path=scope["path"])
        return Refusal.KEY
    if logical is None or (varied_by is None and policy.vary_by is not None):
        return Refusal.KEY
    if tags is None:
        return Refusal.TAGS
    key = storage_key(store.namespace, request.method, logical, request.headers, policy, varied_by)
    logical_key = logical if isinstance(logical, str) else None
    here = origin(scope.get("scheme", "http"), host)
    return Identity(key, _subject(full_path(scope), plan.root_paths, here, key, logical_key, tags), here)


def target_of(scope: Scope, here: str) -> str:
    """Return the URL of a request as it was written, with its query (RFC 9110 §7.1); *here* is its origin."""
    query = scope.get("query_string", b"").decode("latin-1")
    path = quote(full_path(scope)) if scope.get("root_path") else raw_path(scope).decode("latin-1")
    return f"{here}{path}{'?' if query else ''}{query}"


def _subject(
    path: str, roots: Iterable[str], here: str, key: str, logical_key: str | None, tags: list[str]
) -> Subject:
    stamps = {url_stamp(path), url_stamp(path, here), *map(tag_stamp, tags)}
    for root in roots:
        inner = without_root(path, root)
        stamps |= {root_stamp(root), url_stamp(inner), url_stamp(inner, here)}
    if logical_key is not None:
        stamps.add(key_stamp(logical_key))
        logical_key = encodable(logical_key)
    return Subject(frozenset(stamps), path, logical_key, key)


async def tags_of(source: Any, plan: Plan, scope: Scope) -> list[str] | None:
    """Return the tags that *source* gives for a request, or None if a value in a template is not valid.

    Args:
        source: Names, templates, or a callable of the request, plain or ``async``.
        plan: Fills in templates.
        scope: The request's.

    Raises:
        ConfigurationError: If a callable gives something else than names.
    """
    if not callable(source):
        return plan.fill_in(source, scope)
    tags = source(Request(_routed(scope, plan)))
    if inspect.isawaitable(tags):
        tags = await tags
    return checked_tags(tags)


def _routed(scope: Scope, plan: Plan) -> Scope:
    """Return *scope* with what the router is going to add to it, for hooks that run before it."""
    return {**scope, "path_params": plan.all_path_params(scope)}


async def _asked(
    name: str, hook: Callable[[Request], Any], plan: Plan, scope: Scope, body: bytes | None
) -> str | None:
    """Return what *hook*, called *name*, says of the request; it may read the request's body.

    Raises:
        TypeError: If that is neither a string nor None.
    """
    content: list[Message] = [{"type": "http.request", "body": body or b"", "more_body": False}]

    async def receive() -> Message:
        return content.pop() if content else {"type": "http.disconnect"}

    answer = hook(Request(_routed(scope, plan), receive))
    if inspect.isawaitable(answer):
        answer = await answer
    if answer is None:
        return None
    if not isinstance(answer, str):
        raise TypeError(f"{name} must give a string or None, not {kind_of(answer)}")
    return answer
