"""Snapshots over HTTP."""

import asyncio
import hashlib
from contextlib import aclosing
from datetime import datetime

from aiohttp import StreamReader, web
from attrs import fields, frozen

from vmd.http.openapi import docs, refuses, returns, takes
from vmd.http.streams import Streams
from vmd.http.wire import (
    ACTOR,
    DEFAULT_LIMIT,
    Cursor,
    Limit,
    malformed,
    read_body,
    read_cursor,
    read_key,
    read_once,
    read_query,
    respond,
    respond_page,
    write_or_abort,
)
from vmd.http.workspaces import IDEMPOTENCY_KEY, NoQuery, accepted
from vmd.model.errors import ErrorCode, Problem
from vmd.model.operation import Operation
from vmd.model.snapshot import Manifest, NewSnapshot, RestoreRequest, Snapshot, SnapshotName, SnapshotStatus
from vmd.model.workspace import Repo, ShortName
from vmd.orchestrator.snapshot_files import SnapshotFiles
from vmd.orchestrator.snapshots import Snapshots
from vmd.store.idempotency import Once

_TAGS = ["snapshots"]
TAR = "application/x-tar"
READ_SECONDS = 60.0  # for the next bytes of an import
_CREATE_DESCRIPTION = (
    "Keeps the machine's disk and the workspace's files, with their modes, owners, links, holes, extended "
    "attributes and times, and never a secret. A machine that runs stands still meanwhile, so all is of one "
    "moment: as after a power cut, but with everything that its programs had written. What was kept is read "
    "back and compared before the snapshot is `ready`."
)
_RESTORE_DESCRIPTION = (
    "Without `new_workspace`, puts this workspace back: files and machine are built beside the present "
    "ones, which stay until the swap. With it, makes another workspace, also when the first is gone; its "
    "fields are those of a create, and what is left out comes from the snapshot. Secrets are given again."
)
_EXPORT_DESCRIPTION = "One plain tar archive, which another daemon takes at `/snapshots/import`."


@frozen(kw_only=True)
class SnapshotsQuery:
    """The query of the lists."""

    limit: Limit = DEFAULT_LIMIT
    cursor: Cursor | None = None


@frozen(kw_only=True)
class ImportQuery:
    """How to take in a snapshot."""

    name: SnapshotName | None = None
    provider: ShortName | None = None


@frozen(kw_only=True)
class SnapshotView:
    """A snapshot."""

    id: str
    workspace_id: str
    name: str
    description: str
    status: SnapshotStatus
    size_bytes: int | None
    created_at: datetime
    actor: str
    provider: str
    node: str
    template: str
    repo: Repo | None
    is_final: bool
    manifest: Manifest | None
    error: Problem | None
    current_operation: str | None


@frozen(kw_only=True)
class SnapshotPage:
    """Snapshots, newest first."""

    items: tuple[SnapshotView, ...]
    next_cursor: str | None


