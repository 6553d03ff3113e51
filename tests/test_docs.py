"""The documentation is true: its code runs, its links lead somewhere, and it leaves out nothing public.

The blocks of a page run in order, in one module named ``main``; each ``redis://localhost:6379`` is a server of the
suite. ``python`` is executed and ``pycon`` checked as a doctest. A comment in the line before a block says more:

``<!-- raises: NameOfError -->`` the block ends with that error
``<!-- file: name.py -->``       the block is that file, in the current directory, too
``<!-- pytest: test_name.py -->`` the block is that file, and passes under pytest
``<!-- served -->``              its commands are run against the page's ``app``, and say what stands there
"""

from __future__ import annotations

import ast
import asyncio
import doctest
import functools
import gc
import inspect
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, get_origin

import pytest
import structlog
import uvicorn

import app_cache
import app_cache.backends.base
import app_cache.fastapi
import app_cache.helpers
import app_cache.logger_config
import app_cache.offers
import app_cache.rules.cache_status
import app_cache.server
import app_cache.testing
import containers
from app_cache import CachePolicy, CacheSettings, RedisBackend
from app_cache.backends.base import LAST_LOOK_S, OPERATION_TIMEOUT_S, VERBS
from app_cache.backends.redis.options import DEFAULTS, RULES
from app_cache.breaker import OPENS_AFTER
from app_cache.clock.script import ScriptClock
from app_cache.clock.tokens import TokenClock
from app_cache.flight import FILL_TIMEOUT_S
from app_cache.logger_config import unconfigure_logger
from app_cache.orders import MAX_OWED
from app_cache.rules.decisions import Fwd, Refusal
from app_cache.writes import MAX_PENDING, MAX_PENDING_BYTES, PENDING_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.servers import Server

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
REDIS_URL = "redis://localhost:6379"
SERVED_AT = "http://127.0.0.1:8000"

