"""Where events go, that they go nowhere unasked, and that no secret and no control character goes with them."""

from __future__ import annotations

import io
import json
import logging
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from starlette.responses import PlainTextResponse
from structlog import dev
from structlog.processors import (
    JSONRenderer,
    KeyValueRenderer,
    LogfmtRenderer,
    dict_tracebacks,
    format_exc_info,
)

from app_cache import CacheMiddleware, CachePolicy, MemoryBackend, ValueCache
from app_cache.errors import ConfigurationError
from app_cache.logger_config import (
    MAX_KINDS,
    STDLIB_LOGGER,
    RotatedFile,
    SparingLogger,
    as_json,
    as_text,
    configure_logger,
    logger,
    redacted,
    unconfigure_logger,
    warn_once,
    warned,
)
from app_cache.store import StoredResponses
from app_cache.testing import FakeClock, FlakyBackend
from tests.clients import client_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOON = 1_800_000_000.0
DAY_S = 86_400


@pytest.fixture(autouse=True)
def logging_put_back() -> Iterator[None]:
    """Each test leaves structlog and the logger ``app_cache`` as it found them."""
    structlog.reset_defaults()
    level, handlers = STDLIB_LOGGER.level, STDLIB_LOGGER.handlers[:]
    yield
    unconfigure_logger()
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    STDLIB_LOGGER.setLevel(level)
    STDLIB_LOGGER.handlers[:] = handlers


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands until it is moved."""
    return FakeClock()


@pytest.fixture
def their_events() -> list[dict[str, Any]]:
    """The events that a structlog configured by the application is given."""
    events: list[dict[str, Any]] = []

    def keep(_: Any, level_name: str, event_dict: Any) -> Any:
        events.append({"level": level_name, **event_dict})
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    return events


def connect(url: str) -> None:
    """Fail as a client would that puts the URL into its message."""
    raise ConnectionError(f"no {url}")


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run *code* in a new interpreter."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


def record(message: str) -> logging.LogRecord:
    """Return what a handler is given for *message*."""
    return logging.LogRecord("app_cache", logging.INFO, __file__, 1, message, None, None)


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open no file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def renamed(path: Path) -> list[Path]:
    """Return the files that the log at *path* was renamed to, oldest first."""
    return sorted(path.parent.glob(f"{path.stem}.2*{path.suffix}"))


class TestUnconfigured:
    def test_nothing_on_stdout(self) -> None:
        """Until somebody configures logging, an event of any level puts nothing on standard output."""
        code = (
            "from app_cache.logger_config import logger\n"
            "for say in (logger.debug, logger.info, logger.warning, logger.error):\n"
            "    say('cache.tried', operation='get')\n"
        )
        ran = python(code)
        assert (ran.returncode, ran.stdout) == (0, "")
        assert ran.stderr == "cache.tried operation=get\n" * 2

    def test_import_configures_nothing(self) -> None:
        """Importing the module configures neither structlog nor the standard library, and prints nothing."""
        code = (
            "import logging, structlog, app_cache.logger_config\n"
            "own = logging.getLogger('app_cache')\n"
            "assert not structlog.is_configured() and not logging.root.handlers\n"
            "assert not own.handlers and own.propagate and own.level == logging.NOTSET\n"
        )
        ran = python(code)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")

    @pytest.mark.parametrize("level_name", ["debug", "info", "warning", "error"])
    def test_goes_to_the_standard_library(self, caplog: pytest.LogCaptureFixture, level_name: str) -> None:
        """An event is a line of the standard library's logger ``app_cache``, with its level and its caller."""
        caplog.set_level(logging.DEBUG, "app_cache")
        getattr(logger, level_name)("cache.backend_failed", operation="get", attempts=2)
        (said,) = caplog.records
        assert (said.name, said.levelname) == ("app_cache", level_name.upper())
        assert said.getMessage() == "cache.backend_failed operation=get attempts=2"
        assert said.pathname == __file__

    def test_filtered(self, caplog: pytest.LogCaptureFixture) -> None:
        """An event below the level of the logger ``app_cache`` is not rendered."""
        caplog.set_level(logging.WARNING, "app_cache")

        class Unseen:
            def __repr__(self) -> str:
                raise AssertionError

        logger.info("cache.tried", value=Unseen())
        assert not caplog.records

    def test_percent_signs(self, caplog: pytest.LogCaptureFixture) -> None:
        """A value may hold what looks like a format."""
        logger.warning("cache.tried", path="/a%20b/%s")
        assert caplog.messages == ["cache.tried path='/a%20b/%s'"]


