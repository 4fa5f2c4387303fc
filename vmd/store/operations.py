"""Operations and their logs."""

import sqlite3
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from attrs import evolve, frozen

from vmd.model.errors import Problem
from vmd.model.operation import (
    Job,
    LogLine,
    Operation,
    OperationStatus,
    OperationType,
    Progress,
    Verdict,
)
from vmd.store.database import Transaction
from vmd.store.rows import decoder, encode, millis, moment, optional_json, optional_millis, optional_moment

_PROGRESS = decoder(Progress)
_PROBLEM = decoder(Problem)
_OBJECT = decoder(dict[str, Any])

# Also selected by the workspaces' queries, whence the prefix.
OPERATION_COLUMNS = """
o.id AS op_id, o.type AS op_type, o.status AS op_status, o.workspace_id AS op_workspace_id,
o.snapshot_id AS op_snapshot_id, o.command_id AS op_command_id, o.actor AS op_actor,
o.created_at AS op_created_at, o.started_at AS op_started_at, o.finished_at AS op_finished_at,
o.progress AS op_progress, o.result AS op_result, o.error AS op_error, o.may_cancel AS op_may_cancel,
o.attempt AS op_attempt
"""
_JOB_COLUMNS = f"{OPERATION_COLUMNS}, o.owner_id, o.input, o.checkpoint, o.verdict"

INSERT_OPERATION = """
INSERT INTO operations (id, type, status, owner_id, workspace_id, snapshot_id, command_id, actor, input,
    checkpoint, may_cancel, attempt, progress, result, created_at, started_at, finished_at)
VALUES (:id, :type, :status, :owner_id, :workspace_id, :snapshot_id, :command_id, :actor, :input,
    '{}', :may_cancel, :attempt, :progress, :result, :created_at, :started_at, :finished_at)
"""
FIND_JOB = f"SELECT {_JOB_COLUMNS} FROM operations o WHERE o.id = :id"
FIND_LAST_INPUT = """
SELECT input FROM operations WHERE workspace_id = :workspace_id AND type = :type ORDER BY id DESC LIMIT 1
"""
UPDATE_JOB = """
UPDATE operations SET status = :status, input = :input, checkpoint = :checkpoint, verdict = :verdict,
    may_cancel = :may_cancel, attempt = :attempt, not_before = :not_before, progress = :progress,
    result = :result, error = :error, started_at = :started_at, finished_at = :finished_at
WHERE id = :id
"""
# Whoever has the fewest workers is served first, then who came first; a workspace has one worker at a time.
# Commands need none: their machine runs them.
FIND_NEXT = f"""
SELECT {_JOB_COLUMNS} FROM operations o
WHERE o.status IN ('pending', 'running', 'cancelling') AND o.type <> 'command'
    AND o.id NOT IN (SELECT value FROM json_each(:active))
    AND (o.not_before IS NULL OR o.not_before <= :now)
    AND NOT EXISTS (SELECT 1 FROM operations a
        WHERE a.id IN (SELECT value FROM json_each(:active)) AND a.workspace_id = o.workspace_id)
    AND (SELECT count(*) FROM operations a
        WHERE a.id IN (SELECT value FROM json_each(:active)) AND a.owner_id = o.owner_id) < :share
ORDER BY (SELECT count(*) FROM operations a
    WHERE a.id IN (SELECT value FROM json_each(:active)) AND a.owner_id = o.owner_id), o.id
LIMIT 1
"""
FIND_NEXT_TIME = """
SELECT min(not_before) AS time FROM operations
WHERE status IN ('pending', 'running', 'cancelling') AND not_before > :now
"""
WAKE_WAITING = """
UPDATE operations SET not_before = NULL
WHERE status IN ('pending', 'running', 'cancelling') AND not_before IS NOT NULL
    AND (workspace_id IN (SELECT id FROM workspaces WHERE provider = :provider)
        OR snapshot_id IN (SELECT id FROM snapshots WHERE provider = :provider))
"""
_LIST = f"""
SELECT {OPERATION_COLUMNS} FROM operations o
WHERE {{scope}} AND o.id < coalesce(:after, '~')
    AND (:types IS NULL OR o.type IN (SELECT value FROM json_each(:types)))
    AND (:statuses IS NULL OR o.status IN (SELECT value FROM json_each(:statuses)))
    AND (:actor IS NULL OR o.actor = :actor)
ORDER BY o.id DESC LIMIT :limit
"""
LIST_ALL = _LIST.format(scope="TRUE")
LIST_OF_OWNER = _LIST.format(scope="o.owner_id = :owner_id")
LIST_OF_WORKSPACES = _LIST.format(
    scope="""(:owner_id IS NULL OR o.owner_id = :owner_id)
    AND o.workspace_id IN (SELECT value FROM json_each(:workspace_ids))"""
)
INSERT_LOG = """
INSERT INTO operation_logs (operation_id, seq, time, stream, message)
VALUES (:operation_id, :seq, :time, :stream, :message)
"""
LAST_LOG_SEQ = "SELECT coalesce(max(seq), 0) AS seq FROM operation_logs WHERE operation_id = :operation_id"
LIST_LOGS = """
SELECT seq, time, stream, message FROM operation_logs
WHERE operation_id = :operation_id AND seq > :after ORDER BY seq LIMIT :limit
"""
DELETE_FINISHED = """
DELETE FROM operations WHERE id IN (SELECT id FROM operations
    WHERE finished_at IS NOT NULL AND finished_at < :before
    AND NOT EXISTS (SELECT 1 FROM workspaces w WHERE w.current_operation = operations.id)
    AND NOT EXISTS (SELECT 1 FROM snapshots s WHERE s.current_operation = operations.id) LIMIT :limit)
"""


