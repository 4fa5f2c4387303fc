"""Snapshots: take, look at, restore, delete."""

from collections.abc import Callable
from typing import Any

from attrs import evolve, fields
from msgspec import UNSET

from vmd.model.account import Actor, Scope
from vmd.model.errors import ErrorCode, FieldError, Refused, invalid_value, not_found
from vmd.model.event import EventType
from vmd.model.operation import Operation, OperationStatus, OperationType, Phase, Progress
from vmd.model.page import Page
from vmd.model.snapshot import NewSnapshot, Origin, RestoreRequest, Snapshot, SnapshotStatus
from vmd.model.workspace import Action, NewResources, NewWorkspace, Resources, Status, Workspace
from vmd.operations.queue import OperationQueue
from vmd.orchestrator.changes import add, begin, record, require_allowed
from vmd.orchestrator.permissions import get_workspace, may_see, require_scope, require_unconfined
from vmd.orchestrator.planning import Planner, Resolved
from vmd.orchestrator.quota import Quotas
from vmd.orchestrator.templates import Catalogue
from vmd.store.database import Database, Transaction
from vmd.store.idempotency import Once, answer_once
from vmd.store.snapshots import (
    find_restoring,
    find_snapshot,
    has_snapshot_name,
    has_snapshots,
    insert_snapshot,
    list_of_owner,
    list_snapshots,
    update_snapshot,
)


class Snapshots:
    """The use cases of snapshots. What needs a provider is recorded and answered at once."""

    def __init__(
        self,
        database: Database,
        queue: OperationQueue,
        planner: Planner,
        catalogue: Catalogue,
        quotas: Quotas,
    ) -> None:
        self._database = database
        self._queue = queue
        self._planner = planner
        self._catalogue = catalogue
        self._quotas = quotas

    async def create(
        self, actor: Actor, workspace_id: str, wanted: NewSnapshot, once: Once | None = None
    ) -> Operation:
        """Record a snapshot of a workspace that runs or is stopped, and the operation that takes it."""
        require_scope(actor, Scope.WRITE)

        def make(tx: Transaction) -> Operation:
            workspace = get_workspace(tx, actor, workspace_id)
            require_allowed(workspace, Action.SNAPSHOT)
            self._quotas.require_snapshot(tx, workspace.owner_id)
            return begin_snapshot(tx, actor, workspace, wanted)

        return await self._record(actor, once, make)

    async def list(self, actor: Actor, workspace_id: str, after: str | None, limit: int) -> Page[Snapshot]:
        """Return a page of a workspace's snapshots; also of one that is gone, if some were kept."""
        require_scope(actor, Scope.READ)

        def unit(tx: Transaction) -> Page[Snapshot]:
            rows = list_snapshots(tx, workspace_id, after, limit + 1)
            rows = [row for row in rows if may_see(actor, row.workspace_id, row.owner_id)]
            if not rows and not (has_snapshots(tx, workspace_id) and after is not None):
                get_workspace(tx, actor, workspace_id)
            return Page.cut(rows, limit, lambda snapshot: snapshot.id)

        return await self._database.read(unit)

    async def list_all(self, actor: Actor, after: str | None, limit: int) -> Page[Snapshot]:
        """Return a page of the actor's snapshots, of workspaces that are gone too; admins see everybody's."""
        require_scope(actor, Scope.READ)
        require_unconfined(actor)
        owner_id = None if actor.is_admin else actor.user_id

        def unit(tx: Transaction) -> Page[Snapshot]:
            rows = list_of_owner(tx, owner_id, after, limit + 1)
            return Page.cut(rows, limit, lambda snapshot: snapshot.id)

        return await self._database.read(unit)

    async def get(self, actor: Actor, workspace_id: str, snapshot_id: str) -> Snapshot:
        """Return one snapshot."""
        require_scope(actor, Scope.READ)
        return await self._database.read(lambda tx: get_snapshot(tx, actor, workspace_id, snapshot_id))

    async def delete(self, actor: Actor, workspace_id: str, snapshot_id: str) -> Operation:
        """Record the destruction of a snapshot; one that is on its way already is answered with that."""
        require_scope(actor, Scope.WRITE)

        def unit(tx: Transaction) -> Operation:
            snapshot = get_snapshot(tx, actor, workspace_id, snapshot_id)
            _require_free(tx, snapshot)
            return begin_deletion(tx, actor.name, snapshot)

        operation = await self._database.write(unit)
        self._queue.wake()
        return operation

    async def restore(
        self,
        actor: Actor,
        workspace_id: str,
        snapshot_id: str,
        wanted: RestoreRequest,
        once: Once | None = None,
    ) -> Operation:
        """Record that a workspace goes back to a snapshot, or that another is made from it."""
        require_scope(actor, Scope.WRITE)
        new = wanted.new_workspace
        if new is None:
            return await self._record(
                actor, once, lambda tx: self._go_back(tx, actor, workspace_id, snapshot_id)
            )
        snapshot = await self.get(actor, workspace_id, snapshot_id)
        await self._catalogue.refresh()
        given = _within_new_workspace(lambda: _with_origin(snapshot, new))
        resolved = _within_new_workspace(lambda: self._planner.resolve(actor, given))

        def make(tx: Transaction) -> Operation:
            again = get_snapshot(tx, actor, workspace_id, snapshot_id)
            require_ready(again)
            return self._make_another(tx, actor, again, new, given, resolved)

        return await self._record(actor, once, make)

    def _go_back(self, tx: Transaction, actor: Actor, workspace_id: str, snapshot_id: str) -> Operation:
        snapshot = get_snapshot(tx, actor, workspace_id, snapshot_id)
        workspace = get_workspace(tx, actor, workspace_id)
        require_ready(snapshot)
        if (workspace.provider, workspace.node) != (snapshot.provider, snapshot.node):
            raise _elsewhere(snapshot, f"{workspace.provider} {workspace.node}")
        require_allowed(workspace, Action.RESTORE)
        if workspace.status is not Status.RUNNING:
            self._quotas.require_power(tx, workspace)
        return begin(
            tx,
            actor,
            workspace,
            OperationType.RESTORE,
            to=Status.RESTORING,
            snapshot_id=snapshot.id,
        )

    def _make_another(
        self,
        tx: Transaction,
        actor: Actor,
        snapshot: Snapshot,
        new: NewWorkspace,
        given: NewWorkspace,
        resolved: Resolved,
    ) -> Operation:
        drafted = _within_new_workspace(lambda: self._planner.draft(tx, actor, given, resolved))
        workspace = _as_from(snapshot, drafted, new)
        self._quotas.require_change(tx, workspace)  # what runs beside it counts too
        add(tx, actor, workspace, new)
        return begin(
            tx,
            actor,
            workspace,
            OperationType.RESTORE,
            to=None,
            snapshot_id=snapshot.id,
            provisioning=new.provisioning,
        )

    async def _record(
        self, actor: Actor, once: Once | None, make: Callable[[Transaction], Operation]
    ) -> Operation:
        operation = await self._database.write(
            lambda tx: answer_once(tx, actor.user_id, once, Operation, lambda: make(tx))
        )
        self._queue.wake()
        return operation


