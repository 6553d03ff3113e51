"""Requests as a browser makes them, as scopes and as bytes."""

from __future__ import annotations

from typing import Any

FIELDS = {
    "Host": "shop.example",
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept": "text/html,application/xhtml+xml,application/json;q=0.9,*/*;q=0.8",
    "Accept-Language": "en-GB,en;q=0.7,de;q=0.3",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Referer": "https://shop.example/items",
    "Sec-Fetch-Dest": "empty",
    "Sec-Fetch-Mode": "cors",
    "Sec-Fetch-Site": "same-origin",
    "Sec-GPC": "1",
    "DNT": "1",
    "Priority": "u=4",
}
"""Twelve fields."""


def scope(path: str, query: str = "", **more: str) -> dict[str, Any]:
    """Return the scope of a GET, of objects of its own as a server makes it: no hash is known yet."""
    fields = {**FIELDS, **{name.replace("_", "-"): value for name, value in more.items()}}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "".join(["/", path[1:]]),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in fields.items()],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8_000),
    }


def message(path: str) -> bytes:
    """Return the GET of *path* as it is on the wire."""
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in FIELDS.items())]
    return "\r\n".join([*lines, "", ""]).encode()
