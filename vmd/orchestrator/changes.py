"""The ways in which a workspace and its operations change, each with its events, in one transaction."""

from typing import Any

from attrs import evolve

from vmd.model.account import Actor
from vmd.model.errors import ErrorCode, Refused
from vmd.model.event import EventType
from vmd.model.operation import (
    Job,
    Operation,
    OperationStatus,
    OperationType,
    Phase,
    Progress,
    Verdict,
)
from vmd.model.workspace import TRANSITIONS, Action, NewWorkspace, Status, Workspace
from vmd.operations.queue import finish
from vmd.store.database import Transaction
from vmd.store.operations import find_job, insert_operation, update_job
from vmd.store.workspaces import insert_workspace, update_workspace

_CANCELLABLE = frozenset(
    {
        OperationType.CREATE,
        OperationType.START,
        OperationType.REBUILD,
        OperationType.SNAPSHOT,
        OperationType.RESTORE,
    }
)


def save(
    tx: Transaction,
    before: Workspace,
    after: Workspace,
    *,
    actor: str,
    reason: str | None = None,
    told: dict[str, Any] | None = None,
) -> Workspace:
    """Write a changed workspace; tell of its new status and health, and of the fields in `told`."""
    if after.status is not before.status and after.status not in TRANSITIONS[before.status]:
        raise AssertionError(f"{before.id} cannot go from {before.status} to {after.status}")
    saved = update_workspace(tx, after)
    operation = after.current_operation or before.current_operation
    operation_id = None if operation is None else operation.id
    if after.status is not before.status:
        data: dict[str, Any] = {"status": after.status, "previous": before.status, "reason": reason}
        _emit(tx, EventType.WORKSPACE_STATUS, saved, actor, operation_id, data)
    if after.health is not before.health:
        told = {"health": after.health, "reason": None, **(told or {})}
    if told:
        _emit(tx, EventType.WORKSPACE_UPDATED, saved, actor, operation_id, told)
    return saved


def add(tx: Transaction, actor: Actor, workspace: Workspace, wanted: NewWorkspace) -> None:
    """Write a new workspace, with the values of the secrets that its request has, and tell of it."""
    insert_workspace(tx, workspace, {name: wanted.env[name] for name in wanted.secrets})
    data = {"name": workspace.name, "status": workspace.status}
    _emit(tx, EventType.WORKSPACE_CREATED, workspace, actor.name, None, data)


def begin(
    tx: Transaction,
    actor: Actor,
    workspace: Workspace,
    kind: OperationType,
    *,
    to: Status | None,
    reason: str | None = None,
    snapshot_id: str | None = None,
    **given: Any,
) -> Operation:
    """Record an operation that holds the workspace, which must be free, and go to the status `to`."""
    assert workspace.current_operation is None
    operation = Operation(
        id=tx.new_id("op"),
        type=kind,
        status=OperationStatus.PENDING,
        workspace_id=workspace.id,
        snapshot_id=snapshot_id,
        actor=actor.name,
        created_at=tx.now,
        may_cancel=kind in _CANCELLABLE,
        progress=Progress(phase=Phase.QUEUED, message="Waiting for a worker."),
    )
    record(tx, operation, workspace.owner_id, {"previous": workspace.status, **given})
    held = evolve(workspace, current_operation=operation, status=to or workspace.status)
    if actor.user_id != "system":
        held = evolve(held, last_activity_at=tx.now)
    save(tx, workspace, held, actor=actor.name, reason=reason)
    return operation


def satisfied(
    tx: Transaction, actor: Actor, workspace: Workspace, kind: OperationType, *, is_changed: bool = False
) -> Operation:
    """Record an operation that is done at once, because there is nothing for a worker to do."""
    operation = Operation(
        id=tx.new_id("op"),
        type=kind,
        status=OperationStatus.SUCCEEDED,
        workspace_id=workspace.id,
        actor=actor.name,
        created_at=tx.now,
        started_at=tx.now,
        finished_at=tx.now,
        may_cancel=False,
        progress=Progress(
            phase=Phase.DONE, message="Done." if is_changed else "There was nothing to do.", percent=100
        ),
        result={"changed": is_changed},
    )
    record(tx, operation, workspace.owner_id, {})
    data = {"type": kind, "status": operation.status, "result": operation.result, "error": None}
    _emit(tx, EventType.OPERATION_FINISHED, workspace, actor.name, operation.id, data)
    return operation


def supersede(tx: Transaction, workspace: Workspace) -> tuple[Workspace, str | None]:
    """Take the workspace from its operation, which ends as cancelled without another word on it.

    Returns the free workspace, and the operation that its worker must be told to leave.
    """
    current = workspace.current_operation
    if current is None:
        return workspace, None
    free = update_workspace(tx, evolve(workspace, current_operation=None))
    job = find_job(tx, current.id)
    assert job is not None
    interrupted = cancel_job(tx, job, leave)
    return free, interrupted


def cancel_job(tx: Transaction, job: Job, settle_unbegun: Any) -> str | None:
    """End an operation that no worker has begun; return the id of one that has, to be interrupted."""
    job = evolve(job, verdict=Verdict.CANCELLED)
    if job.operation.status is OperationStatus.PENDING and job.operation.attempt == 0:
        finish(tx, job, settle_unbegun)
        return None
    cancelling = evolve(job.operation, status=OperationStatus.CANCELLING, may_cancel=False)
    update_job(tx, evolve(job, operation=cancelling))
    return job.id


def leave(tx: Transaction, job: Job) -> None:
    """Settle an operation that no longer holds its workspace: it says nothing about it."""


def require_allowed(workspace: Workspace, action: Action) -> None:
    """Refuse an action that the workspace's state or its current operation forbids."""
    allowed = workspace.allowed_actions
    if action in allowed:
        return
    current = workspace.current_operation
    listed = ", ".join(allowed)
    if current is not None:
        raise Refused(
            ErrorCode.OPERATION_IN_PROGRESS,
            f"The operation {current.id} ({current.type}) is in progress on {workspace.id}. "
            f"Wait for it; meanwhile allowed: {listed}.",
            allowed_actions=allowed,
            operation_id=current.id,
        )
    raise Refused(
        ErrorCode.INVALID_STATE,
        f"A workspace that is {workspace.status} does not allow '{action}'; allowed now: {listed}.",
        allowed_actions=allowed,
    )


def require_version(workspace: Workspace, version: int | None) -> None:
    """Refuse a change that was meant for another version."""
    if version is not None and workspace.version != version:
        raise Refused(
            ErrorCode.VERSION_MISMATCH,
            f"The workspace is at version {workspace.version} now; get it again and repeat the change.",
        )


def record(tx: Transaction, operation: Operation, owner_id: str, given: dict[str, Any]) -> None:
    """Write a new operation and tell of it."""
    insert_operation(tx, operation, owner_id, given)
    tx.emit(
        EventType.OPERATION_CREATED,
        actor=operation.actor,
        owner_id=owner_id,
        workspace_id=operation.workspace_id,
        operation_id=operation.id,
        type=operation.type,
        status=operation.status,
    )


def _emit(
    tx: Transaction,
    kind: EventType,
    workspace: Workspace,
    actor: str,
    operation_id: str | None,
    data: dict[str, Any],
) -> None:
    tx.emit(
        kind,
        actor=actor,
        owner_id=workspace.owner_id,
        workspace_id=workspace.id,
        operation_id=operation_id,
        **data,
    )