class TestTheirStructlog:
    def test_honoured(self, their_events: list[dict[str, Any]], caplog: pytest.LogCaptureFixture) -> None:
        """A structlog that the application configured, even after the import, gets the events."""
        logger.warning("cache.backend_failed", operation="get", attempts=2)
        assert their_events == [
            {"level": "warning", "event": "cache.backend_failed", "operation": "get", "attempts": 2}
        ]
        assert not caplog.records

    def test_clean_for_any_renderer(self) -> None:
        """What a renderer of the application gets has neither secrets nor control characters."""
        out = io.StringIO()
        structlog.configure(
            processors=[structlog.dev.ConsoleRenderer(colors=False)],
            logger_factory=structlog.PrintLoggerFactory(out),
        )
        logger.warning("cache.tried", url="redis://user:pw@host", path="/a\n\x1b[31mFAKE", more={"x": ["\r", 1]})
        line = out.getvalue()
        assert line.count("\n") == 1
        assert not {"\x1b", "\r"} & set(line)
        assert "pw" not in line
        assert "redis://***@host" in line

    def test_clean_for_their_processors(self, their_events: list[dict[str, Any]]) -> None:
        """What a processor of the application gets is escaped in every value and name (S28)."""
        logger.warning("cache\ntried", path="/a\n\x1b[31mFAKE", more={"x\n": ["\r", 1]})
        assert their_events == [
            {
                "level": "warning",
                "event": r"cache\ntried",
                "path": r"/a\n\x1b[31mFAKE",
                "more": {r"x\n": [r"\r", 1]},
            }
        ]

    def test_traceback_is_text(self, their_events: list[dict[str, Any]]) -> None:
        """Processors of the application get an exception as its traceback, line by line, where it has one."""
        try:
            connect("server\x1b[31m")
        except ConnectionError as error:
            logger.error("cache.failed", exc_info=error)
        logger.error("cache.failed", exc_info=ValueError("wrong"))
        logger.error("cache.failed", exc_info=None)
        traced, untraced, none = their_events
        lines = traced["exception"].split("\n")
        assert (lines[0], lines[-1]) == (
            "Traceback (most recent call last):",
            r"ConnectionError: no server\x1b[31m",
        )
        assert untraced["exception"] == "ValueError: wrong"
        assert none == {"level": "error", "event": "cache.failed"}

    @pytest.mark.parametrize(
        "processors",
        [
            pytest.param([dev.ConsoleRenderer(colors=False)], id="console"),
            pytest.param([dev.ConsoleRenderer(exception_formatter=dev.rich_traceback)], id="console with rich"),
            pytest.param([dev.ConsoleRenderer(exception_formatter=dev.plain_traceback)], id="console, plain"),
            pytest.param([format_exc_info, JSONRenderer()], id="JSON"),
            pytest.param([dict_tracebacks, JSONRenderer()], id="JSON of dicts"),
            pytest.param([format_exc_info, LogfmtRenderer()], id="logfmt"),
            pytest.param([KeyValueRenderer()], id="key and value"),
            pytest.param([structlog.stdlib.render_to_log_kwargs], id="standard library"),
        ],
    )
    def test_no_secret_in_a_traceback(self, capsys: pytest.CaptureFixture[str], processors: list[Any]) -> None:
        """Whatever renders it, a traceback has no secret: of messages, causes, code or local variables."""
        written = logging.StreamHandler(sys.stdout)
        written.setFormatter(Everything())
        STDLIB_LOGGER.addHandler(written)
        of_stdlib = structlog.stdlib.render_to_log_kwargs in processors
        make = structlog.stdlib.LoggerFactory() if of_stdlib else structlog.PrintLoggerFactory()
        structlog.configure(processors=processors, logger_factory=make)
        secret = "hunter2"
        try:
            try:
                connect(f"postgres://app:{secret}@db")
            except ConnectionError as error:
                raise LookupError(f"password={secret} of redis://:hunter2@host") from error
        except LookupError as error:
            logger.error("cache.fill_failed", error="LookupError", exc_info=error)
        told = capsys.readouterr()
        assert told.err == ""
        assert "hunter2" not in told.out
        assert "no postgres://***@db" in told.out
        assert "password=***" in told.out

    def test_configure_logger_goes_first(self, their_events: list[dict[str, Any]], tmp_path: Path) -> None:
        """After `configure_logger` events go where that said, and structlog's own configuration is as it was."""
        before = structlog.get_config()
        configure_logger(file=tmp_path / "cache.log")
        logger.info("cache.opened")
        assert not their_events
        assert structlog.get_config() == before
        assert "cache.opened" in (tmp_path / "cache.log").read_text()


