"""A workspace as clients see it."""

from datetime import datetime
from typing import Any

from attrs import fields, frozen

from vmd.model.errors import Problem
from vmd.model.operation import Operation
from vmd.model.workspace import WORKDIR, Action, Health, Repo, Resources, Status, Tunnel, Workspace
from vmd.orchestrator.quota import Quota
from vmd.providers.base import CpuStats, DiskStats, MemoryStats, NetworkStats, PidsStats


@frozen(kw_only=True)
class Connection:
    """How to reach a workspace; null where it cannot be reached that way now."""

    shell: str | None
    events: str
    address: str | None
    workdir: str


@frozen(kw_only=True)
class WorkspaceView:
    """A workspace."""

    id: str
    name: str
    description: str
    owner: str
    status: Status
    health: Health
    version: int
    template: str
    parameters: dict[str, Any]  # with the defaults of those that were not given
    provider: str
    node: str
    repo: Repo | None
    resources: Resources
    env: dict[str, str]
    labels: dict[str, str]
    provisioning: tuple[str, ...]
    plugins: tuple[str, ...]
    ports: tuple[int, ...]
    pinned: bool
    ttl_seconds: int | None
    expires_at: datetime | None
    idle_timeout_seconds: int | None
    last_activity_at: datetime
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    current_operation: Operation | None
    last_error: Problem | None
    allowed_actions: tuple[Action, ...]
    connection: Connection
    tunnels: tuple[Tunnel, ...]


@frozen(kw_only=True)
class PlannedWorkspace(WorkspaceView):
    """A workspace as it would be, and its owner's quota without it."""

    quota: Quota
    is_detecting: bool  # its template is found once the repository is cloned


@frozen(kw_only=True)
class WorkspacePage:
    """Workspaces, newest first."""

    items: tuple[WorkspaceView, ...]
    next_cursor: str | None


@frozen(kw_only=True)
class WorkspaceStats:
    """What a workspace's machine uses."""

    time: datetime
    cpu: CpuStats
    memory: MemoryStats
    pids: PidsStats
    network: NetworkStats
    disk: DiskStats


_HIDDEN = tuple({f.name for f in fields(Workspace)} - {f.name for f in fields(WorkspaceView)})


def view(workspace: Workspace) -> dict[str, Any]:
    """Return the members of a WorkspaceView; as they are, since making fifty of those costs a list dear."""
    shown = vars(workspace).copy()
    for name in _HIDDEN:
        del shown[name]
    if workspace.parameters:  # those of a devcontainer, which nobody gave, have a dot in their names
        given = {name: value for name, value in workspace.parameters.items() if "." not in name}
        shown["parameters"] = given
    shown["allowed_actions"] = workspace.allowed_actions
    shown["connection"] = {  # a Connection
        "shell": f"/ws/workspaces/{workspace.id}/shell" if workspace.status is Status.RUNNING else None,
        "events": f"/ws/workspaces/{workspace.id}/events",
        "address": workspace.address,
        "workdir": WORKDIR,
    }
    shown["tunnels"] = ()
    return shown
