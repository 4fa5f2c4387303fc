"""How snapshots are worked: taken, and destroyed."""

from collections.abc import Mapping
from typing import Any

from attrs import evolve

from vmd.model.account import SYSTEM
from vmd.model.event import EventType
from vmd.model.operation import Job, OperationType, Phase, Verdict
from vmd.model.snapshot import NewSnapshot, Snapshot, SnapshotStatus
from vmd.model.workspace import Workspace
from vmd.operations.queue import Settle, Work
from vmd.operations.report import Report
from vmd.orchestrator import outcomes
from vmd.orchestrator.changes import leave
from vmd.orchestrator.machines import Machines
from vmd.orchestrator.snapshots import draft_snapshot, tell
from vmd.providers.base import ProviderError
from vmd.providers.snapshots import Taken
from vmd.store.database import Database, Transaction
from vmd.store.snapshots import (
    delete_snapshot,
    find_snapshot,
    insert_snapshot,
    list_all_of_workspace,
    update_snapshot,
)

_CONSISTENCY = "the machine stood still for {:.2f} s, so everything is of one moment"


class SnapshotWorks:
    """The works of operations of the types `snapshot` and `snapshot_delete`."""

    def __init__(self, database: Database, machines: Machines) -> None:
        self._database = database
        self._machines = machines

    def works(self, *, take_seconds: float, delete_seconds: float) -> Mapping[OperationType, Work]:
        """Return how each type of operation is done, and within how many seconds."""
        return {
            OperationType.SNAPSHOT: Work(
                run=self._take,
                recover=self._recover_take,
                deadline_seconds=take_seconds,
                give_up=lambda job: _untaken,
            ),
            OperationType.SNAPSHOT_DELETE: Work(
                run=self._delete,
                recover=self._recover_delete,
                deadline_seconds=delete_seconds,
                give_up=lambda job: _undeleted,
            ),
        }

    async def _take(self, job: Job, report: Report) -> Settle:
        workspace = await self._database.read(lambda tx: outcomes.held(tx, job))
        snapshot = await self._find(job)
        if workspace is None or snapshot is None:
            return leave
        await report.phase(Phase.SNAPSHOT, "Keeping the machine's disk and the workspace's files.")
        provider = self._machines.provider(workspace.provider)
        taken = await provider.snapshots.take(snapshot.id, workspace.provider_ref or "")
        manifest = taken.manifest
        report.log(
            f"Kept {manifest.entries} entries and {manifest.bytes} bytes of files, read back and compared; "
            + (_CONSISTENCY.format(taken.paused_seconds) if taken.paused_seconds else "the machine was off")
            + "."
        )
        if manifest.skipped:
            report.log(f"{manifest.skipped} sockets and devices were left out: they are nothing to keep.")
        return _taken(taken)

    async def _recover_take(self, job: Job, report: Report) -> Settle:
        """Let the machine go on, and leave no half snapshot."""
        workspace = await self._database.read(lambda tx: outcomes.held(tx, job))
        snapshot = await self._find(job)
        if workspace is None or snapshot is None:
            return leave
        await report.phase(Phase.CLEANUP, "Cleaning up.")
        provider = self._machines.provider(workspace.provider)
        await provider.snapshots.thaw(workspace.provider_ref or "")
        await provider.snapshots.destroy(snapshot.id)
        return _untaken

    async def _delete(self, job: Job, report: Report) -> Settle:
        snapshot = await self._find(job)
        if snapshot is None:
            return leave
        await report.phase(Phase.DESTROY, "Destroying the snapshot.")
        await self._machines.provider(snapshot.provider).snapshots.destroy(snapshot.id)
        return _deleted

    async def _recover_delete(self, job: Job, report: Report) -> Settle:
        """Keep it in the books, to be deleted again."""
        return _undeleted

    # Before a workspace expires.

    async def keep_final(self, job: Job, report: Report, workspace: Workspace) -> None:
        """Take a snapshot within the operation that ends its workspace; one that was cut off begins anew."""

        def begin(tx: Transaction) -> Snapshot:
            for found in list_all_of_workspace(tx, workspace.id):
                if found.current_operation == job.id:
                    return found
            wanted = NewSnapshot(description="Taken before it expired.")
            snapshot = draft_snapshot(tx, SYSTEM, workspace, wanted, is_final=True)
            snapshot = evolve(snapshot, current_operation=job.id)
            insert_snapshot(tx, snapshot)
            update_snapshot(tx, snapshot)
            tell(tx, EventType.SNAPSHOT_CREATED, snapshot, SYSTEM.name, job.id)
            return snapshot

        snapshot = await self._database.write(begin)
        provider = self._machines.provider(workspace.provider)
        try:
            taken = await provider.snapshots.take(snapshot.id, workspace.provider_ref or "")
        except ProviderError:
            await provider.snapshots.destroy(snapshot.id)
            await self._database.write(lambda tx: delete_snapshot(tx, snapshot.id))
            raise
        await self._database.write(lambda tx: _make_ready(tx, job, snapshot, taken))
        report.log(f"The final snapshot is {snapshot.id}; restore it to go on.")

    async def _find(self, job: Job) -> Snapshot | None:
        return await self._database.read(lambda tx: find_snapshot(tx, job.operation.snapshot_id or ""))


def _taken(taken: Taken) -> Settle:
    def settle(tx: Transaction, job: Job) -> dict[str, Any] | None:
        workspace = outcomes.held(tx, job)
        snapshot = find_snapshot(tx, job.operation.snapshot_id or "")
        if workspace is None or snapshot is None:
            return None
        _make_ready(tx, job, snapshot, taken)
        outcomes.release(tx, job, workspace)
        return {"changed": True, "snapshot_id": snapshot.id, "paused_seconds": round(taken.paused_seconds, 3)}

    return settle


def _make_ready(tx: Transaction, job: Job, snapshot: Snapshot, taken: Taken) -> None:
    ready = evolve(
        snapshot,
        status=SnapshotStatus.READY,
        size_bytes=taken.size_bytes,
        manifest=taken.manifest,
        current_operation=None,
    )
    update_snapshot(tx, ready)
    tell(tx, EventType.SNAPSHOT_READY, ready, job.operation.actor, job.id, size_bytes=taken.size_bytes)


def _untaken(tx: Transaction, job: Job) -> None:
    outcomes.fail_snapshot(tx, job)
    workspace = outcomes.held(tx, job)
    if workspace is not None:
        failure = {} if job.verdict is Verdict.CANCELLED else {"last_error": outcomes.reason_of(job)}
        outcomes.release(tx, job, workspace, **failure)


def _deleted(tx: Transaction, job: Job) -> dict[str, Any] | None:
    snapshot = find_snapshot(tx, job.operation.snapshot_id or "")
    if snapshot is None or snapshot.current_operation != job.id:
        return None
    delete_snapshot(tx, snapshot.id)
    tell(tx, EventType.SNAPSHOT_DELETED, snapshot, job.operation.actor, job.id)
    return {"changed": True}


def _undeleted(tx: Transaction, job: Job) -> None:
    snapshot = find_snapshot(tx, job.operation.snapshot_id or "")
    if snapshot is not None and snapshot.current_operation == job.id:
        update_snapshot(tx, evolve(snapshot, error=outcomes.reason_of(job), current_operation=None))
