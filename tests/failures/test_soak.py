"""Everything at once, for as long as a suite may take; `make soak` is the same for minutes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.failures.soak import RATE, soak

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 35
SEED = 7


@pytest.mark.anyio
async def test_soak(tmp_path: Path) -> None:
    """While everything breaks, no answer is an error or older than what was known, and all is calm at the end."""
    report = await soak(tmp_path, SECONDS, SEED)
    assert report.wrong == []
    assert report.opened > 0
    assert report.asked.total() > SECONDS * RATE / 2
