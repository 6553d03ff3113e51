"""A request is learned only if its bytes say one thing, and the server has read just that."""

from __future__ import annotations

import pytest

from app_cache.server.heads import closes_after, fields_in
from tests.server.rig import get


@pytest.mark.parametrize(
    ("head", "closes"),
    [
        pytest.param(get("/"), False, id="plain"),
        pytest.param(get("/", "Connection: close"), True, id="close"),
        pytest.param(get("/", "Connection: Keep-Alive"), False, id="keep-alive"),
        pytest.param(get("/", version="1.0"), None, id="HTTP/1.0"),
        pytest.param(get("/", "Connection: CLOSE"), None, id="close in capitals"),
        pytest.param(get("/", "X-Empty:"), False, id="empty field"),
        pytest.param(get("/", "X-Latin: é"), False, id="bytes that are no ASCII"),
        pytest.param(get("/", host=""), None, id="no host"),
        pytest.param(get("/", "Host: test"), None, id="two hosts"),
        pytest.param(get("/", "RANGE: bytes=0-3"), None, id="range"),
        pytest.param(get("/", "X-Forwarded-Prefix: /a"), None, id="of a proxy"),
        pytest.param(get("/", "Host:", host=""), None, id="empty host"),
        pytest.param(get("/", " folded: 1"), None, id="folded line"),
        pytest.param(get("/", "Content-Length : 5"), None, id="blank before the colon"),
        pytest.param(get("/", "X-A: 1\nContent-Length: 5"), None, id="line feed alone"),
        pytest.param(get("/", "X-A: 1\rContent-Length: 5"), None, id="carriage return alone"),
        pytest.param(get("/", "X-A: \x00"), None, id="NUL"),
        pytest.param(get("/", "no field"), None, id="no field"),
        pytest.param(b"GET / HTTP/1.1\nHost: a\n\n" + get("/"), None, id="two, by line feeds"),
    ],
)
def test_what_a_head_says(head: bytes, *, closes: bool | None) -> None:
    """A head is read as strictly as can be: what a lenient parser could read otherwise is not learned."""
    assert closes_after(head, fields_in(head) or ()) is closes


@pytest.mark.parametrize(
    "read",
    [
        pytest.param([], id="none"),
        pytest.param([(b"host", b"test")], id="fewer"),
        pytest.param([(b"host", b"test"), (b"x-a", b"1"), (b"x-b", b"2")], id="more"),
        pytest.param([(b"x-a", b"1"), (b"host", b"test")], id="in another order"),
        pytest.param([(b"host", b"test"), (b"x-a", b"2")], id="another value"),
    ],
)
def test_what_the_server_read(read: list[tuple[bytes, bytes]]) -> None:
    """A chunk that is not what the server has read is no request that could be learned."""
    head = get("/", "X-A:  1 ")
    assert closes_after(head, [(b"host", b"test"), (b"x-a", b"1 ")]) is False
    assert closes_after(head, read) is None
