"""The clock in Redis and Valkey: three kinds of short strings in one slot, and entries anywhere.

    clock  generation epoch floor soft-floor newest-ban
    stamp  generation hard soft
    bans   generation since, then a line for each ban: epoch soft kind text (percent-encoded)

Only a fill makes stamps, at the *current* epoch; an invalidation raises those that exist. All of it expires after
what it judges.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, cast
from urllib.parse import quote, unquote

from app_cache.backends.base import CombinedBackend, ScriptBackend, capability
from app_cache.clock.base import InvalidationClock, InvalidationResult, Reading, Verdict
from app_cache.clock.epochs import KINDS, MAX_BANS, Ban, Bans, Epochs, Passed, Stamp, ban, bans_of, judge
from app_cache.codec import Mark
from app_cache.keys import prefix

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from app_cache.backends.base import CacheBackend
    from app_cache.clock.base import Order, Shelf, Subject

MARGIN_S = 60.0
"""Seconds that the clock outlives what it judges."""

TOUCH = """#!lua
-- Keeps the clock, the bans and the stamps in KEYS for ARGV[2] ms at least, and makes what is missing.
local ttl = ARGV[2]
local clock = redis.call('GET', KEYS[1])
local generation, epoch
if clock then generation, epoch = string.match(clock, '^(%x+) (%d+) %d+ %d+ %d+$') end
if not generation then
  generation, epoch = ARGV[1], '1'
  clock = generation .. ' 1 0 0 0'
  redis.call('SET', KEYS[1], clock, 'PX', ttl)
else
  redis.call('PEXPIRE', KEYS[1], ttl, 'GT')
end
redis.call('PEXPIRE', KEYS[2], ttl, 'GT')
for i = 3, #KEYS do
  local stamp = redis.call('GET', KEYS[i])
  if stamp and string.match(stamp, '^%x+') == generation then
    redis.call('PEXPIRE', KEYS[i], ttl, 'GT')
  else
    redis.call('SET', KEYS[i], generation .. ' ' .. epoch .. ' 0', 'PX', ttl)
  end
end
return clock
"""

INVALIDATE = """#!lua flags=allow-oom
-- Begins an epoch: stamps that exist in KEYS, the floor, or bans (ARGV[4], ...) say what it names.
local soft, everything, most = ARGV[1] == '1', ARGV[2] == '1', tonumber(ARGV[3])
local clock = redis.call('GET', KEYS[1])
local generation, epoch, floor, soft_floor, newest
if clock then
  generation, epoch, floor, soft_floor, newest = string.match(clock, '^(%x+) (%d+) (%d+) (%d+) (%d+)$')
end
if not generation then return 0 end
epoch = string.format('%d', tonumber(epoch) + 1)
if everything then
  if soft then soft_floor = epoch else floor = epoch end
end
for i = 3, #KEYS do
  local stamp = redis.call('GET', KEYS[i])
  local of, hard, softly
  if stamp then of, hard, softly = string.match(stamp, '^(%x+) (%d+) (%d+)$') end
  if of == generation then
    if soft then softly = epoch else hard = epoch end
    redis.call('SET', KEYS[i], of .. ' ' .. hard .. ' ' .. softly, 'KEEPTTL')
  end
