"""What a shared cache may answer, as a slow model in plain words that shares no code with the cache.

The model sees everything: what the client asks, what the application was asked meanwhile and said, what the client
got. It keeps every answer that could be stored, for ever, and says of each of them why it must not be used now.
Where the RFCs leave a choice it knows the one that ``docs/conformance.md`` states.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin

import http_sf

Fields = tuple[tuple[str, str], ...]

ORIGIN = "http://test"
SAFE = ("GET", "HEAD", "OPTIONS", "TRACE", "QUERY")
CACHED = ("GET", "HEAD", "QUERY")
HEURISTIC = (200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501)
UNDERSTOOD = (200, 203, 204, 301, 302, 404, 500, 503)
OF_ONE_CONNECTION = (
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authentication-info", "proxy-authorization"),
    *("proxy-connection", "te", "transfer-encoding", "upgrade"),
)
TOKEN = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
PREFERENCES = ("accept", "accept-charset", "accept-encoding", "accept-language")
LISTS = (*PREFERENCES, "cache-control", "pragma", "if-none-match", "te", "via", "x-forwarded-for")


@dataclass(frozen=True)
class Request:
    """A request to the one origin."""

    method: str
    target: str
    fields: Fields
    body: bytes = b""


@dataclass(frozen=True)
class Answer:
    """What was sent in answer; status 0 if nothing was before the application *raised*."""

    status: int
    fields: Fields
    body: bytes
    raised: bool = False


@dataclass(frozen=True)
class Asked:
    """What the application was asked, and what it answered."""

    request: Request
    answer: Answer
    at: float
    answered_at: float


@dataclass(frozen=True)
class Policy:
    """What the author of the application asked for beyond the RFCs."""

    timeout: float | None = None
    guards_cookies: bool = False
    stores_set_cookie: bool = True
    stale_on_failure: bool = True


# Fields, read in the simplest way.


def lines_of(fields: Fields, name: str) -> list[str]:
    """Return the lines of a field."""
    return [value.strip(" \t") for each, value in fields if each.lower() == name]


def split_list(text: str) -> list[str]:
    """Return the members of a list; quotes hold commas together if they are closed."""
    members = [""]
    at = 0
    gives_up = False
    while at < len(text):
        end = at + 1
        if text[at] == '"' and not gives_up:
            while end < len(text) and text[end] != '"':
                end += 2 if text[end] == "\\" else 1
            gives_up = end >= len(text)
            end = at + 1 if gives_up else end + 1
        if text[at] == ",":
            members.append("")
        else:
            members[-1] += text[at:end]
        at = end
    return [member.strip(" \t") for member in members if member.strip(" \t")]


def list_of(fields: Fields, name: str) -> list[str]:
    """Return the members of all lines of a list field."""
    return [member for line in lines_of(fields, name) for member in split_list(line)]


def date_of(text: str) -> float | None:
    """Return a date in epoch seconds, None if it is none; the worlds write only dates that all read alike."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None


def one_date(fields: Fields, name: str) -> float | None:
    """Return the date of a field that is there once."""
    lines = lines_of(fields, name)
    return date_of(lines[0]) if len(lines) == 1 else None


def seconds_of(text: str | None) -> int | None:
    """Return delta-seconds."""
    return int(text) if text and all(char in "0123456789" for char in text) else None


def structured(text: str, kind: str) -> Any:
    """Return what a structured field holds, None if it does not parse."""
    try:
        return http_sf.parse(text.encode("latin-1"), tltype=kind)
    except (ValueError, http_sf.StructuredFieldError):
        return None


UNREADABLE = "\0"
"""What stands after the name of a directive and is no argument."""


def directives_of(fields: Fields) -> list[tuple[str, str | None]]:
    """Return the directives of Cache-Control, each with its argument."""
    found = []
    for member in list_of(fields, "cache-control"):
        length = 0
        while length < len(member) and member[length] in TOKEN:
            length += 1
        name, rest = member[:length].lower(), member[length:]
        argument: str | None = None if not rest else UNREADABLE
        if rest.startswith("="):
            argument = rest[1:]
            if len(argument) > 1 and argument[0] == argument[-1] == '"':
                argument = argument[1:-1].replace("\\", "")
        found.append((name, argument))
    return found


