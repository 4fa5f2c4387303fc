"""Snapshots of workspaces."""

import sqlite3

from vmd.model.errors import Problem
from vmd.model.snapshot import Manifest, Origin, Snapshot, SnapshotStatus
from vmd.store.database import Transaction
from vmd.store.rows import decoder, encode, millis, moment, optional_json

_ORIGIN = decoder(Origin)
_MANIFEST = decoder(Manifest)
_PROBLEM = decoder(Problem)

_SELECT = """
SELECT id, workspace_id, owner_id, name, description, status, is_final, provider, node, actor, origin,
    size_bytes, manifest, error, created_at, current_operation
FROM snapshots
"""
FIND_SNAPSHOT = f"{_SELECT} WHERE id = :id"
LIST_OF_WORKSPACE = f"""
{_SELECT} WHERE workspace_id = :workspace_id AND id < coalesce(:after, '~') ORDER BY id DESC LIMIT :limit
"""
LIST_OF_OWNER = f"""
{_SELECT} WHERE owner_id = :owner_id AND id < coalesce(:after, '~') ORDER BY id DESC LIMIT :limit
"""
LIST_ALL = f"{_SELECT} WHERE id < coalesce(:after, '~') ORDER BY id DESC LIMIT :limit"
LIST_OF_PROVIDER = f"{_SELECT} WHERE provider = :provider ORDER BY id"
LIST_ABANDONED = f"""
{_SELECT} WHERE status = 'creating' AND NOT EXISTS (SELECT 1 FROM operations o
    WHERE o.id = snapshots.current_operation AND o.status IN ('pending', 'running', 'cancelling'))
"""
EXISTS_SNAPSHOT = "SELECT 1 FROM snapshots WHERE workspace_id = :workspace_id LIMIT 1"
EXISTS_NAME = "SELECT 1 FROM snapshots WHERE workspace_id = :workspace_id AND name = :name LIMIT 1"
FIND_RESTORING = """
SELECT id FROM operations
WHERE status IN ('pending', 'running', 'cancelling') AND type = 'restore' AND snapshot_id = :id LIMIT 1
"""
INSERT_SNAPSHOT = """
INSERT INTO snapshots (id, workspace_id, owner_id, name, description, status, is_final, provider, node, actor,
    origin, created_at)
VALUES (:id, :workspace_id, :owner_id, :name, :description, :status, :is_final, :provider, :node, :actor,
    :origin, :created_at)
"""
UPDATE_SNAPSHOT = """
UPDATE snapshots SET status = :status, size_bytes = :size_bytes, manifest = :manifest, error = :error,
    current_operation = :current_operation
WHERE id = :id
"""
DELETE_SNAPSHOT = "DELETE FROM snapshots WHERE id = :id"


def find_snapshot(tx: Transaction, snapshot_id: str) -> Snapshot | None:
    """Return a snapshot unless it is gone."""
    row = tx.execute(FIND_SNAPSHOT, {"id": snapshot_id}).fetchone()
    return None if row is None else _snapshot(row)


def list_snapshots(tx: Transaction, workspace_id: str, after: str | None, limit: int) -> list[Snapshot]:
    """Return up to `limit` snapshots of a workspace older than `after`, newest first."""
    values = {"workspace_id": workspace_id, "after": after, "limit": limit}
    return [_snapshot(row) for row in tx.execute(LIST_OF_WORKSPACE, values)]


def list_all_of_workspace(tx: Transaction, workspace_id: str) -> list[Snapshot]:
    """Return every snapshot of a workspace, newest first."""
    return list_snapshots(tx, workspace_id, None, -1)


def list_of_owner(tx: Transaction, owner_id: str | None, after: str | None, limit: int) -> list[Snapshot]:
    """Return up to `limit` snapshots of an owner, or of everybody, older than `after`, newest first."""
    values = {"owner_id": owner_id, "after": after, "limit": limit}
    return [_snapshot(row) for row in tx.execute(LIST_ALL if owner_id is None else LIST_OF_OWNER, values)]


def list_snapshots_of_provider(tx: Transaction, provider: str) -> list[Snapshot]:
    """Return every snapshot that a provider holds."""
    return [_snapshot(row) for row in tx.execute(LIST_OF_PROVIDER, {"provider": provider})]


def list_abandoned(tx: Transaction) -> list[Snapshot]:
    """Return the snapshots that no operation is making: imports, and what was cut off."""
    return [_snapshot(row) for row in tx.execute(LIST_ABANDONED)]


def has_snapshots(tx: Transaction, workspace_id: str) -> bool:
    """Whether there is a snapshot of the workspace, which may itself be gone."""
    return tx.execute(EXISTS_SNAPSHOT, {"workspace_id": workspace_id}).fetchone() is not None


def has_snapshot_name(tx: Transaction, workspace_id: str, name: str) -> bool:
    """Whether the workspace has a snapshot of this name."""
    return tx.execute(EXISTS_NAME, {"workspace_id": workspace_id, "name": name}).fetchone() is not None


def find_restoring(tx: Transaction, snapshot_id: str) -> str | None:
    """Return the id of an operation that restores this snapshot just now."""
    row = tx.execute(FIND_RESTORING, {"id": snapshot_id}).fetchone()
    return None if row is None else str(row["id"])


def insert_snapshot(tx: Transaction, snapshot: Snapshot) -> None:
    """Record a snapshot before it is made."""
    values = {
        "id": snapshot.id,
        "workspace_id": snapshot.workspace_id,
        "owner_id": snapshot.owner_id,
        "name": snapshot.name,
        "description": snapshot.description,
        "status": snapshot.status,
        "is_final": snapshot.is_final,
        "provider": snapshot.provider,
        "node": snapshot.node,
        "actor": snapshot.actor,
        "origin": encode(snapshot.origin),
        "created_at": millis(snapshot.created_at),
    }
    tx.execute(INSERT_SNAPSHOT, values)


def update_snapshot(tx: Transaction, snapshot: Snapshot) -> None:
    """Write all that may change of a snapshot."""
    values = {
        "id": snapshot.id,
        "status": snapshot.status,
        "size_bytes": snapshot.size_bytes,
        "manifest": optional_json(snapshot.manifest),
        "error": optional_json(snapshot.error),
        "current_operation": snapshot.current_operation,
    }
    tx.execute(UPDATE_SNAPSHOT, values)


def delete_snapshot(tx: Transaction, snapshot_id: str) -> None:
    """Forget a snapshot."""
    tx.execute(DELETE_SNAPSHOT, {"id": snapshot_id})


def _snapshot(row: sqlite3.Row) -> Snapshot:
    manifest, error = row["manifest"], row["error"]
    return Snapshot(
        id=row["id"],
        workspace_id=row["workspace_id"],
        owner_id=row["owner_id"],
        name=row["name"],
        description=row["description"],
        status=SnapshotStatus(row["status"]),
        is_final=bool(row["is_final"]),
        provider=row["provider"],
        node=row["node"],
        actor=row["actor"],
        origin=_ORIGIN(row["origin"]),
        size_bytes=row["size_bytes"],
        manifest=None if manifest is None else _MANIFEST(manifest),
        error=None if error is None else _PROBLEM(error),
        created_at=moment(row["created_at"]),
        current_operation=row["current_operation"],
    )
