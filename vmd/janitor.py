"""The other front door: a timer instead of a request."""

import asyncio

import structlog

from vmd.orchestrator.lifetime import Lifetimes

log = structlog.get_logger()


async def sweep_for_ever(lifetimes: Lifetimes, interval_seconds: float) -> None:
    """Sweep every `interval_seconds`; a sweep that fails is logged and the next one tries again."""
    while True:
        try:
            await lifetimes.sweep()
        except Exception:
            log.exception("a sweep failed")
        await asyncio.sleep(interval_seconds)
