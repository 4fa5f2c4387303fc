"""Who may see and do what."""

from vmd.model.account import Actor, Scope
from vmd.model.errors import ErrorCode, Refused, not_found
from vmd.model.workspace import Status, Workspace
from vmd.store.database import Transaction
from vmd.store.workspaces import find_workspace

_IMPLIED = {Scope.READ: {Scope.READ, Scope.WRITE}, Scope.WRITE: {Scope.WRITE}, Scope.EXEC: {Scope.EXEC}}


def require_scope(actor: Actor, scope: Scope) -> None:
    """Refuse an actor whose credential was not made for this."""
    allowing = {Scope.ADMIN, *_IMPLIED.get(scope, set())}
    if not actor.scopes & allowing:
        raise Refused(
            ErrorCode.FORBIDDEN, f"This token lacks the scope '{scope}'; use or make one that has it."
        )


def require_unconfined(actor: Actor) -> None:
    """Refuse a token that reaches one workspace alone."""
    if actor.workspace_id is not None:
        raise Refused(
            ErrorCode.FORBIDDEN, f"This token reaches the workspace {actor.workspace_id} alone; use another."
        )


def require_admin(actor: Actor) -> None:
    """Refuse everybody but administrators."""
    if not actor.is_admin:
        raise Refused(ErrorCode.FORBIDDEN, "Only an administrator may do this; ask one.")


def may_see(actor: Actor, workspace_id: str | None, owner_id: str | None) -> bool:
    """Whether the actor may know of something that belongs to this workspace and owner."""
    if actor.workspace_id is not None and actor.workspace_id != workspace_id:
        return False
    return actor.is_admin or actor.user_id == owner_id


def get_workspace(tx: Transaction, actor: Actor, workspace_id: str) -> Workspace:
    """Return a workspace that the actor may see; raise not-found for any other."""
    workspace = find_workspace(tx, workspace_id)
    if workspace is None or not may_see(actor, workspace.id, workspace.owner_id):
        raise not_found("workspace", workspace_id)
    return workspace


def get_running(tx: Transaction, actor: Actor, workspace_id: str, what: str) -> Workspace:
    """Return a workspace that the actor may see and whose machine runs; `what` is wanted of it."""
    workspace = get_workspace(tx, actor, workspace_id)
    if workspace.status is Status.RUNNING and workspace.provider_ref is not None:
        return workspace
    allowed = workspace.allowed_actions
    raise Refused(
        ErrorCode.INVALID_STATE,
        f"A workspace that is {workspace.status} cannot {what}; allowed now: {', '.join(allowed)}.",
        allowed_actions=allowed,
    )
