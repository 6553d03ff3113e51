"""One request for something that may be cached, from its look-up to its answer."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import msgspec

from app_cache.answers import (
    answer_of,
    for_leader,
    response_of,
    send_answer,
    send_plain,
    send_start,
)
from app_cache.clock.names import other_url
from app_cache.codec import entity_tag_of
from app_cache.filling import Filling
from app_cache.flight import BODIES, FILL_TIMEOUT_S, UNADMITTED, Fill, Outcome
from app_cache.guards import Guard, Guarding
from app_cache.identity import Identity, identify
from app_cache.policy import LATE_TAGS
from app_cache.rules.cache_status import CacheStatus, ttl_of
from app_cache.rules.decisions import (
    FAILURES,
    Forward,
    Fwd,
    Hit,
    Refusal,
    answers_others,
    asked_by,
    can_be_validated,
    has_content,
    select,
    unshared_credential,
    why_pass,
)
from app_cache.rules.directives import NOTHING_SAID, delta_seconds
from app_cache.rules.freshness import current_age, freshness_left
from app_cache.rules.messages import (
    RequestHead,
    combined,
    field_lines,
    fields_of,
    has_field,
    plain_answer,
    without,
)
from app_cache.rules.validators import (
    CONDITIONAL,
    OF_A_RANGE,
    VALIDATED,
    fields_of_304,
    not_modified,
    validating_headers,
)
from app_cache.rules.variants import announced, selecting_fields, vary_fields
from app_cache.sessions import begins_session, has_user, is_readable, session_watch
from app_cache.store import Found, variant_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app_cache.asgi import App, Message, Receive, Scope, Send
    from app_cache.codec import Entry
    from app_cache.keys import KeyGenerator
    from app_cache.policy import CachePolicy
    from app_cache.routes.table import Plan
    from app_cache.rules.messages import Answer, Headers, StoredResponse
    from app_cache.store import StoredResponses

    Give = Callable[[], Awaitable[None]]
    Learn = Callable[["Exchange", StoredResponse, Hit], None]

ASKED_IN_VAIN = "app_cache.asked_in_vain"
"""In the scope of a request that was looked for among remembered hits: whether the backend failed when asked."""
COPIED_BACK = ("route", "endpoint", "path_params", "router")
"""What the router leaves in the scope, for middleware further out."""
BODY_LIMIT = "starlette.max_body_size"
"""In the scope, by Starlette: how many bytes of content are let through; a router may change that."""
NOT_LOOKED_UP = Found("")
NOTHING_STORED = Forward(Fwd.URI_MISS)
NO_VARIANT_STORED = Forward(Fwd.VARY_MISS)
MOST_TURNED_AWAY = 3
"""Runs that a request waits for and learns nothing of its own answer from; after so many it leads alone.

