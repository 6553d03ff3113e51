"""Everything at once, for as long as a suite may take; `make soak` is the same for minutes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.failures.soak import AWAY, RATE, soak

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 40
SEED = 7
ENOUGH = 50
"""Answers that tell whether a server is left alone."""


@pytest.mark.anyio
async def test_soak(tmp_path: Path) -> None:
    """While everything breaks, answers are right and in time, and all is calm at the end."""
    report = await soak(tmp_path, SECONDS, SEED)
    assert report.wrong == []
    assert min(len(report.took[trouble]) for trouble in AWAY) >= ENOUGH
    assert report.opened > 0
    assert report.asked.total() > SECONDS * RATE / 2
