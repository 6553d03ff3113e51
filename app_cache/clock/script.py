"""The clock in Redis and Valkey: three kinds of short strings in one slot, and entries anywhere.

    clock  generation epoch floor soft-floor newest-ban, then name:since for each of its last terms
    stamp  generation hard soft
    bans   generation since, then a line for each ban: epoch soft kind text (percent-encoded)

Only a fill makes stamps, at the *current* epoch; an invalidation raises those that exist. All of it expires after
what it judges.

A term is what began under one `master_replid` of the server, which Redis and Valkey change when a replica becomes
the primary and when a server starts again. A user without `INFO`, and a server without that line, has no terms.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from dataclasses import replace
from typing import TYPE_CHECKING, cast
from urllib.parse import quote, unquote_to_bytes

from app_cache.backends.base import BatchingBackend, CombinedBackend, ScriptBackend, budget_of, capability
from app_cache.clock.base import Basis, InvalidationClock, InvalidationResult, Order, Reading, Verdict
from app_cache.clock.epochs import (
    DIGITS,
    LAST_NUMBER,
    MAX_BANS,
    Ban,
    Bans,
    Epochs,
    Passed,
    Seen,
    Stamp,
    Term,
    ban,
    bans_of,
    judge,
    term_of,
)
from app_cache.codec import Mark
from app_cache.keys import prefix
from app_cache.tasks import end_tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from app_cache.backends.base import CacheBackend
    from app_cache.clock.names import Subject
    from app_cache.shelf import Shelf

MARGIN_S = 60.0
"""Seconds that the clock outlives what it judges."""
LATELY_S = 0.05
"""Seconds for which the clock, once read, need not be read again to decide whether an entry is worth writing."""
PART = 500
"""Tags that one script invalidates at most."""
MAX_BESIDE = 64
"""Scripts at once that make missing stamps beside the handlers of one event loop."""
TRIED_MS = 10_000
"""Milliseconds for which a clock is kept that is made to see whether one can be."""
MAX_TERMS = 8
"""Terms that the clock tells. A process that did not look while more of them began takes that for another past."""

_NUMBERS = f"""
-- Returns the text under a key, false where there is none, or nothing where something else than a text is.
local function text_at(key)
  local text = redis.pcall('GET', key)
  if type(text) ~= 'table' then return text end
  if not string.find(text.err, 'WRONGTYPE', 1, true) then return redis.call('GET', key) end
end

-- Returns the generation that a text begins with and the numbers after it, or nothing if it is not just these.
local function parts(text, count)
  local found = {{string.match(text or '', '^(%x+)' .. string.rep(' (%d+)', count) .. '$')}}
  for i = 2, #found do
    if #found[i] > 15 then return nil end
  end
  return unpack(found)
end

-- Returns generation, epoch, floor, soft floor and newest ban of a clock, and the text of its terms; or nothing.
local function clock_parts(text)
  local numbers, terms = string.match(text or '', '^(%x+ %d+ %d+ %d+ %d+)(.*)$')
  if not numbers or string.gsub(terms, ' %x+:%d+', '') ~= '' then return nil end
  local number = string.match(numbers, '^' .. string.rep('%d', {DIGITS}))
  if not number or tonumber(number) > {LAST_NUMBER} then return nil end
  for since in string.gmatch(terms, ':(%d+)') do
    if #since > 15 then return nil end
  end
  local generation, epoch, floor, soft_floor, newest = parts(numbers, 4)
  return generation, epoch, floor, soft_floor, newest, terms
end

-- Returns the number of a generation that begins now.
local function number_of_now()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
"""

TOUCH = f"""#!lua
{_NUMBERS}
-- Keeps the clock, the bans and the stamps in KEYS for ARGV[2] ms at least, and makes what is missing.
-- A clock that is made is of a later number than ARGV[3], whatever the time is here.
local ttl = ARGV[2]
local clock = text_at(KEYS[1])
local generation, epoch = clock_parts(clock)
if not generation then
  -- With the time in it, for a script that is sent again must not bring back a life of the clock that is over.
  local number = math.max(number_of_now(), ARGV[3] + 1)
  generation, epoch = string.format('%0{DIGITS}.0f', number) .. ARGV[1], '1'
  clock = generation .. ' 1 0 0 0'
  redis.call('SET', KEYS[1], clock, 'PX', ttl)
