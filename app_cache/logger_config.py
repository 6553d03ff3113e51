"""Where the events of the package go; the only module that imports structlog.

Nothing is configured at import, and nothing goes to standard output by itself. Until somebody says otherwise, an
event is a line ``cache.backend_failed operation=get`` on the standard library's logger ``app_cache``, for whatever
handlers the application has. Where the application configured structlog, events go there instead. Where it called
`configure_logger`, they go where that call said, and structlog's own configuration is left alone.

On each of these ways, values that are named like secrets and passwords in URLs become ``***``, in tracebacks too,
and control characters are escaped.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from structlog.contextvars import merge_contextvars
from structlog.processors import JSONRenderer, TimeStamper, add_log_level, format_exc_info

from app_cache.bounded import Bounded
from app_cache.errors import ConfigurationError
from app_cache.masking import SECRET_NAME, escaped, without_secrets

Render = Callable[[str, str, Mapping[str, Any]], str]
"""Makes one line of a level's name, an event and its fields."""

STDLIB_LOGGER = logging.getLogger("app_cache")
LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
SIZE_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
ROTATION = "100 MB"
RETENTION = "30 days"
AGAIN_AFTER_S = 60.0
"""Seconds after which a `SparingLogger` says again what goes on."""
MAX_KINDS = 1_000
MAX_WARNED = 5_000
"""Warnings that `warn_once` remembers; if there are more, the oldest eighth may be said again."""
AGE_UNITS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400, "week": 604_800}

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?) *([a-z]+)", re.ASCII)
_PLAIN = re.compile(r"[\w.:/@*+-]+")
_TO_JSON = (add_log_level, TimeStamper(fmt="iso", utc=True), JSONRenderer())


