"""Is uvicorn as the protocol knows it: its version is one that was tried, and it has what is relied upon."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from importlib.metadata import version

OLDEST, NEWEST = (0, 34), (0, 54)
"""The first and the last version of uvicorn that the tests of the protocol ran with."""
IMPLEMENTATION = "uvicorn.protocols.http.httptools_impl"
METHODS = (
    "connection_made",
    "data_received",
    "timeout_keep_alive_handler",
    "_unset_keepalive_if_required",
)
ATTRIBUTES = frozenset(
    {
        *("access_log", "access_logger", "app", "client", "connections", "cycle", "flow", "headers"),
        *("limit_concurrency", "loop", "parser", "scheme", "scope", "server_state", "tasks", "timeout_keep_alive"),
        *("timeout_keep_alive_task", "transport"),
    }
)
OF_A_CYCLE = frozenset({"more_body", "on_response", "response_complete", "scope"})


def why_not() -> str | None:
    """Return why the protocol cannot stand on the uvicorn that is installed, or None."""
    return why_not_version(version("uvicorn")) or _why_not_parts()


def why_not_version(installed: str) -> str | None:
    """Return why *installed*, a version of uvicorn, is not known, or None."""
    numbers = tuple(int(each) for each in re.findall(r"\d+", installed)[:2])
    if OLDEST <= numbers <= NEWEST:
        return None
    oldest, newest = (".".join(map(str, each)) for each in (OLDEST, NEWEST))
    return f"uvicorn {installed} is not one of {oldest} to {newest}"


def _why_not_parts() -> str | None:
    try:
        known = import_module(IMPLEMENTATION)
    except ImportError as error:
        return f"{error.name} is not installed"
    protocol = getattr(known, "HttpToolsProtocol", None)
    cycle = getattr(known, "RequestResponseCycle", None)
    missing = sorted(
        {each for each in METHODS if not inspect.isfunction(getattr(protocol, "__dict__", {}).get(each))}
        | (ATTRIBUTES - _set_by(protocol))
        | (OF_A_CYCLE - _set_by(cycle))
    )
    return f"uvicorn has no {', '.join(missing)} in its httptools protocol" if missing else None


def _set_by(kind: type | None) -> frozenset[str]:
    """Return the names that the constructor of *kind* uses, those of the attributes that it sets among them."""
    code = getattr(getattr(kind, "__init__", None), "__code__", None)
    return frozenset() if code is None else frozenset(code.co_names)
