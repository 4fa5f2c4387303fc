"""Terminal sessions in workspaces."""

import sqlite3
from datetime import timedelta

from vmd.model.shell import Persistence, Shell, ShellStatus
from vmd.store.database import Transaction
from vmd.store.rows import millis, moment, optional_millis, optional_moment

_SELECT = """
SELECT id, workspace_id, actor, command, persistence, status, exit_code, created_at, detached_at, finished_at
FROM shells
"""
FIND_SHELL = f"{_SELECT} WHERE id = :id AND workspace_id = :workspace_id"
LIST_SHELLS = f"""
{_SELECT} WHERE workspace_id = :workspace_id AND id < coalesce(:after, '~') ORDER BY id DESC LIMIT :limit
"""
LIST_SHELLS_OF_WORKSPACE = f"{_SELECT} WHERE workspace_id = :workspace_id ORDER BY id"
LIST_DETACHED = f"{_SELECT} WHERE detached_at < :before ORDER BY detached_at LIMIT :limit"
LIST_WORKSPACES_WITH_SHELLS = "SELECT DISTINCT workspace_id FROM shells"
INSERT_SHELL = """
INSERT INTO shells (id, workspace_id, actor, command, persistence, status, created_at, detached_at)
VALUES (:id, :workspace_id, :actor, :command, :persistence, :status, :created_at, :detached_at)
"""
UPDATE_SHELL = """
UPDATE shells SET persistence = :persistence, status = :status, exit_code = :exit_code,
    detached_at = :detached_at, finished_at = :finished_at
WHERE id = :id
"""
MARK_ALL_DETACHED = "UPDATE shells SET detached_at = :now WHERE detached_at IS NULL"
RESTART_DETACHED = """
UPDATE shells SET detached_at = :now WHERE detached_at IS NOT NULL AND finished_at IS NULL
"""
DELETE_SHELL = "DELETE FROM shells WHERE id = :id"


def insert_shell(tx: Transaction, shell: Shell) -> None:
    """Record a shell before it is begun."""
    values = {
        "id": shell.id,
        "workspace_id": shell.workspace_id,
        "actor": shell.actor,
        "command": shell.command,
        "persistence": shell.persistence,
        "status": shell.status,
        "created_at": millis(shell.created_at),
        "detached_at": optional_millis(shell.detached_at),
    }
    tx.execute(INSERT_SHELL, values)


def update_shell(tx: Transaction, shell: Shell) -> None:
    """Write all that may change of a shell."""
    values = {
        "id": shell.id,
        "persistence": shell.persistence,
        "status": shell.status,
        "exit_code": shell.exit_code,
        "detached_at": optional_millis(shell.detached_at),
        "finished_at": optional_millis(shell.finished_at),
    }
    tx.execute(UPDATE_SHELL, values)


def mark_all_detached(tx: Transaction) -> None:
    """Note that nobody is attached to any shell."""
    tx.execute(MARK_ALL_DETACHED, {"now": millis(tx.now)})


def restart_detached(tx: Transaction) -> None:
    """Have the time that nobody is attached to a running shell count from now."""
    tx.execute(RESTART_DETACHED, {"now": millis(tx.now)})


def delete_shell(tx: Transaction, shell_id: str) -> None:
    """Forget a shell."""
    tx.execute(DELETE_SHELL, {"id": shell_id})


def find_shell(tx: Transaction, workspace_id: str, shell_id: str) -> Shell | None:
    """Return a shell of this workspace."""
    row = tx.execute(FIND_SHELL, {"id": shell_id, "workspace_id": workspace_id}).fetchone()
    return None if row is None else _shell(row)


def list_shells(tx: Transaction, workspace_id: str, after: str | None, limit: int) -> list[Shell]:
    """Return up to `limit` shells older than `after`, newest first."""
    values = {"workspace_id": workspace_id, "after": after, "limit": limit}
    return [_shell(row) for row in tx.execute(LIST_SHELLS, values)]


def list_shells_of(tx: Transaction, workspace_id: str) -> list[Shell]:
    """Return all shells of a workspace, oldest first."""
    return [_shell(row) for row in tx.execute(LIST_SHELLS_OF_WORKSPACE, {"workspace_id": workspace_id})]


def list_detached(tx: Transaction, age: timedelta, limit: int) -> list[Shell]:
    """Return up to `limit` shells that nobody was attached to for longer than `age`."""
    rows = tx.execute(LIST_DETACHED, {"before": millis(tx.now - age), "limit": limit})
    return [_shell(row) for row in rows]


def list_workspaces_with_shells(tx: Transaction) -> list[str]:
    """Return the ids of the workspaces that have shells."""
    return [row["workspace_id"] for row in tx.execute(LIST_WORKSPACES_WITH_SHELLS)]


def _shell(row: sqlite3.Row) -> Shell:
    return Shell(
        id=row["id"],
        workspace_id=row["workspace_id"],
        actor=row["actor"],
        command=row["command"],
        persistence=Persistence(row["persistence"]),
        status=ShellStatus(row["status"]),
        exit_code=row["exit_code"],
        created_at=moment(row["created_at"]),
        detached_at=optional_moment(row["detached_at"]),
        finished_at=optional_moment(row["finished_at"]),
    )
