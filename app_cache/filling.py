"""What becomes of an answer while its handler gives it: whether it is stored, and as what (RFC 9111 §3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from app_cache.clock.names import group_stamp, is_group_stamp, tag_stamp
from app_cache.codec import Entry, Mark, compact, entity_tag_of
from app_cache.flight import NOT_SHARED, UNADMITTED, Outcome, Share
from app_cache.rules.decisions import (
    FAILURES,
    NOT_THERE,
    VALIDATED_FOR,
    Refusal,
    freshness_lifetime,
    keep_for,
    shares_set_cookie,
    stale_windows,
    unshared_credential,
    why_not_store,
    withheld_fields,
)
from app_cache.rules.directives import NOTHING_SAID, delta_seconds, response_directives
from app_cache.rules.messages import (
    Answer,
    ResponseHead,
    combined,
    end_to_end,
    has_field,
    plain_answer,
    without,
)
from app_cache.rules.structured import strings
from app_cache.rules.validators import entity_tag, freshened, head_agrees, identifies, same_strongly
from app_cache.rules.variants import announced, selecting_fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from app_cache.guards import Guard
    from app_cache.identity import Identity
    from app_cache.policy import CachePolicy
    from app_cache.rules.directives import ResponseDirectives
    from app_cache.rules.messages import Headers, RequestHead
    from app_cache.sessions import SessionWatch
    from app_cache.store import Found, StoredResponses

NOT_STARTED = ResponseHead(0, ())
_ETAG = frozenset({b"etag"})


class Filling:
    """Judges one fill: what its answer is for others, and how it is stored.

    Args:
        store: Where the answer goes.
        request: The leader's request.
        identity: Its key and names.
        policy: What the endpoint's author asked for.
        found: What the look-up gave: the clock, and the entry to validate or to stand in, if there is one.
        rescues: Tells whether that entry stands in if the handler fails now; None: never.
        conditional: Whether the handler is asked to validate that entry, so that a 304 is about it.
        guard: The guard that a guarded endpoint asks in this run, or None.
        session: Watches the session that middleware further out keeps by a cookie; None: there is none.
        is_meant: Tells whether the policy is for the endpoint that routers came to; None: none did.
    """

    def __init__(
        self,
        store: StoredResponses,
        request: RequestHead,
        identity: Identity,
        policy: CachePolicy,
        found: Found,
        *,
        rescues: Callable[[], bool] | None,
        conditional: bool = False,
        guard: Guard | None = None,
        session: SessionWatch | None = None,
        is_meant: Callable[[], bool] | None = None,
    ) -> None:
        self.store = store
        self.request = request
        self.identity = identity
        self.policy = policy
        self.found = found
        self.rescues = rescues
        self.is_rescued = False
        """Whether the stored response stands in for the answer."""
        self.conditional = conditional
        self.guard = guard
        self.session = session
        self.is_meant = is_meant
        self.max_body = policy.max_body
        """Bytes of body beyond which the answer is the leader's alone."""
        self.length: int | None = None
        """Bytes of body that the answer says it has."""
        self.late_tags: set[str] = set()
        self.mark: Mark | None = None
        self.invalidations = 0
        self.refusal: Refusal | None = None
        self.entry: Entry | None = None
        self.entity_tag: bytes | None = None
        """The entity tag that was made for an answer without one."""
        self.stored = False
        self._tags: frozenset[str] = frozenset()
        self._session_was_read = False
        self._head = NOT_STARTED
        self._said = NOTHING_SAID
        self._content_length: str | None = None
        self._requested_at = 0.0
        self._turn = 0

    @property
    def admitted(self) -> bool:
        """Whether the request was let through to the endpoint, as far as anything guards it."""
        return self.guard is None or self.guard.passed

    @property
    def status(self) -> int:
        """The status of the answer, 0 before it started."""
        return self._head.status

    async def begin(self) -> None:
        """Read the clock before the handler runs."""
        self.invalidations = self.store.invalidations
        expected = (self.policy.timeout or 0.0) + (self.policy.stale_while_revalidate or 0.0)
        self.mark = await self.store.begin(self.found.reading, self.identity.subject, expected)
        self._requested_at = self.store.now()
        self._turn = self.store.next_turn()

    def started(self, status: int, headers: Headers) -> Share:
        """Return what becomes of the answer that starts so."""
        self._head, self._said = ResponseHead(status, headers), response_directives(headers)
        self._content_length = combined(headers, b"content-length")
        self.length = delta_seconds(self._content_length)
        if not self.admitted:
            self.refusal = Refusal.GUARD
            return Share.UNADMITTED
        self.is_rescued = self.rescues is not None and status in FAILURES and self.rescues()
        if self.is_rescued:
            return Share.REPLACE
        if self._validates():
            return Share.WITHHOLD
        self.refusal = self._why_not_store()
        if self.refusal is None:
            return Share.STORE
        return Share.FAIL if status >= 500 and self.refusal is not Refusal.POLICY else Share.REFUSE

    def _why_not_store(self) -> Refusal | None:
        if self.is_meant is not None and not self.is_meant():
            return Refusal.POLICY
        if self.length is not None and self.length > self.max_body:
            return Refusal.TOO_LARGE
        if (
            self.session is not None
            and self.session.is_changed()
            and not shares_set_cookie(self._said, self.policy)
        ):
            return Refusal.SET_COOKIE
        return why_not_store(self.request, self._head, self._said, self.policy, self.store.now())

    def is_offered(self, headers: Headers) -> bool:
        """Return whether caches on the way may keep an answer with *headers*: none of it is the leader's own."""
        own = withheld_fields(response_directives(headers), self.policy)
        is_own = self.session is not None and self.session.is_changed()
        return self.refusal is None and not is_own and not any(has_field(headers, name) for name in own)

    def _validates(self) -> bool:
        """Return whether the answer is a 304 to the conditions that stand for the stored response."""
        return self._head.status == 304 and self.conditional

    async def finished(self, body: bytes) -> Outcome:
        """Return the outcome of a complete answer, once it can be hit."""
        if self.found.entry is not None and self._validates():
            return await self._freshen(self.found.entry)
        if self.refusal is not None or self.is_rescued:
            return Outcome(failed=True, failure=self._failure(body))
        if self._content_length is not None and self._content_length != str(len(body)):
            self.refusal = Refusal.INCOMPLETE
            return NOT_SHARED
        replaced = None if self.found.entry is None else self.found.key
        return await self._keep(ResponseHead(self._head.status, self._shared_fields()), self._said, body, replaced)

    def _shared_fields(self) -> Headers:
        """Return the fields of the answer that others may get."""
        return without(end_to_end(self._head.headers), withheld_fields(self._said, self.policy))

    async def _freshen(self, stored: Entry) -> Outcome:
        """Keep *stored* with the fields of its 304, all of which the leader gets (RFC 9111 §4.3.4).

        A 304 that is about another response changes nothing, and leaves the leader without an answer.
        """
        if not identifies(self._head.headers, stored.headers):
            return NOT_SHARED
        for other in self.found.others:
            if same_strongly(self._head.headers, other.headers):
                await self._update(other)
        return await self._update(stored)

    async def _update(self, stored: Entry) -> Outcome:
        self._tags = frozenset(tag for tag in stored.tags if not is_group_stamp(tag))
        self._session_was_read = stored.session_read
        headers = freshened(_without_made_tag(stored), self._head.headers, self.store.now())
        head, said = ResponseHead(stored.status, headers), response_directives(headers)
        self.refusal = self._why_not_update(head, said)
        outcome = NOT_SHARED
        if self.refusal is None:
            kept = without(headers, withheld_fields(said, self.policy))
            outcome = await self._keep(ResponseHead(stored.status, kept), said, stored.body, stored.key)
        else:
            self._withdraw(stored.key)
        self.entry, _ = self._entry(head, said, stored.body)
        return outcome

    def _why_not_update(self, head: ResponseHead, said: ResponseDirectives) -> Refusal | None:
        """Return why the stored response is not updated to *head*, with the directives *said*; None: it is.

        An update that came for a credential is shared only if it says so itself: what the stored response says is
        not about the fields of an answer to somebody else (§3.5).
        """
        if self.is_meant is not None and not self.is_meant():
            return Refusal.POLICY
        own = unshared_credential(self.request, self._said, self.policy)
        changes_session = self.session is not None and self.session.is_changed()
        if own is None and changes_session and not shares_set_cookie(said, self.policy):
            return Refusal.SET_COOKIE
        return own or why_not_store(self.request, head, said, self.policy, self.store.now())

    def refused(self) -> None:
        """Drop the stored response that an answer showed not to be suitable any more (§4.3.3)."""
        if self.found.entry is not None:
            self._withdraw(self.found.key)

    def _withdraw(self, key: str) -> None:
        """Drop what is stored under *key* if the answer shows that it is no longer right.

        An answer for a credential shows that for its own client alone; a failure, or a client's error other than
        one of `NOT_THERE`, does not show it.
        """
        personal = unshared_credential(self.request, NOTHING_SAID, self.policy) is not None
        tells = self._head.status < 400 or self._head.status in NOT_THERE
        if tells and not personal:
            self.store.drop(key, self._turn)

    def unkept(self) -> None:
        """Refuse an answer with more than a body: trailers, or a file that the server sends."""
        self.refusal = Refusal.INCOMPLETE
        self.refused()

    def raised(self) -> Outcome:
        """Return the outcome of a run that raised, in the handler or before the request came to it."""
        return Outcome(failed=True) if self.admitted else UNADMITTED

    def _failure(self, body: bytes) -> Answer:
        """Return the failure as those who wait may see it: status and Vary alone if it is the leader's own."""
        if self.refusal not in (Refusal.STATUS, Refusal.NOT_FRESH) or self._said.no_cache:
            plain = plain_answer(self._head.status)
            vary = (field for field in self._head.headers if field[0].lower() == b"vary")
            return plain._replace(headers=(*plain.headers, *vary))
        headers = announced(self._shared_fields(), self.policy.include_headers)
        if self.policy.http_only and self.session is not None and self.session.is_read():
            headers = announced(headers, ("cookie",))  # as of what is stored
        return Answer(self._head.status, headers, body)

    async def _keep(
        self, head: ResponseHead, said: ResponseDirectives, body: bytes, replaced: str | None
    ) -> Outcome:
        """Store the answer, and drop the entry under the key *replaced* if the answer is not stored under that."""
        self.entry, seconds = self._entry(head, said, body)
        if self.mark is not None:
            self.stored = await self._store(self.entry, seconds, head.headers, replaced)
        return Outcome(entry=self.entry)

    async def freshen_by_head(self, headers: Headers) -> None:
        """Update what is stored, or make it stale, by *headers*, those of a 200 to a HEAD (RFC 9111 §4.3.5)."""
        self._head, self._said = ResponseHead(304, headers), response_directives(headers)
        chosen = () if self.found.entry is None else (self.found.entry,)
        for stored in (*self.found.others, *chosen):
            agrees = head_agrees(headers, stored.response())
            if agrees:
                await self._update(stored)
            elif agrees is False:
                await self._make_stale(stored)

    async def _make_stale(self, stored: Entry) -> None:
        subject = self.identity.subject
        stale = msgspec.structs.replace(
            stored,
            key=self.identity.key,
            path=subject.path,
            logical_key=subject.logical_key,
            freshness_lifetime=0.0,
            stale_while_revalidate=0.0,
            stale_if_error=0.0,
        )
        await self._store(stale, VALIDATED_FOR, stored.headers, stored.key)

    async def _store(self, entry: Entry, seconds: float, headers: Headers, replaced: str | None) -> bool:
        if entry.session_read and self.policy.http_only:
            headers = announced(headers, ("cookie",))  # by the RFC alone it selects, whoever has announced it
        vary = selecting_fields(headers, self.policy)
        return await self.store.keep(entry, seconds, self.request.headers, vary, self._turn, replaced)

    def _entry(self, head: ResponseHead, said: ResponseDirectives, body: bytes) -> tuple[Entry, float]:
        """Return the answer as an entry, and the seconds that the backend holds it.

        Fields that decide how long it is fresh are never withheld: *said* are the directives of the whole answer.
        """
        subject, received_at = self.identity.subject, self.store.now()
        shortened = 1 - self.policy.jitter * self.store.chance() if self.policy.jitter else 1.0
        lifetime = (freshness_lifetime(head, said, self.policy, received_at) or 0.0) * shortened
        windows = stale_windows(head, said, self.policy)
        entry = Entry(
            self.identity.key,
            self.mark or Mark(),
            self._stamps(head.headers),
            subject.path,
            subject.logical_key,
            head.status,
            self._stored_fields(head, body),
            body,
            self._requested_at,
            received_at,
            compact(lifetime),
            compact(windows[0]),
            compact(windows[1]),
            session_read=self._session_was_read or (self.session is not None and self.session.is_read()),
        )
        return entry, keep_for(head, lifetime, windows, self.policy)

    def _stamps(self, headers: Headers) -> tuple[str, ...]:
        """Return the names of the stamps that the answer is valid by."""
        groups = strings(headers, b"cache-groups")
        names = self.identity.subject.tags | self._tags
        if self.late_tags or groups:
            names |= {*map(tag_stamp, (*self.late_tags, *groups))}
            names |= {group_stamp(self.identity.origin, group) for group in groups}
        return tuple(sorted(names))

    def _stored_fields(self, head: ResponseHead, body: bytes) -> Headers:
        headers = announced(head.headers, self.policy.include_headers)
        if head.status == 200 and not has_field(headers, b"etag"):
            self.entity_tag = entity_tag_of(body, headers)
            headers = (*headers, (b"etag", self.entity_tag))
        return headers


def _without_made_tag(stored: Entry) -> Headers:
    """Return the fields of *stored* without an entity tag that the cache made: it depends on the other fields."""
    made = entity_tag_of(stored.body, stored.headers).decode("ascii")
    return without(stored.headers, _ETAG) if entity_tag(stored.headers) == made else stored.headers