BLOCK = re.compile(
    r"^(?:<!-- (?P<note>[^\n]*) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
PASSING = re.compile(r"(ttl=|age: |port=)\d+")
ROW = re.compile(r"^\| `(\w+)` \| (?:`([^|]+)`|[^|`]+) \|", re.MULTILINE)
TEST = re.compile(r"tests/[\w/]+\.py::[\w:]+")
PROMISE = re.compile(r"^\| [FS]\d+ \|.*$", re.MULTILINE)
EVENT = re.compile(r"(?:logger\.(?:debug|info|warning|error)|warn_once)\(\s*\"([\w.]+)\"")


@dataclass(frozen=True)
class Block:
    """A block of code of a page, from the *line* after its fence on."""

    page: Path
    line: int
    language: str
    action: str
    subject: str
    code: str


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of *page* in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        action, _, subject = (match["note"] or "").partition(": ")
        line = text.count("\n", 0, match.start("code"))
        found.append(Block(page, line, match["language"], action, subject, match["code"]))
    return found


def asks_for_redis(page: Path) -> bool:
    """Return whether code of *page* names a server."""
    return any(REDIS_URL in block.code for block in blocks_of(page) if block.language in ("python", "pycon"))


@pytest.fixture
def as_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Leave directory, environment and logging as they were before a page ran."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    unconfigure_logger()
    structlog.reset_defaults()
    gc.collect()


@pytest.mark.usefixtures("as_found")
@pytest.mark.filterwarnings("ignore:Using .httpx. with")
@pytest.mark.parametrize("page", [page for page in PAGES if not asks_for_redis(page)], ids=lambda page: page.name)
def test_page_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page shows does what the page says."""
    Run(monkeypatch).blocks(blocks_of(page))


@pytest.mark.usefixtures("as_found")
@pytest.mark.filterwarnings("ignore:Using .httpx. with")
@pytest.mark.parametrize("page", [page for page in PAGES if asks_for_redis(page)], ids=lambda page: page.name)
def test_page_runs_with_redis(page: Path, monkeypatch: pytest.MonkeyPatch, redis_server: Server) -> None:
    """What a page shows of Redis does what the page says, with a real server."""
    Run(monkeypatch, redis_server.url).blocks(blocks_of(page))


class Run:
    """One page as it runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, redis_url: str = REDIS_URL) -> None:
        self._redis_url = redis_url
        self._served: Served | None = None
        self._module = ModuleType("main")
        monkeypatch.setitem(sys.modules, "main", self._module)

    def blocks(self, blocks: list[Block]) -> None:
        """Run *blocks* and stop what they started."""
        try:
            for block in blocks:
                self._block(block)
        finally:
            if self._served is not None:
                self._served.stop()

    def _block(self, block: Block) -> None:
        code = block.code.replace(REDIS_URL, self._redis_url)
        if block.action in ("file", "pytest"):
            Path(block.subject).write_text(code, encoding="utf-8")
        if block.action == "pytest":
            run_by_pytest(block.subject)
        elif block.action == "raises":
            with pytest.raises(Exception) as caught:  # noqa: PT011  its name is compared below
                self._execute(block, code)
            assert type(caught.value).__name__ == block.subject
        elif block.language == "python":
            self._execute(block, code)
        elif block.language == "pycon":
            self._check(block, code)
        elif block.action == "served":
            self._ask(code)

    def _execute(self, block: Block, code: str) -> None:
        compiled = compile("\n" * block.line + code, str(block.page), "exec", dont_inherit=True)
        exec(compiled, vars(self._module))  # noqa: S102

    def _check(self, block: Block, code: str) -> None:
        names = vars(self._module)
        test = doctest.DocTestParser().get_doctest(code, names, block.page.name, str(block.page), block.line)
        test.globs = names
        said: list[str] = []
        runner = doctest.DocTestRunner(Lenient(), verbose=False, optionflags=doctest.ELLIPSIS)
        failed, _ = runner.run(test, out=said.append, clear_globs=False)
        assert not failed, "".join(said)

    def _ask(self, code: str) -> None:
        if shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        application = vars(self._module)["app"]
        if self._served is None or self._served.application is not application:
            if self._served is not None:
                self._served.stop()
            self._served = Served(application)
        for step in code.split("$ ")[1:]:
            command, _, expected = step.partition("\n")
            ran = subprocess.run(
                ["bash", "-c", command.replace(SERVED_AT, self._served.url)],
                capture_output=True,
                text=True,
                check=False,
                timeout=30,
            )
            answer = ran.stdout.replace("\r", "").rstrip("\n")
            assert PASSING.sub(r"\1…", answer) == PASSING.sub(r"\1…", expected.rstrip("\n")), command


class Lenient(doctest.OutputChecker):
    """Takes one number of seconds for another where time passes."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        """Return whether *got* is what is wanted."""
        return super().check_output(PASSING.sub(r"\1…", want), PASSING.sub(r"\1…", got), optionflags)


class Served:
    """An application on a free port, in a thread."""

    def __init__(self, application: Any) -> None:
        self.application = application
        self._server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="error", ws="none"))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()), daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            assert self._thread.is_alive(), "the server ended"
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        """Return when the server has ended."""
        self._server.should_exit = True
        self._thread.join()


def run_by_pytest(file: str) -> None:
    """Run *file* by a pytest of its own."""
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "passed" in ran.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    """Each link to a page, and to a heading in it, leads there."""
    for target in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings of *page*."""
    titles = HEADING.findall(BLOCK.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_no_page_is_lost() -> None:
    """The index leads to each page."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= {*LINK.findall(index)}


def sections() -> dict[str, str]:
    """Return the sections of the reference by the names in backticks that head them."""
    parts = re.split(r"^###? (.+)$", (DOCS / "reference.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {
        name: text
        for title, text in zip(parts[1::2], parts[2::2], strict=True)
        for name in re.findall(r"`(\w+)`", title)
    }


def defined_in(module: ModuleType) -> list[str]:
    """Return the public names that *module* defines, aliases for annotations included."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (getattr(value, "__module__", None) == module.__name__ or get_origin(value) is Annotated)
        and not isinstance(value, ModuleType)
        and (callable(value) or get_origin(value) is Annotated)
    ]