else
  redis.call('PEXPIRE', KEYS[1], ttl, 'GT')
end
redis.call('PEXPIRE', KEYS[2], ttl, 'GT')
for i = 3, #KEYS do
  if parts(text_at(KEYS[i]), 2) == generation then
    redis.call('PEXPIRE', KEYS[i], ttl, 'GT')
  else
    redis.call('SET', KEYS[i], generation .. ' ' .. epoch .. ' 0', 'PX', ttl)
  end
end
return clock
"""

INVALIDATE = f"""#!lua flags=allow-oom
{_NUMBERS}
-- Begins an epoch: stamps that exist in KEYS, the floor, or bans (ARGV[4], ...) say what it names.
-- Where there is no clock, or none that can be read, all that may come back of one began before the number that is
-- returned.
local soft, everything, most = ARGV[1] == '1', ARGV[2] == '1', tonumber(ARGV[3])
local generation, epoch, floor, soft_floor, newest, terms = clock_parts(text_at(KEYS[1]))
if not generation then
  redis.call('DEL', KEYS[1])
  return string.format('%0{DIGITS}.0f', number_of_now())
end
local info = redis.pcall('INFO', 'replication')
local history = type(info) == 'string' and string.match(info, 'master_replid:(%x+)')
if history and history:sub(1, 12) ~= string.match(terms, '(%x+):%d+$') then
  terms = terms .. ' ' .. history:sub(1, 12) .. ':' .. epoch
  if select(2, string.gsub(terms, ' ', ' ')) > {MAX_TERMS} then terms = string.match(terms, '^ [^ ]+(.*)$') end
end
epoch = string.format('%d', tonumber(epoch) + 1)
if everything then
  if soft then soft_floor = epoch else floor = epoch end
end
for i = 3, #KEYS do
  local of, hard, softly = parts(text_at(KEYS[i]), 2)
  if of == generation then
    if soft then softly = epoch else hard = epoch end
    redis.call('SET', KEYS[i], of .. ' ' .. hard .. ' ' .. softly, 'KEEPTTL')
  end
