"""Answers as they leave: the stored response or a 304, what a leader sends on, and what the cache itself says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from app_cache.rules.messages import Answer, has_any, has_field, plain_answer, without
from app_cache.rules.ranges import ranged
from app_cache.rules.validators import fields_of_304, not_modified
from app_cache.rules.variants import announced

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app_cache.asgi import Send
    from app_cache.policy import CachePolicy
    from app_cache.rules.cache_status import CacheStatus
    from app_cache.rules.messages import Headers, RequestHead, StoredResponse


_START: Mapping[str, Any] = {"type": "http.response.start"}
_AGE = frozenset({b"age"})
_LIFETIMES = frozenset({b"cache-control", b"expires"})


def answer_of(
    request: RequestHead,
    policy: CachePolicy,
    response: StoredResponse,
    age: float | None,
    *,
    offered: bool = True,
) -> Answer:
    """Return *response*, the part of it that is asked for, or a 304 where the client has it (RFC 9111 §4, §4.3.2).

    Args:
        request: Its preconditions decide; a HEAD gets no body.
        policy: Says what clients are told.
        response: What is stored.
        age: Seconds for the Age field; None where the response comes from the handler just now.
        offered: Whether this response may get the Cache-Control that the policy has for clients.
    """
    headers = without(response.headers, _AGE)
    headers = for_client(headers, policy) if offered else headers
    headers = tuple(
        (name, b"%d" % len(response.body)) if name.lower() == b"content-length" else (name, value)
        for name, value in headers
    )
    if age is not None:
        headers = (*headers, (b"age", b"%d" % int(age)))
    if not_modified(request, response.status, headers, response.received_at):
        return Answer(304, fields_of_304(headers), b"")
    if has_field(request.headers, b"range"):
        part = ranged(request, replace(response, headers=headers))
        if part is not None:
            return part
    return Answer(response.status, headers, b"" if request.method == "HEAD" else response.body)


def response_of(answer: Answer | StoredResponse) -> Response:
    """Return *answer* as an endpoint returns it."""
    response = Response(answer.body, answer.status)
    response.raw_headers = [(name.lower(), value) for name, value in answer.headers]
    return response


async def send_answer(send: Send, answer: Answer, told: CacheStatus) -> None:
    """Send *answer*, and *told* as Cache-Status."""
    await send_start(send, answer.status, answer.headers, told)
    await _send_body(send, answer.body)


async def send_start(
    send: Send, status: int, headers: Headers, told: CacheStatus | None, start: Mapping[str, Any] = _START
) -> None:
    """Send the start of an answer with Cache-Status after the fields that are there (RFC 9211 §2).

    What else there is in *start*, as the application sent it, stays.
    """
    lines = [*headers] if told is None else [*headers, (b"cache-status", str(told).encode("ascii"))]
    await send({**start, "status": status, "headers": lines})


async def send_plain(send: Send, method: str, status: int, told: CacheStatus | None) -> None:
    """Send an answer of the cache's own; *told* is None if neither a handler nor a stored response led to it."""
    plain = plain_answer(status)
    await send_start(send, status, plain.headers, told)
    await _send_body(send, b"" if method == "HEAD" else plain.body)


async def _send_body(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": False})


def for_client(headers: Headers, policy: CachePolicy) -> Headers:
    """Return *headers* with the Cache-Control that the policy has for clients, where they state no lifetime.

    If more than the URL and the fields in Vary decides what a client gets, it is ``private``: caches on the way
    keep nothing.
    """
    if policy.client_max_age is None or has_any(headers, _LIFETIMES):
        return headers
    is_own = policy.guarded or policy.vary_by is not None or policy.key is not None
    return (*headers, (b"cache-control", b"%bmax-age=%d" % (b"private, " * is_own, policy.client_max_age)))


def for_leader(headers: Headers, policy: CachePolicy, entity_tag_made: bytes | None, *, offered: bool) -> Headers:
    """Return *headers* as the leader gets them: as hits will have them too, but for Age.

    *offered*: Whether caches on the way may keep the answer; they may not if it is the leader's own.
    """
    headers = announced(headers, policy.include_headers)
    headers = for_client(headers, policy) if offered else headers
    if entity_tag_made is not None and not has_field(headers, b"etag"):
        headers = (*headers, (b"etag", entity_tag_made))
    return headers
