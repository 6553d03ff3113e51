"""The clock where there is only get and set: no epoch can be kept, so every stamp is a unique token.

An entry carries the tokens of all that may name it: everything, each directory of its path, its URL, its tags. It
is valid while they are the same. An invalidation writes a new *activity* token first, then the stamps; an entry
with tags known late is stored only if the activity did not change since its handler began. Everything needs no
activity: each entry has its token from the beginning.

A stamp whose name some backend might refuse as part of a key is kept under a digest of it.

Exact in one process; across several, the last writer wins.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import re
import secrets
from typing import TYPE_CHECKING, cast

from app_cache.backends.base import given_text
from app_cache.clock.base import InvalidationClock, InvalidationResult, Reading, Verdict
from app_cache.clock.names import named_by, short
from app_cache.codec import Mark
from app_cache.keys import prefix
from app_cache.rules.glob import literal_directory
from app_cache.tasks import end_tasks

if TYPE_CHECKING:
    from app_cache.backends.base import CacheBackend
    from app_cache.clock.base import Order
    from app_cache.clock.names import Subject
    from app_cache.shelf import Shelf

MAX_DIRECTORIES = 8
"""Directories of a path that have a stamp, the root among them: its stamp is that of everything."""
TOKEN_TIMEOUT_S = 7 * 86_400
"""Seconds that a token lives at least; its end is a miss for what carries it."""

AT_ONCE = 64
"""Tokens that an invalidation writes side by side."""
MAX_KEY = 250
"""Characters of a key that any backend takes."""
MAX_NAMESPACE = 100
"""Characters of a namespace that stands in the keys of stamps; a digest stands there for a longer one."""

_TOKEN = re.compile("[0-9a-f]{16}")
_EVERYTHING = "*"
_ACTIVITY = "!"


def _directories(path: str) -> list[str]:
    """Return the stamps of the directories that *path* lies in, but for the root, which is everything."""
    cuts = [at + 1 for at, char in enumerate(path) if char == "/"][1:MAX_DIRECTORIES]
    return [f"d:{path[:cut]}" for cut in cuts] if path.startswith("/") else []


def _token_names(subject: Subject) -> list[str]:
    named = dict.fromkeys(directory for name in named_by(subject) for directory in _directories(name))
    return [_EVERYTHING, *map(short, named), *sorted(subject.tags)]


class _TokenReading:
    def __init__(self, tokens: dict[str, str | None]) -> None:
        self.tokens = tokens
        known = {name: token for name, token in tokens.items() if token is not None}
        self.mark = Mark(tokens=known) if len(known) == len(tokens) else None

    def judge(self, mark: Mark, subject: Subject) -> Verdict:
        names = _token_names(subject)
        if not self.tokens.keys() >= {*names}:
            return Verdict.UNASKED
        same = all((token := self.tokens[name]) is not None and token == mark.tokens.get(name) for name in names)
        return Verdict.VALID if same else Verdict.INVALID


class TokenClock(InvalidationClock):
    """The clock of a backend with four methods: exact in one process; across several, the last writer wins."""

    most_names = 1_000

    def __init__(self, backend: CacheBackend, shelf: Shelf, namespace: str) -> None:
        self._backend = backend
        self._shelf = shelf
        self._prefix = f"{prefix(_plain(namespace, MAX_NAMESPACE))}s:"
        self._room = MAX_KEY - len(self._prefix)
        self._making: dict[str, asyncio.Task[str]] = {}

    async def look_up(self, key: str, subject: Subject) -> tuple[bytes | None, Reading]:
        value, tokens = await asyncio.gather(self._shelf.read(key), self._tokens(_token_names(subject)))
        return value, _TokenReading(tokens)

    async def read(self, subject: Subject) -> Reading:
        return _TokenReading(await self._tokens(_token_names(subject)))

    async def _tokens(self, names: list[str]) -> dict[str, str | None]:
        values = await asyncio.gather(*(self._backend.get(self._key(name)) for name in names))
        return {name: _token(given_text(value)) for name, value in zip(names, values, strict=True)}

    def _key(self, name: str) -> str:
        return self._prefix + _plain(name, self._room)

    async def begin(self, reading: Reading, subject: Subject, keep_for: float, *, at_once: bool = False) -> Mark:
        tokens = cast("_TokenReading", reading).tokens
        missing = [name for name, token in tokens.items() if token is None]
        return Mark(tokens=await self._complete(tokens | await self._tokens([_ACTIVITY, *missing]), keep_for))

    async def _complete(self, tokens: dict[str, str | None], keep_for: float) -> dict[str, str]:
        complete = {name: token for name, token in tokens.items() if token is not None}
        missing = [name for name, token in tokens.items() if token is None]
        made = await asyncio.gather(*(self._create(name, keep_for) for name in missing))
        return complete | dict(zip(missing, made, strict=True))

    async def _create(self, name: str, keep_for: float) -> str:
        """Return the token of a stamp that is missing, when the backend has it; fills side by side share it.

        What carries the token begins after the backend has it: were it used before, an invalidation that is
        overtaken by this very write would be lost.
        """
        loop = asyncio.get_running_loop()
        task = self._making.get(name)
        if task is None or task.get_loop() is not loop:
            task = self._making[name] = loop.create_task(self._make(name, keep_for))
            task.add_done_callback(functools.partial(self._made, name))
        return await asyncio.shield(task)

    def _made(self, name: str, task: asyncio.Task[str]) -> None:
        if self._making.get(name) is task:
            del self._making[name]
        if not task.cancelled():
            task.exception()

    async def _make(self, name: str, keep_for: float) -> str:
        token = secrets.token_hex(8)
        await self._backend.set(self._key(name), token, max(TOKEN_TIMEOUT_S, int(2 * keep_for)))
        return token

    def needs_seal(self, mark: Mark, subject: Subject) -> bool:
        return not mark.tokens.keys() >= {*_token_names(subject)}

    async def seal(self, mark: Mark, subject: Subject) -> Mark | None:
        late = [name for name in _token_names(subject) if name not in mark.tokens]
        tokens = await self._complete(await self._tokens(late), 0.0)
        activity = await self._tokens([_ACTIVITY])
        unchanged = activity[_ACTIVITY] == mark.tokens.get(_ACTIVITY)
        return Mark(tokens=mark.tokens | tokens) if unchanged else None

    async def store(self, key: str, value: bytes, keep_for: float, mark: Mark, subject: Subject) -> None:
        await self._shelf.write(key, value, keep_for)

    async def invalidate(self, order: Order, sent: set[object] | None = None) -> InvalidationResult:
        sent = set() if sent is None else sent
        names, widened = _widened(order)
        if _EVERYTHING in names:
            names = [_EVERYTHING]
        else:
            await self._renew([_ACTIVITY], sent)
        for at in range(0, len(names), AT_ONCE):
            await self._renew(names[at : at + AT_ONCE], sent)
        return InvalidationResult(durable=True, widened_to=", ".join(widened) or None)

    async def _renew(self, names: list[str], sent: set[object]) -> None:
        """Write another token for each of *names* that is not *sent*, side by side."""

        async def renew(name: str) -> None:
            await self._backend.set(self._key(name), secrets.token_hex(8), TOKEN_TIMEOUT_S)
            sent.add(name)

        tasks = [asyncio.create_task(renew(name)) for name in names if name not in sent]
        try:
            await asyncio.gather(*tasks)
        except Exception:
            await end_tasks(tasks)
            raise

    async def close(self) -> None:
        await end_tasks([*self._making.values()])


def _token(text: str | None) -> str | None:
    """Return *text* if it is a token; what else stands there is none."""
    return text if text is not None and _TOKEN.fullmatch(text) else None


def _plain(name: str, room: int) -> str:
    """Return *name*, or a digest if it has more than *room* characters or others than ASCII without blanks."""
    if len(name) <= room and name.isascii() and name.isprintable() and " " not in name:
        return name
    return f"#{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _widened(order: Order) -> tuple[list[str], list[str]]:
    """Return the stamps that cover *order*, and what they name beyond it."""
    names, widened = list(order.tags), ["hard"] if order.soft else []
    if order.everything:
        names.append(_EVERYTHING)
    for pattern in order.patterns:
        directory = _stamped_directory(pattern)
        names.append(_EVERYTHING if directory is None else short(f"d:{directory}"))
        widened.append("everything" if directory is None else f"{directory}*")
    for tags in order.all_of:
        names.append(min(tags))
        widened.append(min(tags))
    if order.keys:
        names.append(_EVERYTHING)
        widened.append("everything")
    return names, widened


def _stamped_directory(pattern: str) -> str | None:
    """Return the longest directory that *pattern* begins with and that has a stamp; None: only everything has."""
    literal = literal_directory(pattern)
    slashes = [at for at, char in enumerate(literal) if char == "/"][:MAX_DIRECTORIES]
    return literal[: slashes[-1] + 1] if literal.startswith("/") and len(slashes) > 1 else None
