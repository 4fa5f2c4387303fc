"""Which workspaces' clocks have run out, or soon will."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from attrs import frozen

from vmd.store.database import Transaction
from vmd.store.rows import decoder, encode, millis, moment


class Clock(StrEnum):
    """What makes a workspace stop, go to trash, or be purged."""

    IDLE = "idle"  # nothing happened for idle_timeout_seconds: stops
    TTL = "ttl"  # expires_at has come: stops and goes to trash
    TRASH = "trash"  # the grace period in trash is over: is deleted


@frozen(kw_only=True)
class Firing:
    """A clock of one workspace, and when it fires or fired."""

    workspace_id: str
    owner_id: str
    clock: Clock
    at: datetime


@frozen(kw_only=True)
class Fired:
    """The clock that fired last on a workspace."""

    clock: Clock
    at: datetime


_FIRED = decoder(Fired)

# The idle clock is announced in the second half of its time at the earliest, or use would announce it again
# and again.
_RUNNING_OUT = """
(
    SELECT id, 'ttl' AS clock, expires_at AS at FROM workspaces
    WHERE status IN ('running', 'stopped', 'failed') AND expires_at <= :until AND deleted_at IS NULL
    UNION ALL
    SELECT id, 'idle', last_activity_at + idle_timeout_seconds * 1000 FROM workspaces
    WHERE status = 'running' AND deleted_at IS NULL
        AND last_activity_at + idle_timeout_seconds * 1000
            <= :until - max(0, :notice_ms - idle_timeout_seconds * 500)
    UNION ALL
    SELECT id, 'trash', trashed_at + :grace_ms FROM workspaces
    WHERE status = 'trashed' AND trashed_at + :grace_ms <= :until AND deleted_at IS NULL
) due JOIN workspaces w ON w.id = due.id
WHERE NOT w.pinned AND w.health <> 'unreachable' AND w.current_operation IS NULL
"""
# Only what was announced in good time: before it was due or, where something held it then, long enough ago.
# The earliest of each workspace alone, whose clock SQLite gives along with min().
LIST_DUE = f"""
SELECT w.id, w.owner_id, clock, min(at) AS at FROM {_RUNNING_OUT}
    AND json_extract(w.warned, '$.' || clock || '[0]') IS at
    AND json_extract(w.warned, '$.' || clock || '[1]') <= max(at, :told_before)
GROUP BY w.id ORDER BY at LIMIT :limit
"""
LIST_UNWARNED = f"""
SELECT w.id, w.owner_id, clock, at FROM {_RUNNING_OUT}
    AND json_extract(w.warned, '$.' || clock || '[0]') IS NOT at ORDER BY at LIMIT :limit
"""
MARK_WARNED = """
UPDATE workspaces SET warned = json_set(warned, '$.' || :clock, json_array(:at, :now)) WHERE id = :id
"""
MARK_FIRED = "UPDATE workspaces SET last_fired = :fired WHERE id = :id"
FIND_FIRED = "SELECT last_fired FROM workspaces WHERE id = :id"


def list_due(tx: Transaction, notice_seconds: int, grace_seconds: int, limit: int) -> list[Firing]:
    """Return the clock of each workspace that fires first and is due, the longest overdue first.

    One that was announced only after it was due is left out until it was for `notice_seconds`.
    """
    told_before = millis(tx.now) - notice_seconds * 1000
    return _firings(tx, LIST_DUE, tx.now, grace_seconds, limit, told_before=told_before)


def list_unwarned(tx: Transaction, until: datetime, grace_seconds: int, limit: int) -> list[Firing]:
    """Return the clocks that fire before `until` and were not announced for that time."""
    return _firings(tx, LIST_UNWARNED, until, grace_seconds, limit)


def mark_warned(tx: Transaction, firing: Firing) -> None:
    """Note that a firing was announced."""
    values = {"id": firing.workspace_id, "clock": firing.clock, "at": millis(firing.at)}
    tx.execute(MARK_WARNED, {**values, "now": millis(tx.now)})


def mark_fired(tx: Transaction, workspace_id: str, clock: Clock) -> None:
    """Note that a clock fires now."""
    tx.execute(MARK_FIRED, {"id": workspace_id, "fired": encode(Fired(clock=clock, at=tx.now))})


def find_fired(tx: Transaction, workspace_id: str) -> Fired | None:
    """Return the clock that fired last on a workspace."""
    row = tx.execute(FIND_FIRED, {"id": workspace_id}).fetchone()
    if row is None or row["last_fired"] is None:
        return None
    fired: Fired = _FIRED(row["last_fired"])
    return fired


def _firings(
    tx: Transaction, sql: str, until: datetime, grace_seconds: int, limit: int, **others: int
) -> list[Firing]:
    values: dict[str, Any] = {
        "until": millis(until),
        "notice_ms": millis(until) - millis(tx.now),
        "grace_ms": grace_seconds * 1000,
        "limit": limit,
        **others,
    }
    return [
        Firing(
            workspace_id=row["id"], owner_id=row["owner_id"], clock=Clock(row["clock"]), at=moment(row["at"])
        )
        for row in tx.execute(sql, values)
    ]
