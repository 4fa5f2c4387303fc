"""How operations end: an outcome writes the workspace and lets go of it, in the operation's last transaction.

An outcome for a workspace that was taken from its operation writes nothing.
"""

from enum import StrEnum
from typing import Any

from attrs import evolve

from vmd.model.errors import ErrorCode, Problem, Refused
from vmd.model.event import EventType
from vmd.model.operation import Job, OperationType, Verdict
from vmd.model.snapshot import Snapshot, SnapshotStatus
from vmd.model.workspace import Status, Workspace
from vmd.operations.queue import Settle
from vmd.orchestrator.changes import save
from vmd.orchestrator.machines import facts
from vmd.providers.base import Machine
from vmd.store.clocks import Clock
from vmd.store.database import Transaction
from vmd.store.leftovers import insert_leftover
from vmd.store.snapshots import delete_snapshot, find_snapshot, list_all_of_workspace, update_snapshot
from vmd.store.workspaces import delete_workspace, find_workspace


class Keep(StrEnum):
    """Which of its ready snapshots outlive a workspace."""

    NONE = "none"
    FINAL = "final"  # those that were taken before it expired
    ALL = "all"


NO_MACHINE = "There is no machine any more; rebuild the workspace or delete it."


def held(tx: Transaction, job: Job) -> Workspace | None:
    """Return the job's workspace, or None when it was taken from it."""
    workspace = find_workspace(tx, job.operation.workspace_id or "")
    current = None if workspace is None else workspace.current_operation
    return workspace if current is not None and current.id == job.id else None


def release(tx: Transaction, job: Job, workspace: Workspace, **changes: Any) -> Workspace:
    """Write an outcome and let go of the workspace."""
    if job.checkpoint.get("is_cloned") and workspace.repo is not None:
        commit = job.checkpoint.get("commit") or workspace.repo.commit
        changes |= {"is_cloned": True, "repo": evolve(workspace.repo, commit=commit)}
    if job.operation.type is OperationType.RESTORE and job.checkpoint.get("swapped"):
        changes |= {"files": job.checkpoint["files"], "is_cloned": True}
    after = evolve(workspace, current_operation=None, **changes)
    return save(tx, workspace, after, actor=job.operation.actor, reason=job.operation.type)


def go_to(tx: Transaction, job: Job, status: Status) -> None:
    """Bring the workspace to the next status of a work in progress."""
    workspace = held(tx, job)
    if workspace is not None and workspace.status is not status:
        save(tx, workspace, evolve(workspace, status=status), actor=job.operation.actor)


def running(machine: Machine) -> Settle:
    """Settle on a machine that was started."""

    def settle(tx: Transaction, job: Job) -> dict[str, Any] | None:
        workspace = held(tx, job)
        if workspace is None:
            return None
        release(
            tx,
            job,
            workspace,
            **facts(workspace, machine),
            started_at=tx.now,
            last_activity_at=tx.now,
            last_error=None,
        )
        detected = job.checkpoint.get("detected")
        return {"changed": True} if detected is None else {"changed": True, "detected": detected}

    return settle


def as_observed(machine: Machine | None) -> Settle:
    """Settle on the machine that was found; a failure is remembered beside it."""

    def settle(tx: Transaction, job: Job) -> dict[str, Any] | None:
        workspace = held(tx, job)
        if workspace is None:
            return None
        changes = facts(workspace, machine)
        if changes["status"] is Status.RUNNING and job.verdict is None:
            changes["started_at"] = tx.now
        last_error = reason_of(job) if job.verdict is Verdict.FAILED else None
        if machine is None and last_error is None:
            last_error = Refused(ErrorCode.PROVIDER_ERROR, NO_MACHINE).problem()
        release(tx, job, workspace, **changes, last_error=last_error)
        return {"changed": True} if job.verdict is None else None

    return settle


def failed(machine: Machine | None) -> Settle:
    """Settle on nothing usable; a machine that is there all the same is kept."""

    def settle(tx: Transaction, job: Job) -> None:
        workspace = held(tx, job)
        if workspace is not None:
            ref = None if machine is None else machine.ref
            release(
                tx,
                job,
                workspace,
                status=Status.FAILED,
                provider_ref=ref,
                address=None,
                last_error=reason_of(job),
            )

    return settle


