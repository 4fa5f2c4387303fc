"""Which workspaces' clocks have run out, or soon will."""

from collections.abc import Collection
from datetime import datetime, timedelta
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
    """A clock of one workspace, when it runs out, and how long before it fires it must be announced."""

    workspace_id: str
    owner_id: str
    clock: Clock
    at: datetime
    notice: timedelta


@frozen(kw_only=True)
class Fired:
    """The clock that fired last on a workspace."""

    clock: Clock
    at: datetime
    why: str = ""


ALL_CLOCKS = tuple(Clock)
LATE = timedelta(minutes=1)  # for a warning: something had held what it is about

_FIRED = decoder(Fired)
_WARNED = decoder(dict[str, tuple[int, int]])

# The idle clock is announced in the second half of its time at the earliest, or use would announce it again
# and again. `notice_ms` is how long before it fires a clock can have been announced at most.
_RUNNING_OUT = """
(
    SELECT id, 'ttl' AS clock, expires_at AS at, coalesce(ttl_seconds, 1e12) * 1000 AS notice_ms
    FROM workspaces
    WHERE status IN ('running', 'stopped', 'failed') AND expires_at <= :until AND deleted_at IS NULL
    UNION ALL
    SELECT id, 'idle', last_activity_at + idle_timeout_seconds * 1000, idle_timeout_seconds * 500
    FROM workspaces
    WHERE status = 'running' AND deleted_at IS NULL
        AND last_activity_at + idle_timeout_seconds * 1000
            <= :until - max(0, :ahead_ms - idle_timeout_seconds * 500)
    UNION ALL
    SELECT id, 'trash', trashed_at + :grace_ms, :grace_ms FROM workspaces
    WHERE status = 'trashed' AND trashed_at + :grace_ms <= :until AND deleted_at IS NULL
) due JOIN workspaces w ON w.id = due.id
WHERE NOT w.pinned AND w.health <> 'unreachable' AND w.current_operation IS NULL
    AND clock IN (SELECT value FROM json_each(:clocks))
"""
# What had run out long before it was announced, because something held it, is announced for the whole time.
_NOTICE_MS = (
    f"CASE WHEN {{said}} > at + {LATE // timedelta(milliseconds=1)} "
    "THEN :warning_ms ELSE min(notice_ms, :warning_ms) END"
)
_SAID = "json_extract(w.warned, '$.' || clock || '[1]')"
# Only what was announced, and that long enough ago. The earliest of each workspace alone, whose clock SQLite
# gives along with min().
LIST_DUE = f"""
SELECT w.id, w.owner_id, clock, min(at) AS at, {_NOTICE_MS.format(said=_SAID)} AS notice_ms
FROM {_RUNNING_OUT}
    AND json_extract(w.warned, '$.' || clock || '[0]') IS at
    AND {_SAID} + {_NOTICE_MS.format(said=_SAID)} <= :until
GROUP BY w.id ORDER BY at LIMIT :limit
"""
_UNWARNED = f"""
SELECT w.id, w.owner_id, clock, at, {_NOTICE_MS.format(said=":until - :ahead_ms")} AS notice_ms
FROM {_RUNNING_OUT} AND json_extract(w.warned, '$.' || clock || '[0]') IS NOT at
"""
LIST_UNWARNED = f"""
{_UNWARNED} AND w.id NOT IN (SELECT value FROM json_each(:apart_from)) ORDER BY at LIMIT :limit
"""
LIST_UNWARNED_OF_WORKSPACE = f"{_UNWARNED} AND w.id = :workspace_id ORDER BY at LIMIT :limit"
MARK_WARNED = """
UPDATE workspaces SET warned = json_set(warned, '$.' || :clock, json_array(:at, :now)) WHERE id = :id
"""
FIND_WARNED = "SELECT warned FROM workspaces WHERE id = :id"
FORGET_WARNINGS = "UPDATE workspaces SET warned = '{}' WHERE warned <> '{}' AND deleted_at IS NULL"
# What comes to nothing is announced again before it is tried again.
MARK_FIRED = """
UPDATE workspaces SET last_fired = :fired, warned = json_remove(warned, '$.' || :clock) WHERE id = :id
"""
FIND_FIRED = "SELECT last_fired FROM workspaces WHERE id = :id"