@frozen(kw_only=True)
class OperationFilter:
    """Which operations a list is about; None asks for all."""

    owner_id: str | None
    workspace_ids: tuple[str, ...] | None = None
    types: tuple[OperationType, ...] | None = None
    statuses: tuple[OperationStatus, ...] | None = None
    actor: str | None = None


def insert_operation(tx: Transaction, operation: Operation, owner_id: str, given: dict[str, Any]) -> None:
    """Record an operation before it is begun; `given` is what its worker needs to know."""
    tx.execute(
        INSERT_OPERATION,
        {
            "id": operation.id,
            "type": operation.type,
            "status": operation.status,
            "owner_id": owner_id,
            "workspace_id": operation.workspace_id,
            "snapshot_id": operation.snapshot_id,
            "command_id": operation.command_id,
            "actor": operation.actor,
            "input": encode(given),
            "may_cancel": operation.may_cancel,
            "attempt": operation.attempt,
            "progress": encode(operation.progress),
            "result": optional_json(operation.result),
            "created_at": millis(operation.created_at),
            "started_at": optional_millis(operation.started_at),
            "finished_at": optional_millis(operation.finished_at),
        },
    )


def find_job(tx: Transaction, operation_id: str) -> Job | None:
    """Return an operation with what its worker knows."""
    row = tx.execute(FIND_JOB, {"id": operation_id}).fetchone()
    return None if row is None else _job(row)


def find_last_input(tx: Transaction, workspace_id: str, kind: OperationType) -> dict[str, Any]:
    """Return what the workspace's last operation of a type was given, nothing if there was none."""
    row = tx.execute(FIND_LAST_INPUT, {"workspace_id": workspace_id, "type": kind}).fetchone()
    found: dict[str, Any] = {} if row is None else _OBJECT(row["input"])
    return found


def update_job(tx: Transaction, job: Job, *, not_before: datetime | None = None) -> None:
    """Write all that may change of an operation."""
    operation = job.operation
    tx.execute(
        UPDATE_JOB,
        {
            "id": operation.id,
            "status": operation.status,
            "input": encode(job.input),
            "checkpoint": encode(job.checkpoint),
            "verdict": job.verdict,
            "may_cancel": operation.may_cancel,
            "attempt": operation.attempt,
            "not_before": optional_millis(not_before),
            "progress": encode(operation.progress),
            "result": optional_json(operation.result),
            "error": optional_json(operation.error),
            "started_at": optional_millis(operation.started_at),
            "finished_at": optional_millis(operation.finished_at),
        },
    )


