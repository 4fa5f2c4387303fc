"""Commands that were run in workspaces."""

import sqlite3
from datetime import timedelta

from vmd.model.command import Command, CommandStatus
from vmd.store.database import Transaction
from vmd.store.rows import decoder, encode, millis, moment, optional_millis, optional_moment

_COMMAND = decoder(tuple[str, ...] | str)

_SELECT = """
SELECT id, workspace_id, operation_id, actor, command, cwd, user, timeout_seconds, status, exit_code, signal,
    created_at, started_at, finished_at, stdout_bytes, stderr_bytes, stdout_dropped_bytes,
    stderr_dropped_bytes
FROM commands
"""
FIND_COMMAND = f"{_SELECT} WHERE id = :id AND workspace_id = :workspace_id"
LIST_COMMANDS = f"""
{_SELECT} WHERE workspace_id = :workspace_id AND id < coalesce(:after, '~') ORDER BY id DESC LIMIT :limit
"""
LIST_UNFINISHED = f"{_SELECT} WHERE workspace_id = :workspace_id AND finished_at IS NULL ORDER BY id"
LIST_KNOWN = "SELECT id FROM commands WHERE workspace_id = :workspace_id"
LIST_WORKSPACES_WITH_UNFINISHED = "SELECT DISTINCT workspace_id FROM commands WHERE finished_at IS NULL"
COUNT_UNFINISHED = """
SELECT count(*) AS count FROM commands WHERE workspace_id = :workspace_id AND finished_at IS NULL
"""
INSERT_COMMAND = """
INSERT INTO commands (id, workspace_id, operation_id, actor, command, cwd, user, timeout_seconds, status,
    created_at, started_at)
VALUES (:id, :workspace_id, :operation_id, :actor, :command, :cwd, :user, :timeout_seconds, :status,
    :created_at, :started_at)
"""
UPDATE_COMMAND = """
UPDATE commands SET status = :status, exit_code = :exit_code, signal = :signal, finished_at = :finished_at,
    stdout_bytes = :stdout_bytes, stderr_bytes = :stderr_bytes,
    stdout_dropped_bytes = :stdout_dropped_bytes, stderr_dropped_bytes = :stderr_dropped_bytes
WHERE id = :id
"""
DELETE_OLD_COMMANDS = """
DELETE FROM commands WHERE id IN (SELECT id FROM commands WHERE finished_at < :before LIMIT :limit)
RETURNING id, workspace_id
"""
# What is kept is summed from the newest on; the one that goes over the limit is the first to go.
DELETE_SURPLUS_COMMANDS = """
DELETE FROM commands WHERE id IN (SELECT id FROM (
    SELECT id, sum(stdout_bytes - stdout_dropped_bytes + stderr_bytes - stderr_dropped_bytes)
        OVER (ORDER BY id DESC) AS kept
    FROM commands WHERE workspace_id = :workspace_id AND finished_at IS NOT NULL
) WHERE kept > :most LIMIT :limit)
RETURNING id, workspace_id
"""


def insert_command(tx: Transaction, command: Command) -> None:
    """Record a command before it is begun."""
    values = {
        "id": command.id,
        "workspace_id": command.workspace_id,
        "operation_id": command.operation_id,
        "actor": command.actor,
        "command": encode(command.command),
        "cwd": command.cwd,
        "user": command.user,
        "timeout_seconds": command.timeout_seconds,
        "status": command.status,
        "created_at": millis(command.created_at),
        "started_at": millis(command.started_at),
    }
    tx.execute(INSERT_COMMAND, values)


def update_command(tx: Transaction, command: Command) -> None:
    """Write all that may change of a command."""
    values = {
        "id": command.id,
        "status": command.status,
        "exit_code": command.exit_code,
        "signal": command.signal,
        "finished_at": optional_millis(command.finished_at),
        "stdout_bytes": command.stdout_bytes,
        "stderr_bytes": command.stderr_bytes,
        "stdout_dropped_bytes": command.stdout_dropped_bytes,
        "stderr_dropped_bytes": command.stderr_dropped_bytes,
    }
    tx.execute(UPDATE_COMMAND, values)


def find_command(tx: Transaction, workspace_id: str, command_id: str) -> Command | None:
    """Return a command of this workspace."""
    row = tx.execute(FIND_COMMAND, {"id": command_id, "workspace_id": workspace_id}).fetchone()
    return None if row is None else _command(row)


def list_commands(tx: Transaction, workspace_id: str, after: str | None, limit: int) -> list[Command]:
    """Return up to `limit` commands older than `after`, newest first."""
    values = {"workspace_id": workspace_id, "after": after, "limit": limit}
    return [_command(row) for row in tx.execute(LIST_COMMANDS, values)]


def list_unfinished(tx: Transaction, workspace_id: str) -> list[Command]:
    """Return the commands of a workspace whose end is not recorded, oldest first."""
    return [_command(row) for row in tx.execute(LIST_UNFINISHED, {"workspace_id": workspace_id})]


def count_unfinished(tx: Transaction, workspace_id: str) -> int:
    """Return how many commands of a workspace run."""
    count: int = tx.execute(COUNT_UNFINISHED, {"workspace_id": workspace_id}).fetchone()["count"]
    return count


def list_known(tx: Transaction, workspace_id: str) -> set[str]:
    """Return the ids of all commands of a workspace."""
    return {row["id"] for row in tx.execute(LIST_KNOWN, {"workspace_id": workspace_id})}


def list_workspaces_with_unfinished(tx: Transaction) -> list[str]:
    """Return the ids of the workspaces in which a command runs."""
    return [row["workspace_id"] for row in tx.execute(LIST_WORKSPACES_WITH_UNFINISHED)]


def delete_old_commands(tx: Transaction, age: timedelta, limit: int) -> list[tuple[str, str]]:
    """Forget up to `limit` commands that ended longer ago than `age`; return (id, workspace id) of each."""
    rows = tx.execute(DELETE_OLD_COMMANDS, {"before": millis(tx.now - age), "limit": limit})
    return [(row["id"], row["workspace_id"]) for row in rows.fetchall()]


def delete_surplus_commands(
    tx: Transaction, workspace_id: str, most: int, limit: int
) -> list[tuple[str, str]]:
    """Forget up to `limit` of a workspace's oldest commands that have ended, beyond `most` bytes of output.

    Returns (id, workspace id) of each.
    """
    values = {"workspace_id": workspace_id, "most": most, "limit": limit}
    rows = tx.execute(DELETE_SURPLUS_COMMANDS, values)
    return [(row["id"], row["workspace_id"]) for row in rows.fetchall()]


def _command(row: sqlite3.Row) -> Command:
    return Command(
        id=row["id"],
        workspace_id=row["workspace_id"],
        operation_id=row["operation_id"],
        actor=row["actor"],
        command=_COMMAND(row["command"]),
        cwd=row["cwd"],
        user=row["user"],
        timeout_seconds=row["timeout_seconds"],
        status=CommandStatus(row["status"]),
        exit_code=row["exit_code"],
        signal=row["signal"],
        created_at=moment(row["created_at"]),
        started_at=moment(row["started_at"]),
        finished_at=optional_moment(row["finished_at"]),
        stdout_bytes=row["stdout_bytes"],
        stderr_bytes=row["stderr_bytes"],
        stdout_dropped_bytes=row["stdout_dropped_bytes"],
        stderr_dropped_bytes=row["stderr_dropped_bytes"],
    )
