"""Tasks of asyncio that were begun beside others, and their end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

ENDS_WITHIN_S = 1.0
"""Seconds in which what is cancelled ends, if a backend lets it."""


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel those of *tasks* that live in the running loop, and return when they have ended, or soon."""
    loop = asyncio.get_running_loop()
    own = [task for task in tasks if task.get_loop() is loop]
    for task in own:
        task.cancel()
    ended, _ = await asyncio.wait(own, timeout=ENDS_WITHIN_S) if own else ((), ())
    for task in ended:
        _ = task.cancelled() or task.exception()