The request of such a run was not let through to the endpoint, or its failure is of another variant.
"""
RAISED = 500
"""The status that an exception of the application becomes."""
TIMED_OUT = 504
"""The status of a handler that has not begun to answer in time, or may not be asked (RFC 9111 §5.2.1.7)."""
WISHES = frozenset({b"cache-control", b"pragma"})
"""Fields in which a client says what caches may do for its own request (RFC 9111 §5.2.1, §5.4)."""
WITH_CONTENT = frozenset({"POST", "QUERY"})
"""Methods whose content joins the key."""


class Exchange:
    """Answers one request, from the cache or by the application; it dies with the request.

    Args:
        app: The application behind the cache.
        store: Where responses are kept.
        plan: What the route table says of the request.
        policy: The plan's.
        keys: The key generator in force.
        learn: Called with each hit.
        scope: The request's.
        receive: Gives what its client sends.
        send: Takes what its client gets.
    """

    def __init__(
        self,
        app: App,
        store: StoredResponses,
        plan: Plan,
        policy: CachePolicy,
        keys: KeyGenerator,
        learn: Learn,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self.app = app
        self.learn = learn
        self.receive = receive
        self.send = send
        self.store = store
        self.plan = plan
        self.policy = policy
        self.keys = keys
        self.scope = scope
        self.request = RequestHead(
            scope["method"],
            fields_of(scope),
            ("user" in scope or "user" in (scope.get("state") or ())) and has_user(scope),
            "session" in scope and begins_session(scope),
        )
        self.asked = asked_by(self.request, policy)
        self.asked_in_vain: bool = scope.get(ASKED_IN_VAIN, False)
        """The backend was asked for this request, and failed: it is not asked again before the handler runs."""
        self.body: bytes | None = None
        self.known: Identity
        """The request's key and names, once they are made."""
        self.found = NOT_LOOKED_UP
        self.decision = NOTHING_STORED
        self.started = False
        self.turned_away = 0
        self.earlier: Fill | None = None
        """The fill that was under way before the look-up, which may have ended since."""

    async def answer(self) -> None:
        """Answer the request."""
        refusal = why_pass(self.request, self.asked)
        if refusal is None and "session" in self.scope and not is_readable(self.scope["session"]):
            refusal = Refusal.COOKIE  # a session is loaded when it is used, into the scope of the request itself
        if refusal is None and self.request.method in WITH_CONTENT:
            refusal = await self._read_content() if self._may_read_content() else Refusal.TOO_LARGE
        if refusal is None:
            refusal = await self._identify()
        if refusal is not None:
            self.decision = Forward(Fwd.BYPASS, refusal)
            await self._forward_alone()
        elif not await self._answer_from_cache():
            await self._forward()

    def _may_read_content(self) -> bool:
        """Return whether the content is known to be within the application's limit, if it has one.

        Else it is left unread: a router further in may have another limit, and lets it through or refuses it.
        """
        limit, headers = self.scope.get(BODY_LIMIT), self.request.headers
        if limit is None or not has_content(headers):
            return True
        length = delta_seconds(combined(headers, b"content-length"))
        return length is not None and length <= limit

    async def _read_content(self) -> Refusal | None:
        """Read the content that joins the key, up to `max_body`, and put it back; return why to pass, or None."""
        messages: deque[Message] = deque()
        receive, self.receive = self.receive, _replay(messages, self.receive)
        size = 0
        while True:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self.policy.max_body:
                return Refusal.TOO_LARGE
            if message["type"] != "http.request":
                return Refusal.INCOMPLETE
            if not message.get("more_body", False):
                self.body = b"".join(each.get("body", b"") for each in messages)
                return None

    async def _identify(self) -> Refusal | None:
        found = await identify(self.request, self.plan, self.policy, self.keys, self.store, self.scope, self.body)
        if isinstance(found, Refusal):
            return found
        self.known = found
        return None

    async def _answer_from_cache(self) -> bool:
        """Look up, and serve what is found if it may answer (RFC 9111 §4)."""
        self.earlier = self.store.flight.under_way(self.known.key)
        self.found = await self._look_up()
        if self.found.entry is None:
            self.decision = NO_VARIANT_STORED if self.found.varies else NOTHING_STORED
            return False
        response = self.found.entry.response()
        decision = select(
            self.request,
            self.asked,
            response,
            self.policy,
            self.store.now(),
            marked_stale=self.found.marked_stale,
            chance=1 - self.store.chance() if self.policy.early_refresh else 1.0,
        )
        if isinstance(decision, Forward):
            self.decision = decision
            if decision.fwd is Fwd.BYPASS:
                self.found = msgspec.structs.replace(self.found, entry=None)
            return False
        await self._give(response, partial(self._hit, response, decision))
        return True

    async def _look_up(self) -> Found:
        if self.asked_in_vain:
            self.asked_in_vain = False
            return Found(self.known.key)
        return await self.store.look_up(self.known.key, self.known.subject, self.request.headers)

    async def _hit(self, response: StoredResponse, hit: Hit) -> None:
        if hit.refresh:
            self._refresh()
        self.learn(self, response, hit)
        await self._serve(response, hit.age, CacheStatus(hit=True, ttl=ttl_of(hit.ttl)))

    async def _give(self, given: StoredResponse | Answer, give: Give) -> None:
        """Have *give* send the answer *given*, which no run for this request made; ask a guarded endpoint before.

        That is done by running the application with *given* in the place of what the endpoint returns. If it lets
        the request through and answers with the same status, *give* sends; any other answer is this client's own.
        """
        if not self.policy.guarded:
            await give()
            return
        guard = Guard(response_of(given))
        gave = False

        async def send_told(message: Message) -> None:
            nonlocal gave
            if message["type"] != "http.response.start":
                if not gave:
                    await self.send(message)
                return
            self._copy_back(scope)
            gave = guard.passed and message["status"] == given.status
            if gave:
                await give()
            else:
                status = self._tell(CacheStatus(fwd=Fwd.BYPASS, detail=Refusal.GUARD))
                await self._pass_on(message, fields_of(message), status)

        self.scope.setdefault("state", {})
        scope = {**self.scope}
        try:
            with Guarding(guard):
                await self.app(scope, self.receive, send_told)
        finally:
            self._copy_back(scope)

    async def _give_rescue(self, failed_with: int) -> None:
        response = cast("Entry", self.found.entry).response()
        await self._give(response, partial(self._rescue, failed_with))

    def _copy_back(self, scope: Scope) -> None:
        """Copy what the router found from *scope*, that of a run, into the request's own."""
        for name in COPIED_BACK:
            if name in scope:
                self.scope[name] = scope[name]

    async def _forward(self, *, waited: bool = False) -> None:
        """Let the application answer, in a fill of its own or that of another request.

        *waited*: The request has waited for a fill before, so that one under way now began after the request came.
        """
        is_head = self.request.method == "HEAD"
        if is_head and self.decision.rescue and not self.asked.only_if_cached:
            await self._forward_head()
        elif is_head or self.asked.only_if_cached:
            await self._forward_alone()
        elif self._keeps_to_itself():
            await self._lead(alone=True)
        elif (hung := self.store.flight.hung(self.found.key)) is not None:
            await self._lead_as_one_of_few(hung)
        elif (fill := self._joinable()) is None:
            asks_for_a_part = self.found.entry is None and has_field(self.request.headers, b"range")
            await self._lead(alone=asks_for_a_part)  # a range is no use for others
        else:
            await self._follow(fill, waited=waited)

    async def _forward_alone(self) -> None:
        """Let the application answer, untouched but for Cache-Status and Vary; nothing new is stored."""
        status = self._tell(CacheStatus(fwd=self.decision.fwd, detail=self.decision.detail))
        if self.asked.only_if_cached:
            await send_plain(self.send, self.request.method, TIMED_OUT, None)
            return
        guard = Guard() if self.policy.guarded else None
        learn = await self._learner(guard)

        async def send_told(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = fields_of(message)
                await learn(message["status"], headers)
                await self._pass_on(message, headers, status)
            else:
                await self.send(message)

        with Guarding(guard):
            await self.app(self.scope, self.receive, send_told)

    async def _forward_head(self) -> None:
        """Let the application answer a HEAD; if it fails, the stored response stands in (RFC 5861 §4)."""
        guard = Guard() if self.policy.guarded else None
        learn, is_rescued = await self._learner(guard), False

        async def send_told(message: Message) -> None:
            nonlocal is_rescued
            starts, admitted = message["type"] == "http.response.start", guard is None or guard.passed
            if starts:
                self.started = True
            if starts and admitted and message["status"] in FAILURES and self._rescues():
                is_rescued = True
                await self._rescue(message["status"])
            elif starts:
                headers = fields_of(message)
                await learn(message["status"], headers)
                detail = self.decision.detail if admitted else Refusal.GUARD
                status = self._tell(CacheStatus(fwd=self.decision.fwd, detail=detail))
                await self._pass_on(message, headers, status)
            elif not is_rescued:
                await self.send(message)

        try:
            with Guarding(guard):
                await self.app(self.scope, self.receive, send_told)
        except Exception as error:
            if self.started or (guard is not None and not guard.passed) or not self._rescues():
                raise
            self.store.log.failed("cache.rescued", self.plan.route, error)
            await self._rescue(RAISED)

    async def _pass_on(self, start: Message, headers: Headers, status: CacheStatus) -> None:
        """Send the *start* of the application's own answer, with fields that join the key in Vary."""
        await send_start(
            self.send, start["status"], announced(headers, self.policy.include_headers), status, start
        )

    async def _learner(self, guard: Guard | None) -> Callable[[int, Headers], Awaitable[None]]:
        """Return a function that updates what is stored by the answer to a HEAD (RFC 9111 §4.3.5).

        An answer that came in the place of a guarded endpoint's, with *guard* not passed, says nothing of that.
        """
        has_stored = self.request.method == "HEAD" and self.found.entry is not None
        filling = self._filling(self.scope, guard=guard) if has_stored else None
        if filling is not None:
            await filling.begin()

        async def learn(status: int, headers: Headers) -> None:
            if filling is not None and status == 200 and filling.admitted:
                await filling.freshen_by_head(headers)

        return learn

    def _keeps_to_itself(self) -> bool:
        """Return whether no other request may wait for the answer to this one, nor this one for another's."""
        return (
            self.decision.detail is not None
            or unshared_credential(self.request, NOTHING_SAID, self.policy) is not None
            or self.store.flight.is_unshared(self.found.key)
        )

    def _joinable(self) -> Fill | None:
        """Return the fill under way whose answer would be valid for this request were it stored now, or None."""
        fill = self.store.flight.under_way(self.found.key) or self.earlier
        if fill is None or not fill.begun:
            return fill
        leader = cast("Filling", fill.judge)
        named = leader.identity.subject
        valid = all(
            self.store.would_be_valid(self.found.reading, leader.mark, each, leader.invalidations)
            for each in (named, other_url(self.known.subject, named))
            if each is not None
        )
        return fill if valid else None

    async def _follow(self, fill: Fill, *, waited: bool) -> None:
        """Wait for the *fill* of another request, and answer with its outcome; lead alone if that cannot be."""
        self.earlier = None
        outcome = await fill.follow(self._patience())
        if outcome is not None:
            await self._use(fill, outcome, waited=waited)
        elif self._rescues():
            await self._give_rescue(TIMED_OUT)
        else:
            await self._lead_as_one_of_few(fill, waited=waited)

    async def _use(self, fill: Fill, outcome: Outcome, *, waited: bool) -> None:
        """Answer with the *outcome* of the *fill* of another request; lead alone if that cannot be shared."""
        leader, entry, failure = cast("Filling", fill.judge), outcome.entry, outcome.failure
        is_of_another = failure is not None and not self._is_variant_of(leader, failure.headers)
        if (is_of_another or outcome is UNADMITTED) and self.turned_away < MOST_TURNED_AWAY:
            self.turned_away += 1
            await self._forward(waited=waited)
        elif entry is not None and await self._may_use(entry, leader, waited=waited):
            await self._give(entry.response(), partial(self._share, entry.response(), leader.status))
        elif entry is not None and not waited:
            if not await self._answer_from_cache():
                if not answers_others(entry.response(), self.policy, self.store.now()):
                    self.store.flight.mark_unshared(self.found.key)
                await self._forward(waited=True)
        elif is_of_another or not outcome.failed:
            await self._lead(alone=True)
        elif self._rescues():
            await self._give_rescue(leader.status or RAISED)
        else:
            failure = failure or plain_answer(RAISED)
            await self._give(failure, partial(self._fail, failure))

    async def _lead_as_one_of_few(self, hung: Fill, *, waited: bool = False) -> None:
        """Lead alone, in one of a few places for requests that waited in vain; if none becomes free, give up.

        An answer that is there by then is given, whoever made it, that of the *hung* fill too.
        """
        async with self.store.flight.one_of_few(self.found.key, hung, FILL_TIMEOUT_S) as admitted:
            if admitted:
                if not await self._answer_from_cache():
                    await self._lead(alone=True)
                return
        if hung.shared is not None:
            await self._use(hung, hung.shared, waited=waited)
        elif not await self._answer_from_cache():
            if self._rescues():
                await self._give_rescue(TIMED_OUT)
            else:
                self._tell(CacheStatus(fwd=self.decision.fwd))
                await send_plain(self.send, self.request.method, TIMED_OUT, None)

    def _patience(self) -> float:
        """Return the seconds that this request waits for the run of another."""
        return min(self._time_of_handler() or FILL_TIMEOUT_S, FILL_TIMEOUT_S)

    def _time_of_handler(self) -> float | None:
        """Return the seconds after which the stored response stands in for a slow handler; None: it does not."""
        most = self.policy.handler_timeout if self.decision.rescue else None
        return most if most is not None and self._rescues(after=most) else None

    def _rescues(self, after: float = 0.0) -> bool:
        """Return whether the stored response may stand in for a failure *after* so many seconds (RFC 5861 §4)."""
        if self.found.entry is None or not self.decision.rescue:
            return False
        response, then = self.found.entry.response(), self.store.now() + after
        marked = self.found.marked_stale
        decision = select(self.request, self.asked, response, self.policy, then, marked_stale=marked)
        return isinstance(decision, Forward) and decision.rescue

    async def _share(self, response: StoredResponse, came: int) -> None:
        """Serve the *response* that another request's fill has made of an answer with the status *came*."""
        age = current_age(response, self.store.now())
        forwarded = None if came == response.status else came
        status = CacheStatus(fwd=self.decision.fwd, fwd_status=forwarded, collapsed=True)
        await self._serve(response, age, status)

    async def _fail(self, failure: Answer) -> None:
        self.plan.leave_in(self.scope)
        status = self._tell(CacheStatus(fwd=self.decision.fwd, collapsed=True))
        await send_answer(self.send, failure, status)

    async def _may_use(self, entry: Entry, leader: Filling, *, waited: bool) -> bool:
        """Return whether *entry*, from the fill of another request, may answer this one too (RFC 9111 §4).

        It must be this request's variant, and need no validation. Unless the fill began after this request came
        (*waited*), it must also be what this client asks for, and not have been invalidated during the wait.
        """
        response, now = entry.response(), self.store.now()
        if not self._is_variant_of(leader, response.headers if self.policy.http_only else entry.headers):
            return False
        if waited:
            return answers_others(response, self.policy, now)
        fresh = isinstance(select(self.request, self.asked, response, self.policy, now), Hit)
        return fresh and await self.store.still_holds(entry, leader.invalidations, self.known.subject)

    def _is_variant_of(self, leader: Filling, answer: Headers) -> bool:
        """Return whether this request and the *leader*'s agree in the fields by which *answer* varies."""
        if vary_fields(answer) is None:
            return False
        vary = selecting_fields(answer, self.policy)
        own = variant_key(self.known.key, vary, self.request.headers)
        return own == variant_key(self.known.key, vary, leader.request.headers)

    async def _lead(self, *, alone: bool = False) -> None:
        """Run the application in a fill, and send on what it sends.

        A 304 that is about another response than the stored one gives no answer: then the application runs again,
        and is asked for the whole.
        """
        filling, fill, scope = self._take_off(alone=alone)
        patience = self._time_of_handler()
        try:
            spoke = await fill.lead(self._dressed(filling, scope), patience)
        except Exception as error:
            if self.started or not (filling.admitted and self._rescues()):
                raise
            self.store.log.failed("cache.rescued", self.plan.route, error)
            await self._rescue(RAISED)
            return
        finally:
            if not self.started:
                self._copy_back(scope)
        if not spoke:
            self.store.log.warning("cache.rescued", self.plan.route, timeout=patience)
            await self._give_rescue(TIMED_OUT)
        elif not self.started:
            await self._stand_in(filling)
            await fill.end()

    async def _stand_in(self, filling: Filling) -> None:
        """Send what takes the place of a withheld answer: the response that it validated, or that rescues it."""
        if filling.entry is not None:
            detail = filling.refusal or self.decision.detail
            status = CacheStatus(fwd=self.decision.fwd, fwd_status=304, stored=filling.stored, detail=detail)
            response = filling.entry.response()
            age = current_age(response, self.store.now()) if field_lines(response.headers, b"age") else None
            await self._serve(response, age, status, offered=filling.is_offered(response.headers))
        elif filling.conditional and filling.status == 304:
            self.found = msgspec.structs.replace(self.found, entry=None)
            self.decision = replace(self.decision, rescue=False)
            await self._lead(alone=True)
        elif filling.is_rescued:
            self.store.log.warning("cache.rescued", self.plan.route, status=filling.status)
            await self._rescue(filling.status)

    def _filling(
        self,
        scope: Scope,
        *,
        rescues: Callable[[], bool] | None = None,
        conditional: bool = False,
        guard: Guard | None = None,
    ) -> Filling:
        """Return the `Filling` that judges the answer of a run with *scope*."""
        return Filling(
            self.store,
            self.request,
            self.known,
            self.policy,
            self.found,
            rescues=rescues,
            conditional=conditional,
            guard=guard,
            session=session_watch(self.scope) if "session" in self.scope else None,
            is_meant=partial(_is_meant, self.plan, scope, scope.get("endpoint")),
        )

    def _take_off(self, *, alone: bool, refresh: bool = False) -> tuple[Filling, Fill, Scope]:
        """Begin a run of the application; if a *refresh* fails, nothing stands in, for no client waits for it."""
        validating = self._validating_headers()
        rescues = self._rescues if self.decision.rescue and not refresh else None
        guard = Guard() if self.policy.guarded else None
        headers = self._own_headers(alone=alone) if validating is None else validating
        headers = self._without_wishes(headers) if refresh else headers
        self.scope.setdefault("state", {})
        method = "GET" if self.request.method == "HEAD" else self.request.method  # HEAD has nothing to store
        scope = {**self.scope, "method": method, "headers": [*headers]}
        filling = self._filling(scope, rescues=rescues, conditional=validating is not None, guard=guard)
        scope[LATE_TAGS] = filling.late_tags
        fill = Fill(filling)
        fill.on_failure = partial(self.store.log.failed, "cache.fill_failed", self.plan.route)
        with Guarding(guard):
            fill.start(self.app, scope, self.body or b"", None if refresh else self.receive)
        self.store.flight.take_off(self.found.key, fill, alone=alone, refresh=refresh)
        return filling, fill, scope

    def _own_headers(self, *, alone: bool) -> Headers:
        """Return the request's fields without those that the cache itself acts on.

        Those are the client's conditions, but for fields that join the key; and its range where something is
        stored. A run that is the client's *alone*, and has nothing stored to replace, gets all fields.
        """
        if self.found.entry is None and alone:
            return self.request.headers
        own = CONDITIONAL if self.found.entry is None else CONDITIONAL | OF_A_RANGE
        in_key = self.policy.include_headers
        return without(self.request.headers, own.difference(map(str.encode, in_key)) if in_key else own)

    def _without_wishes(self, headers: Headers) -> Headers:
        """Return *headers* without the `WISHES`, but for those by which the response is selected."""
        stored = self.found.entry
        vary = None if stored is None else vary_fields(stored.headers)
        selecting = {*self.policy.include_headers, *(vary or ())}
        return without(headers, WISHES.difference(map(str.encode, selecting)))

    def _validating_headers(self) -> Headers | None:
        """Return the request's fields with conditions that validate the stored response; None: nothing can be."""
        stored = self.found.entry
        if stored is None or self.request.method not in VALIDATED or not can_be_validated(stored.status):
            return None
        made = entity_tag_of(stored.body, stored.headers).decode("ascii")
        return validating_headers(self.request.headers, stored.headers, made)

    def _refresh(self) -> None:
        """Begin a refresh, unless one is under way, or one has just failed (RFC 5861 §3)."""
        if self.store.flight.may_refresh(self.found.key):
            self._take_off(alone=False, refresh=True)

    def _dressed(self, filling: Filling, scope: Scope) -> Send:
        """Return *send* for the leader: it adds the cache's fields, and sends a 304 if the client has the answer.

        It also copies what routers left in the run's *scope* into the request's own, for middleware further out.
        """
        matched = False

        async def send_dressed(message: Message) -> None:
            nonlocal matched
            if message["type"] == "http.response.start":
                self.started = True
                self._copy_back(scope)
                offered = self.policy.client_max_age is not None and filling.is_offered(message["headers"])
                headers = for_leader(message["headers"], self.policy, filling.entity_tag, offered=offered)
                matched = not_modified(self.request, message["status"], headers, self.store.now(), stored=False)
                status = self._tell(
                    CacheStatus(
                        fwd=self.decision.fwd,
                        fwd_status=message["status"] if matched else None,
                        stored=filling.stored,
                        detail=filling.refusal or self.decision.detail,
                    )
                )
                if matched:
                    await send_start(self.send, 304, fields_of_304(headers), status, message)
                else:
                    await send_start(self.send, message["status"], headers, status, message)
            elif not matched or message["type"] not in BODIES:
                await self.send(message)
            elif not message.get("more_body", False):
                await self.send({"type": "http.response.body", "body": b"", "more_body": False})

        return send_dressed

    async def _rescue(self, failed_with: int) -> None:
        """Serve the stale response in place of a failure of the status *failed_with* (RFC 5861 §4)."""
        response = cast("Entry", self.found.entry).response()
        now = self.store.now()
        age = current_age(response, now)
        ttl = ttl_of(freshness_left(response, age, now, marked_stale=self.found.marked_stale))
        await self._serve(response, age, CacheStatus(fwd=self.decision.fwd, fwd_status=failed_with, ttl=ttl))

    async def _serve(
        self, response: StoredResponse, age: float | None, status: CacheStatus, *, offered: bool = True
    ) -> None:
        """Send what this client gets of *response*; Cache-Status says the handler's status if that is another."""
        self.plan.leave_in(self.scope)
        answer = answer_of(self.request, self.policy, response, age, offered=offered)
        if status.fwd is not None and status.fwd_status is None and answer.status != response.status:
            status = replace(status, fwd_status=response.status)
        await send_answer(self.send, answer, self._tell(status))

    def _tell(self, status: CacheStatus) -> CacheStatus:
        """Note what happened, for the application and the metrics, and return it for the header: one value."""
        state = self.scope.setdefault("state", {})
        if type(state.setdefault("cache", status)) is CacheStatus:  # else the application has its own by that name
            state["cache"] = status
        self.store.stats[status.outcome] += 1
        if status.detail is not None:
            self.store.stats[f"{status.outcome}-{status.detail.value}"] += 1
        return status


def _is_meant(plan: Plan, scope: Scope, before: object) -> bool:
    """Return whether the policy of *plan* is for the endpoint that routers left in *scope*, if there is one.

    Where it was known before which endpoint that is, a route may have been rewritten since.

    *before*: What routers further out had left there.
    """
    if "endpoint" not in scope:
        return True
    if not plan.is_sure:
        return plan.is_for(scope)
    return scope["endpoint"] is plan.left.get("endpoint") or scope["endpoint"] is before


def _replay(messages: deque[Message], receive: Receive) -> Receive:
    """Return a function that gives *messages*, as many as there are when it is called, then those of *receive*."""

    async def receive_again() -> Message:
        return messages.popleft() if messages else await receive()

    return receive_again