def get_snapshot(tx: Transaction, actor: Actor, workspace_id: str, snapshot_id: str) -> Snapshot:
    """Return a snapshot of this workspace that the actor may see; raise not-found for any other."""
    snapshot = find_snapshot(tx, snapshot_id)
    if (
        snapshot is None
        or snapshot.workspace_id != workspace_id
        or not may_see(actor, snapshot.workspace_id, snapshot.owner_id)
    ):
        raise not_found("snapshot", snapshot_id)
    return snapshot


def begin_snapshot(
    tx: Transaction, actor: Actor, workspace: Workspace, wanted: NewSnapshot, *, is_final: bool = False
) -> Operation:
    """Record a snapshot and the operation that takes it, which holds the workspace."""
    snapshot = draft_snapshot(tx, actor, workspace, wanted, is_final=is_final)
    insert_snapshot(tx, snapshot)
    operation = begin(tx, actor, workspace, OperationType.SNAPSHOT, to=None, snapshot_id=snapshot.id)
    update_snapshot(tx, evolve(snapshot, current_operation=operation.id))
    tell(tx, EventType.SNAPSHOT_CREATED, snapshot, actor.name, operation.id)
    return operation


def draft_snapshot(
    tx: Transaction, actor: Actor, workspace: Workspace, wanted: NewSnapshot, *, is_final: bool = False
) -> Snapshot:
    """Return a snapshot as it is recorded first; refuse a name that the workspace's snapshots have."""
    name = wanted.name or _free_name(tx, workspace.id)
    if wanted.name is not None and has_snapshot_name(tx, workspace.id, wanted.name):
        raise Refused(
            ErrorCode.NAME_TAKEN,
            f"{workspace.id} has a snapshot called '{wanted.name}'; choose another name, or delete that one.",
        )
    return Snapshot(
        id=tx.new_id("snap"),
        workspace_id=workspace.id,
        owner_id=workspace.owner_id,
        name=name,
        description=wanted.description,
        status=SnapshotStatus.CREATING,
        is_final=is_final,
        provider=workspace.provider,
        node=workspace.node,
        actor=actor.name,
        origin=origin_of(workspace),
        size_bytes=None,
        manifest=None,
        error=None,
        created_at=tx.now,
        current_operation=None,
    )