def unknown(job: Job) -> Settle:
    """Settle without a look: what may be there is kept on record."""

    def settle(tx: Transaction, job: Job) -> None:
        workspace = held(tx, job)
        if workspace is not None:
            ref = workspace.provider_ref or job.checkpoint.get("ref")
            release(tx, job, workspace, status=Status.FAILED, provider_ref=ref, last_error=reason_of(job))

    return settle


def as_before(tx: Transaction, job: Job) -> None:
    """Settle an operation that was cancelled before any worker had it: all is as it was."""
    workspace = held(tx, job)
    fail_snapshot(tx, job)
    if workspace is None:
        return
    previous = Status(job.input["previous"])
    if previous is Status.PENDING:
        release(tx, job, workspace, status=Status.FAILED, last_error=reason_of(job))
    else:
        release(tx, job, workspace, status=previous)


def trashed(tx: Transaction, job: Job) -> dict[str, Any] | None:
    """Settle on a workspace in trash."""
    workspace = held(tx, job)
    if workspace is None:
        return None
    release(tx, job, workspace, status=Status.TRASHED, trashed_at=tx.now, address=None)
    tx.emit(
        EventType.WORKSPACE_EXPIRED,
        actor=job.operation.actor,
        owner_id=workspace.owner_id,
        workspace_id=workspace.id,
        operation_id=job.id,
        clock=Clock.TTL,
    )
    return {"changed": True}


def doomed_snapshots(tx: Transaction, job: Job) -> list[Snapshot]:
    """Return the snapshots that go with the workspace that a job deletes: all but those it is to keep."""
    keep = job.input.get("keep", Keep.NONE)
    return [
        snapshot
        for snapshot in list_all_of_workspace(tx, job.operation.workspace_id or "")
        if snapshot.status is not SnapshotStatus.READY
        or keep == Keep.NONE
        or (keep == Keep.FINAL and not snapshot.is_final)
    ]


def deleted(tx: Transaction, job: Job, leftover: str | None = None) -> dict[str, Any] | None:
    """Settle on a workspace that is gone; `leftover` is why some of it may not be."""
    workspace = held(tx, job)
    if workspace is None:
        return None
    if leftover is not None:
        insert_leftover(tx, workspace, leftover)
    for snapshot in doomed_snapshots(tx, job):
        delete_snapshot(tx, snapshot.id)
    delete_workspace(tx, workspace.id)
    tx.emit(
        EventType.WORKSPACE_DELETED,
        actor=job.operation.actor,
        owner_id=workspace.owner_id,
        workspace_id=workspace.id,
        operation_id=job.id,
        name=workspace.name,
    )
    return {"changed": True} if leftover is None else {"changed": True, "leftover": leftover}


def fail_snapshot(tx: Transaction, job: Job) -> None:
    """Note that the snapshot that an operation was to take came to nothing."""
    snapshot = find_snapshot(tx, job.operation.snapshot_id or "")
    if snapshot is None or snapshot.current_operation != job.id:
        return
    if job.operation.type is OperationType.SNAPSHOT:
        failed = evolve(snapshot, status=SnapshotStatus.FAILED, error=reason_of(job), current_operation=None)
        update_snapshot(tx, failed)
        tx.emit(
            EventType.SNAPSHOT_FAILED,
            actor=job.operation.actor,
            owner_id=snapshot.owner_id,
            workspace_id=snapshot.workspace_id,
            operation_id=job.id,
            snapshot_id=snapshot.id,
            name=snapshot.name,
        )


def undeleted(tx: Transaction, job: Job) -> None:
    """Keep what could not be destroyed on record, to be deleted again."""
    workspace = held(tx, job)
    if workspace is not None:
        release(tx, job, workspace, last_error=reason_of(job))


def reason_of(job: Job) -> Problem:
    """Return why an operation came to nothing."""
    if job.operation.error is not None:
        return job.operation.error
    detail = f"Its {job.operation.type} was cancelled; rebuild the workspace, or delete it."
    return Refused(ErrorCode.INVALID_STATE, detail).problem()
