"""Answers that stay open: they end when their reader leaves, and when the daemon goes away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

LOOK_SECONDS = 5.0  # how often it is looked whether a reader is still there


class Streams:
    """All answers that are being streamed."""

    def __init__(self) -> None:
        self._open: dict[asyncio.Task[Any], web.Request] = {}
        self._looking: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def open(
        self, request: web.Request, content_type: str, **headers: str
    ) -> AsyncIterator[web.StreamResponse]:
        """Begin an answer, for as long as the block takes; it is cancelled when nobody waits for it."""
        task = asyncio.current_task()
        assert task is not None
        response = web.StreamResponse(headers={"Content-Type": content_type, **headers})
        await response.prepare(request)
        self._open[task] = request
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        try:
            yield response
            await response.write_eof()
        finally:
            del self._open[task]

    async def _look(self) -> None:
        while self._open:
            await asyncio.sleep(LOOK_SECONDS)
            for task, request in tuple(self._open.items()):
                if has_left(request):
                    task.cancel()
        self._looking = None

    async def close_all(self) -> None:
        """End all, since the daemon goes away."""
        if self._looking is not None:
            self._looking.cancel()
        for task in tuple(self._open):
            task.cancel()


def has_left(request: web.Request) -> bool:
    """Whether nobody waits for the answer any more."""
    return request.transport is None or request.transport.is_closing()