def claim_next(tx: Transaction, active: Collection[str], share: int = 1_000_000) -> Job | None:
    """Give the operation whose turn it is to a worker.

    `active` are those that have one, of which no owner may have more than `share`.
    """
    values = {"active": encode(list(active)), "now": millis(tx.now), "share": share}
    row = tx.execute(FIND_NEXT, values).fetchone()
    if row is None:
        return None
    job = _job(row)
    operation = job.operation
    if operation.status is not OperationStatus.CANCELLING:
        operation = evolve(operation, status=OperationStatus.RUNNING)
    operation = evolve(operation, started_at=operation.started_at or tx.now, attempt=operation.attempt + 1)
    job = evolve(job, operation=operation)
    update_job(tx, job)
    return job


def find_next_time(tx: Transaction) -> datetime | None:
    """Return when the first operation that waits may be tried again."""
    return optional_moment(tx.execute(FIND_NEXT_TIME, {"now": millis(tx.now)}).fetchone()["time"])


def wake_waiting(tx: Transaction, provider: str) -> None:
    """Let the operations that wait for this provider be tried at once."""
    tx.execute(WAKE_WAITING, {"provider": provider})


def list_operations(
    tx: Transaction, wanted: OperationFilter, after: str | None, limit: int
) -> list[Operation]:
    """Return up to `limit` operations older than `after`, newest first."""
    if wanted.workspace_ids is not None:
        sql = LIST_OF_WORKSPACES
    else:
        sql = LIST_ALL if wanted.owner_id is None else LIST_OF_OWNER
    values = {
        "owner_id": wanted.owner_id,
        "workspace_ids": optional_json(wanted.workspace_ids),
        "types": optional_json(wanted.types),
        "statuses": optional_json(wanted.statuses),
        "actor": wanted.actor,
        "after": after,
        "limit": limit,
    }
    return [operation_of(row) for row in tx.execute(sql, values)]


def insert_logs(
    tx: Transaction, operation_id: str, lines: Sequence[tuple[datetime, str, str]]
) -> list[LogLine]:
    """Append lines of (time, stream, message); return them numbered."""
    seq = tx.execute(LAST_LOG_SEQ, {"operation_id": operation_id}).fetchone()["seq"]
    numbered = [
        LogLine(seq=seq + place, time=time, stream=stream, message=message)
        for place, (time, stream, message) in enumerate(lines, 1)
    ]
    for line in numbered:
        tx.execute(
            INSERT_LOG,
            {
                "operation_id": operation_id,
                "seq": line.seq,
                "time": millis(line.time),
                "stream": line.stream,
                "message": line.message,
            },
        )
    return numbered


def list_logs(tx: Transaction, operation_id: str, after: int, limit: int) -> list[LogLine]:
    """Return up to `limit` lines that follow number `after`, in order."""
    rows = tx.execute(LIST_LOGS, {"operation_id": operation_id, "after": after, "limit": limit})
    return [
        LogLine(seq=row["seq"], time=moment(row["time"]), stream=row["stream"], message=row["message"])
        for row in rows
    ]


def delete_finished(tx: Transaction, age: timedelta, limit: int) -> int:
    """Forget up to `limit` operations that ended longer ago than `age`; return how many."""
    return tx.execute(DELETE_FINISHED, {"before": millis(tx.now - age), "limit": limit}).rowcount


def operation_of(row: sqlite3.Row) -> Operation:
    """Return the operation in the `op_…` columns of a row."""
    result, error = row["op_result"], row["op_error"]
    return Operation(
        id=row["op_id"],
        type=OperationType(row["op_type"]),
        status=OperationStatus(row["op_status"]),
        workspace_id=row["op_workspace_id"],
        snapshot_id=row["op_snapshot_id"],
        command_id=row["op_command_id"],
        actor=row["op_actor"],
        created_at=moment(row["op_created_at"]),
        started_at=optional_moment(row["op_started_at"]),
        finished_at=optional_moment(row["op_finished_at"]),
        progress=_PROGRESS(row["op_progress"]),
        result=None if result is None else _OBJECT(result),
        error=None if error is None else _PROBLEM(error),
        may_cancel=bool(row["op_may_cancel"]),
        attempt=row["op_attempt"],
    )


def _job(row: sqlite3.Row) -> Job:
    return Job(
        operation=operation_of(row),
        owner_id=row["owner_id"],
        input=_OBJECT(row["input"]),
        checkpoint=_OBJECT(row["checkpoint"]),
        verdict=None if row["verdict"] is None else Verdict(row["verdict"]),
    )