class EventLogger:
    """Says events with fields: ``logger.warning("cache.backend_failed", operation="get")``.

    Where an event goes is looked up when it is said, so the order of imports and configuration does not matter.
    An error that is raised there does not reach the caller: it is written on standard error, with the event,
    unless `logging.raiseExceptions` is False.
    An event that is filtered out costs little with the standard library, and some microseconds with a structlog of
    the application: an event is a change of state, never a request.
    """

    def __init__(self) -> None:
        self.sink: Sink | None = None
        self._theirs = structlog.get_logger("app_cache")

    def debug(self, event: str, **fields: Any) -> None:
        """Say *event* with *fields* at level DEBUG."""
        self._say(logging.DEBUG, "debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Say *event* with *fields* at level INFO."""
        self._say(logging.INFO, "info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Say *event* with *fields* at level WARNING."""
        self._say(logging.WARNING, "warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Say *event* with *fields* at level ERROR; ``exc_info=`` an exception adds its traceback."""
        self._say(logging.ERROR, "error", event, fields)

    def _say(self, level: int, level_name: str, event: str, fields: dict[str, Any]) -> None:
        try:
            if self.sink is None and structlog.is_configured():
                getattr(self._theirs, level_name)(escaped(event), **_for_any_renderer(fields))
            elif STDLIB_LOGGER.isEnabledFor(level):
                render = self.sink.render if self.sink else as_text
                STDLIB_LOGGER.log(level, render(level_name, event, fields), stacklevel=3)
        except Exception as error:  # noqa: BLE001  what the application logs by may raise anything
            _say_at_last(error, level_name, event, fields)


@dataclass(frozen=True, slots=True)
class Sink:
    """What one call of `configure_logger` has set, and what to put back when it is undone."""

    render: Render
    handler: logging.Handler
    level_before: int
    propagate_before: bool


logger = EventLogger()
"""The logger of the package."""


warned: Bounded[tuple[object, ...], None] = Bounded(MAX_WARNED)
"""The events and fields that `warn_once` has said."""


def warn_once(event: str, **fields: str) -> None:
    """Say *event* with *fields* at level WARNING, unless this process has said just that before."""
    warning = (event, *fields.items())
    if warning not in warned:
        warned[warning] = None
        logger.warning(event, **fields)


@dataclass(slots=True)
class _Kind:
    said_at: float
    unsaid: int = 0


class SparingLogger:
    """Says what each request may cause: the first of a kind at once, then how many, once a minute at most.

    Events are of one kind if they have event, place and type of the error in common, or event, place and facts. A
    place is one in the code, never one in a request, so that no client makes kinds. Event loops in several threads
    may share a logger.

    Args:
        monotonic: Gives the time in seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._kinds: Bounded[tuple[object, ...], _Kind] = Bounded(MAX_KINDS)

    def failed(self, event: str, place: str, error: BaseException, **fields: Any) -> None:
        """Say that *error* was raised at *place*; with its traceback, if no other of its kind was left unsaid."""
        name = type(error).__name__
        times = self._times_unsaid(event, place, name)
        if times == 1:
            logger.error(event, place=place, **fields, error=name, exc_info=error)
        elif times:
            logger.error(event, place=place, **fields, error=name, times=times)

    def warning(self, event: str, place: str, **facts: Any) -> None:
        """Say that there was *event* at *place*."""
        times = self._times_unsaid(event, place, *facts.items())
        if times:
            logger.warning(event, place=place, **facts, **({"times": times} if times > 1 else {}))

    def _times_unsaid(self, *kind: object) -> int:
        """Return how many of *kind* were not said, now that there is one more; 0 if it is too early to say it."""
        now = self._monotonic()
        with self._lock:
            known = self._kinds.get(kind) or _Kind(-math.inf)
            known.unsaid += 1
            if now - known.said_at < AGAIN_AFTER_S:
                return 0
            times, known.unsaid, known.said_at = known.unsaid, 0, now
            self._kinds[kind] = known
            return times


def configure_logger(
    level: str | int = "INFO",
    json: bool | None = None,
    file: str | os.PathLike[str] | None = None,
    rotation: str | int | None = ROTATION,
    retention: str | float | None = RETENTION,
) -> None:
    """Write the events of this package to standard error, or to *file* if one is given, and nowhere else.

    A later call replaces what an earlier one set. Only the logger ``app_cache`` is touched. While this holds,
    events reach neither the root logger nor a structlog configured elsewhere, so that none is written twice.

    Args:
        level: The lowest level that is written, by its name or number.
        json: Whether a line is a JSON object or text; if not given, JSON in a file and text on standard error.
        file: A file to append to; its directory must exist. Several processes may share it.
        rotation: The size at which *file* is renamed to ``name.<date and time in UTC>.suffix`` and begun anew:
            bytes, or a text such as ``"100 MB"``; None for never.
        retention: The age at which a renamed file is deleted, looked at with each rotation and each call:
            seconds, or a text such as ``"30 days"``; None for never.

    Raises:
        ConfigurationError: If a value is none of these, or *file* cannot be opened; what was set before stays.
    """
    level_number = _level_number(level)
    max_bytes = _quantity("rotation", rotation, SIZE_UNITS, 'a size such as "100 MB" or "1 GB"')
    max_age_s = _quantity("retention", retention, AGE_UNITS, 'an age such as "30 days" or "12 hours"')
    if not isinstance(json, bool | None):
        raise ConfigurationError(f"json must be True, False or None, not {json!r}")
    in_json = file is not None if json is None else json
    handler = logging.StreamHandler() if file is None else _opened(file, max_bytes, max_age_s)
    line = "%(message)s" if in_json else "%(asctime)s | %(levelname)s | %(message)s"
    handler.setFormatter(logging.Formatter(line, datefmt="%Y-%m-%d %H:%M:%S"))
    unconfigure_logger()
    logger.sink = Sink(as_json if in_json else as_text, handler, STDLIB_LOGGER.level, STDLIB_LOGGER.propagate)
    STDLIB_LOGGER.setLevel(level_number)
    STDLIB_LOGGER.propagate = False
    STDLIB_LOGGER.addHandler(handler)


def unconfigure_logger() -> None:
    """Undo `configure_logger`, if it was called: close its file and put the logger ``app_cache`` back."""
    sink, logger.sink = logger.sink, None
    if sink is not None:
        STDLIB_LOGGER.removeHandler(sink.handler)
        sink.handler.close()
        STDLIB_LOGGER.setLevel(sink.level_before)
        STDLIB_LOGGER.propagate = sink.propagate_before


def as_text(level_name: str, event: str, fields: Mapping[str, Any]) -> str:
    """Return ``event key=value …`` in one line; a value that is no plain word is written as Python writes it.

    >>> as_text("info", "cache.opened", {"backend": "redis", "because": "it is there"})
    "cache.opened backend=redis because='it is there'"
    """
    said = redacted(_with_context(level_name, fields))
    return " ".join([escaped(event), *(f"{escaped(name)}={_quoted(value)}" for name, value in said.items())])


def as_json(level_name: str, event: str, fields: Mapping[str, Any]) -> str:
    """Return one JSON object in one line: ``event``, the fields, ``level`` and ``timestamp`` (ISO 8601, UTC)."""
    said: Any = redacted(_with_context(level_name, fields)) | {"event": event}
    for process in _TO_JSON:
        said = process(None, level_name, said)
    return str(said)


def redacted(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return *fields* as plain values without secrets: what is named like one, and what precedes a URL's ``@``.

    >>> redacted({"url": "redis://user:pw@host/0", "auth_token": "s3cret", "size": 3})
    {'url': 'redis://***@host/0', 'auth_token': '***', 'size': 3}
    """
    return {str(name): "***" if SECRET_NAME.search(str(name)) else _plain(value) for name, value in fields.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return without_secrets(value)
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping):
        return redacted(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return without_secrets(repr(value))


def _clean_lines(text: str) -> str:
    return "\n".join(escaped(line) for line in without_secrets(text).split("\n"))


def _quoted(value: Any) -> str:
    return value if isinstance(value, str) and _PLAIN.fullmatch(value) else repr(value)


def _with_context(level_name: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    return format_exc_info(None, level_name, merge_contextvars(None, level_name, dict(fields)))


def _say_at_last(error: Exception, level_name: str, event: str, fields: Mapping[str, Any]) -> None:
    """Write on standard error the event that *error* kept from the log, as `logging` does if a handler fails."""
    if not logging.raiseExceptions or sys.stderr is None:
        return
    try:
        line = as_text(level_name, event, fields)
    except Exception:  # noqa: BLE001  a value that cannot be written is what may have kept it
        line = escaped(event)
    told = _clean_lines("".join(traceback.format_exception(error)))
    with suppress(Exception):
        sys.stderr.write(f"--- Logging error ---\n{told}Event: {line}\n")


def _for_any_renderer(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return *fields* in a form that any renderer may get.

    An exception becomes its traceback, as the text ``exception``: what a renderer would make of the object itself
    shows the secrets of messages, of lines of code and of local variables.
    """
    given = {name: value for name, value in fields.items() if name != "exc_info"}
    shown = {escaped(name): _all_escaped(value) for name, value in redacted(given).items()}
    traced = format_exc_info(None, "", {"exc_info": fields.get("exc_info")})
    return shown | {name: _clean_lines(text) for name, text in traced.items()}


def _all_escaped(value: Any) -> Any:
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, dict):
        return {escaped(name): _all_escaped(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_all_escaped(item) for item in value]
    return value


class RotatedFile(logging.FileHandler):
    """Appends lines to a file that is renamed once it has *max_bytes*; renamed files older than *max_age_s* go.

    A file that another process has renamed is opened anew. While it cannot be opened, lines go where they went
    before. *now* gives the time in epoch seconds.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: float | None,
        max_age_s: float | None,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.path = path
        self.max_bytes = max_bytes
        self.max_age_s = max_age_s
        self.now = now
        self._delete_old()

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record*; what goes wrong is told as the standard library tells it, never raised."""
        try:
            if not self._is_in_place():
                self._open_anew()
            if self.max_bytes is not None and self.path.stat().st_size >= self.max_bytes:
                self._rotate()
        except OSError:
            self.handleError(record)
        if self.stream is not None:
            logging.StreamHandler.emit(self, record)

    def _is_in_place(self) -> bool:
        """Return whether the file that is written to is the one at *path*."""
        try:
            return self.stream is not None and os.path.samestat(os.fstat(self.stream.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def _open_anew(self) -> None:
        before, self.stream = self.stream, self._open()
        if before is not None:
            before.close()

    def _rotate(self) -> None:
        with suppress(OSError):
            self.path.rename(self._unused_path())
        self._open_anew()
        self._delete_old()

    def _unused_path(self) -> Path:
        moment = datetime.fromtimestamp(self.now(), UTC)
        while (path := self.path.with_stem(f"{self.path.stem}.{moment:%Y-%m-%d_%H-%M-%S_%f}")).exists():
            moment += timedelta(microseconds=1)
        return path

    def _delete_old(self) -> None:
        if self.max_age_s is None:
            return
        stem, suffix = re.escape(self.path.stem), re.escape(self.path.suffix)
        renamed = re.compile(rf"{stem}\.\d{{4}}-\d\d-\d\d_\d\d-\d\d-\d\d_\d{{6}}{suffix}")
        for sibling in self.path.parent.iterdir():
            with suppress(OSError):
                if renamed.fullmatch(sibling.name) and sibling.stat().st_mtime < self.now() - self.max_age_s:
                    sibling.unlink()


def _opened(file: str | os.PathLike[str], max_bytes: float | None, max_age_s: float | None) -> RotatedFile:
    path = Path(file).absolute()
    try:
        return RotatedFile(path, max_bytes, max_age_s)
    except OSError as error:
        raise ConfigurationError(
            f"file must be one to write to, in a directory that exists, not {str(file)!r}: {error.strerror}"
        ) from error


def _level_number(level: Any) -> int:
    number = LEVELS.get(level.upper()) if isinstance(level, str) else level
    if not isinstance(number, int) or isinstance(number, bool) or number <= 0:
        raise ConfigurationError(f"level must be one of {', '.join(LEVELS)} or its number, not {level!r}")
    return number


def _quantity(name: str, given: Any, units: Mapping[str, int], right: str) -> float | None:
    if given is None:
        return None
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 < given < math.inf:
        return float(given)
    parsed = _QUANTITY.fullmatch(given.strip().lower()) if isinstance(given, str) else None
    if parsed is not None:
        unit = parsed[2] if parsed[2] in units else parsed[2].removesuffix("s")
        if unit in units and float(parsed[1]) > 0:
            return float(parsed[1]) * units[unit]
    raise ConfigurationError(f"{name} must be {right}, not {given!r} (units: {', '.join(units)})")
