"""Clocks: what stops a workspace, trashes it and purges it, and what the next one will be."""

from datetime import datetime, timedelta
from typing import Any

import structlog
from attrs import frozen

from vmd.model.account import SYSTEM, Actor, Scope
from vmd.model.event import EventType
from vmd.model.operation import OperationType
from vmd.model.workspace import Health, Status, Workspace
from vmd.operations.queue import OperationQueue
from vmd.orchestrator.activity import Signs
from vmd.orchestrator.changes import begin
from vmd.orchestrator.outcomes import Keep
from vmd.orchestrator.permissions import get_workspace, require_scope
from vmd.store.clocks import (
    Clock,
    Fired,
    Firing,
    find_fired,
    list_due,
    list_unwarned,
    mark_fired,
    mark_warned,
)
from vmd.store.database import Database, Transaction
from vmd.store.events import delete_old_events, delete_surplus_events
from vmd.store.idempotency import delete_old_answers
from vmd.store.operations import delete_finished, find_last_input
from vmd.store.workspaces import WorkspaceFilter, find_workspace, list_workspaces

MAX_PER_SWEEP = 100
MAX_FORGOTTEN_PER_SWEEP = 5000
RETRY_DELETE = timedelta(minutes=1)

log = structlog.get_logger()


@frozen(kw_only=True)
class Retention:
    """How long things are kept."""

    trash_grace_seconds: int = 7 * 24 * 3600
    warning_seconds: int = 600  # before a clock fires
    operations_seconds: int = 30 * 24 * 3600
    events_seconds: int = 30 * 24 * 3600
    events_count: int = 1_000_000


@frozen(kw_only=True)
class NextFiring:
    """The clock that fires next, unless something happens first."""

    clock: Clock
    at: datetime
    leads_to: str  # stop, trash or delete


@frozen(kw_only=True)
class Activity:
    """What keeps the idle clock from firing."""

    last_activity_at: datetime
    counts: tuple[str, ...]
    now: tuple[str, ...]  # which of these keep it from being idle at this moment


@frozen(kw_only=True)
class Lifetime:
    """Which clock of a workspace fires next and when, what counts as activity, and which fired last."""

    next: NextFiring | None
    held_by: tuple[str, ...]  # why none fires: pinned, unreachable, operation
    activity: Activity
    last_fired: Fired | None


_COUNTS = (
    "changes and actions through the API",
    "running operations",
    "running commands",
    "input and output of shells",
    "the machine's processors, above janitor.busy_cpu_percent of one",
)
_LEADS_TO = {Clock.IDLE: "stop", Clock.TTL: "trash", Clock.TRASH: "delete"}


