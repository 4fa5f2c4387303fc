"""Operations over HTTP."""

from collections.abc import Callable
from contextlib import aclosing
from typing import Annotated

from aiohttp import web
from attrs import frozen
from msgspec import Meta

from vmd.http.openapi import docs, refuses, returns, takes
from vmd.http.streams import LOOK_SECONDS, Streams, has_left
from vmd.http.wire import (
    ACTOR,
    DEFAULT_LIMIT,
    Cursor,
    Limit,
    encode_json,
    read_cursor,
    read_query,
    respond,
    respond_page,
    write_or_abort,
)
from vmd.http.workspaces import NoQuery, accepted
from vmd.model.errors import ErrorCode
from vmd.model.operation import LogLine, Operation, OperationStatus, OperationType
from vmd.orchestrator.operations import Operations
from vmd.store.operations import OperationFilter

_TAGS = ["operations"]


@frozen(kw_only=True)
class OperationPage:
    """Operations, newest first."""

    items: tuple[Operation, ...]
    next_cursor: str | None


@frozen(kw_only=True)
class OperationsQuery:
    """The query of the list."""

    limit: Limit = DEFAULT_LIMIT
    cursor: Cursor | None = None
    workspace_id: tuple[str, ...] = ()
    type: tuple[OperationType, ...] = ()
    status: tuple[OperationStatus, ...] = ()
    actor: str | None = None


@frozen(kw_only=True)
class WaitQuery:
    """The query of a wait."""

    timeout: Annotated[float, Meta(ge=0, le=600, description="seconds")] = 30.0


@frozen(kw_only=True)
class LogsQuery:
    """The query of the log."""

    after: Annotated[int, Meta(ge=0, description="the `seq` of the last line that is known")] = 0
    follow: Annotated[bool, Meta(description="stay open until the operation is final")] = False


class OperationHandlers:
    """The handlers of `/operations`."""

    def __init__(self, operations: Operations, streams: Streams, is_closing: Callable[[], bool]) -> None:
        self._operations = operations
        self._streams = streams
        self._is_closing = is_closing

    def routes(self) -> list[web.RouteDef]:
        """Return the routes below the base path."""
        return [
            web.get("/operations", self.list, allow_head=False),
            web.get("/operations/{id}", self.get, allow_head=False),
            web.get("/operations/{id}/wait", self.wait, allow_head=False),
            web.get("/operations/{id}/logs", self.logs, allow_head=False),
            web.delete("/operations/{id}", self.cancel),
        ]

    @docs(tags=_TAGS, summary="List operations")
    @takes(query=OperationsQuery)
    @returns(200, OperationPage, "A page, newest first.")
    async def list(self, request: web.Request) -> web.Response:
        """Return a page of operations."""
        query = read_query(request, OperationsQuery)
        wanted = OperationFilter(
            owner_id=None,
            workspace_ids=query.workspace_id or None,
            types=query.type or None,
            statuses=query.status or None,
            actor=query.actor,
        )
        after = read_cursor(query.cursor, "op")
        page = await self._operations.list(request[ACTOR], wanted, after, query.limit)
        return respond_page(page.items, page)

    @docs(tags=_TAGS, summary="Get an operation")
    @takes(query=NoQuery)
    @returns(200, Operation, "The operation.")
    async def get(self, request: web.Request) -> web.Response:
        """Return one operation."""
        read_query(request, NoQuery)
        return respond(await self._operations.get(request[ACTOR], request.match_info["id"]))

    @docs(tags=_TAGS, summary="Wait for an operation")
    @takes(query=WaitQuery)
    @returns(200, Operation, "The operation when it is final, or at the timeout as it stands.")
    async def wait(self, request: web.Request) -> web.Response:
        """Return the operation when it is final, or at the timeout."""
        remaining = read_query(request, WaitQuery).timeout
        while True:
            slice_seconds = min(remaining, LOOK_SECONDS)
            operation = await self._operations.wait(request[ACTOR], request.match_info["id"], slice_seconds)
            remaining -= slice_seconds
            if operation.is_final or remaining <= 0 or has_left(request) or self._is_closing():
                return respond(operation)

    @docs(tags=_TAGS, summary="Read an operation's log", description="One JSON object a line.")
    @takes(query=LogsQuery)
    @returns(200, LogLine, "The lines after `after`.", content_type="application/x-ndjson")
    async def logs(self, request: web.Request) -> web.StreamResponse:
        """Stream an operation's log."""
        query = read_query(request, LogsQuery)
        actor, operation_id = request[ACTOR], request.match_info["id"]
        await self._operations.get(actor, operation_id)
        batches = self._operations.logs(actor, operation_id, query.after, follow=query.follow)
        async with self._streams.open(request, "application/x-ndjson") as response, aclosing(batches):
            async for lines in batches:
                chunk = b"".join(encode_json(line) + b"\n" for line in lines)
                await write_or_abort(request, response, chunk)
        return response

    @docs(tags=_TAGS, summary="Cancel an operation")
    @takes(query=NoQuery)
    @returns(202, Operation, "It is being cancelled.", headers=("Location",))
    @refuses(ErrorCode.INVALID_STATE)
    async def cancel(self, request: web.Request) -> web.Response:
        """Record that an operation is to be cancelled."""
        read_query(request, NoQuery)
        operation = await self._operations.cancel(request[ACTOR], request.match_info["id"])
        return accepted(operation)