class SnapshotHandlers:
    """The handlers of `/workspaces/{id}/snapshots` and `/snapshots`."""

    def __init__(self, snapshots: Snapshots, files: SnapshotFiles, streams: Streams) -> None:
        self._snapshots = snapshots
        self._files = files
        self._streams = streams

    def routes(self) -> list[web.RouteDef]:
        """Return the routes below the base path."""
        base = "/workspaces/{id}/snapshots"
        return [
            web.post(base, self.create),
            web.get(base, self.list, allow_head=False),
            web.get(f"{base}/{{snapshot}}", self.get, allow_head=False),
            web.delete(f"{base}/{{snapshot}}", self.delete),
            web.post(f"{base}/{{snapshot}}/restore", self.restore),
            web.get(f"{base}/{{snapshot}}/export", self.export, allow_head=False),
            web.get("/snapshots", self.list_all, allow_head=False),
            web.post("/snapshots/import", self.import_),
        ]

    @docs(
        tags=_TAGS, summary="Take a snapshot", description=_CREATE_DESCRIPTION, parameters=[IDEMPOTENCY_KEY]
    )
    @takes(body=NewSnapshot, query=NoQuery, is_body_required=False)
    @returns(
        202, Operation, "The snapshot and the operation that takes it are recorded.", headers=("Location",)
    )
    @refuses(
        ErrorCode.QUOTA_EXCEEDED,
        ErrorCode.INVALID_STATE,
        ErrorCode.OPERATION_IN_PROGRESS,
        ErrorCode.NAME_TAKEN,
        ErrorCode.VALIDATION_FAILED,
        ErrorCode.IDEMPOTENCY_MISMATCH,
    )
    async def create(self, request: web.Request) -> web.Response:
        """Record a snapshot."""
        read_query(request, NoQuery)
        wanted = await read_body(request, NewSnapshot)
        once = await read_once(request)
        return accepted(await self._snapshots.create(request[ACTOR], request.match_info["id"], wanted, once))

    @docs(tags=_TAGS, summary="List a workspace's snapshots")
    @takes(query=SnapshotsQuery)
    @returns(200, SnapshotPage, "A page, newest first; also of a workspace that is gone, if some were kept.")
    async def list(self, request: web.Request) -> web.Response:
        """Return a page of snapshots."""
        query = read_query(request, SnapshotsQuery)
        after = read_cursor(query.cursor, "snap")
        page = await self._snapshots.list(request[ACTOR], request.match_info["id"], after, query.limit)
        return respond_page(tuple(view(snapshot) for snapshot in page.items), page)

    @docs(tags=_TAGS, summary="List all snapshots")
    @takes(query=SnapshotsQuery)
    @returns(200, SnapshotPage, "A page of the caller's, newest first; of everybody's for admins.")
    async def list_all(self, request: web.Request) -> web.Response:
        """Return a page of all snapshots, also of those that were imported."""
        query = read_query(request, SnapshotsQuery)
        page = await self._snapshots.list_all(request[ACTOR], read_cursor(query.cursor, "snap"), query.limit)
        return respond_page(tuple(view(snapshot) for snapshot in page.items), page)

    @docs(tags=_TAGS, summary="Get a snapshot")
    @takes(query=NoQuery)
    @returns(200, SnapshotView, "The snapshot.")
    async def get(self, request: web.Request) -> web.Response:
        """Return one snapshot."""
        read_query(request, NoQuery)
        return respond(view(await self._snapshots.get(request[ACTOR], *_names(request))))

    @docs(tags=_TAGS, summary="Delete a snapshot")
    @takes(query=NoQuery)
    @returns(202, Operation, "The deletion is recorded.", headers=("Location",))
    @refuses(ErrorCode.OPERATION_IN_PROGRESS)
    async def delete(self, request: web.Request) -> web.Response:
        """Record the destruction of a snapshot."""
        read_query(request, NoQuery)
        return accepted(await self._snapshots.delete(request[ACTOR], *_names(request)))

    @docs(
        tags=_TAGS,
        summary="Restore a snapshot",
        description=_RESTORE_DESCRIPTION,
        parameters=[IDEMPOTENCY_KEY],
    )
    @takes(body=RestoreRequest, query=NoQuery, is_body_required=False)
    @returns(202, Operation, "The restore is recorded.", headers=("Location",))
    @refuses(
        ErrorCode.QUOTA_EXCEEDED,
        ErrorCode.INVALID_STATE,
        ErrorCode.OPERATION_IN_PROGRESS,
        ErrorCode.NAME_TAKEN,
        ErrorCode.VALIDATION_FAILED,
        ErrorCode.IDEMPOTENCY_MISMATCH,
    )
    async def restore(self, request: web.Request) -> web.Response:
        """Record a restore."""
        read_query(request, NoQuery)
        wanted = await read_body(request, RestoreRequest)
        once = await read_once(request)
        return accepted(await self._snapshots.restore(request[ACTOR], *_names(request), wanted, once))

    @docs(tags=_TAGS, summary="Export a snapshot", description=_EXPORT_DESCRIPTION)
    @takes(query=NoQuery)
    @returns(200, bytes, "The archive.", content_type=TAR, headers=("Content-Disposition",))
    @refuses(ErrorCode.INVALID_STATE, ErrorCode.PROVIDER_ERROR, ErrorCode.PROVIDER_UNAVAILABLE)
    async def export(self, request: web.Request) -> web.StreamResponse:
        """Send a snapshot; one that cannot be read to its end is cut off, which an import notices."""
        read_query(request, NoQuery)
        snapshot, chunks = await self._files.export(request[ACTOR], *_names(request))
        headers = {"Content-Disposition": f'attachment; filename="{snapshot.id}.tar"'}
        async with aclosing(chunks), self._streams.open(request, TAR, **headers) as response:
            async for chunk in chunks:
                await write_or_abort(request, response, chunk)
        return response

    @docs(
        tags=_TAGS,
        summary="Import a snapshot",
        description="Takes an exported snapshot as the body. It is restored with `new_workspace`.",
        parameters=[IDEMPOTENCY_KEY],
    )
    @takes(body=bytes, body_type=TAR, query=ImportQuery)
    @returns(201, SnapshotView, "The snapshot is ready.", headers=("Location",))
    @refuses(
        ErrorCode.QUOTA_EXCEEDED,
        ErrorCode.VALIDATION_FAILED,
        ErrorCode.IDEMPOTENCY_MISMATCH,
        ErrorCode.PROVIDER_ERROR,
        ErrorCode.PROVIDER_UNAVAILABLE,
    )
    async def import_(self, request: web.Request) -> web.Response:
        """Take in a snapshot."""
        query = read_query(request, ImportQuery)
        if "Content-Encoding" in request.headers:
            raise malformed("Send the archive as it was exported, without Content-Encoding.")
        snapshot = await self._files.import_(
            request[ACTOR],
            _Body(request.content),
            name=query.name,
            provider=query.provider,
            once=_read_once(request),
        )
        location = f"/api/v1/workspaces/{snapshot.workspace_id}/snapshots/{snapshot.id}"
        return respond(view(snapshot), 201, {"Location": location})


class _Body:
    """A request's body as it comes; one that stalls is given up."""

    def __init__(self, content: StreamReader) -> None:
        self._content = content

    async def read(self, most: int) -> bytes:
        async with asyncio.timeout(READ_SECONDS):
            return await self._content.read(most)

    async def readexactly(self, size: int) -> bytes:
        async with asyncio.timeout(READ_SECONDS):
            return await self._content.readexactly(size)


def view(snapshot: Snapshot) -> SnapshotView:
    """Return a snapshot as clients see it."""
    same = {f.name: getattr(snapshot, f.name) for f in fields(SnapshotView) if hasattr(snapshot, f.name)}
    return SnapshotView(**same, template=snapshot.origin.template, repo=snapshot.origin.repo)


def _read_once(request: web.Request) -> Once | None:
    """Return what the Idempotency-Key asks for; an archive is told from another by its size alone."""
    key = read_key(request)
    seen = f"{request.method} {request.path_qs} {request.content_length}".encode()
    return None if key is None else Once(key=key, fingerprint=hashlib.sha256(seen).digest())


def _names(request: web.Request) -> tuple[str, str]:
    return request.match_info["id"], request.match_info["snapshot"]