def begin_deletion(tx: Transaction, actor_name: str, snapshot: Snapshot) -> Operation:
    """Record the operation that destroys a snapshot; it needs no workspace, which may be gone."""
    operation = Operation(
        id=tx.new_id("op"),
        type=OperationType.SNAPSHOT_DELETE,
        status=OperationStatus.PENDING,
        workspace_id=None,
        snapshot_id=snapshot.id,
        actor=actor_name,
        created_at=tx.now,
        may_cancel=False,
        progress=Progress(phase=Phase.QUEUED, message="Waiting for a worker."),
    )
    record(tx, operation, snapshot.owner_id, {})
    update_snapshot(tx, evolve(snapshot, current_operation=operation.id))
    return operation


def origin_of(workspace: Workspace) -> Origin:
    """Return what a workspace that is made from a snapshot of this one starts with."""
    same = {field.name for field in fields(Origin)} - {"workspace"}
    return Origin(workspace=workspace.name, **{name: getattr(workspace, name) for name in same})


def tell(
    tx: Transaction, kind: EventType, snapshot: Snapshot, actor: str, operation_id: str | None, **data: Any
) -> None:
    """Emit an event about a snapshot."""
    tx.emit(
        kind,
        actor=actor,
        owner_id=snapshot.owner_id,
        workspace_id=snapshot.workspace_id,
        operation_id=operation_id,
        snapshot_id=snapshot.id,
        name=snapshot.name,
        **data,
    )


def _free_name(tx: Transaction, workspace_id: str) -> str:
    base = tx.now.strftime("%Y-%m-%dT%H-%M-%S")
    name, number = base, 2
    while has_snapshot_name(tx, workspace_id, name):
        name, number = f"{base}-{number}", number + 1
    return name


def require_ready(snapshot: Snapshot) -> None:
    """Refuse a snapshot that is not whole."""
    if snapshot.status is not SnapshotStatus.READY or snapshot.current_operation is not None:
        state = "being deleted" if snapshot.status is SnapshotStatus.READY else snapshot.status
        raise Refused(
            ErrorCode.INVALID_STATE,
            f"The snapshot {snapshot.id} is {state}; only one that is ready can be restored or exported.",
            operation_id=snapshot.current_operation,
        )


def _require_free(tx: Transaction, snapshot: Snapshot) -> None:
    holder = snapshot.current_operation or find_restoring(tx, snapshot.id)
    if holder is not None:
        raise Refused(
            ErrorCode.OPERATION_IN_PROGRESS,
            f"The operation {holder} uses the snapshot {snapshot.id}; wait for it, or cancel it.",
            operation_id=holder,
        )


def _elsewhere(snapshot: Snapshot, here: str) -> Refused:
    return Refused(
        ErrorCode.INVALID_STATE,
        f"The snapshot is held by {snapshot.provider} {snapshot.node} and cannot be restored at {here}; "
        "restore it there, or export it and import it here.",
    )


def _with_origin(snapshot: Snapshot, new: NewWorkspace) -> NewWorkspace:
    """Return the request with what it leaves to the snapshot, for the planner."""
    require_ready(snapshot)
    origin = snapshot.origin
    if new.repo is not None:
        raise invalid_value("/repo", "comes from the snapshot; leave it out")
    if new.provider not in (None, snapshot.provider):
        raise invalid_value("/provider", f"must be {snapshot.provider}, which holds the snapshot")
    if new.node not in (None, snapshot.node):
        raise invalid_value("/node", f"must be {snapshot.node}, which holds the snapshot")
    resources = {
        field.name: getattr(new.resources, field.name, None) or getattr(origin.resources, field.name)
        for field in fields(Resources)
    }
    return evolve(
        new,
        provider=snapshot.provider,
        node=snapshot.node,
        resources=NewResources(**resources),
        ports=origin.ports if new.ports is None else new.ports,
        env={**{name: value for name, value in origin.env.items() if name not in new.secrets}, **new.env},
        ttl_seconds=new.ttl_seconds if new.ttl_seconds is not UNSET else UNSET,
    )


def _as_from(snapshot: Snapshot, drafted: Workspace, new: NewWorkspace) -> Workspace:
    """Return a drafted workspace as one that has the snapshot's disk and files; rebuilds use its template."""
    origin = snapshot.origin
    if new.template is not None:
        return evolve(drafted, repo=origin.repo, is_cloned=True, is_detecting=False)
    return evolve(
        drafted,
        template=origin.template,
        image=origin.image,
        recipe=origin.recipe,
        parameters=origin.parameters,
        repo=origin.repo,
        provisioning=(*origin.provisioning, *new.provisioning),
        plugins=origin.plugins,
        services=origin.services,
        is_cloned=True,
        is_detecting=False,
    )


def _within_new_workspace(step: Callable[[], Any]) -> Any:
    """Do a step, with its errors placed where the request has what they are about."""
    try:
        return step()
    except Refused as refused:
        errors = tuple(
            FieldError(pointer=f"/new_workspace{error.pointer}", detail=error.detail)
            for error in refused.errors or ()
        )
        if errors:
            refused.errors = errors
        raise
