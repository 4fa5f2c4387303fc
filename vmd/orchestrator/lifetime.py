"""Clocks: what stops a workspace, trashes it and purges it, and what the next one will be."""

from datetime import datetime, timedelta
from typing import Any

import structlog
from attrs import frozen

from vmd.model.account import SYSTEM, Actor, Scope
from vmd.model.event import EventType
from vmd.model.operation import OperationType
from vmd.model.workspace import GitState, Health, Status, Workspace
from vmd.operations.queue import OperationQueue
from vmd.orchestrator.activity import Signs
from vmd.orchestrator.announcing import EXPLANATIONS, LEADS_TO, Announcer, WarningTimes
from vmd.orchestrator.changes import begin
from vmd.orchestrator.expiry import known_state, needs_final
from vmd.orchestrator.git_looks import GitLooks
from vmd.orchestrator.outcomes import Keep
from vmd.orchestrator.permissions import get_workspace, require_scope
from vmd.orchestrator.timekeeping import Reading, Timekeeper
from vmd.store.clocks import (
    LATE,
    Clock,
    Fired,
    Firing,
    find_fired,
    find_warned,
    forget_warnings,
    list_due,
    mark_fired,
)
from vmd.store.database import Database, Transaction
from vmd.store.events import delete_old_events, delete_surplus_events
from vmd.store.idempotency import delete_old_answers
from vmd.store.operations import delete_finished, find_last_input
from vmd.store.shells import restart_detached
from vmd.store.workspaces import WorkspaceFilter, find_workspace, list_workspaces

MAX_PER_SWEEP = 100
MAX_PURGES_PER_SWEEP = 10  # so that whatever goes wrong with a clock is seen before all is gone
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
    """The clock that fires next, and when, which is not before it was warned of for long enough."""

    clock: Clock
    at: datetime
    leads_to: str  # stop, trash or delete
    warned_at: datetime | None  # when its event was sent


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
    git: GitState | None  # what no remote had when it was looked at last
    final_snapshot: bool  # whether one would be kept if its ttl ended now
    message: str  # all of this in plain words


_COUNTS = (
    "changes and actions through the API",
    "running operations",
    "running commands",
    "input and output of shells",
    "the machine's processors, above janitor.busy_cpu_percent of one",
)
_EXPIRING = frozenset({Status.RUNNING, Status.STOPPED, Status.FAILED})
_HOLDS = {
    "pinned": "It is pinned: no clock of it fires until that is taken back.",
    "unreachable": "Its host cannot be reached: its clocks wait, and are warned of again when it is back.",
    "operation": "An operation holds it: its clocks wait until that has ended.",
}


