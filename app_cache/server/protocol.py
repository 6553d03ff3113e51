"""The protocol: a repeated GET is answered by a look-up of its bytes, everything else is uvicorn's.

What is remembered is what the middleware answered with; whether it would do so again, the offer says each time.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast
from weakref import ref

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string

from app_cache.offers import EXTENSION
from app_cache.server.heads import MAX_HEAD, NEVER, closes_after
from app_cache.server.memo import Known, Memo, is_framed

if TYPE_CHECKING:
    import asyncio

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from app_cache.offers import Offer

JOINED = 8_192
"""Bytes of a body up to which it is copied behind its head; a larger one is written by itself."""


class CacheProtocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools, which gives hits again before it makes a request of the bytes.

    It answers when a chunk *is* one request that was learned, nothing before it is under way, and the cache that
    answered it would do so again with the same. All else goes the way that it always goes.
    """

    # Beside uvicorn's attributes, not among them: with more than 30 in its dict all of an object are slower.
    __slots__ = ("_answered_at", "_head", "_memo")
    _answered_at: float
    """When a hit was given last, by the clock of the loop."""
    _head: bytes
    """The chunk for which an offer was asked last."""
    _memo: Memo
    """What the connections of its server and scheme have learned."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        HttpToolsProtocol.connection_made(self, transport)
        state: Any = self.server_state
        try:
            memos = state.app_cache_memos
        except AttributeError:
            memos = state.app_cache_memos = {}
        if self.scheme not in memos:
            memos[self.scheme] = Memo(self.app, STATUS_LINE)
        self._memo = memos[self.scheme]
        self._answered_at = 0.0

    def data_received(self, data: bytes) -> None:
        """Answer *data* if it is a request that is known; else let uvicorn, and ask the cache for an offer."""
        memo, fields = self._memo, self.server_state.default_headers
        if memo.rests_under is fields or len(data) > MAX_HEAD:
            HttpToolsProtocol.data_received(self, data)
            return
        known = memo.known.get(data)
        if known is not None and self._is_between() and self._is_free() and self._gave(known):
            return
        before = self.cycle
        HttpToolsProtocol.data_received(self, data)
        cycle = self.cycle
        if cycle is not before and (known is not None or memo.asks(fields)):
            self._head = data
            scope: Any = cycle.scope  # its task has not run yet, and uvicorn has no extensions
            scope["extensions"] = {EXTENSION: partial(_offered, ref(self))}

    def offered(self, offer: Offer, scope: Any) -> None:
        """Learn that *offer* answers the request of *scope*, once it was written; not if bytes of another came."""
        cycle, memo, head = self.cycle, self._memo, self._head
        if (
            scope is not cycle.scope
            or scope is not self.scope
            or not NEVER.isdisjoint([name for name, _ in self.headers])
        ):
            return
        if not memo.takes(offer, self.server_state.default_headers):
            return
        closes = closes_after(head, self.headers)
        if closes is None or not is_framed(offer):
            return
        known = Known(offer, head, closes=closes, path=get_path_with_query_string(scope))
        on_response = cycle.on_response

        def learn() -> None:
            if self.transport.is_closing() is closes:  # not if uvicorn has read in another field how it ends
                memo.learn(head, known, self.server_state.default_headers)
            on_response()

        cycle.on_response = learn

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it was idle for as long as it may be; else wait for what is left of that."""
        left = self._answered_at + self.timeout_keep_alive - self.loop.time()
        if left > 0 and not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def _is_between(self) -> bool:
        """Return whether all that came was read and answered, so that the next byte begins a request."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None:
            return self.scope is None
        return (
            cycle.response_complete
            and not cycle.more_body
            and cycle.scope is self.scope
            and not self.parser.should_upgrade()
        )

    def _is_free(self) -> bool:
        """Return whether uvicorn would begin to answer now, and can write."""
        limit = self.limit_concurrency
        return (
            not self.flow.write_paused
            and not self.transport.is_closing()
            and (limit is None or (len(self.connections) < limit and len(self.tasks) < limit))
        )

    def _gave(self, known: Known) -> bool:
        """Write the answer that is *known*, if it still is one, and do what uvicorn does beside it."""
        memo, state = self._memo, self.server_state
        if state.default_headers is not memo.fields:
            memo.renew(state.default_headers)
            if not memo.known:
                return False
        given = known.offer.given()
        if given is None:
            return False
        lines, body = given
        status = known.offer.status
        if self.access_log:
            client = get_client_addr(cast("Any", {"client": self.client}))
            self.access_logger.info('%s - "%s %s HTTP/%s" %d', client, "GET", known.path, "1.1", status)
        head = known.head(memo.starts[status], lines)
        if len(body) <= JOINED:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)
        known.is_used = True
        state.total_requests += 1
        if known.closes:
            self._unset_keepalive_if_required()
            self.transport.close()
        else:
            self._stay_alive()
        return True

    def _stay_alive(self) -> None:
        """Begin the time anew for which the connection may be idle."""
        self._answered_at = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )


def _offered(to: ref[CacheProtocol], offer: Offer, scope: Any) -> None:
    """Hand *offer* to a connection, which no request keeps alive."""
    protocol = to()
    if protocol is not None:
        protocol.offered(offer, scope)