def list_due(
    tx: Transaction,
    warning_seconds: int,
    grace_seconds: int,
    limit: int,
    clocks: Collection[Clock] = ALL_CLOCKS,
) -> list[Firing]:
    """Return the clock of each workspace that fires first and is due, the longest overdue first.

    Due is what ran out and was announced `warning_seconds` ago, or for as long as it could be.
    """
    values = _values(tx, tx.now, warning_seconds, grace_seconds, limit, clocks=encode(sorted(clocks)))
    return _firings(tx, LIST_DUE, values)


def list_unwarned(
    tx: Transaction,
    until: datetime,
    warning_seconds: int,
    grace_seconds: int,
    limit: int,
    apart_from: Collection[str] = (),
) -> list[Firing]:
    """Return the clocks that run out before `until` and were not announced for that time.

    Workspaces in `apart_from` are left out.
    """
    values = _values(tx, until, warning_seconds, grace_seconds, limit, apart_from=encode(sorted(apart_from)))
    return _firings(tx, LIST_UNWARNED, values)


def list_unwarned_of(
    tx: Transaction, workspace_id: str, until: datetime, warning_seconds: int, grace_seconds: int
) -> list[Firing]:
    """Return the clocks of one workspace that run out before `until` and were not announced for that time."""
    values = _values(tx, until, warning_seconds, grace_seconds, len(Clock), workspace_id=workspace_id)
    return _firings(tx, LIST_UNWARNED_OF_WORKSPACE, values)


def mark_warned(tx: Transaction, firing: Firing) -> None:
    """Note that a firing was announced."""
    values = {"id": firing.workspace_id, "clock": firing.clock, "at": millis(firing.at)}
    tx.execute(MARK_WARNED, {**values, "now": millis(tx.now)})


def find_warned(tx: Transaction, workspace_id: str) -> dict[Clock, tuple[datetime, datetime]]:
    """Return which firing of each clock was announced last: when it runs out, and when that was said."""
    row = tx.execute(FIND_WARNED, {"id": workspace_id}).fetchone()
    warned = {} if row is None else _WARNED(row["warned"])
    return {Clock(clock): (moment(at), moment(said)) for clock, (at, said) in warned.items()}


def forget_warnings(tx: Transaction) -> None:
    """Have everything announced anew, and nothing fired before that was long enough ago."""
    tx.execute(FORGET_WARNINGS)


def mark_fired(tx: Transaction, workspace_id: str, clock: Clock, why: str = "") -> None:
    """Note that a clock fires now, and why."""
    fired = encode(Fired(clock=clock, at=tx.now, why=why))
    tx.execute(MARK_FIRED, {"id": workspace_id, "clock": clock, "fired": fired})


def find_fired(tx: Transaction, workspace_id: str) -> Fired | None:
    """Return the clock that fired last on a workspace."""
    row = tx.execute(FIND_FIRED, {"id": workspace_id}).fetchone()
    if row is None or row["last_fired"] is None:
        return None
    fired: Fired = _FIRED(row["last_fired"])
    return fired


def _values(
    tx: Transaction, until: datetime, warning_seconds: int, grace_seconds: int, limit: int, **others: str
) -> dict[str, Any]:
    return {
        "until": millis(until),
        "ahead_ms": millis(until) - millis(tx.now),
        "warning_ms": warning_seconds * 1000,
        "grace_ms": grace_seconds * 1000,
        "limit": limit,
        "clocks": encode(sorted(ALL_CLOCKS)),
        **others,
    }


def _firings(tx: Transaction, sql: str, values: dict[str, Any]) -> list[Firing]:
    return [
        Firing(
            workspace_id=row["id"],
            owner_id=row["owner_id"],
            clock=Clock(row["clock"]),
            at=moment(row["at"]),
            notice=timedelta(milliseconds=row["notice_ms"]),
        )
        for row in tx.execute(sql, values)
    ]
