"""Presets for a repository over HTTP."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from aiohttp import web

from vmd.http.openapi import docs, refuses, returns, takes
from vmd.http.streams import has_left
from vmd.http.wire import ACTOR, read_body, read_once, read_query, respond
from vmd.http.workspaces import IDEMPOTENCY_KEY, NoQuery
from vmd.model.errors import ErrorCode
from vmd.model.preset import Detected, DetectRequest
from vmd.orchestrator.probing import Probes

T = TypeVar("T")

LOOK_SECONDS = 1.0  # how often it is looked whether the caller is still there


class DetectionHandlers:
    """The handler of `/templates/detect`."""

    def __init__(self, probes: Probes) -> None:
        self._probes = probes

    def routes(self) -> list[web.RouteDef]:
        """Return the routes below the base path."""
        return [web.post("/templates/detect", self.detect)]

    @docs(
        tags=["templates"],
        summary="Find the presets that fit a repository",
        description="Clones the repository, without its files, into a machine that is taken away again. "
        "The presets come best first, each with the files that say so; the first is what a workspace gets "
        "whose request names the repository and no template.",
        parameters=[IDEMPOTENCY_KEY],
    )
    @takes(body=DetectRequest, query=NoQuery)
    @returns(200, Detected, "The presets, best first; none where nothing that is known was found.")
    @refuses(
        ErrorCode.VALIDATION_FAILED,
        ErrorCode.IDEMPOTENCY_MISMATCH,
        ErrorCode.PROVIDER_ERROR,
        ErrorCode.PROVIDER_UNAVAILABLE,
    )
    async def detect(self, request: web.Request) -> web.Response:
        """Return the presets for a repository."""
        read_query(request, NoQuery)
        wanted = await read_body(request, DetectRequest)
        once = await read_once(request)
        return respond(await _while_waited_for(request, self._probes.detect(request[ACTOR], wanted, once)))


async def _while_waited_for(request: web.Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what the work returns; cancel it when its caller has left, or is turned away."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=LOOK_SECONDS)
            if has_left(request):
                raise ConnectionResetError
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
