"""What a forced delete could not destroy."""

from attrs import frozen

from vmd.model.workspace import Workspace
from vmd.store.database import Transaction
from vmd.store.rows import millis

INSERT_LEFTOVER = """
INSERT OR REPLACE INTO leftovers (workspace_id, provider, node, provider_ref, reason, created_at)
VALUES (:workspace_id, :provider, :node, :provider_ref, :reason, :now)
"""
LIST_LEFTOVERS = (
    "SELECT workspace_id, provider, node, provider_ref, reason FROM leftovers ORDER BY workspace_id"
)
DELETE_LEFTOVER = "DELETE FROM leftovers WHERE workspace_id = :workspace_id"


@frozen(kw_only=True)
class Leftover:
    """A workspace that is gone from the books while its provider may still hold some of it."""

    workspace_id: str
    provider: str
    node: str
    provider_ref: str | None
    reason: str


def insert_leftover(tx: Transaction, workspace: Workspace, reason: str) -> None:
    """Record what could not be destroyed, and why."""
    tx.execute(
        INSERT_LEFTOVER,
        {
            "workspace_id": workspace.id,
            "provider": workspace.provider,
            "node": workspace.node,
            "provider_ref": workspace.provider_ref,
            "reason": reason,
            "now": millis(tx.now),
        },
    )


def list_leftovers(tx: Transaction) -> list[Leftover]:
    """Return all of them."""
    return [Leftover(**dict(row)) for row in tx.execute(LIST_LEFTOVERS)]


def delete_leftover(tx: Transaction, workspace_id: str) -> None:
    """Forget one that is destroyed at last."""
    tx.execute(DELETE_LEFTOVER, {"workspace_id": workspace_id})