class Said:
    """What a response says to a shared cache."""

    def __init__(self, fields: Fields) -> None:
        self.targeted = False
        self._said = directives_of(fields)
        targeted = ", ".join(lines_of(fields, "cdn-cache-control"))
        if targeted:
            self._take_targeted(targeted)

    def _take_targeted(self, text: str) -> None:
        said: list[tuple[str, str | None]] = []
        for name, (value, _) in (structured(text, "dictionary") or {}).items():
            if value is True:
                said.append((name, None))
            elif value is not False:
                said.append((name, str(value) if isinstance(value, int) else UNREADABLE))
        if said:
            self._said, self.targeted = said, True

    def has(self, name: str) -> bool:
        """Return whether a directive is there, with whatever argument."""
        return any(each == name for each, _ in self._said)

    def plainly(self, name: str) -> bool:
        """Return whether the first directive of that name is there as it should be, with no argument."""
        arguments = [argument for each, argument in self._said if each == name]
        return bool(arguments) and arguments[0] is None

    def seconds(self, name: str) -> int | None:
        """Return the first argument of a directive, 0 if it cannot be read, None if the directive is absent."""
        arguments = [argument for each, argument in self._said if each == name]
        return (seconds_of(arguments[0]) or 0) if arguments else None

    def window(self, name: str) -> int | None:
        """Return the argument of a directive that grants something, None if there is none that can be read."""
        arguments = [argument for each, argument in self._said if each == name]
        return seconds_of(arguments[0]) if arguments else None

    def fields_named(self, name: str) -> list[str] | None:
        """Return the fields that `private` or `no-cache` name; None if the directive means the whole response."""
        named: list[str] = []
        for argument in [argument for each, argument in self._said if each == name]:
            members = split_list(argument or "")
            if not members or any(char not in TOKEN for member in members for char in member):
                return None
            named += [member.lower() for member in members]
        return named

    def all_of_it(self, name: str) -> bool:
        """Return whether `private` or `no-cache` is there and means the whole response."""
        return self.has(name) and self.fields_named(name) is None

    @property
    def withheld(self) -> list[str]:
        """The fields that are not stored."""
        return [*(self.fields_named("private") or []), *(self.fields_named("no-cache") or [])]

    @property
    def must_be_validated_when_stale(self) -> bool:
        """Whether it may never be served stale."""
        names = ("must-revalidate", "proxy-revalidate", "s-maxage")
        return self.all_of_it("no-cache") or any(self.has(name) for name in names)


# What is stored.


@dataclass(eq=False)
class Kept:
    """An answer that may be stored, as it is stored."""

    request: Request
    status: int
    fields: Fields
    body: bytes
    asked_at: float
    came_at: float
    fresh_for: float
    groups: list[str]
    dead: str = ""
    """Why it was invalidated."""
    stale: bool = False
    """Whether a HEAD showed that it is no longer right."""
    surely: bool = True
    """Whether the cache has no choice but to have it, if it stores at all."""

    @property
    def answer(self) -> Answer:
        """The whole of it."""
        return Answer(self.status, self.fields, self.body)

    @property
    def said(self) -> Said:
        """What it says to caches."""
        return Said(self.fields)

    def age(self, now: float) -> float:
        """Return its age."""
        date = one_date(self.fields, "date")
        apparent_age = max(0.0, self.came_at - (self.came_at if date is None else date))
        corrected_age_value = age_value(self.fields) + self.came_at - self.asked_at
        return max(apparent_age, corrected_age_value) + now - self.came_at

    def left(self, now: float) -> float:
        """Return what is left of its freshness."""
        return (0.0 if self.stale else self.fresh_for) - self.age(now)

    @property
    def date(self) -> float:
        """Its Date."""
        date = one_date(self.fields, "date")
        return self.came_at if date is None else date

    def __str__(self) -> str:
        return f"{self.status} that came at {self.came_at:g}, fresh for {self.fresh_for:g} s"


def age_value(fields: Fields) -> int:
    """Return Age."""
    members = list_of(fields, "age")
    return (seconds_of(members[0]) or 0) if members else 0


def storable_form(fields: Fields) -> Fields:
    """Return what of *fields* is stored (§3.1)."""
    said = Said(fields)
    dropped = [*OF_ONE_CONNECTION, *said.withheld, *(name.lower() for name in list_of(fields, "connection"))]
    return tuple((name, value) for name, value in fields if name.lower() not in dropped)


def explicit_lifetime(fields: Fields, came_at: float) -> float | None:
    """Return the freshness lifetime that a response states, or None (§4.2.1)."""
    said = Said(fields)
    for name in ("s-maxage", "max-age"):
        seconds = said.seconds(name)
        if seconds is not None:
            return float(min(seconds, 2**31))
    if said.targeted or not lines_of(fields, "expires"):
        return None
    expires, date = one_date(fields, "expires"), one_date(fields, "date")
    return 0.0 if expires is None else max(0.0, expires - (came_at if date is None else date))