end
if #ARGV > 3 then
  local since, lines = newest, {}
  local bans = redis.call('GET', KEYS[2])
  if bans then
    local of, known = string.match(bans, '^(%x+) (%d+)')
    if of == generation then
      since = known
      for line in string.gmatch(bans, '\\n([^\\n]+)') do lines[#lines + 1] = line end
    end
  end
  local mark = soft and '1' or '0'
  for i = 4, #ARGV do lines[#lines + 1] = epoch .. ' ' .. mark .. ' ' .. ARGV[i] end
  local first = 1
  if #lines > most then
    first = #lines - math.floor(most / 2) + 1
    since = string.match(lines[first - 1], '^%d+')
  end
  local life = redis.call('PTTL', KEYS[1])
  if life < 1 then life = 1 end
  redis.call('SET', KEYS[2], generation .. ' ' .. since .. '\\n' .. table.concat(lines, '\\n', first), 'PX', life)
  newest = epoch
end
redis.call('SET', KEYS[1], table.concat({generation, epoch, floor, soft_floor, newest}, ' '), 'KEEPTTL')
return tonumber(epoch)
"""


def parse_epochs(raw: bytes | None) -> Epochs | None:
    """Return the clock that Redis holds, or None if it is missing or unreadable."""
    parts = (raw or b"").split(b" ")
    if len(parts) != 5 or not all(part.isdigit() for part in parts[1:]):
        return None
    return Epochs(parts[0].decode("latin-1"), *(int(part) for part in parts[1:]))


def parse_stamp(raw: bytes | None) -> Stamp | None:
    """Return the stamp that Redis holds, or None if it is missing or unreadable."""
    parts = (raw or b"").split(b" ")
    if len(parts) != 3 or not (parts[1].isdigit() and parts[2].isdigit()):
        return None
    return Stamp(parts[0].decode("latin-1"), int(parts[1]), int(parts[2]))


def parse_bans(raw: bytes | None, epochs: Epochs, known: Bans) -> Bans:
    """Return the bans that Redis holds; where the list is not whole, what is older than its end is banned."""
    lines = (raw or b"").decode("latin-1").split("\n")
    head = lines[0].split(" ")
    lost = Bans(since=epochs.newest_ban)
    if len(head) != 2 or head[0] != epochs.generation or not head[1].isdigit():
        return lost
    compiled = {(each.epoch, each.soft, each.kind, each.text): each for each in known.items}
    items: list[Ban] = []
    for line in lines[1:]:
        parts = line.split(" ")
        if len(parts) != 4 or not parts[0].isdigit() or parts[2] not in KINDS:
            return lost
        epoch, soft, kind, text = (
            int(parts[0]),
            parts[1] == "1",
            parts[2],
            unquote(parts[3], errors="surrogatepass"),
        )
        items.append(compiled.get((epoch, soft, kind, text)) or ban(epoch, kind, text, soft=soft))
    if not items or items[-1].epoch < epochs.newest_ban:
        return lost
    return Bans(int(head[1]), tuple(items))


class _ScriptReading:
    def __init__(self, epochs: Epochs | None, stamps: dict[str, Stamp | None], bans: Bans, passed: Passed) -> None:
        self.epochs = epochs
        self.stamps = stamps
        self._bans = bans
        self._passed = passed
        self.mark = None if epochs is None else Mark(epochs.generation, epochs.epoch)

    def judge(self, mark: Mark, subject: Subject) -> Verdict:
        if self.epochs is None:
            return Verdict.INVALID
        return judge(self.epochs, self._bans, self._passed, mark, subject, self.stamps)

    def lacks(self, tags: Collection[str]) -> bool:
        generation = self.mark and self.mark.generation
        return any((stamp := self.stamps.get(tag)) is None or stamp.generation != generation for tag in tags)


class ScriptClock(InvalidationClock):
    """The clock of Redis and Valkey: one read for clock, entry and stamps, one script for each change."""

    def __init__(self, backend: CacheBackend, shelf: Shelf, namespace: str) -> None:
        scripts = capability(backend, ScriptBackend)
        if scripts is None:
            raise TypeError(f"{type(backend).__name__} runs no scripts")
        self._backend = scripts
        self._combined = capability(backend, CombinedBackend)
        self._shelf = shelf
        slot = f"{{{prefix(namespace)}}}"
        self._clock, self._bans_key, self._stamp_prefix = f"{slot}clock", f"{slot}bans", f"{slot}s:"
        self._bans = Bans()
        self._bans_of: tuple[str, int] = ("", 0)
        self._passed = Passed()
        self._beside: set[asyncio.Task[None]] = set()

    async def look_up(self, key: str, subject: Subject) -> tuple[bytes | None, Reading]:
        tags = sorted(subject.tags)
        names = [self._clock, *(self._stamp_prefix + tag for tag in tags)]
        if self._combined is not None:
            value, others = await self._combined.get_beside(key, names)
        else:
            others = await self._backend.get_many(names)
            value = await self._shelf.read(key)
        return value, await self._reading(tags, others)

    async def read(self, subject: Subject) -> Reading:
        tags = sorted(subject.tags)
        return await self._reading(
            tags, await self._backend.get_many([self._clock, *(self._stamp_prefix + tag for tag in tags)])
        )

    async def _reading(self, tags: list[str], raw: list[bytes | None]) -> _ScriptReading:
        epochs = parse_epochs(raw[0])
        stamps = {tag: parse_stamp(each) for tag, each in zip(tags, raw[1:], strict=True)}
        bans = self._bans
        if epochs is not None and epochs.newest_ban and self._bans_of != (epochs.generation, epochs.newest_ban):
            [text] = await self._backend.get_many([self._bans_key])
            bans = parse_bans(text, epochs, bans)
            self._bans, self._bans_of = bans, (epochs.generation, epochs.newest_ban)
        return _ScriptReading(epochs, stamps, bans, self._passed)

    async def begin(self, reading: Reading, subject: Subject, keep_for: float) -> Mark:
        found = cast("_ScriptReading", reading)
        if found.mark is None:
            epochs = parse_epochs(await self._touch(subject.tags, keep_for))
            if epochs is None:
                raise ValueError("the clock that was just made cannot be read")
            return Mark(epochs.generation, epochs.epoch)
        if found.lacks(subject.tags):
            self._touch_beside(subject.tags, keep_for)
        return found.mark

    def _touch_beside(self, tags: Collection[str], keep_for: float) -> None:
        """Make missing stamps while the handler runs; storing makes sure of them in any case."""

        async def touch() -> None:
            await self._touch(tags, keep_for)

        task = asyncio.create_task(touch())
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

    @staticmethod
    def _touch_args(keep_for: float) -> list[str | int]:
        return [secrets.token_hex(8), int((keep_for + MARGIN_S) * 1000)]

    async def store(self, key: str, value: bytes, keep_for: float, mark: Mark, subject: Subject) -> None:
        keys, args = self._keys(subject.tags), self._touch_args(keep_for)
        if self._combined is not None:
            await self._combined.set_and_run(key, value, keep_for, TOUCH, keys, args)
        else:
            await self._backend.run_script(TOUCH, keys, args)
            await self._shelf.write(key, value, keep_for)

    async def invalidate(self, order: Order) -> InvalidationResult:
        bans = [f"{kind} {quote(text, safe='', errors='surrogatepass')}" for kind, text in bans_of(order)]
        args: list[str | int] = [int(order.soft), int(order.everything), MAX_BANS, *bans]
        epoch = await self._backend.run_script(INVALIDATE, self._keys(order.tags), args)
        return InvalidationResult(durable=True, epoch=int(epoch) or None)