def refuse(_: Any, __: str, event_dict: Any) -> Any:
    """Fail as a processor of the application does that needs what is not there."""
    raise KeyError(f"request_id of {event_dict['event']} at redis://:s3cret@host\x1b[31m")


class Refusing(logging.Handler):
    """A handler of the application that raises."""

    def emit(self, record: logging.LogRecord) -> None:
        raise OSError(record.getMessage())


class Everything(logging.Formatter):
    """Writes all that a record has, the traceback of its exception too."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record) + repr(vars(record))


class Unwritable:
    """A value whose text cannot be had."""

    def __repr__(self) -> str:
        raise ValueError("no text")


class TestWhatFails:
    def test_processor_that_raises(self, capsys: pytest.CaptureFixture[str]) -> None:
        """What a structlog of the application raises goes to standard error with the event, and no further."""
        structlog.configure(processors=[refuse])
        logger.warning("cache.backend_failed", operation="get")
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith("--- Logging error ---\nTraceback")
        assert told.err.endswith("\nEvent: cache.backend_failed operation=get\n")
        assert "request_id of cache.backend_failed" in told.err

    def test_clean_at_last(self, capsys: pytest.CaptureFixture[str]) -> None:
        """What goes to standard error because a logger failed has neither secrets nor control characters (S28)."""
        structlog.configure(processors=[refuse])
        logger.warning("cache.tried", url="redis://:hunter2@host")
        told = capsys.readouterr().err
        assert "redis://***@host" in told
        assert not [secret for secret in ("s3cret'", "s3cret@", "hunter2", "\x1b") if secret in told]

    @pytest.mark.anyio
    async def test_never_of_a_request(self, capsys: pytest.CaptureFixture[str]) -> None:
        """With a backend that is away and a logger that fails, requests and values are as without a cache."""
        structlog.configure(processors=[refuse])
        store = StoredResponses(FlakyBackend(MemoryBackend(), error_rate=1.0))
        app = CacheMiddleware(PlainTextResponse("answer"), store.backend, default_policy=CachePolicy(timeout=60))
        client = client_of(app)
        assert {(await client.get("/")).status_code for _ in range(8)} == {200}
        assert await ValueCache(store).get_or_set("key", lambda: 1, 60) == 1
        assert "Event: cache.backend_failed" in capsys.readouterr().err

    def test_handler_that_raises(self, capsys: pytest.CaptureFixture[str]) -> None:
        """What a handler of the standard library raises reaches nobody else."""
        STDLIB_LOGGER.addHandler(Refusing())
        logger.warning("cache.tried")
        assert capsys.readouterr().err.count("Event: cache.tried\n") == 1

    def test_value_that_cannot_be_written(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Of an event with a value that has no text, its name is said."""
        logger.warning("cache.tried", value=Unwritable())
        told = capsys.readouterr().err
        assert "ValueError: no text" in told
        assert told.endswith("\nEvent: cache.tried\n")

    def test_not_wanted(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """With `logging.raiseExceptions` False nothing is said of it, as the standard library has it."""
        monkeypatch.setattr(logging, "raiseExceptions", False)
        structlog.configure(processors=[refuse])
        logger.warning("cache.tried")
        assert capsys.readouterr().err == ""

    def test_nowhere_to_say_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a standard error that can be written to, a logger that fails still raises nothing."""
        structlog.configure(processors=[refuse])
        closed = io.StringIO()
        closed.close()
        for stream in (None, closed):
            monkeypatch.setattr(sys, "stderr", stream)
            logger.warning("cache.tried")


class TestSparingLogger:
    def test_counted(self, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
        """The first of a kind is said with its traceback, the next by their number, a minute later."""
        sparing = SparingLogger(clock)
        for _ in range(3):
            sparing.failed("cache.failed", "here", ValueError("wrong"))
        clock.advance(59)
        sparing.failed("cache.failed", "here", ValueError("wrong"))
        clock.advance(1)
        sparing.failed("cache.failed", "here", ValueError("wrong"))
        assert caplog.messages == [
            "cache.failed place=here error=ValueError exception='ValueError: wrong'",
            "cache.failed place=here error=ValueError times=4",
        ]

    def test_after_a_quiet_minute(self, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
        """What comes after a minute without its kind has its traceback again."""
        sparing = SparingLogger(clock)
        for _ in range(2):
            sparing.failed("cache.failed", "here", ValueError("wrong"))
            clock.advance(60)
        assert caplog.messages == ["cache.failed place=here error=ValueError exception='ValueError: wrong'"] * 2

    def test_kinds(self, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
        """Another event, place, type of error or fact is another kind; other fields are not."""
        sparing = SparingLogger(clock)
        for _ in range(2):
            sparing.failed("cache.failed", "here", ValueError())
            sparing.failed("cache.failed", "here", KeyError())
            sparing.failed("cache.failed", "there", KeyError())
            sparing.failed("cache.tried", "there", KeyError())
            sparing.failed("cache.tried", "there", KeyError(), path=str(clock()))
            sparing.warning("cache.tried", "there", status=500)
            sparing.warning("cache.tried", "there", status=503)
            clock.advance(1)
        assert len(caplog.messages) == 6

    def test_bounded(self, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
        """So many kinds are remembered; of more those go that were said first, to be new the next time."""
        sparing = SparingLogger(clock)
        for number in range(MAX_KINDS + 1):
            sparing.warning("cache.tried", str(number))
        caplog.clear()
        for place in (str(MAX_KINDS // 2), str(MAX_KINDS), "0"):
            sparing.warning("cache.tried", place)
        assert caplog.messages == ["cache.tried place=0"]


class TestWarnOnce:
    @pytest.fixture(autouse=True)
    def nothing_said(self) -> None:
        """Forget what was said elsewhere."""
        warned.clear()

    def test_once(self, caplog: pytest.LogCaptureFixture) -> None:
        """The same event with the same fields is said once, another event or field as often as it is another."""
        for _ in range(2):
            warn_once("policy.tried", route="/x", name="a")
            warn_once("policy.tried", route="/y", name="a")
            warn_once("policy.failed", route="/x", name="a")
        assert caplog.messages == [
            "policy.tried route=/x name=a",
            "policy.tried route=/y name=a",
            "policy.failed route=/x name=a",
        ]

    def test_bounded(self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        """So many are remembered; of more the oldest is said again."""
        monkeypatch.setattr(warned, "most", 2)
        for route in "abcbca":
            warn_once("policy.tried", route=route)
        assert caplog.messages == [f"policy.tried route={route}" for route in "abca"]
        assert len(warned) == 2


class TestConfigured:
    def test_text_on_stderr(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Without a file, lines of text go to standard error: time, level, event and fields."""
        configure_logger()
        logger.debug("cache.tried")
        logger.info("cache.opened", backend="redis")
        seen = capsys.readouterr()
        assert seen.out == ""
        assert seen.err.split(" | ", 1)[1] == "INFO | cache.opened backend=redis\n"

    def test_json_in_a_file(self, tmp_path: Path) -> None:
        """In a file each line is a JSON object with the event, its fields, the level and the time in UTC."""
        file = tmp_path / "cache.log"
        configure_logger(file=file)
        logger.warning("cache.backend_failed", operation="get", took_s=0.25, tags=("a", "b"))
        logger.error("cache.closed")
        first, second = (json.loads(line) for line in file.read_text().splitlines())
        assert first.pop("timestamp").endswith("Z")
        assert first == {
            "event": "cache.backend_failed",
            "level": "warning",
            "operation": "get",
            "took_s": 0.25,
            "tags": ["a", "b"],
        }
        assert (second["event"], second["level"]) == ("cache.closed", "error")

    @pytest.mark.parametrize(
        ("in_json", "to_file"),
        [pytest.param(True, False, id="JSON on stderr"), pytest.param(False, True, id="text in a file")],
    )
    def test_json_as_asked(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_json: bool, to_file: bool
    ) -> None:
        """``json`` says which form is written, wherever it goes."""
        file = tmp_path / "cache.log"
        configure_logger(json=in_json, file=file if to_file else None)
        logger.info("cache.opened")
        line = file.read_text() if to_file else capsys.readouterr().err
        assert line.startswith("{") is in_json

    def test_context(self, tmp_path: Path) -> None:
        """What the application bound in structlog's context variables is in our lines too."""
        file = tmp_path / "cache.log"
        configure_logger(file=file)
        structlog.contextvars.bind_contextvars(request_id="r1")
        logger.info("cache.opened")
        assert json.loads(file.read_text())["request_id"] == "r1"

    @pytest.mark.parametrize("in_json", [pytest.param(True, id="JSON"), pytest.param(False, id="text")])
    def test_traceback_in_one_line(self, tmp_path: Path, in_json: bool) -> None:
        """A traceback is a field of the one line, without the secret that its message has."""
        file = tmp_path / "cache.log"
        configure_logger(file=file, json=in_json)
        try:
            connect("redis://:s3cret@host")
        except ConnectionError as error:
            logger.error("cache.failed", exc_info=error)
        (line,) = file.read_text().splitlines()
        assert "Traceback" in line
        assert "no redis://***@host" in line
        assert "s3cret" not in line

    def test_again_replaces(self, tmp_path: Path) -> None:
        """A second call replaces the first: one handler, one line for each event, the first file closed."""
        first, second = tmp_path / "first.log", tmp_path / "second.log"
        configure_logger(file=first)
        configure_logger("warning", file=second)
        logger.info("cache.tried")
        logger.warning("cache.backend_failed")
        assert first.read_text() == ""
        assert len(second.read_text().splitlines()) == 1

    def test_handlers_of_the_application_stay(self) -> None:
        """A handler that the application put on the logger ``app_cache`` stays, once, whatever is called."""
        theirs = logging.NullHandler()
        STDLIB_LOGGER.addHandler(theirs)
        configure_logger()
        configure_logger()
        assert STDLIB_LOGGER.handlers.count(theirs) == 1
        assert len(STDLIB_LOGGER.handlers) == 2
        unconfigure_logger()
        assert STDLIB_LOGGER.handlers == [theirs]

    def test_not_written_twice(self, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
        """While it is configured, an event does not reach the handlers of the root logger as well."""
        configure_logger()
        logger.warning("cache.backend_failed")
        assert capsys.readouterr().err.count("cache.backend_failed") == 1
        assert not caplog.records

    def test_undone(self, caplog: pytest.LogCaptureFixture) -> None:
        """`unconfigure_logger` puts level and propagation back, and may be called twice."""
        STDLIB_LOGGER.setLevel(logging.ERROR)
        configure_logger("DEBUG")
        unconfigure_logger()
        unconfigure_logger()
        logger.error("cache.failed")
        assert STDLIB_LOGGER.level == logging.ERROR
        assert caplog.messages == ["cache.failed"]

    def test_options_of_no_file(self) -> None:
        """What is for a file means nothing where a variable names none, and is checked all the same."""
        configure_logger(file=None, rotation="10 MB", retention=30)
        with pytest.raises(ConfigurationError, match="rotation must be"):
            configure_logger(file=None, rotation="10 bananas")

    @pytest.mark.parametrize(
        ("option", "value", "right"),
        [
            pytest.param("level", "LOUD", "DEBUG, INFO, WARNING, ERROR, CRITICAL", id="unknown level"),
            pytest.param("level", True, "DEBUG", id="a bool as level"),
            pytest.param("level", None, "DEBUG", id="no level"),
            pytest.param("json", "yes", "True, False or None", id="json as text"),
            pytest.param("rotation", "100", '"100 MB"', id="size without unit"),
            pytest.param("rotation", "100 bananas", '"100 MB"', id="size of an unknown unit"),
            pytest.param("rotation", "0 MB", '"100 MB"', id="no size"),
            pytest.param("rotation", "-1 MB", '"100 MB"', id="negative size"),
            pytest.param("rotation", True, '"100 MB"', id="a bool as size"),
            pytest.param("rotation", "30 days", '"100 MB"', id="an age as size"),
            pytest.param("retention", "30 MB", '"30 days"', id="a size as age"),
            pytest.param("retention", 0, '"30 days"', id="no age"),
            pytest.param("retention", float("inf"), '"30 days"', id="endless age"),
            pytest.param("file", "no/such/directory/cache.log", "directory that exists", id="no directory"),
        ],
    )
    def test_wrong_values(self, tmp_path: Path, option: str, value: Any, right: str) -> None:
        """A wrong value is refused with the option, the value and what is right; what was set before stays."""
        file = tmp_path / "cache.log"
        configure_logger(file=file)
        options: dict[str, Any] = {"file": file, option: value}
        with pytest.raises(ConfigurationError) as refused:
            configure_logger(**options)
        assert str(refused.value).startswith(f"{option} must be")
        assert repr(value) in str(refused.value)
        assert right in str(refused.value)
        logger.info("cache.opened")
        assert "cache.opened" in file.read_text()

    @pytest.mark.parametrize(
        ("rotation", "retention", "max_bytes", "max_age_s"),
        [
            pytest.param("100 MB", "30 days", 100e6, 30 * DAY_S, id="as the document has them"),
            pytest.param("1.5gb", "1 week", 1.5e9, 7 * DAY_S, id="fraction, no blank, one week"),
            pytest.param("64 KiB", "12 Hours", 65_536, DAY_S / 2, id="binary unit, capitals"),
            pytest.param(" 10 B ", "90 seconds", 10, 90, id="blanks around"),
            pytest.param(4096, 60.5, 4096, 60.5, id="numbers"),
            pytest.param(None, None, None, None, id="never"),
        ],
    )
    def test_sizes_and_ages(
        self, tmp_path: Path, rotation: Any, retention: Any, max_bytes: float | None, max_age_s: float | None
    ) -> None:
        """Sizes and ages are numbers of bytes and seconds, or texts with a unit."""
        configure_logger(file=tmp_path / "cache.log", rotation=rotation, retention=retention)
        (handler,) = (each for each in STDLIB_LOGGER.handlers if isinstance(each, RotatedFile))
        assert (handler.max_bytes, handler.max_age_s) == (max_bytes, max_age_s)


class TestRotatedFile:
    def test_rotates_by_size(self, tmp_path: Path) -> None:
        """A file that has its size is renamed with the time before its suffix, and no line is lost."""
        file = tmp_path / "cache.log"
        handler = RotatedFile(file, max_bytes=10, max_age_s=None, now=iter([NOON, NOON + 1]).__next__)
        for number in range(5):
            handler.emit(record(f"line {number}"))
        handler.close()
        assert [each.name for each in renamed(file)] == [
            "cache.2027-01-15_08-00-00_000000.log",
            "cache.2027-01-15_08-00-01_000000.log",
        ]
        assert [each.read_text() for each in [*renamed(file), file]] == [
            "line 0\nline 1\n",
            "line 2\nline 3\n",
            "line 4\n",
        ]

    def test_appends(self, tmp_path: Path) -> None:
        """What is in the file at the start stays, and counts in its size."""
        file = tmp_path / "cache.log"
        file.write_text("before\n")
        handler = RotatedFile(file, max_bytes=7, max_age_s=None)
        handler.emit(record("after"))
        handler.close()
        assert [each.read_text() for each in [*renamed(file), file]] == ["before\n", "after\n"]

    @pytest.mark.parametrize(
        ("name", "age_days", "stays"),
        [
            pytest.param("cache.2027-01-01_00-00-00_000000.log", 31, False, id="too old"),
            pytest.param("cache.2027-01-01_00-00-00_000000.log", 29, True, id="young enough"),
            pytest.param("other.2027-01-01_00-00-00_000000.log", 31, True, id="of another log"),
            pytest.param("cache.2027-01-01.log", 31, True, id="not renamed by us"),
            pytest.param("cache.log.gz", 31, True, id="another suffix"),
        ],
    )
    def test_retention(self, tmp_path: Path, name: str, age_days: int, stays: bool) -> None:
        """A renamed file goes when its last line is older than the retention; no other file ever does."""
        old = tmp_path / name
        old.touch()
        os.utime(old, times=(NOON - age_days * DAY_S,) * 2)
        RotatedFile(tmp_path / "cache.log", None, 30 * DAY_S, now=lambda: NOON).close()
        assert old.exists() is stays

    def test_retention_at_rotation(self, tmp_path: Path) -> None:
        """Old files go with each rotation, not only at the start."""
        file = tmp_path / "cache.log"
        handler = RotatedFile(file, max_bytes=1, max_age_s=DAY_S, now=lambda: NOON)
        old = tmp_path / "cache.2027-01-01_00-00-00_000000.log"
        old.touch()
        os.utime(old, times=(NOON - 2 * DAY_S,) * 2)
        handler.emit(record("first"))
        assert old.exists()
        handler.emit(record("second"))
        handler.close()
        assert not old.exists()

    def test_shared_by_processes(self, tmp_path: Path) -> None:
        """A file that another process has renamed is opened anew, so that no line goes to the old one."""
        file = tmp_path / "cache.log"
        one, other = (RotatedFile(file, max_bytes=8, max_age_s=None, now=lambda: NOON) for _ in range(2))
        one.emit(record("from one"))
        other.emit(record("from other"))
        one.emit(record("from one again"))
        one.close()
        other.close()
        assert [each.read_text() for each in [*renamed(file), file]] == [
            "from one\n",
            "from other\n",
            "from one again\n",
        ]

    def test_no_file_left(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Where a file cannot be opened at its rotation, lines stay in the old one until another can be."""
        file = tmp_path / "cache.log"
        handler = RotatedFile(file, max_bytes=6, max_age_s=DAY_S, now=lambda: NOON)
        handler.emit(record("first"))
        with no_more_files():
            handler.emit(record("second"))
            handler.emit(record("third"))
        handler.emit(record("fourth"))
        handler.close()
        assert [each.read_text() for each in [*renamed(file), file]] == ["first\nsecond\nthird\n", "fourth\n"]
        assert "Too many open files" in capsys.readouterr().err

    def test_directory_back(self, tmp_path: Path) -> None:
        """A file whose directory was away is opened again as soon as that is there."""
        directory = tmp_path / "logs"
        directory.mkdir()
        handler = RotatedFile(directory / "cache.log", max_bytes=100, max_age_s=None)
        directory.rename(tmp_path / "moved")
        handler.emit(record("meanwhile"))
        directory.mkdir()
        handler.emit(record("again"))
        handler.close()
        assert (tmp_path / "moved" / "cache.log").read_text() == "meanwhile\n"
        assert (directory / "cache.log").read_text() == "again\n"

    def test_directory_gone(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A file that cannot be opened again is told on standard error as usual in logging, and never raised."""
        directory = tmp_path / "logs"
        directory.mkdir()
        handler = RotatedFile(directory / "cache.log", max_bytes=None, max_age_s=None)
        (directory / "cache.log").unlink()
        directory.rmdir()
        handler.emit(record("lost"))
        handler.close()
        assert "FileNotFoundError" in capsys.readouterr().err


class TestRendering:
    @pytest.mark.parametrize("render", [pytest.param(as_text, id="text"), pytest.param(as_json, id="JSON")])
    @pytest.mark.parametrize(
        "raw",
        [
            pytest.param("\n", id="newline"),
            pytest.param("\r", id="return"),
            pytest.param("\x1b[2J", id="escape"),
            pytest.param("\x00", id="NUL"),
            pytest.param("\x9b", id="C1 control"),
            pytest.param("\u2028", id="line separator"),
            pytest.param("\u202e", id="right-to-left override"),
            pytest.param("\ud800", id="lone surrogate"),
        ],
    )
    def test_no_control_characters(self, render: Any, raw: str) -> None:
        """No control character comes out raw, from a value, a name, a key, the event or an object's repr (S28)."""

        class Odd:
            def __repr__(self) -> str:
                return f"<{raw}>"

        fields = {
            "path": f"/a{raw}b",
            f"n{raw}": 1,
            "deep": {raw: [raw, {raw: raw}]},
            "odd": Odd(),
            "b": raw.encode("utf-8", "replace"),
        }
        line = render("info", f"cache{raw}tried", fields)
        assert line.isprintable()

    @pytest.mark.parametrize("render", [pytest.param(as_text, id="text"), pytest.param(as_json, id="JSON")])
    @pytest.mark.parametrize(
        "fields",
        [
            pytest.param({"url": "redis://user:s3cret@host:6379/0"}, id="user and password in a URL"),
            pytest.param({"url": "rediss://:s3cret@host"}, id="password alone"),
            pytest.param(
                {"url": "redis://user:p@s3cret/x?y#z@host"}, id="password with signs that it should not have"
            ),
            pytest.param({"url": "redis+sentinel://u:s3cret@h1:1,h2:2/service"}, id="Sentinel"),
            pytest.param({"urls": ["redis://h1", ("redis://:s3cret@h2",)]}, id="in a list"),
            pytest.param({"url": "redis://host?db=0&password=s3cret"}, id="password in the query"),
            pytest.param({"error": ConnectionError("no redis://:s3cret@host")}, id="in an exception"),
            pytest.param({"note": "tried redis://:s3cret@a and redis://:s3cret@b"}, id="two in a sentence"),
            pytest.param({"password": "s3cret"}, id="field password"),
            pytest.param({"redis_secret": "s3cret"}, id="field with secret in its name"),
            pytest.param({"api_token": b"s3cret"}, id="field with token in its name"),
            pytest.param({"headers": {"Authorization": "Bearer s3cret", "Set-Cookie": "s3cret"}}, id="headers"),
        ],
    )
    def test_no_secrets(self, render: Any, fields: dict[str, Any]) -> None:
        """What is named like a secret and what precedes the ``@`` of a URL never comes out (S28)."""
        line = render("info", "cache.tried", fields)
        assert "s3cret" not in line
        assert "***" in line

    @pytest.mark.parametrize(
        "fields",
        [
            pytest.param({"url": "redis://host:6379/0"}, id="URL without a password"),
            pytest.param({"name": "a@b"}, id="an @ without a URL"),
            pytest.param({"hits": 3, "ratio": 0.5, "shared": True, "tag": None}, id="plain values"),
            pytest.param({"detail": "cookie"}, id="the word as a value"),
        ],
    )
    def test_harmless_stays(self, fields: dict[str, Any]) -> None:
        """What is no secret is left as it is."""
        assert redacted(fields) == fields

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            pytest.param("plain", "plain", id="a word"),
            pytest.param("", "''", id="empty text"),
            pytest.param("two words", "'two words'", id="blanks"),
            pytest.param("a=b", "'a=b'", id="an equals sign"),
            pytest.param(3, "3", id="a number"),
            pytest.param(None, "None", id="None"),
            pytest.param(["a", "b"], "['a', 'b']", id="a list"),
            pytest.param("zürich", "zürich", id="a letter beyond ASCII"),
        ],
    )
    def test_text_values(self, value: Any, shown: str) -> None:
        """A value in text is a bare word, or what Python writes for it, so that fields cannot be forged."""
        assert as_text("info", "cache.tried", {"v": value}) == f"cache.tried v={shown}"

    @pytest.mark.parametrize("number", [float("nan"), float("inf")], ids=["nan", "inf"])
    def test_json_is_strict(self, number: float) -> None:
        """A number that JSON does not have is text."""
        assert json.loads(as_json("info", "cache.tried", {"n": number}))["n"] == str(number)

    def test_event_name_stands(self) -> None:
        """A field cannot take the place of event or level in JSON."""
        said = json.loads(as_json("info", "cache.tried", {"level": "critical", "timestamp": 0}))
        assert (said["event"], said["level"]) == ("cache.tried", "info")
        assert said["timestamp"] != 0
