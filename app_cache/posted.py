"""Answers to a POST that later GETs may get (RFC 9110 §9.3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app_cache.filling import Filling
from app_cache.flight import Share
from app_cache.identity import identify, target_of
from app_cache.rules.decisions import Refusal, answers_get, asked_by
from app_cache.rules.messages import RequestHead, ResponseHead, fields_of
from app_cache.sessions import session_watch

if TYPE_CHECKING:
    from app_cache.asgi import Scope
    from app_cache.codec import Mark
    from app_cache.keys import KeyGenerator
    from app_cache.policy import CachePolicy
    from app_cache.routes.table import Plan
    from app_cache.rules.messages import Headers
    from app_cache.store import StoredResponses


class PostedAnswer:
    """The answer to a POST on its way, stored under the key of GET if it says that it is what a GET would get.

    The POST itself invalidates its target. So the answer is stored as of that invalidation, and only if it is the
    one invalidation since the handler began: another one may have changed what the handler had read.
    """

    def __init__(self, filling: Filling, target: str) -> None:
        self._filling = filling
        self._target = target
        self._body: list[bytes] | None = None
        self._size = 0

    @classmethod
    async def begin(
        cls, store: StoredResponses, plan: Plan, policy: CachePolicy, keys: KeyGenerator, scope: Scope
    ) -> PostedAnswer | None:
        """Read the clock before the handler runs; None if the client wants nothing stored, or the GET has no key.

        Args:
            store: Where the answer goes.
            plan: That of the GET.
            policy: The plan's.
            keys: The key generator in force.
            scope: That of the POST.
        """
        request = RequestHead("GET", fields_of(scope))
        if asked_by(request, policy).no_store:
            return None
        as_get = {**scope, "method": "GET"}
        identity = await identify(request, plan, policy, keys, store, as_get, None)
        if isinstance(identity, Refusal):
            return None
        found = await store.look_up(identity.key, identity.subject, request.headers)
        session = session_watch(scope)
        filling = Filling(store, request, identity, policy, found, rescues=None, session=session)
        await filling.begin()
        return cls(filling, target_of(scope, identity.origin))

    @property
    def is_stored(self) -> bool:
        """Whether later GETs get the answer."""
        return self._filling.stored

    async def started(self, status: int, headers: Headers) -> None:
        """Decide whether the answer is kept; call it when its POST has invalidated the target."""
        head, store = ResponseHead(status, headers), self._filling.store
        if not answers_get(self._target, head, store.now()):
            return
        mark = await self._mark_after_own_invalidation()
        if mark is not None and self._filling.started(status, headers) is Share.STORE:
            self._filling.mark = mark
            self._body = []

    async def _mark_after_own_invalidation(self) -> Mark | None:
        before, identity, store = self._filling.mark, self._filling.identity, self._filling.store
        found = await store.look_up(identity.key, identity.subject, self._filling.request.headers)
        after = await store.begin(found.reading, identity.subject, 0.0)
        if before is None or after is None or not before.generation:
            return None
        only_own = (after.generation, after.epoch) == (before.generation, before.epoch + 1)
        return after if only_own else None

    async def sent(self, part: bytes, *, last: bool) -> None:
        """Keep *part* of the body; store the answer if it is the *last*, before the client has it."""
        if self._body is None:
            return
        self._body.append(part)
        self._size += len(part)
        if self._size > self._filling.max_body:
            self._body = None
        elif last:
            await self._filling.finished(b"".join(self._body))
            self._body = None