class Lifetimes:
    """The use cases of clocks."""

    def __init__(self, database: Database, queue: OperationQueue, signs: Signs, retention: Retention) -> None:
        self._database = database
        self._queue = queue
        self._signs = signs
        self._retention = retention

    async def get(self, actor: Actor, workspace_id: str) -> Lifetime:
        """Explain the clocks of one workspace."""
        require_scope(actor, Scope.READ)

        def unit(tx: Transaction) -> Lifetime:
            workspace = get_workspace(tx, actor, workspace_id)
            return Lifetime(
                next=self._next(workspace),
                held_by=_holds(workspace),
                activity=Activity(
                    last_activity_at=workspace.last_activity_at,
                    counts=_COUNTS,
                    now=self._signs.now(tx, workspace),
                ),
                last_fired=find_fired(tx, workspace_id),
            )

        return await self._database.read(unit)

    async def sweep(self) -> None:
        """Warn of clocks that fire soon, fire those that are due, and forget what is too old.

        A clock that was held when it was due (pinned, engine or daemon away) is warned of first, too.
        """
        await self._signs.write_down()  # first, since a clock must not fire on one that is in use
        fired = await self._database.write(self._sweep)
        if fired:
            log.info("clocks fired", count=fired)
            self._queue.wake()

    def _sweep(self, tx: Transaction) -> int:
        grace = self._retention.trash_grace_seconds
        soon = tx.now + timedelta(seconds=self._retention.warning_seconds)
        for firing in list_unwarned(tx, soon, grace, MAX_PER_SWEEP):
            mark_warned(tx, firing)
            _tell(tx, EventType.WORKSPACE_EXPIRING, firing, clock=firing.clock, at=firing.at)
        fired = sum(
            _fire(tx, firing)
            for firing in list_due(tx, self._retention.warning_seconds, grace, MAX_PER_SWEEP)
        )
        again = self._delete_again(tx)
        retention = self._retention
        delete_finished(tx, timedelta(seconds=retention.operations_seconds), MAX_FORGOTTEN_PER_SWEEP)
        delete_old_events(tx, timedelta(seconds=retention.events_seconds), MAX_FORGOTTEN_PER_SWEEP)
        delete_surplus_events(tx, retention.events_count, MAX_FORGOTTEN_PER_SWEEP)
        delete_old_answers(tx)
        return fired + again

    @staticmethod
    def _delete_again(tx: Transaction) -> int:
        """Try deletions again that came to nothing, so that no workspace stays half deleted."""
        wanted = WorkspaceFilter(owner_id=None, statuses=(Status.DELETING,))
        stuck = [
            workspace
            for workspace in list_workspaces(tx, wanted, None, MAX_PER_SWEEP)
            if workspace.current_operation is None and tx.now - workspace.updated_at > RETRY_DELETE
        ]
        for workspace in stuck:
            before = find_last_input(tx, workspace.id, OperationType.DELETE)
            keep = before.get("keep", Keep.NONE)
            begin(tx, SYSTEM, workspace, OperationType.DELETE, to=None, force=False, keep=keep)
        return len(stuck)

    def _next(self, workspace: Workspace) -> NextFiring | None:
        if _holds(workspace):
            return None
        times = {}
        if workspace.status in (Status.RUNNING, Status.STOPPED, Status.FAILED) and workspace.expires_at:
            times[Clock.TTL] = workspace.expires_at
        if workspace.status is Status.RUNNING and workspace.idle_timeout_seconds is not None:
            idle = timedelta(seconds=workspace.idle_timeout_seconds)
            times[Clock.IDLE] = workspace.last_activity_at + idle
        if workspace.status is Status.TRASHED and workspace.trashed_at is not None:
            grace = timedelta(seconds=self._retention.trash_grace_seconds)
            times[Clock.TRASH] = workspace.trashed_at + grace
        if not times:
            return None
        clock = min(times, key=lambda clock: times[clock])
        return NextFiring(clock=clock, at=times[clock], leads_to=_LEADS_TO[clock])


def _fire(tx: Transaction, firing: Firing) -> bool:
    """Begin what a clock leads to; return False where another clock of the workspace was first."""
    workspace = find_workspace(tx, firing.workspace_id)
    if workspace is None or workspace.current_operation is not None:
        return False
    mark_fired(tx, workspace.id, firing.clock)
    if firing.clock is Clock.IDLE:
        begin(tx, SYSTEM, workspace, OperationType.STOP, to=Status.STOPPING, reason="idle")
        _tell(tx, EventType.WORKSPACE_EXPIRED, firing, clock=firing.clock)
    elif firing.clock is Clock.TTL:
        to = Status.STOPPING if workspace.status is Status.RUNNING else None
        begin(tx, SYSTEM, workspace, OperationType.EXPIRE, to=to, reason="ttl")
    else:
        begin(
            tx,
            SYSTEM,
            workspace,
            OperationType.DELETE,
            to=Status.DELETING,
            reason="trash",
            force=False,
            keep=Keep.FINAL,
        )
        _tell(tx, EventType.WORKSPACE_EXPIRED, firing, clock=firing.clock)
    return True


def _holds(workspace: Workspace) -> tuple[str, ...]:
    holds = []
    if workspace.pinned:
        holds.append("pinned")
    if workspace.health is Health.UNREACHABLE:
        holds.append("unreachable")
    if workspace.current_operation is not None:
        holds.append("operation")
    return tuple(holds)


def _tell(tx: Transaction, kind: EventType, firing: Firing, **data: Any) -> None:
    tx.emit(kind, actor="system", owner_id=firing.owner_id, workspace_id=firing.workspace_id, **data)