end
if #ARGV > 3 then
  local since, lines = newest, {{}}
  local bans = text_at(KEYS[2])
  local of, known = parts(string.match(bans or '', '^[^\\n]*'), 1)
  local mark, again = soft and '1' or '0', {{}}
  for i = 4, #ARGV do again[mark .. ' ' .. ARGV[i]] = true end
  if of == generation then
    since = known
    for line, what in string.gmatch(bans, '\\n(%d+ ([^\\n]+))') do
      if not again[what] then lines[#lines + 1] = line end
    end
  end
  for i = 4, #ARGV do lines[#lines + 1] = epoch .. ' ' .. mark .. ' ' .. ARGV[i] end
  local first = 1
  if #lines > most then
    first = #lines - math.floor(most / 2) + 1
    since = string.match(lines[first - 1], '^%d+') or epoch
  end
  local life = redis.call('PTTL', KEYS[1])
  if life < 1 then life = 1 end
  redis.call('SET', KEYS[2], generation .. ' ' .. since .. '\\n' .. table.concat(lines, '\\n', first), 'PX', life)
  newest = epoch
end
local clock = table.concat({{generation, epoch, floor, soft_floor, newest}}, ' ') .. terms
redis.call('SET', KEYS[1], clock, 'KEEPTTL')
return clock
"""

END_GENERATION = f"""#!lua flags=allow-oom
{_NUMBERS}
-- Begins a generation in the place of ARGV[1], with a later number than ARGV[3], so that nobody ends it again.
local clock = text_at(KEYS[1])
if clock and string.match(clock, '^%x+') == ARGV[1] then
  local number = math.max(number_of_now(), ARGV[3] + 1)
  redis.call('SET', KEYS[1], string.format('%0{DIGITS}.0f', number) .. ARGV[2] .. ' 1 0 0 0', 'KEEPTTL')
end
return true
"""

_CLOCK = re.compile(rb"([0-9]{%d}[^ ]*(?: [^ ]+){4})((?: [0-9a-fA-F]+:[0-9]{1,15})*)" % DIGITS)
_NUMBER = re.compile(rb"[0-9]{%d}" % DIGITS)
_PARTS = re.compile(rb"([0-9a-fA-F]+)((?: [0-9]{1,15})+)")
_BAN = re.compile(rb"([0-9]{1,15}) ([01]) ([a-z]) ([^ ]*)")


def _parts(raw: bytes | None, count: int) -> tuple[str, list[int]] | None:
    """Return the generation that *raw* begins with and the *count* numbers after it; as `_NUMBERS` has it."""
    found = _PARTS.fullmatch(raw or b"")
    numbers = [int(part) for part in found[2].split()] if found else []
    return (found[1].decode("ascii"), numbers) if found and len(numbers) == count else None


def parse_epochs(raw: bytes | None) -> Epochs | None:
    """Return the clock that Redis holds, or None if it is missing or unreadable."""
    found = _CLOCK.fullmatch(raw or b"")
    parts = _parts(found[1], 4) if found else None
    if found is None or parts is None or int(parts[0][:DIGITS]) > LAST_NUMBER:
        return None
    generation, (epoch, floor, soft_floor, newest_ban) = parts
    return Epochs(generation, epoch, floor, soft_floor, newest_ban, _terms(found[2]))


def _terms(raw: bytes) -> tuple[Term, ...]:
    halves = (each.split(":") for each in raw.decode("ascii").split())
    return tuple(Term(f"{history}:{since}", int(since)) for history, since in halves)


def parse_stamp(raw: bytes | None) -> Stamp | None:
    """Return the stamp that Redis holds, or None if it is missing or unreadable."""
    parts = _parts(raw, 2)
    return None if parts is None else Stamp(parts[0], *parts[1])


def parse_bans(raw: bytes | None, epochs: Epochs, known: Bans) -> Bans:
    """Return the bans that Redis holds; where the list is not whole, what is older than its end is banned."""
    first, *lines = (raw or b"").split(b"\n")
    head = _parts(first, 1)
    lost = Bans(since=epochs.newest_ban)
    if head is None or head[0] != epochs.generation:
        return lost
    compiled = {(each.epoch, each.soft, each.kind, each.text): each for each in known.items}
    items: list[Ban] = []
    try:
        for line in lines:
            epoch, soft, kind, text = _ban_parts(line)
            items.append(compiled.get((epoch, soft, kind, text)) or ban(epoch, kind, text, soft=soft))
    except (ValueError, KeyError):
        return lost
    if not items or items[-1].epoch < epochs.newest_ban:
        return lost
    return Bans(head[1][0], tuple(items))


def _ban_parts(line: bytes) -> tuple[int, bool, str, str]:
    found = _BAN.fullmatch(line)
    if found is None:
        raise ValueError("this is no ban")
    text = unquote_to_bytes(found[4]).decode("utf-8", "surrogatepass")
    return int(found[1]), found[2] == b"1", found[3].decode("ascii"), text


class _ScriptReading:
    def __init__(
        self,
        clock: bytes | None,
        epochs: Epochs | None,
        stamps: dict[str, Stamp | None],
        bans: Bans,
        passed: Passed,
    ) -> None:
        self.clock = clock
        self.epochs = epochs
        self.stamps = stamps
        self._bans = bans
        self._passed = passed
        self.mark = None if epochs is None else _mark(epochs)

    def judge(self, mark: Mark, subject: Subject) -> Verdict:
        if self.epochs is None:
            return Verdict.INVALID
        return judge(self.epochs, self._bans, self._passed, mark, subject, self.stamps)

    def lacks(self, tags: Collection[str]) -> bool:
        generation = self.mark and self.mark.generation
        return any((stamp := self.stamps.get(tag)) is None or stamp.generation != generation for tag in tags)


def _mark(epochs: Epochs) -> Mark:
    return Mark(epochs.generation, epochs.epoch, term=term_of(epochs.terms, epochs.epoch))


class ScriptClock(InvalidationClock):
    """The clock of Redis and Valkey: one read for clock, entry and stamps, one script for each change."""

    def __init__(
        self,
        backend: CacheBackend,
        shelf: Shelf,
        namespace: str,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        scripts = capability(backend, ScriptBackend)
        if scripts is None:
            raise TypeError(f"{type(backend).__name__} runs no scripts")
        self._backend = scripts
        self._combined = capability(backend, CombinedBackend)
        self._batching = capability(backend, BatchingBackend)
        self._shelf = shelf
        slot = f"{{{prefix(namespace)}}}"
        self._clock, self._bans_key, self._stamp_prefix = f"{slot}clock", f"{slot}bans", f"{slot}s:"
        self._bans = Bans()
        self._bans_of: tuple[str, int] = ("", 0)
        self._passed = Passed()
        self._seen = Seen()
        self._seen_at = 0.0
        self._monotonic = monotonic
        self._budget = budget_of(backend)
        self._beside: set[asyncio.Task[None]] = set()

    def basis(self, key: str, value: bytes, reading: Reading) -> Basis | None:
        # Without the stamps: each invalidation changes the clock, so none was raised while that is the same.
        found = cast("_ScriptReading", reading)
        if self._batching is None or found.mark is None:
            return None
        return Basis((key, self._clock), [value, found.clock], found.mark)

    def may_be_still(self, basis: Basis) -> bool:
        return self._seen.epoch == basis.mark.epoch and self._seen.generation == basis.mark.generation

    async def is_still(self, basis: Basis) -> bool:
        if self._batching is None:
            return False
        return await self._batching.get_batched(basis.keys) == basis.values

    async def look_up(self, key: str, subject: Subject) -> tuple[bytes | None, Reading]:
        tags, seen = sorted(subject.tags), self._seen
        names = [self._clock, *(self._stamp_prefix + tag for tag in tags)]
        if self._combined is not None:
            value, others = await self._combined.get_beside(key, names)
        else:
            others = await self._backend.get_many(names)
            value = await self._shelf.read(key)
        return value, await self._reading(tags, others, seen)

    async def read(self, subject: Subject) -> Reading:
        tags, seen = sorted(subject.tags), self._seen
        names = [self._clock, *(self._stamp_prefix + tag for tag in tags)]
        return await self._reading(tags, await self._backend.get_many(names), seen)

    async def _reading(self, tags: list[str], raw: list[bytes | None], seen: Seen) -> _ScriptReading:
        epochs = await self._unless_it_went_back(parse_epochs(raw[0]), seen)
        stamps = {tag: parse_stamp(each) for tag, each in zip(tags, raw[1:], strict=True)}
        bans = self._bans
        if epochs is not None and epochs.newest_ban and self._bans_of != (epochs.generation, epochs.newest_ban):
            [text] = await self._backend.get_many([self._bans_key])
            bans = parse_bans(text, epochs, bans)
            self._bans, self._bans_of = bans, (epochs.generation, epochs.newest_ban)
        return _ScriptReading(raw[0], epochs, stamps, bans, self._passed)

    async def _unless_it_went_back(self, epochs: Epochs | None, seen: Seen) -> Epochs | None:
        """Return *epochs*; None if they are older than what was *seen* before, or contradict what has been seen.

        What the server lost then cannot be known, so that life of the clock is ended: nothing of it is valid.
        """
        if epochs is None:
            return None
        if seen.is_newer_than(epochs) or self._seen.contradicts(epochs):
            args: list[str | int] = [epochs.generation, secrets.token_hex(8), self._seen.number]
            await self._backend.run_script(END_GENERATION, [self._clock], args)
            return None
        self._note(epochs)
        return epochs

    def _note(self, epochs: Epochs) -> None:
        self._seen = self._seen.and_then(epochs)
        self._seen_at = self._monotonic()

    async def begin(
        self, reading: Reading, subject: Subject, keep_for: float, *, at_once: bool = False
    ) -> Mark | None:
        found = cast("_ScriptReading", reading)
        lacks = found.lacks(subject.tags)
        if found.mark is None or (at_once and lacks):
            seen = self._seen
            epochs = await self._unless_it_went_back(parse_epochs(await self._touch(subject.tags, keep_for)), seen)
            return None if epochs is None else _mark(epochs)
        if lacks:
            self._touch_beside(subject.tags, keep_for)
        return found.mark

    def _touch_beside(self, tags: Collection[str], keep_for: float) -> None:
        """Make missing stamps while the handler runs, within the time of one operation, unless many are under way.

        Storing makes sure of them in any case.
        """
        loop = asyncio.get_running_loop()
        if sum(task.get_loop() is loop for task in [*self._beside]) >= MAX_BESIDE:
            return

        async def touch() -> None:
            async with asyncio.timeout(self._budget):
                await self._touch(tags, keep_for)

        task = loop.create_task(touch())
        self._beside.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._beside.discard(task)
        if not task.cancelled():
            task.exception()

    async def _touch(self, tags: Collection[str], keep_for: float) -> bytes:
        return cast("bytes", await self._backend.run_script(TOUCH, self._keys(tags), self._touch_args(keep_for)))

    def _keys(self, tags: Iterable[str]) -> list[str]:
        return [self._clock, self._bans_key, *(self._stamp_prefix + tag for tag in sorted(tags))]

    def _touch_args(self, keep_for: float) -> list[str | int]:
        return [secrets.token_hex(8), int((keep_for + MARGIN_S) * 1000), self._seen.number]

    async def store(self, key: str, value: bytes, keep_for: float, mark: Mark, subject: Subject) -> None:
        if await self._is_over(mark, subject):
            return
        keys, args = self._keys(subject.tags), self._touch_args(keep_for)
        if self._combined is not None:
            await self._combined.set_and_run(key, value, keep_for, TOUCH, keys, args)
        else:
            await self._backend.run_script(TOUCH, keys, args)
            await self._shelf.write(key, value, keep_for)

    async def _is_over(self, mark: Mark, subject: Subject) -> bool:
        """Return whether what was filled under *mark* was invalidated, so that it must put out nothing newer.

        The clock is asked only if this process knows of an invalidation since, or has not read it lately.
        """
        seen, lately = self._seen, self._monotonic() - self._seen_at < LATELY_S
        if lately and (mark.generation, mark.epoch) == (seen.generation, seen.epoch):
            return False
        return (await self.read(subject)).judge(mark, subject) is Verdict.INVALID

    async def invalidate(self, order: Order, sent: set[object] | None = None) -> InvalidationResult:
        sent = set() if sent is None else sent
        epoch = None
        for part in _parts_of(order):
            if part not in sent:
                epoch = await self._invalidate(part)
                sent.add(part)
        return InvalidationResult(durable=True, epoch=epoch)

    async def _invalidate(self, order: Order) -> int | None:
        bans = [f"{kind} {quote(text, safe='', errors='surrogatepass')}" for kind, text in bans_of(order)]
        args: list[str | int] = [int(order.soft), int(order.everything), MAX_BANS, *bans]
        seen = self._seen
        answer = cast("bytes", await self._backend.run_script(INVALIDATE, self._keys(order.tags), args))
        if _NUMBER.fullmatch(answer):
            self._seen = self._seen.and_over(answer.decode("ascii"), seen)
        epochs = await self._unless_it_went_back(parse_epochs(answer), seen)
        return None if epochs is None else epochs.epoch

    async def close(self) -> None:
        await end_tasks(self._beside)


def _parts_of(order: Order) -> list[Order]:
    """Return *order* in parts of few tags each, its bans in the first."""
    tags = order.tags
    more = [Order(tags=tags[at : at + PART], soft=order.soft) for at in range(PART, len(tags), PART)]
    return [replace(order, tags=tags[:PART]), *more] if more else [order]


async def can_keep_clock(backend: ScriptBackend, key: str) -> bool:
    """Make a clock under *key*, by the script and the read of each fill, and return whether it is there.

    Raises:
        BackendError: If *backend* cannot be reached, or refuses one of the commands that this takes.
    """
    made = await backend.run_script(TOUCH, [key, key], [secrets.token_hex(8), TRIED_MS, 0])
    return await backend.get_many([key]) == [made]