class Lifetimes:
    """The use cases of clocks."""

    def __init__(
        self,
        database: Database,
        queue: OperationQueue,
        signs: Signs,
        looks: GitLooks,
        retention: Retention,
        timekeeper: Timekeeper,
        *,
        ahead_seconds: float = 0.0,
    ) -> None:
        """Warn `ahead_seconds` earlier than need be, which is how long a sweep may come late."""
        self._database = database
        self._queue = queue
        self._signs = signs
        self._retention = retention
        self._timekeeper = timekeeper
        times = WarningTimes(
            warning_seconds=retention.warning_seconds,
            ahead_seconds=ahead_seconds,
            grace_seconds=retention.trash_grace_seconds,
        )
        self._announcer = Announcer(looks, times)

    async def get(self, actor: Actor, workspace_id: str) -> Lifetime:
        """Explain the clocks of one workspace."""
        require_scope(actor, Scope.READ)

        def unit(tx: Transaction) -> Lifetime:
            workspace = get_workspace(tx, actor, workspace_id)
            following = self._next(tx, workspace)
            holds = _holds(workspace)
            return Lifetime(
                next=following,
                held_by=holds,
                activity=Activity(
                    last_activity_at=workspace.last_activity_at,
                    counts=_COUNTS,
                    now=self._signs.now(tx, workspace),
                ),
                last_fired=find_fired(tx, workspace_id),
                git=workspace.git,
                final_snapshot=workspace.status in _EXPIRING
                and needs_final(workspace, known_state(workspace)),
                message=_explain(workspace, following, holds),
            )

        return await self._database.read(unit)

    async def sweep(self) -> None:
        """Warn of clocks that fire soon, fire those that are due, and forget what is too old.

        A clock that was held when it was due (pinned, engine or daemon away) is warned of first, too. After a
        gap in time everything is warned of anew, and nothing fires or is forgotten at once.
        """
        await self._signs.write_down()  # first, since a clock must not fire on one that is in use
        swept = await self._database.write(self._sweep)
        self._timekeeper.keep(swept.reading)
        if swept.reading.gap is not None:
            log.warning(
                "time did not pass as it should, so clocks are warned of again first", why=swept.reading.gap
            )
        self._announcer.look_at(swept.to_look_at)
        if swept.begun:
            log.info("clocks fired", count=swept.begun)
            self._queue.wake()

    def _sweep(self, tx: Transaction) -> "_Swept":
        reading = self._timekeeper.read(tx)
        if reading.gap is not None:
            forget_warnings(tx)
            restart_detached(tx)
        to_look_at = self._announcer.warn(tx)
        begun = 0
        if reading.gap is None:
            begun = sum(_fire(tx, firing) for firing in self._due(tx)) + self._delete_again(tx)
            if self._timekeeper.is_settled:
                self._forget(tx)
        return _Swept(reading=reading, to_look_at=to_look_at, begun=begun)

    def _due(self, tx: Transaction) -> list[Firing]:
        retention = self._retention
        limits = {(Clock.IDLE, Clock.TTL): MAX_PER_SWEEP, (Clock.TRASH,): MAX_PURGES_PER_SWEEP}
        return [
            firing
            for clocks, limit in limits.items()
            for firing in list_due(
                tx, retention.warning_seconds, retention.trash_grace_seconds, limit, clocks
            )
        ]

    def _forget(self, tx: Transaction) -> None:
        retention = self._retention
        delete_finished(tx, timedelta(seconds=retention.operations_seconds), MAX_FORGOTTEN_PER_SWEEP)
        delete_old_events(tx, timedelta(seconds=retention.events_seconds), MAX_FORGOTTEN_PER_SWEEP)
        delete_surplus_events(tx, retention.events_count, MAX_FORGOTTEN_PER_SWEEP)
        delete_old_answers(tx)

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

    def _next(self, tx: Transaction, workspace: Workspace) -> NextFiring | None:
        if _holds(workspace):
            return None
        retention, warned = self._retention, find_warned(tx, workspace.id)
        longest = timedelta(seconds=retention.warning_seconds)
        firings = []
        for clock, (at, whole) in clocks_of(workspace, retention.trash_grace_seconds).items():
            announced_for, said = warned.get(clock, (None, None))
            if announced_for != at:
                said = None
            counts_from = said or tx.now
            notice = longest if counts_from > at + LATE else min(longest, whole)
            firings.append(
                NextFiring(
                    clock=clock,
                    at=max(at, counts_from + notice),
                    leads_to=LEADS_TO[clock],
                    warned_at=said,
                )
            )
        return min(firings, key=lambda firing: firing.at, default=None)


@frozen(kw_only=True)
class _Swept:
    reading: Reading
    to_look_at: list[Workspace]
    begun: int


def clocks_of(workspace: Workspace, grace_seconds: int) -> dict[Clock, tuple[datetime, timedelta]]:
    """Return when each clock of a workspace runs out, and how long before that it can be warned of."""
    times = {}
    if workspace.status in _EXPIRING and workspace.expires_at:
        ttl = workspace.ttl_seconds
        times[Clock.TTL] = workspace.expires_at, timedelta.max if ttl is None else timedelta(seconds=ttl)
    if workspace.status is Status.RUNNING and workspace.idle_timeout_seconds is not None:
        idle = timedelta(seconds=workspace.idle_timeout_seconds)
        times[Clock.IDLE] = workspace.last_activity_at + idle, idle / 2
    if workspace.status is Status.TRASHED and workspace.trashed_at is not None:
        grace = timedelta(seconds=grace_seconds)
        times[Clock.TRASH] = workspace.trashed_at + grace, grace
    return times


def _fire(tx: Transaction, firing: Firing) -> bool:
    """Begin what a clock leads to; return False where another clock of the workspace was first."""
    workspace = find_workspace(tx, firing.workspace_id)
    if workspace is None or workspace.current_operation is not None:
        return False
    mark_fired(tx, workspace.id, firing.clock, _why(workspace, firing.clock))
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


def _why(workspace: Workspace, clock: Clock) -> str:
    if clock is Clock.IDLE:
        since = f"{workspace.last_activity_at:%Y-%m-%d %H:%M:%S} UTC"
        return f"It was not in use since {since}, longer than its idle_timeout_seconds."
    if clock is Clock.TTL:
        return f"Its ttl_seconds were over at {workspace.expires_at:%Y-%m-%d %H:%M:%S} UTC."
    return f"It was in trash since {workspace.trashed_at:%Y-%m-%d %H:%M:%S} UTC, for the whole grace period."


def _explain(workspace: Workspace, following: NextFiring | None, holds: tuple[str, ...]) -> str:
    if holds:
        return " ".join(_HOLDS[hold] for hold in holds)
    if following is None:
        return f"A workspace that is {workspace.status} and has these settings has no clock that runs."
    return EXPLANATIONS[following.clock].format(at=f"{following.at:%Y-%m-%d %H:%M} UTC")


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
