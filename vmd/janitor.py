"""The other front door: a timer instead of a request."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

log = structlog.get_logger()


async def sweep_for_ever(sweeps: Sequence[Callable[[], Awaitable[None]]], interval_seconds: float) -> None:
    """Make all sweeps, in order, every `interval_seconds`; one that fails is logged and tried again."""
    while True:
        for sweep in sweeps:
            try:
                await sweep()
            except Exception:
                log.exception("a sweep failed")
        await asyncio.sleep(interval_seconds)
