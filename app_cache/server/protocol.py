"""The protocol: a repeated GET is answered by a look-up of its bytes, everything else is uvicorn's.

What is remembered is what the middleware answered with; whether it would do so again, the offer says each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string

from app_cache.offers import EXTENSION
from app_cache.server.heads import MAX_HEAD, NEVER, closes_after
from app_cache.server.memo import Known, Memo, is_framed

if TYPE_CHECKING:
    import asyncio

    from uvicorn.config import Config
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
    from uvicorn.server import ServerState

    from app_cache.offers import Offer

JOINED = 8_192
"""Bytes of a body up to which it is copied behind its head; a larger one is written by itself."""

_memos: WeakKeyDictionary[ServerState, dict[str, Memo]] = WeakKeyDictionary()
"""What was learned by the connections of each server, by their scheme."""


class CacheProtocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools, which gives hits again before it makes a request of the bytes.

    It answers when a chunk *is* one request that was learned, nothing before it is under way, and the cache that
    answered it would do so again with the same. All else goes the way that it always goes.
    """

    # Beside uvicorn's attributes, not among them: with more than 30 in its dict all of an object are slower.
    __slots__ = ("_answered_at", "_client", "_head", "_memo", "_taker")

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._memo: Memo
        self._taker = _Taker(self)
        self._head = b""
        """The chunk for which an offer was asked last."""
        self._answered_at = 0.0
        """When a hit was given last, by the clock of the loop."""
        self._client = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        memos = _memos.setdefault(self.server_state, {})
        scheme = str(self.scheme)
        if scheme not in memos:
            memos[scheme] = Memo(self.app, STATUS_LINE)
        self._memo = memos[scheme]
        self._client = get_client_addr(cast("Any", {"client": self.client}))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._taker.protocol = None

    def data_received(self, data: bytes) -> None:
        """Answer *data* if it is a request that is known; else let uvicorn, and ask the cache for an offer."""
        if len(data) > MAX_HEAD:
            HttpToolsProtocol.data_received(self, data)
            return
        memo = self._memo
        known = memo.known.get(data)
        if known is not None and self._is_between() and self._is_free() and self._gave(known):
            return
        before = self.cycle
        HttpToolsProtocol.data_received(self, data)
        cycle = self.cycle
        if cycle is not before and (memo.asks or memo.asks_again(self.server_state.default_headers)):
            self._head = data
            scope: Any = cycle.scope  # its task has not run yet, and uvicorn has no extensions
            scope["extensions"] = {EXTENSION: self._taker}

    def offered(self, offer: Offer, scope: Any) -> None:
        """Learn that *offer* answers the request of *scope*, if that came last, once the answer was written."""
        cycle, memo, head = self.cycle, self._memo, self._head
        if scope is not cycle.scope or not NEVER.isdisjoint([name for name, _ in self.headers]):
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
            self.access_logger.info('%s - "%s %s HTTP/%s" %d', self._client, "GET", known.path, "1.1", status)
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


class _Taker:
    """Takes what the cache offers to a connection, until that ends, so that no request keeps it alive."""

    __slots__ = ("protocol",)

    def __init__(self, protocol: CacheProtocol) -> None:
        self.protocol: CacheProtocol | None = protocol

    def __call__(self, offer: Offer, scope: Any) -> None:
        if self.protocol is not None:
            self.protocol.offered(offer, scope)
