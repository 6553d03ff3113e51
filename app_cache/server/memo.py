"""The hits that a server may give by itself, by the bytes of the requests that they answer.

Nothing here awaits, and nothing knows the server but by the names of its values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from app_cache.fastpath import Doorkeeper
from app_cache.logger_config import logger
from app_cache.server.front import stands_first, stands_outside

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app_cache.offers import Offer
    from app_cache.rules.messages import Headers

MAX_BYTES: Final = 16 * 1024 * 1024
"""Bytes that requests and the heads of their answers count together, bodies aside: those are the fast path's."""
OVERHEAD: Final = 1_024
"""The bytes that a request counts beside its own and twice the fields of its answer: objects, links."""
MOST_IN_VAIN: Final = 100
"""Questions for an offer in one second that may be in vain, one after the other."""
MAX_SEEN: Final = 16_384
"""Requests that are remembered by a mark alone, where there is no room."""
NEVER_SENT = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"upgrade"})
"""Fields of answers with which they are left to the server."""
WITHOUT_LENGTH = frozenset({204, 304})
"""Statuses whose answers end with their head."""


class Known:
    """An answer to one request, as bytes.

    Args:
        offer: What gives it.
        head: The request.
        closes: Whether the connection ends with it.
        path: With its query, as the access log has it.
    """

    __slots__ = ("_end", "_fields", "_lines", "_made", "_start", "closes", "is_used", "offer", "path", "size")

    def __init__(self, offer: Offer, head: bytes, *, closes: bool, path: str) -> None:
        self.offer = offer
        self.closes = closes
        self.path = path
        self.is_used = False
        """Whether it was given since it was last passed over for eviction."""
        self._fields = encoded(offer.fields)
        self._end = b"connection: close\r\n\r\n" if closes else b"\r\n"
        self._start = b""
        self._lines: Headers | None = None
        self._made = b""
        self.size = len(head) + 2 * len(self._fields) + OVERHEAD

    def head(self, start: bytes, lines: Headers) -> bytes:
        """Return the head of the answer: *start*, its own fields, *lines*."""
        if lines is not self._lines or start is not self._start:
            self._start, self._lines = start, lines
            self._made = b"".join((start, self._fields, encoded(lines), self._end))
        return self._made


class Memo:
    """What the connections of one server have learned.

    When it is full, a request is learned from its second time on, and takes the place of one that was not sent
    since the last round: who sends many that are different puts out none that others send.

    Args:
        served: What the server calls.
        status_lines: The first line of an answer by its status.
    """

    def __init__(self, served: Any, status_lines: Mapping[int, bytes]) -> None:
        self.known: dict[bytes, Known] = {}
        self.starts: dict[int, bytes] = {}
        """The first bytes of answers, by status: the first line, and the fields that the server adds to each."""
        self.fields: list[tuple[bytes, bytes]] = []
        """Those fields; the server makes another list of them each second."""
        self.rests_under: list[tuple[bytes, bytes]] | None = None
        """Nothing is looked up while the server adds this list: nothing is known, no offer asked for."""
        self.bytes_held = 0
        self.max_bytes = MAX_BYTES
        self._asked_under: list[tuple[bytes, bytes]] | None = None
        self._left = 0
        """Questions that may yet be asked until the server adds another list of fields."""
        self._is_said = False
        """Whether it was said that an offer does not count."""
        self._served = served
        self._status_lines = status_lines
        self._seen = Doorkeeper(MAX_SEEN)

    def renew(self, fields: list[tuple[bytes, bytes]]) -> None:
        """Take *fields* for those that the server adds; forget everything if the cache no longer stands first."""
        self.fields = fields
        common = encoded(fields)
        self.starts = {status: self._status_lines[status] + common for status in self.starts}
        first = next(iter(self.known.values()), None)
        if first is not None and not stands_first(first.offer.cache, self._served):
            self.known.clear()
            self.bytes_held = 0

    def takes(self, offer: Offer, fields: list[tuple[bytes, bytes]]) -> bool:
        """Return whether *offer* counts; if not, nobody asks for another before the server adds other *fields*."""
        counts = stands_first(offer.cache, self._served)
        if not counts and not self._is_said:
            self._is_said = True
            logger.info("server.stands_back", outside=stands_outside(self._served))
        self._asked_under, self._left = fields, MOST_IN_VAIN if counts else 0
        return counts

    def asks(self, fields: list[tuple[bytes, bytes]]) -> bool:
        """Return whether to ask for an offer, now that the server adds *fields*: not after many questions in vain.

        So an application without hits pays next to nothing for questions, nor does one in a second without any.
        """
        if fields is not self._asked_under:
            self._asked_under, self._left = fields, MOST_IN_VAIN
        self._left -= 1
        if self._left >= 0:
            return True
        if not self.known:
            self.rests_under = fields
        return False

    def learn(self, head: bytes, known: Known, fields: list[tuple[bytes, bytes]]) -> None:
        """Remember that *head* is answered by *known*, and by *fields* that the server adds."""
        if fields is not self.fields:
            self.renew(fields)
        self._forget(head)
        if self.bytes_held + known.size > self.max_bytes and not self._seen.admits(head):
            return
        while self.known and self.bytes_held + known.size > self.max_bytes:
            self._evict()
        self.known[head] = known
        self.bytes_held += known.size
        self.rests_under = None
        status = known.offer.status
        if status not in self.starts:
            self.starts[status] = self._status_lines[status] + encoded(fields)

    def _evict(self) -> None:
        """Forget the oldest that was not given since it was last passed over."""
        head = next(iter(self.known))
        known = self.known[head]
        if known.is_used:
            known.is_used = False
            self.known[head] = self.known.pop(head)
        else:
            self._forget(head)

    def _forget(self, head: bytes) -> None:
        known = self.known.pop(head, None)
        if known is not None:
            self.bytes_held -= known.size


def encoded(fields: Headers | list[tuple[bytes, bytes]]) -> bytes:
    """Return *fields* as they go over the wire, their names in lower case, as uvicorn has them."""
    return b"".join([b"%b: %b\r\n" % (name.lower(), value) for name, value in fields])


def is_framed(offer: Offer) -> bool:
    """Return whether the server sends the answer of *offer* as it is, ending where its fields say."""
    names = [name.lower() for name, _ in offer.fields]
    if not NEVER_SENT.isdisjoint(names):
        return False
    return offer.status in WITHOUT_LENGTH or names.count(b"content-length") == 1