def lifetime(status: int, fields: Fields, came_at: float, policy: Policy) -> float | None:
    """Return the freshness lifetime, or None if nothing lets the response be stored (§3, §4.2.1, §4.2.2)."""
    explicit = explicit_lifetime(fields, came_at)
    if explicit is not None:
        return explicit
    if policy.timeout is not None:
        return policy.timeout if status in (200, 203, 204, 301, 308) else None
    if status not in HEURISTIC and not Said(fields).plainly("public"):
        return None
    modified, date = one_date(fields, "last-modified"), one_date(fields, "date")
    return 0.0 if modified is None else max(0.0, 0.1 * ((came_at if date is None else date) - modified))


def why_not_storable(request: Request, answer: Answer, policy: Policy) -> str | None:
    """Return what forbids to store an answer, or None (§3), its lifetime left aside."""
    said = Said(answer.fields)
    understood = said.plainly("must-understand") and answer.status in UNDERSTOOD
    reasons = {
        "incomplete": answer.raised
        or lines_of(answer.fields, "content-length") not in ([], [str(len(answer.body))]),
        "its request says no-store": ("no-store", None) in directives_of(request.fields),
        "no-store": said.has("no-store") and not understood,
        "private": said.all_of_it("private"),
        "its status": answer.status < 200 or answer.status in (206, 304, 428, 429, 431, 511),
        "its status is not understood": said.plainly("must-understand") and not understood,
        "its status for a range": answer.status != 200 and bool(lines_of(request.fields, "range")),
        "Authorization": why_not_shared(request, said, policy) is not None,
        "Set-Cookie": not policy.stores_set_cookie
        and bool(lines_of(answer.fields, "set-cookie"))
        and "set-cookie" not in said.withheld,
        "Vary": vary_of(answer.fields) is None,
        "an event stream": lines_of(answer.fields, "content-type") == ["text/event-stream"],
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def why_not_shared(request: Request, said: Said, policy: Policy) -> str | None:
    """Return the credential that keeps an answer from being stored, or from being used (§3.5)."""
    allowed = said.plainly("public") or said.has("must-revalidate") or said.has("s-maxage")
    if lines_of(request.fields, "authorization") and not allowed:
        return "Authorization"
    cookie = policy.guards_cookies and bool(lines_of(request.fields, "cookie"))
    return "Cookie" if cookie and not said.plainly("public") else None


def passes(request: Request) -> bool:
    """Return whether a request neither reads nor writes the cache."""
    no_store = any(name == "no-store" for name, _ in directives_of(request.fields))
    conditions = lines_of(request.fields, "if-match") or lines_of(request.fields, "if-unmodified-since")
    return no_store or bool(conditions) or request.method not in CACHED


# Vary.


def vary_of(fields: Fields) -> list[str] | None:
    """Return the names in Vary, None if no request matches (§4.1)."""
    names = [name.lower() for name in list_of(fields, "vary")]
    if any(name == "*" or any(char not in TOKEN for char in name) for name in names):
        return None
    return sorted(set(names))


def selects(request: Request, kept: Kept) -> bool:
    """Return whether *kept* is an answer to what *request* asks for (§4, §4.1)."""
    if (kept.request.target, kept.request.method == "QUERY") != (request.target, request.method == "QUERY"):
        return False
    if request.method == "QUERY" and of_content(kept.request) != of_content(request):
        return False
    return all(
        alike(name, lines_of(kept.request.fields, name), lines_of(request.fields, name))
        for name in vary_of(kept.fields) or []
    )


def is_preferred(one: Kept, other: Kept) -> bool:
    """Return whether *one* is used rather than *other*: it is as recent, and has Vary if that has (§4, §4.1)."""
    return one.date >= other.date and (bool(vary_of(one.fields)) or not vary_of(other.fields))


def preference_of(member: str) -> list[str]:
    """Return what a member of a list prefers, and its parameters, without a weight that says nothing."""
    name, *parameters = [part.strip(" \t") for part in member.split(";")]
    weights = [part for part in parameters if part.startswith(("q=", "Q="))]
    says_nothing = (
        parameters[-1:] == weights and weights[0][2:] in ("1", "1.", "1.0", "1.00", "1.000") if weights else False
    )
    return [name.lower(), *(parameters[:-1] if says_nothing else parameters)]


def alike(name: str, one: list[str], other: list[str]) -> bool:
    """Return whether no handler tells the *lines* of a field in two requests apart (§4.1)."""
    if len(one) != len(other):
        return False
    return all(a == b or same_list(name, a, b) for a, b in zip(one, other, strict=True))


def same_list(name: str, one: str, other: str) -> bool:
    """Return whether two lines of the field *name* are the same list, member by member."""
    if name not in LISTS or '"' in one + other:
        return False
    members = [[member.strip(" \t") for member in line.split(",")] for line in (one, other)]
    found = [[preference_of(each) for each in line] if name in PREFERENCES else line for line in members]
    return found[0] == found[1]


# Which answer follows from a whole one.


def follows(request: Request, status: int, fields: Fields, body: bytes, stored_at: float | None) -> list[Answer]:
    """Return the answers to *request* that a whole one allows: itself, a 304, a part of it, a 416.

    *stored_at*: when it was stored; None: it comes from the application just now.
    """
    whole = Answer(status, fields, b"" if request.method == "HEAD" else body)
    if status != 200:
        return [whole]
    if client_has_it(request, fields, stored_at):
        kept = tuple(pair for pair in fields if pair[0].lower() not in NOT_IN_A_304)
        return [Answer(304, kept, b"")]
    positions = wanted_positions(request, fields, len(body), stored_at)
    if positions is None:
        return [whole]
    if not positions:
        named = tuple(pair for pair in fields if pair[0].lower() in ("etag", "vary"))
        described = (("content-length", "0"), ("content-range", f"bytes */{len(body)}"))
        return [whole, Answer(416, (*named, *described), b"")]
    kept = tuple(pair for pair in fields if pair[0].lower() not in ("content-length", "content-range"))
    first, last = min(positions), max(positions)
    described = (
        ("content-length", str(len(positions))),
        ("content-range", f"bytes {first}-{last}/{len(body)}"),
    )
    return [whole, Answer(206, (*kept, *described), body[first : last + 1])]


NOT_IN_A_304 = (
    "content-length",
    "content-encoding",
    "content-language",
    "content-type",
    "content-range",
    "trailer",
)


def client_has_it(request: Request, fields: Fields, stored_at: float | None) -> bool:
    """Return whether the preconditions make it a 304 (RFC 9110 §13.2.2, RFC 9111 §4.3.2)."""
    tags = lines_of(fields, "etag")
    if lines_of(request.fields, "if-none-match"):
        wanted = list_of(request.fields, "if-none-match")
        own = tags[0].removeprefix("W/") if len(tags) == 1 and tags[0] else None
        return wanted == ["*"] or own in [tag.removeprefix("W/") for tag in wanted]
    since = one_date(request.fields, "if-modified-since")
    if since is None or request.method not in ("GET", "HEAD"):
        return False
    modified = one_date(fields, "last-modified")
    if modified is None and stored_at is None and not lines_of(fields, "last-modified"):
        return False
    date = one_date(fields, "date")
    if modified is None:
        modified = date if date is not None else stored_at
    return modified is not None and modified <= since


def wanted_positions(request: Request, fields: Fields, length: int, stored_at: float | None) -> list[int] | None:
    """Return the positions that a Range asks for, in one piece; None if the whole is sent (RFC 9110 §14.2)."""
    ranges, conditions = lines_of(request.fields, "range"), lines_of(request.fields, "if-range")
    if request.method != "GET" or len(ranges) != 1 or not length or not ranges[0].lower().startswith("bytes="):
        return None
    for condition in conditions:
        tags, modified = lines_of(fields, "etag"), lines_of(fields, "last-modified")
        date = one_date(fields, "date") or stored_at
        same_tag = condition.startswith('"') and tags == [condition]
        dated = modified == [condition] and date is not None and (date_of(condition) or date) <= date - 60
        if len(conditions) > 1 or not (same_tag or dated):
            return None
    found: set[int] = set()
    for spec in split_list(ranges[0][6:]):
        first, dash, last = spec.partition("-")
        if not dash or not (first or last) or not all(char in "0123456789" for char in first + last):
            return None
        if first and last and int(last) < int(first):
            return None
        start = int(first) if first else max(0, length - int(last))
        stop = min(int(last) + 1, length) if first and last else length
        found |= set(range(start, stop))
    positions = sorted(found)
    whole = not positions or positions[-1] - positions[0] + 1 == len(positions)
    return positions if whole else None


# The cache as it may be.


class Oracle:
    """Follows what a cache learns, and says of each answer what justifies it."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.kept: list[Kept] = []
        self.tags_made: dict[str, bytes] = {}

    def complaints(
        self,
        request: Request,
        got: Answer,
        asked: list[Asked],
        bare: Answer,
        bare_whole: Answer,
        now: float,
        at: float,
    ) -> list[str]:
        """Return why *got* is no right answer to *request*, nothing if it is one.

        Args:
            request: The client's.
            got: What the cache gave.
            asked: What the application was asked meanwhile.
            bare: What the application gives without a cache.
            bare_whole: What it gives without conditions and ranges.
            now: When the request came.
            at: When it was answered.
        """
        told = lines_of(got.fields, "cache-status")
        own = [line for line in told if line.startswith("app-cache")]
        wrong = [] if not own or told[-1:] == own else ["Cache-Status is not one of ours, at the end"]
        got = replace(got, fields=without_one(got.fields, "cache-status", own[0]) if own else got.fields)
        why = self._why_wrong(request, got, asked, bare, bare_whole, now, at)
        wrong += self._why_wrongly_asked(request, asked, now) + why
        self._learn(request, asked)
        return wrong

    def _why_wrong(
        self,
        request: Request,
        got: Answer,
        asked: list[Asked],
        bare: Answer,
        bare_whole: Answer,
        now: float,
        at: float,
    ) -> list[str]:
        if request.method not in CACHED:
            return [] if got == bare else [f"not what the application gives: {differ(got, bare)}"]
        tried: list[str] = []
        if only_if_cached(request) and got.status == 504 and not asked:
            return []
        if asked:
            allowed = [bare]
            if bare_whole.status and not passes(request):
                found = follows(request, *self._completed(bare_whole, got), None)
                allowed += [replace(each, raised=bare_whole.raised) for each in found]
            tried += self._none_of(allowed, got, "the application")
            if not tried:
                return []
        for each in reversed(self.kept):
            why = self._why_not_from(each, request, got, asked, now, at)
            if not why:
                return []
            tried.append(f"{each}: {why}")
        return tried or ["nothing is stored and the application was not asked"]

    def _why_not_from(
        self, kept: Kept, request: Request, got: Answer, asked: list[Asked], now: float, at: float
    ) -> str:
        """Return why *got* is not what a cache makes of *kept*, as it was or as it is now validated."""
        why = self._why_not(kept, request, now)
        if why is not None and self._failed(asked):
            why = self._why_not_rescue(kept, request, now)
        if why is None:
            why = "; ".join(self._none_of_stored(kept, request, got, at))
        updated = self._updated_by(kept, request, asked) if why else None
        if updated is not None:
            found = follows(request, *self._completed(without_age(updated.answer), got), updated.came_at)
            why = "; ".join(self._none_of(found, got, "what was validated"))
        return why

    @staticmethod
    def _failed(asked: list[Asked]) -> bool:
        return bool(asked) and (asked[-1].answer.raised or asked[-1].answer.status >= 500)

    def _completed(self, answer: Answer, got: Answer) -> tuple[int, Fields, bytes]:
        """Return *answer* with the ETag that *got* has, if it has none and the cache may have made that."""
        made = lines_of(got.fields, "etag")
        if answer.status != 200 or lines_of(answer.fields, "etag") or len(made) != 1:
            return answer.status, answer.fields, answer.body
        if self.tags_made.setdefault(made[0], answer.body) != answer.body:
            return answer.status, answer.fields, answer.body
        return answer.status, (*answer.fields, ("etag", made[0])), answer.body

    def _none_of_stored(self, kept: Kept, request: Request, got: Answer, now: float) -> list[str]:
        ages = lines_of(got.fields, "age")
        if got.status != 416:
            if len(ages) != 1 or abs(int(ages[0]) - min(kept.age(now), 2**31)) > 1:
                return [f"Age is {ages}, not {kept.age(now):g}"]
            got = replace(got, fields=tuple(pair for pair in got.fields if pair[0].lower() != "age"))
        found = follows(request, *self._completed(without_age(kept.answer), got), kept.came_at)
        return self._none_of(found, got, "what is stored")

    def _none_of(self, allowed: list[Answer], got: Answer, source: str) -> list[str]:
        if any(not differ(got, each) for each in allowed):
            return []
        return [f"not from {source}: {' / '.join(differ(got, each) for each in allowed)}"]

    def _why_not(self, kept: Kept, request: Request, now: float) -> str | None:
        """Return why *kept* does not answer *request* without asking, or None (§4)."""
        why = self._why_never(kept, request, now)
        if why is not None:
            return why
        said, left = kept.said, kept.left(now)
        if said.all_of_it("no-cache"):
            return "no-cache"
        unwanted = self._why_unwanted(request, kept.age(now), left)
        if unwanted is not None:
            return unwanted
        if left > 0:
            return None
        return self._why_not_stale(kept, request, left)

    def _why_not_stale(self, kept: Kept, request: Request, left: float) -> str | None:
        said = kept.said
        if said.must_be_validated_when_stale:
            return "must be validated when stale"
        asked = dict(reversed(directives_of(request.fields)))
        if "max-stale" in asked:
            accepted = seconds_of(asked["max-stale"])
            if asked["max-stale"] is None or (accepted is not None and -left <= accepted):
                return None
            if accepted is not None:
                return "staler than the client accepts"
        window = 0 if kept.stale else said.window("stale-while-revalidate") or 0
        if window and -left <= window and seconds_of(asked.get("max-age")) is None:
            return None
        return f"stale for {-left:g} s"

    @staticmethod
    def _why_unwanted(request: Request, age: float, left: float) -> str | None:
        asked = dict(reversed(directives_of(request.fields)))
        pragma = "no-cache" in [name.lower() for name in list_of(request.fields, "pragma")]
        if pragma and not lines_of(request.fields, "cache-control"):
            return "Pragma"
        if "no-cache" in asked:
            return "the client says no-cache"
        most, least = seconds_of(asked.get("max-age")), seconds_of(asked.get("min-fresh"))
        if most is not None and age > most:
            return "older than the client wants"
        if least is not None and left < least:
            return "less fresh than the client wants"
        return None

    def _why_never(self, kept: Kept, request: Request, now: float) -> str | None:
        """Return why *kept* could not have been chosen for *request* at all."""
        if not selects(request, kept):
            return "of another request"
        if kept.dead:
            return f"invalidated by {kept.dead}"
        if passes(request):
            return "the request passes by"
        if self.policy.timeout is not None and (why := why_not_shared(request, kept.said, self.policy)):
            return f"the request has {why}"
        later = self._superseded_by(kept, request, now)
        return None if later is None else f"older than the {later}"

    def _surely_there(self, kept: Kept, now: float) -> bool:
        """Return whether the cache must have *kept*, because it may yet be of use."""
        lasting = (self.policy.stale_on_failure and kept.status < 400) or has_validator(kept.fields)
        return kept.surely and not kept.dead and (lasting or kept.fresh_for > now - kept.came_at)

    def _superseded_by(self, kept: Kept, request: Request, now: float) -> Kept | None:
        """Return a stored response that must be preferred to *kept* (§4, §4.1)."""
        for other in self.kept[self.kept.index(kept) + 1 :]:
            if selects(request, other) and self._surely_there(other, now) and is_preferred(other, kept):
                return other
        return None

    def _why_not_rescue(self, kept: Kept, request: Request, now: float) -> str | None:
        why = self._why_never(kept, request, now)
        if why is not None:
            return why
        if kept.said.must_be_validated_when_stale:
            return "must be validated when stale"
        if kept.status >= 400:
            return "it is an error itself"
        asked = dict(reversed(directives_of(request.fields)))
        own = 0 if kept.stale else kept.said.window("stale-if-error") or 0
        window = max(own, seconds_of(asked.get("stale-if-error")) or 0)
        allowed = self.policy.stale_on_failure or (window > 0 and -kept.left(now) <= window)
        return None if allowed else f"stale for {-kept.left(now):g} s when the application failed"

    # What the application is asked.

    def _why_wrongly_asked(self, request: Request, asked: list[Asked], now: float) -> list[str]:
        wrong: list[str] = []
        if request.method not in CACHED or passes(request):
            if [each.request for each in asked] != [request] and not only_if_cached(request):
                wrong.append("the application was not asked once, by the client's own request")
            return wrong
        for each in asked:
            conditions = ("if-none-match", "if-modified-since", "range", "if-range")
            own = named_without(request.fields, (*conditions, "cache-control", "pragma"))  # in the background
            if named_without(each.request.fields, conditions) not in (
                named_without(request.fields, conditions),
                own,
            ):
                wrong.append("the application was asked something else")
            same = (each.request.target, each.request.body) == (request.target, request.body)
            # What is behind a HEAD may be fetched anew as a whole.
            if not same or each.request.method not in (request.method, "GET" if request.method == "HEAD" else ""):
                wrong.append("the application was asked for something else")
            if each.request.fields != request.fields:
                wrong += self._why_wrong_conditions(request, each.request, now)
        if only_if_cached(request) and asked and all(self._why_not(each, request, now) for each in self.kept):
            wrong.append("only-if-cached, and the application was asked")
        fresh = [each for each in self.kept if self._must_be_used(each, request, now)]
        if asked and fresh:
            wrong.append(f"the application was asked although there is a fresh {fresh[-1]}")
        return wrong

    def _why_wrong_conditions(self, request: Request, asked: Request, now: float) -> list[str]:
        """Return what is wrong with the conditions that the cache sends in place of the client's (§4.3.1)."""
        tags, dates = lines_of(asked.fields, "if-none-match"), lines_of(asked.fields, "if-modified-since")
        if not tags and not dates:
            return []
        for each in self.kept:
            own_tags, own_dates = lines_of(each.fields, "etag"), lines_of(each.fields, "last-modified")
            if self._why_never(each, request, now) is None and tags in ([], own_tags) and dates in ([], own_dates):
                return []
        return [f"asked by {tags} and {dates}, which are of nothing stored that could be chosen"]

    def _must_be_used(self, kept: Kept, request: Request, now: float) -> bool:
        plain = not any(lines_of(request.fields, name) for name in ("cache-control", "pragma"))
        credentials = any(lines_of(request.fields, name) for name in ("cookie", "authorization"))
        if not plain or (credentials and self.policy.timeout is not None) or not self._surely_there(kept, now):
            return False
        others = [each for each in self.kept if each is not kept and not each.dead and selects(request, each)]
        if not all(is_preferred(kept, other) for other in others):
            return False
        return kept.left(now) > 0 and self._why_not(kept, request, now) is None

    # What the cache learns.

    def _learn(self, request: Request, asked: list[Asked]) -> None:
        for each in asked:
            if each.request.method not in SAFE:
                self._invalidate(each)
                self._learn_from_post(each)
            elif request.method == "HEAD" and not passes(request):
                self._learn_from_head(each)
            elif request.method in CACHED:
                self._learn_one(request, each)

    def _learn_one(self, request: Request, asked: Asked) -> None:
        for kept in self.kept:
            updated = self._updated_by(kept, request, [asked])
            if updated is not None:
                self._update(kept, updated)
                return
        if not passes(request):
            self._keep(replace(asked.request, method=request.method), request, asked)

    def _keep(self, as_request: Request, request: Request, asked: Asked) -> None:
        answer = asked.answer
        seconds = lifetime(answer.status, storable_form(answer.fields), asked.answered_at, self.policy)
        if answer.status and why_not_storable(request, answer, self.policy) is None and seconds is not None:
            fields = storable_form(answer.fields)
            rescues = self.policy.stale_on_failure and answer.status < 400
            useful = answer.status < 500 and (seconds > 0 or rescues or has_validator(fields))
            kept = Kept(
                replace(as_request, fields=request.fields),
                answer.status,
                fields,
                answer.body,
                asked.at,
                asked.answered_at,
                seconds,
                groups_of(fields, "cache-groups"),
                surely=useful,
            )
            for older in self.kept:
                older.surely &= not (selects(as_request, older) and useful)
            self.kept.append(kept)
            return
        for older in self.kept:  # it may be taken back with what is not kept
            older.surely &= not selects(as_request, older)

    def _learn_from_post(self, asked: Asked) -> None:
        request, answer = asked.request, asked.answer
        located = lines_of(answer.fields, "content-location")
        if (
            request.method != "POST"
            or answer.status != 200
            or len(located) != 1
            or self.policy.timeout is not None
        ):
            return
        if resolved(request.target, located[0]) != f"{ORIGIN}{request.target}":
            return
        if explicit_lifetime(answer.fields, asked.answered_at) is not None:
            self._keep(replace(request, method="GET"), request, asked)

    def _invalidate(self, asked: Asked) -> None:
        answer = asked.answer
        if not 200 <= answer.status < 400:
            return
        urls = [f"{ORIGIN}{asked.request.target}"]
        for name in ("location", "content-location"):
            urls += [resolved(asked.request.target, line) for line in lines_of(answer.fields, name)]
        paths = [url.removeprefix(ORIGIN).partition("?")[0] for url in urls if url.startswith(f"{ORIGIN}/")]
        groups = groups_of(answer.fields, "cache-group-invalidation")
        for kept in self.kept:
            if kept.request.target.partition("?")[0] in paths or set(groups) & set(kept.groups):
                kept.dead = kept.dead or f"{asked.request.method} {asked.request.target}"

    def _learn_from_head(self, asked: Asked) -> None:
        """Update what could have been chosen, or take it for stale: nothing if it has no validator (§4.3.5)."""
        answer = asked.answer
        chosen = [each for each in self.kept if self._why_never(each, asked.request, asked.at) is None]
        if answer.status != 200 or answer.raised or not chosen:
            return
        for kept in chosen:
            agrees = all(
                not lines_of(answer.fields, name) or lines_of(answer.fields, name) == lines_of(kept.fields, name)
                for name in ("etag", "last-modified")
            )
            length = lines_of(answer.fields, "content-length")
            if agrees and length in ([], [str(len(kept.body))]):
                if not any(lines_of(answer.fields, name) for name in ("etag", "last-modified")):
                    continue
                updated = self._freshened(kept, asked)
                updated.surely = self._surely_there(kept, asked.at)
                self._update(kept, updated)
            else:
                kept.stale = True

    def _update(self, kept: Kept, updated: Kept) -> None:
        """Put *updated* in the place of *kept*, unless the credentials of a client forbid it."""
        if not updated.dead.endswith(("Authorization", "Set-Cookie", "for a range")):
            updated.fields = storable_form(updated.fields)
            self.kept[self.kept.index(kept)] = updated

    def _updated_by(self, kept: Kept, request: Request, asked: list[Asked]) -> Kept | None:
        """Return *kept* as a 304 to the cache's own conditions makes it, None if it is not about it (§4.3.4)."""
        if not asked or asked[-1].answer.status != 304 or passes(request) or request.method == "HEAD":
            return None
        own, answer = asked[-1].request, asked[-1].answer
        tags, dates = lines_of(own.fields, "if-none-match"), lines_of(own.fields, "if-modified-since")
        if not (tags or dates) or self._why_never(kept, request, asked[-1].at) is not None:
            return None
        stored_tags, stored_dates = lines_of(kept.fields, "etag"), lines_of(kept.fields, "last-modified")
        if tags not in ([], stored_tags) or dates not in ([], stored_dates):
            return None
        new_tags, new_dates = lines_of(answer.fields, "etag"), lines_of(answer.fields, "last-modified")
        if len(new_tags) == 1 and new_tags[0]:
            tag = new_tags[0]
            weakly = tag.startswith("W/") and [tag[2:]] == [each.removeprefix("W/") for each in stored_tags]
            return self._freshened(kept, asked[-1]) if stored_tags == [tag] or weakly else None
        return self._freshened(kept, asked[-1]) if new_dates in ([], stored_dates) else None

    def _freshened(self, kept: Kept, asked: Asked) -> Kept:
        """Return *kept* with the fields of an update, which is dated and aged anew (§3.2, §4.2.3)."""
        new = named_without(
            tuple(pair for pair in storable_connection(asked.answer.fields)),
            ("content-length", "content-encoding", "content-range"),
        )
        replaced = [*(name.lower() for name, _ in new), "age", "date"]
        fields = (*named_without(kept.fields, tuple(replaced)), *new)
        seconds = lifetime(kept.status, fields, asked.answered_at, self.policy)
        whole = Answer(kept.status, named_without(fields, ("content-length",)), kept.body)
        updated = replace(
            kept,
            fields=fields,
            asked_at=asked.at,
            came_at=asked.answered_at,
            fresh_for=seconds or 0.0,
            groups=[*kept.groups, *groups_of(fields, "cache-groups")],
            stale=False,
        )
        why = why_not_storable(asked.request, whole, self.policy)
        if why is not None or seconds is None:
            updated.dead = f"an update that says {why}"
        return updated


def storable_connection(fields: Fields) -> Fields:
    """Return *fields* but those of one connection."""
    dropped = [*OF_ONE_CONNECTION, *(name.lower() for name in list_of(fields, "connection"))]
    return named_without(fields, tuple(dropped))


def has_validator(fields: Fields) -> bool:
    """Return whether there is something to validate by: two ETags are none."""
    tags = lines_of(fields, "etag")
    return (len(tags) == 1 and bool(tags[0])) or bool(lines_of(fields, "last-modified"))


def only_if_cached(request: Request) -> bool:
    """Return whether the application is not to be asked."""
    return any(name == "only-if-cached" for name, _ in directives_of(request.fields))


def of_content(request: Request) -> tuple[bytes, list[list[str]]]:
    """Return what tells one QUERY from another."""
    names = ("content-type", "content-encoding", "content-language")
    return request.body, [lines_of(request.fields, name) for name in names]


def groups_of(fields: Fields, name: str) -> list[str]:
    """Return the strings of a list, none if it does not parse or has something else (RFC 9875)."""
    values = [value for value, _ in structured(", ".join(lines_of(fields, name)), "list") or []]
    return values if all(type(value) is str for value in values) else []


def resolved(target: str, reference: str) -> str:
    """Return a reference as an absolute URL, its default port left out."""
    url = urljoin(f"{ORIGIN}{target}", reference).partition("#")[0]
    return url.replace(f"{ORIGIN}:80/", f"{ORIGIN}/", 1)


def without_age(answer: Answer) -> Answer:
    """Return *answer* without Age, which a cache replaces."""
    return replace(answer, fields=named_without(answer.fields, ("age",)))


def without_one(fields: Fields, name: str, value: str) -> Fields:
    """Return *fields* without the last line that is just so."""
    at = max(at for at, pair in enumerate(fields) if (pair[0].lower(), pair[1]) == (name, value))
    return (*fields[:at], *fields[at + 1 :])


def named_without(fields: Fields, names: tuple[str, ...]) -> Fields:
    """Return *fields* but those called *names*."""
    return tuple(pair for pair in fields if pair[0].lower() not in names)


def differ(got: Answer, wanted: Answer) -> str:
    """Return in what two answers differ, nothing if they are the same: order counts within a field alone."""
    if (got.status, got.raised) != (wanted.status, wanted.raised):
        return f"status {got.status}, not {wanted.status}"
    if got.body != wanted.body:
        return f"body {got.body!r}, not {wanted.body!r}"
    ours, theirs = (sorted(((n.lower(), v) for n, v in a.fields), key=lambda pair: pair[0]) for a in (got, wanted))
    if ours == theirs:
        return ""
    more, less = [p for p in ours if p not in theirs], [p for p in theirs if p not in ours]
    return f"fields {more} too many, {less} missing" if more or less else "the order of lines"
