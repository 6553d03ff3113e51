"""Cache-Status is written as RFC 9211 has it."""

from __future__ import annotations

import re

import pytest

from app_cache.rules.cache_status import CacheStatus, ttl_of
from app_cache.rules.decisions import Fwd, Refusal

REGISTERED = {"bypass", "method", "uri-miss", "vary-miss", "miss", "request", "stale", "partial"}
"""What fwd may be (RFC 9211 §2.2)."""
TOKEN = re.compile(r"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*")
"""A token of structured fields (RFC 8941 §3.3.4)."""


@pytest.mark.parametrize(
    ("status", "written", "outcome"),
    [
        pytest.param(CacheStatus(), "app-cache", "none", id="nothing"),
        pytest.param(CacheStatus(hit=True), "app-cache; hit", "hit", id="hit"),
        pytest.param(CacheStatus(hit=True, ttl=376), "app-cache; hit; ttl=376", "hit", id="fresh"),
        pytest.param(CacheStatus(hit=True, ttl=0), "app-cache; hit; ttl=0", "hit", id="at the edge"),
        pytest.param(CacheStatus(hit=True, ttl=-412), "app-cache; hit; ttl=-412", "hit-stale", id="stale"),
        pytest.param(CacheStatus(fwd=Fwd.URI_MISS), "app-cache; fwd=uri-miss", "uri-miss", id="miss"),
        pytest.param(
            CacheStatus(fwd=Fwd.VARY_MISS, stored=True),
            "app-cache; fwd=vary-miss; stored",
            "vary-miss",
            id="stored",
        ),
        pytest.param(
            CacheStatus(fwd=Fwd.URI_MISS, collapsed=True),
            "app-cache; fwd=uri-miss; collapsed",
            "collapsed",
            id="collapsed",
        ),
        pytest.param(
            CacheStatus(fwd=Fwd.BYPASS, detail=Refusal.COOKIE),
            "app-cache; fwd=bypass; detail=cookie",
            "bypass",
            id="detail",
        ),
        pytest.param(
            CacheStatus(fwd=Fwd.STALE, ttl=9, stored=True, collapsed=True, detail=Refusal.STATUS),
            "app-cache; fwd=stale; ttl=9; stored; collapsed; detail=status",
            "collapsed",
            id="all",
        ),
    ],
)
def test_written(status: CacheStatus, written: str, outcome: str) -> None:
    """What happened is one member with its parameters, and one word for metrics."""
    assert str(status) == written
    assert status.outcome == outcome


@pytest.mark.parametrize(
    ("left", "ttl"),
    [(60.0, 60), (59.9, 59), (1.0, 1), (0.1, 0), (0.0, -1), (-0.1, -1), (-1.0, -1), (-1.1, -2), (-60.0, -60)],
)
def test_ttl(left: float, ttl: int) -> None:
    """One that is fresh for less than a second has 0, and one that is stale a negative number."""
    assert ttl_of(left) == ttl


@pytest.mark.parametrize("fwd", Fwd)
def test_fwd(fwd: Fwd) -> None:
    """Every reason to forward is one that RFC 9211 §2.2 defines."""
    assert fwd.value in REGISTERED


@pytest.mark.parametrize("detail", Refusal)
def test_detail(detail: Refusal) -> None:
    """Every reason to refuse is a token, and so stands in Cache-Status as it is."""
    assert TOKEN.fullmatch(detail.value)
    assert str(CacheStatus(detail=detail)) == f"app-cache; detail={detail.value}"
