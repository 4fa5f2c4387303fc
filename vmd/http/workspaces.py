"""Workspaces over HTTP."""

from typing import Annotated

from aiohttp import web
from attrs import fields, frozen
from msgspec import Meta

from vmd.http.openapi import docs, refuses, returns, takes
from vmd.http.wire import (
    ACTOR,
    DEFAULT_LIMIT,
    Cursor,
    Limit,
    malformed,
    read_body,
    read_cursor,
    read_if_match,
    read_once,
    read_query,
    respond,
    respond_page,
)
from vmd.http.workspace_view import PlannedWorkspace, WorkspacePage, WorkspaceStats, WorkspaceView, view
from vmd.model.errors import ErrorCode
from vmd.model.operation import Operation, OperationStatus
from vmd.model.workspace import (
    Action,
    ActionRequest,
    NewWorkspace,
    Status,
    Workspace,
    WorkspacePatch,
)
from vmd.orchestrator.lifetime import Lifetime, Lifetimes
from vmd.orchestrator.workspaces import Workspaces
from vmd.store.workspaces import WorkspaceFilter

_TAGS = ["workspaces"]
IF_MATCH = {
    "in": "header",
    "name": "If-Match",
    "description": "The ETag that the change is meant for.",
    "schema": {"type": "string", "pattern": '^(\\*|"[0-9]{1,18}")$'},
}
IF_NONE_MATCH = {
    "in": "header",
    "name": "If-None-Match",
    "description": "The ETag that the caller has already.",
    "schema": {"type": "string"},
}
IDEMPOTENCY_KEY = {
    "in": "header",
    "name": "Idempotency-Key",
    "description": "A repeat with the same key within 24 hours gets the first answer back.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}
_CREATE_CODES = (
    ErrorCode.QUOTA_EXCEEDED,
    ErrorCode.NAME_TAKEN,
    ErrorCode.VALIDATION_FAILED,
    ErrorCode.IDEMPOTENCY_MISMATCH,
)
_ACTION_CODES = (
    ErrorCode.QUOTA_EXCEEDED,
    ErrorCode.INVALID_STATE,
    ErrorCode.OPERATION_IN_PROGRESS,
    ErrorCode.VALIDATION_FAILED,
    ErrorCode.IDEMPOTENCY_MISMATCH,
)


@frozen(kw_only=True)
class CreateQuery:
    """The query of a create."""

    dry_run: Annotated[bool, Meta(description="answer with the workspace as it would be")] = False


@frozen(kw_only=True)
class WorkspacesQuery:
    """The query of the list."""

    limit: Limit = DEFAULT_LIMIT
    cursor: Cursor | None = None
    status: tuple[Status, ...] = ()
    template: tuple[str, ...] = ()
    provider: tuple[str, ...] = ()
    label: Annotated[tuple[str, ...], Meta(description="key=value, or key")] = ()
    name: str | None = None
    owner: Annotated[str, Meta(description="admins: a user's name, or * for all")] | None = None


@frozen(kw_only=True)
class DeleteQuery:
    """The query of a delete."""

    force: Annotated[bool, Meta(description="forget what cannot be destroyed")] = False
    keep_snapshots: Annotated[bool, Meta(description="let its snapshots that are ready outlive it")] = False


@frozen(kw_only=True)
class NoQuery:
    """No parameters."""


class WorkspaceHandlers:
    """The handlers of `/workspaces`."""

    def __init__(self, workspaces: Workspaces, lifetimes: Lifetimes) -> None:
        self._workspaces = workspaces
        self._lifetimes = lifetimes

    def routes(self) -> list[web.RouteDef]:
        """Return the routes below the base path."""
        return [
            web.post("/workspaces", self.create),
            web.get("/workspaces", self.list, allow_head=False),
            web.get("/workspaces/{id}", self.get, allow_head=False),
            web.patch("/workspaces/{id}", self.patch),
            web.delete("/workspaces/{id}", self.delete),
            web.post("/workspaces/{id}/actions/start", self.start),
            web.post("/workspaces/{id}/actions/stop", self.stop),
            web.post("/workspaces/{id}/actions/restart", self.restart),
            web.post("/workspaces/{id}/actions/rebuild", self.rebuild),
            web.post("/workspaces/{id}/actions/undelete", self.undelete),
            web.get("/workspaces/{id}/lifetime", self.lifetime, allow_head=False),
            web.get("/workspaces/{id}/stats", self.stats, allow_head=False),
        ]

    @docs(tags=_TAGS, summary="Make a workspace", parameters=[IDEMPOTENCY_KEY])
    @takes(body=NewWorkspace, query=CreateQuery, is_body_required=False)
    @returns(
        202, Operation, "The workspace and the operation that makes it are recorded.", headers=("Location",)
    )
    @returns(200, PlannedWorkspace, "With `dry_run`: the workspace as it would be; nothing is made.")
    @refuses(*_CREATE_CODES)
    async def create(self, request: web.Request) -> web.Response:
        """Plan or record a workspace."""
        query = read_query(request, CreateQuery)
        wanted = await read_body(request, NewWorkspace)
        once = await read_once(request)
        if query.dry_run:
            plan = await self._workspaces.plan(request[ACTOR], wanted)
            more = {"quota": plan.quota, "is_detecting": plan.workspace.is_detecting}
            return respond(view(plan.workspace) | more)
        return accepted(await self._workspaces.create(request[ACTOR], wanted, once))

    @docs(tags=_TAGS, summary="List workspaces")
    @takes(query=WorkspacesQuery)
    @returns(200, WorkspacePage, "A page, newest first.")
    @refuses(ErrorCode.NOT_FOUND)
    async def list(self, request: web.Request) -> web.Response:
        """Return a page of workspaces."""
        query = read_query(request, WorkspacesQuery)
        wanted = WorkspaceFilter(
            owner_id=None,
            name=query.name,
            statuses=query.status or None,
            templates=query.template or None,
            providers=query.provider or None,
            labels=tuple(_label(label) for label in query.label),
        )
        after = read_cursor(query.cursor, "ws")
        page = await self._workspaces.list(request[ACTOR], wanted, query.owner, after, query.limit)
        return respond_page(tuple(view(workspace) for workspace in page.items), page)

    @docs(tags=_TAGS, summary="Get a workspace", parameters=[IF_NONE_MATCH])
    @takes(query=NoQuery)
    @returns(200, WorkspaceView, "The workspace.", headers=("ETag",))
    @returns(304, None, "The caller has this version already.", headers=("ETag",))
    async def get(self, request: web.Request) -> web.Response:
        """Return one workspace."""
        read_query(request, NoQuery)
        workspace = await self._workspaces.get(request[ACTOR], request.match_info["id"])
        etag = _etag(workspace)
        known = [text.strip() for text in request.headers.get("If-None-Match", "").split(",")]
        if etag in known or f"W/{etag}" in known or "*" in known:
            return web.Response(status=304, headers={"ETag": etag})
        return respond(view(workspace), headers={"ETag": etag})

    @docs(
        tags=_TAGS,
        summary="Change a workspace",
        description="A JSON merge patch (RFC 7396). A new `ttl_seconds` counts from now.",
        parameters=[IF_MATCH],
    )
    @takes(body=WorkspacePatch, query=NoQuery)
    @returns(200, WorkspaceView, "The changed workspace.", headers=("ETag",))
    @refuses(ErrorCode.NAME_TAKEN, ErrorCode.VERSION_MISMATCH, ErrorCode.VALIDATION_FAILED)
    async def patch(self, request: web.Request) -> web.Response:
        """Change what may be changed in any status."""
        read_query(request, NoQuery)
        patch = await read_body(request, WorkspacePatch)
        workspace = await self._workspaces.patch(
            request[ACTOR], request.match_info["id"], patch, read_if_match(request)
        )
        return respond(view(workspace), headers={"ETag": _etag(workspace)})

    @docs(
        tags=_TAGS,
        summary="Destroy a workspace",
        description="Valid in every status; takes the workspace from a running operation.",
        parameters=[IF_MATCH],
    )
    @takes(query=DeleteQuery)
    @returns(202, Operation, "The deletion is recorded.", headers=("Location",))
    @refuses(ErrorCode.VERSION_MISMATCH)
    async def delete(self, request: web.Request) -> web.Response:
        """Record the destruction of a workspace."""
        query = read_query(request, DeleteQuery)
        operation = await self._workspaces.delete(
            request[ACTOR],
            request.match_info["id"],
            force=query.force,
            keep_snapshots=query.keep_snapshots,
            version=read_if_match(request),
        )
        return accepted(operation)

    @docs(tags=_TAGS, summary="Start a workspace", parameters=[IDEMPOTENCY_KEY])
    @takes(body=ActionRequest, query=NoQuery, is_body_required=False)
    @returns(202, Operation, "The action is recorded.", headers=("Location",))
    @returns(200, Operation, "It is running already.", headers=("Location",))
    @refuses(*_ACTION_CODES)
    async def start(self, request: web.Request) -> web.Response:
        """Record a start."""
        return await self._act(request, Action.START)

    @docs(tags=_TAGS, summary="Stop a workspace", parameters=[IDEMPOTENCY_KEY])
    @takes(body=ActionRequest, query=NoQuery, is_body_required=False)
    @returns(202, Operation, "The action is recorded.", headers=("Location",))
    @returns(200, Operation, "It is stopped already.", headers=("Location",))
    @refuses(*_ACTION_CODES)
    async def stop(self, request: web.Request) -> web.Response:
        """Record a stop."""
        return await self._act(request, Action.STOP)

    @docs(tags=_TAGS, summary="Restart a workspace", parameters=[IDEMPOTENCY_KEY])
    @takes(body=ActionRequest, query=NoQuery, is_body_required=False)
    @returns(202, Operation, "The action is recorded.", headers=("Location",))
    @refuses(*_ACTION_CODES)
    async def restart(self, request: web.Request) -> web.Response:
        """Record a restart."""
        return await self._act(request, Action.RESTART)

    @docs(
        tags=_TAGS,
        summary="Rebuild a workspace",
        description="Makes the machine anew from its template, keeps the files, runs provisioning again.",
        parameters=[IDEMPOTENCY_KEY],
    )
    @takes(body=ActionRequest, query=NoQuery, is_body_required=False)
    @returns(202, Operation, "The action is recorded.", headers=("Location",))
    @refuses(*_ACTION_CODES)
    async def rebuild(self, request: web.Request) -> web.Response:
        """Record a rebuild."""
        return await self._act(request, Action.REBUILD)

    @docs(tags=_TAGS, summary="Take a workspace out of trash", parameters=[IDEMPOTENCY_KEY])
    @takes(body=ActionRequest, query=NoQuery, is_body_required=False)
    @returns(202, Operation, "It is out of trash.", headers=("Location",))
    @returns(200, Operation, "It is stopped, and not in trash.", headers=("Location",))
    @refuses(*_ACTION_CODES)
    async def undelete(self, request: web.Request) -> web.Response:
        """Take a workspace out of trash."""
        return await self._act(request, Action.UNDELETE)

    @docs(tags=_TAGS, summary="Explain a workspace's clocks")
    @takes(query=NoQuery)
    @returns(200, Lifetime, "Which clock fires next and when, what counts as activity, which fired last.")
    async def lifetime(self, request: web.Request) -> web.Response:
        """Return the clocks of a workspace."""
        read_query(request, NoQuery)
        return respond(await self._lifetimes.get(request[ACTOR], request.match_info["id"]))

    @docs(tags=_TAGS, summary="Measure a workspace")
    @takes(query=NoQuery)
    @returns(200, WorkspaceStats, "What the running machine uses now.")
    @refuses(ErrorCode.INVALID_STATE, ErrorCode.PROVIDER_ERROR, ErrorCode.PROVIDER_UNAVAILABLE)
    async def stats(self, request: web.Request) -> web.Response:
        """Return what a running machine uses."""
        read_query(request, NoQuery)
        time, stats = await self._workspaces.stats(request[ACTOR], request.match_info["id"])
        parts = {part.name: getattr(stats, part.name) for part in fields(type(stats))}
        return respond(WorkspaceStats(time=time, **parts))

    async def _act(self, request: web.Request, action: Action) -> web.Response:
        read_query(request, NoQuery)
        wanted = await read_body(request, ActionRequest)
        once = await read_once(request)
        return accepted(
            await self._workspaces.act(request[ACTOR], request.match_info["id"], action, wanted, once)
        )


def accepted(operation: Operation) -> web.Response:
    """Return 202 for work that was recorded, 200 for an action that was satisfied already."""
    nothing_to_do = operation.status is OperationStatus.SUCCEEDED and operation.result == {"changed": False}
    headers = {"Location": f"/api/v1/operations/{operation.id}"}
    return respond(operation, 200 if nothing_to_do else 202, headers)


def _etag(workspace: Workspace) -> str:
    return f'"{workspace.version}"'


def _label(text: str) -> tuple[str, str | None]:
    key, equals, value = text.partition("=")
    if not key:
        raise malformed("A label filter is key=value, or key for any value.")
    return key, value if equals else None
