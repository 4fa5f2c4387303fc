"""Events that were committed, for those who missed them."""

from datetime import timedelta
from typing import Any

from vmd.model.event import Event, EventType
from vmd.store.database import Transaction
from vmd.store.rows import decoder, millis, moment

_OBJECT = decoder(dict[str, Any])

_LIST = """
SELECT seq, type, time, actor, owner_id, workspace_id, operation_id, data FROM events
WHERE {scope} AND seq > :after ORDER BY seq LIMIT :limit
"""
LIST_ALL = _LIST.format(scope="TRUE")
LIST_OF_OWNER = _LIST.format(scope="owner_id = :owner_id")
LIST_OF_WORKSPACE = _LIST.format(scope="workspace_id = :workspace_id")
FIND_BOUNDS = """
SELECT (SELECT seq FROM events ORDER BY seq LIMIT 1) AS first, seq FROM sqlite_sequence WHERE name = 'events'
"""
DELETE_OLD_EVENTS = """
DELETE FROM events WHERE seq IN (SELECT seq FROM events
    WHERE seq < coalesce(
        (SELECT seq FROM events WHERE time >= :before ORDER BY seq LIMIT 1), 9223372036854775807)
    ORDER BY seq LIMIT :limit)
"""
DELETE_SURPLUS_EVENTS = """
DELETE FROM events WHERE seq IN (SELECT seq FROM events
    WHERE seq <= (SELECT max(seq) FROM events) - :count ORDER BY seq LIMIT :limit)
"""


def list_events(
    tx: Transaction, *, owner_id: str | None, workspace_id: str | None, after: int, limit: int
) -> list[Event]:
    """Return up to `limit` events after number `after`, of one workspace, one owner, or all."""
    sql = LIST_ALL if owner_id is None else LIST_OF_OWNER
    if workspace_id is not None:
        sql = LIST_OF_WORKSPACE
    values = {"owner_id": owner_id, "workspace_id": workspace_id, "after": after, "limit": limit}
    return [
        Event(
            seq=row["seq"],
            type=EventType(row["type"]),
            time=moment(row["time"]),
            actor=row["actor"],
            owner_id=row["owner_id"],
            workspace_id=row["workspace_id"],
            operation_id=row["operation_id"],
            data=_OBJECT(row["data"]),
        )
        for row in tx.execute(sql, values)
    ]


def find_bounds(tx: Transaction) -> tuple[int, int]:
    """Return the number of the first event that is kept, and of the last that ever was (0 for none)."""
    row = tx.execute(FIND_BOUNDS).fetchone()
    if row is None:
        return 1, 0
    return row["first"] or row["seq"] + 1, row["seq"]


def delete_old_events(tx: Transaction, age: timedelta, limit: int) -> int:
    """Forget up to `limit` events older than `age`; return how many."""
    return tx.execute(DELETE_OLD_EVENTS, {"before": millis(tx.now - age), "limit": limit}).rowcount


def delete_surplus_events(tx: Transaction, count: int, limit: int) -> int:
    """Forget up to `limit` events, the oldest, beyond the last `count`; return how many."""
    return tx.execute(DELETE_SURPLUS_EVENTS, {"count": count, "limit": limit}).rowcount
