"""Where uvicorn is not as the protocol knows it, it says so once, and uvicorn serves as ever."""

from __future__ import annotations

import subprocess
import sys

import pytest
import uvicorn
from uvicorn.config import Config
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

import app_cache.server
from app_cache.server.fitness import ATTRIBUTES, METHODS, why_not, why_not_version
from app_cache.server.protocol import CacheProtocol


def python(code: str) -> str:
    """Return what a new interpreter prints that runs *code*."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_known() -> None:
    """The uvicorn that is installed is known."""
    assert why_not() is None
    assert app_cache.server.CacheProtocol is CacheProtocol


def test_by_its_name() -> None:
    """The server finds the class by the string that the documentation gives."""
    config = Config("main:app", http="app_cache.server:CacheProtocol")
    loaded = uvicorn.importer.import_from_string(config.http)
    assert loaded is CacheProtocol


@pytest.mark.parametrize(
    ("version", "known"),
    [
        pytest.param("0.34.0", True, id="oldest"),
        pytest.param("0.54.0", True, id="newest"),
        pytest.param("0.54.9.post1", True, id="a later patch"),
        pytest.param("0.33.9", False, id="older"),
        pytest.param("0.55.0", False, id="newer"),
        pytest.param("1.0.0", False, id="much newer"),
        pytest.param("unknown", False, id="no number"),
    ],
)
def test_versions(version: str, *, known: bool) -> None:
    """Versions that were tried are known, others are named."""
    assert why_not_version(version) == (None if known else f"uvicorn {version} is not one of 0.34 to 0.54")


@pytest.mark.parametrize("method", METHODS)
def test_method_that_is_missing(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """A method that is relied upon and not there is named."""
    monkeypatch.delattr(HttpToolsProtocol, method)
    assert why_not() == f"uvicorn has no {method} in its httptools protocol"


@pytest.mark.parametrize("attribute", sorted(ATTRIBUTES))
def test_attribute_that_is_missing(monkeypatch: pytest.MonkeyPatch, attribute: str) -> None:
    """So is an attribute."""
    code = HttpToolsProtocol.__init__.__code__
    names = tuple(f"{name}_renamed" if name == attribute else name for name in code.co_names)
    monkeypatch.setattr(HttpToolsProtocol.__init__, "__code__", code.replace(co_names=names))
    assert why_not() == f"uvicorn has no {attribute} in its httptools protocol"


@pytest.mark.parametrize("name", ["HttpToolsProtocol", "RequestResponseCycle"])
def test_class_that_is_missing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """And what is missing with a class."""
    monkeypatch.delattr(httptools_impl, name)
    assert str(why_not()).startswith("uvicorn has no ")


def test_attributes_are_those_that_are_used() -> None:
    """What is checked are the attributes of uvicorn that the protocol uses, all of them."""
    functions = [each for each in vars(CacheProtocol).values() if hasattr(each, "__code__")]
    used = {name for each in functions for name in each.__code__.co_names}
    inherited = {*HttpToolsProtocol.__init__.__code__.co_names} | {*METHODS}
    assert used & inherited - {*METHODS} - {"AttributeError", "config", "dict"} == {*ATTRIBUTES}


def test_without_httptools() -> None:
    """Without httptools it is uvicorn's own class, by the name as well, and the log says why, once."""
    said = python(
        "import sys; sys.modules['httptools'] = None\n"
        "import app_cache.server as first\n"
        "from app_cache.server import CacheProtocol\n"
        "print(CacheProtocol.__module__, CacheProtocol.__name__)\n"
    )
    assert said.splitlines()[-1] == "uvicorn.protocols.http.h11_impl H11Protocol"


def test_it_is_said_once() -> None:
    """The log has one line about it."""
    said = python(
        "import sys; sys.modules['httptools'] = None\n"
        "from app_cache.logger_config import configure_logger\n"
        "configure_logger(file='/dev/stdout', json=True)\n"
        "import app_cache.server, importlib\n"
        "from app_cache.server import CacheProtocol\n"
    )
    assert said.count("cache.server_unknown") == 1
    assert "httptools is not installed" in said


def test_uvicorn_is_optional() -> None:
    """The cache itself imports neither uvicorn nor httptools."""
    said = python(
        "import sys, app_cache, app_cache.fastapi, app_cache.helpers, containers\n"
        "print([name for name in ('uvicorn', 'httptools') if name in sys.modules])"
    )
    assert said == "[]"