PUBLIC = {
    **dict.fromkeys(app_cache.__all__, app_cache),
    **dict.fromkeys(containers.__all__, containers),
    **dict.fromkeys(defined_in(app_cache.fastapi), app_cache.fastapi),
    **dict.fromkeys(defined_in(app_cache.helpers), app_cache.helpers),
    **dict.fromkeys(("configure_logger", "unconfigure_logger", "logger"), app_cache.logger_config),
    **dict.fromkeys(app_cache.testing.__all__, app_cache.testing),
    **{kind.__name__: app_cache.backends.base for kind in VERBS},
    "capability": app_cache.backends.base,
    "CacheStatus": app_cache.rules.cache_status,
    **dict.fromkeys(app_cache.server.__all__, app_cache.server),
    **dict.fromkeys(("EXTENSION", "Offer"), app_cache.offers),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_reference_has_every_name(name: str) -> None:
    """Each public name has its section in the reference, and each of its parameters is named there."""
    text = sections()[name]
    subject = getattr(PUBLIC[name], name)
    if inspect.isfunction(subject) or (inspect.isclass(subject) and subject.__init__ is not object.__init__):
        missing = [each for each in parameters_of(subject) if not re.search(rf"\b{each}\b", text)]
        assert not missing


def parameters_of(subject: Callable[..., Any]) -> list[str]:
    """Return the names of the parameters that a caller of *subject* gives, or none if it tells none."""
    try:
        signature = inspect.signature(subject)
    except ValueError:
        return []
    return [
        name
        for name in signature.parameters
        if name not in ("args", "kwargs", "values", "endpoint", "options") and not name.startswith("_")
    ]


@pytest.mark.parametrize("page", ["reference.md", "guide.md"])
def test_every_option_of_a_policy(page: str) -> None:
    """Each option of `CachePolicy` is in the guide and in the reference."""
    text = (DOCS / page).read_text(encoding="utf-8")
    assert [each.name for each in fields(CachePolicy) if f"`{each.name}`" not in text] == []


def test_defaults_of_a_policy() -> None:
    """The reference states the default of each option as it is."""
    defaults = {each.name: repr(getattr(CachePolicy(), each.name)) for each in fields(CachePolicy)}
    assert dict(ROW.findall(sections()["CachePolicy"])) == defaults


def rows(text: str) -> dict[str, Any]:
    """Return the options and defaults of a table whose rows begin with both; None where words stand for it."""
    return {name: ast.literal_eval(value or "None") for name, value in ROW.findall(text)}


def test_every_option_of_redis() -> None:
    """The table of options of `RedisBackend` is whole, and its defaults are the ones that are used."""
    given = rows((DOCS / "backends.md").read_text(encoding="utf-8").split("## Memory")[0])
    signature = inspect.signature(RedisBackend.__init__).parameters
    own = {name: signature[name].default for name in signature if name not in ("self", "options", "url")}
    assert {*given} == {*own, *RULES, "url"}
    known: Mapping[str, Any] = {**DEFAULTS, **own, "url": REDIS_URL, "db": 0, "ssl_check_hostname": True}
    assert given == {name: known.get(name) for name in given}


NUMBERS = {
    "B, the budget": [OPERATION_TIMEOUT_S, LAST_LOOK_S * 1000],
    "the breaker opens": [OPENS_AFTER],
    "a write that waits": [PENDING_S, MAX_PENDING, MAX_PENDING_BYTES / 1024**2],
    "invalidations that are owed": [MAX_OWED, ScriptClock.most_names, TokenClock.most_names],
    "waiting for another's run": [FILL_TIMEOUT_S, FILL_TIMEOUT_S],
}


@pytest.mark.parametrize("word", NUMBERS)
def test_numbers_of_reliability(word: str) -> None:
    """What is reckoned with in the promises is what the code has."""
    (row,) = re.findall(rf"^\| {word} \| (.*)$", (DOCS / "reliability.md").read_text("utf-8"), re.MULTILINE)
    stated = [float(number.replace(",", "")) for number in re.findall(r"\d[\d.,]*\b", row)]
    assert stated == NUMBERS[word]


def test_every_variable() -> None:
    """Each variable that is read is documented."""
    text = (DOCS / "environments.md").read_text(encoding="utf-8")
    assert [name for name in CacheSettings.model_fields if f"`{name.upper()}`" not in text] == []


def test_every_word_of_cache_status() -> None:
    """Each reason that Cache-Status can give is explained."""
    text = (DOCS / "observability.md").read_text(encoding="utf-8")
    words = [*(f"fwd={each.value}" for each in Fwd), *(each.value for each in Refusal)]
    assert [word for word in words if f"`{word}`" not in text] == []


def test_every_event() -> None:
    """Each event that is logged is documented."""
    text = (DOCS / "observability.md").read_text(encoding="utf-8")
    sources = [*(ROOT / "app_cache").rglob("*.py"), *(ROOT / "containers").rglob("*.py")]
    events = {event for source in sources for event in EVENT.findall(source.read_text(encoding="utf-8"))}
    assert events
    assert [event for event in sorted(events) if f"`{event}`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_is_named(page: Path) -> None:
    """Each test that a page names as a proof exists."""
    named = {*TEST.findall(page.read_text(encoding="utf-8"))}
    assert [each for each in sorted(named) if each not in named_in(each.partition("::")[0])] == []


@functools.cache
def named_in(file: str) -> frozenset[str]:
    """Return the tests in *file*, as pytest names them without their parameters."""
    source = ROOT / file
    body = ast.parse(source.read_text(encoding="utf-8")).body if source.exists() else []
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    alone = [f"{file}::{each.name}" for each in body if isinstance(each, functions)]
    classes = [each for each in body if isinstance(each, ast.ClassDef)]
    inside = [
        f"{file}::{kind.name}::{each.name}"
        for kind in classes
        for each in kind.body
        if isinstance(each, functions)
    ]
    return frozenset([*alone, *inside])


def test_every_promise_is_proven() -> None:
    """Each row of promises names a test."""
    rows_of_promises = [
        row
        for page in ("reliability.md", "security.md")
        for row in PROMISE.findall((DOCS / page).read_text("utf-8"))
    ]
    assert len(rows_of_promises) > 60
    assert [row for row in rows_of_promises if not TEST.search(row)] == []


def test_libraries_are_imported_where_the_plan_says() -> None:
    """The plan of the house names each file that imports one of the libraries in its table."""
    text = (DOCS / "concepts.md").read_text(encoding="utf-8").partition("| library |")[2].partition("\n\n")[0]
    planned = dict(re.findall(r"^\| ([a-z_, ]+) \| (`.*`) \|$", text, re.MULTILINE))
    assert planned
    for libraries, files in planned.items():
        names = "|".join(libraries.split(", "))
        importing = {
            str(path.relative_to(ROOT)).removeprefix("app_cache/")
            for package in ("app_cache", "containers")
            for path in (ROOT / package).rglob("*.py")
            if re.search(rf"^ *(from|import) ({names})\b", path.read_text(encoding="utf-8"), re.MULTILINE)
        }
        assert {*re.findall(r"`([^`]+)`", files)} == importing, libraries


def test_every_module_has_its_place() -> None:
    """The plan of the house names each module."""
    house = (DOCS / "concepts.md").read_text(encoding="utf-8").partition("\n## The house\n")[2]
    text = house.partition("| library |")[0]
    modules = {path.stem for path in (ROOT / "app_cache").rglob("*.py")} - {"__init__"}
    assert [module for module in sorted(modules) if not re.search(rf"\b{module}\b", text)] == []
