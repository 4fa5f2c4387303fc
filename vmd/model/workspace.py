"""Workspaces: their fields, states, and what each state allows."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import Annotated, Any

from attrs import evolve, field, frozen
from msgspec import UNSET, Meta, UnsetType

from vmd.model.errors import Problem
from vmd.model.operation import Operation, OperationType

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$"
ENV_NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"
LABEL_KEY_PATTERN = r"^[A-Za-z0-9]([-A-Za-z0-9._/]{0,61}[A-Za-z0-9])?$"
WORKDIR = "/workspace"
# http(s) and ssh URLs, and scp-like host:path; no spaces, control characters, passwords or leading dashes.
REPO_URL_PATTERN = (
    r"^(https?://[A-Za-z0-9\[][A-Za-z0-9.:\[\]-]*(/[!-~]*)?"
    r"|ssh://([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9\[][A-Za-z0-9.:\[\]-]*/[!-~]+"
    r"|([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9][A-Za-z0-9.-]*:(?![^/]*@)(/?[A-Za-z0-9_.~][!-~]*))$"
)
# What git check-ref-format allows, in ASCII: no option, no "..", no "@{", no "//", no ".lock" end.
BRANCH_PATTERN = r"^(?!.*(\.\.|@\{|//|/\.|\.lock(/|$)|[./]$))[A-Za-z0-9_][A-Za-z0-9_./@+=#%,-]*$"
MAX_TTL_SECONDS = 10 * 366 * 24 * 3600


class Status(StrEnum):
    """Where a workspace stands."""

    PENDING = "pending"  # recorded, nothing made yet
    CREATING = "creating"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    REBUILDING = "rebuilding"
    RESTORING = "restoring"
    FAILED = "failed"  # there is nothing usable
    TRASHED = "trashed"  # expired, and kept for a grace period
    DELETING = "deleting"


TRANSITIONS: Mapping[Status, frozenset[Status]] = {
    Status.PENDING: frozenset({Status.CREATING, Status.FAILED, Status.DELETING}),
    Status.CREATING: frozenset({Status.RUNNING, Status.FAILED, Status.DELETING}),
    Status.STARTING: frozenset(
        {Status.RUNNING, Status.STOPPED, Status.STOPPING, Status.FAILED, Status.DELETING}
    ),
    Status.RUNNING: frozenset(
        {
            Status.STARTING,
            Status.STOPPING,
            Status.STOPPED,
            Status.REBUILDING,
            Status.RESTORING,
            Status.FAILED,
            Status.DELETING,
        }
    ),
    Status.STOPPING: frozenset(
        {Status.STOPPED, Status.STARTING, Status.RUNNING, Status.TRASHED, Status.FAILED, Status.DELETING}
    ),
    Status.STOPPED: frozenset(
        {
            Status.STARTING,
            Status.RUNNING,
            Status.STOPPING,
            Status.REBUILDING,
            Status.RESTORING,
            Status.TRASHED,
            Status.FAILED,
            Status.DELETING,
        }
    ),
    Status.REBUILDING: frozenset({Status.RUNNING, Status.STOPPED, Status.FAILED, Status.DELETING}),
    Status.RESTORING: frozenset({Status.RUNNING, Status.STOPPED, Status.FAILED, Status.DELETING}),
    Status.FAILED: frozenset(
        {Status.REBUILDING, Status.RESTORING, Status.STARTING, Status.TRASHED, Status.DELETING}
    ),
    Status.TRASHED: frozenset({Status.STOPPED, Status.FAILED, Status.DELETING}),
    Status.DELETING: frozenset(),
}

TRANSITIONAL = frozenset(
    {
        Status.PENDING,
        Status.CREATING,
        Status.STARTING,
        Status.STOPPING,
        Status.REBUILDING,
        Status.RESTORING,
        Status.DELETING,
    }
)
# The statuses in which a machine may be using memory and processors.
POWERED = TRANSITIONAL - {Status.DELETING} | {Status.RUNNING}


class Health(StrEnum):
    """Whether the workspace can be reached, apart from its status."""

    OK = "ok"
    DEGRADED = "degraded"
    UNREACHABLE = "unreachable"


class Action(StrEnum):
    """What may be asked of a workspace; its snapshots have addresses of their own."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"
    REBUILD = "rebuild"
    SNAPSHOT = "snapshot"
    RESTORE = "restore"
    UNDELETE = "undelete"
    CANCEL = "cancel"  # its current operation
    DELETE = "delete"


_ACTIONS: Mapping[Status, tuple[Action, ...]] = {
    Status.PENDING: (Action.CANCEL,),
    Status.CREATING: (Action.CANCEL,),
    Status.STARTING: (Action.CANCEL, Action.STOP),
    Status.RUNNING: (Action.STOP, Action.RESTART, Action.REBUILD, Action.SNAPSHOT, Action.RESTORE),
    Status.STOPPING: (Action.STOP,),  # with force
    Status.STOPPED: (Action.START, Action.REBUILD, Action.SNAPSHOT, Action.RESTORE),
    Status.REBUILDING: (Action.CANCEL,),
    Status.RESTORING: (Action.CANCEL,),
    Status.FAILED: (Action.REBUILD, Action.RESTORE, Action.START),
    Status.TRASHED: (Action.UNDELETE,),
    Status.DELETING: (),
}


RepoUrl = Annotated[
    str,
    Meta(
        pattern=REPO_URL_PATTERN,
        max_length=2000,
        description="an http(s) or ssh URL or scp's host:path, without a password",
    ),
]
BranchName = Annotated[
    str, Meta(pattern=BRANCH_PATTERN, max_length=255, description="the name of a git branch or tag")
]


@frozen(kw_only=True)
class Repo:
    """The git repository that a workspace starts from."""

    url: RepoUrl
    branch: BranchName | None = None
    commit: (
        Annotated[
            str, Meta(pattern=r"^[0-9a-f]{7,64}$", description="a commit id, 7 to 64 hexadecimal digits")
        ]
        | None
    ) = None


Cpus = Annotated[float, Meta(ge=0.05, le=1024)]
MemoryMb = Annotated[int, Meta(ge=16, le=16 * 1024 * 1024)]
DiskMb = Annotated[int, Meta(ge=64, le=1024 * 1024 * 1024)]
Pids = Annotated[int, Meta(ge=16, le=4 * 1024 * 1024)]


@frozen(kw_only=True)
class Resources:
    """The most a machine may use."""

    cpus: Cpus = 1.0
    memory_mb: MemoryMb = 1024
    disk_mb: DiskMb | None = None
    pids: Pids = 512


@frozen(kw_only=True)
class NewResources:
    """The resources of a request; what is absent comes from the template."""

    cpus: Cpus | None = None
    memory_mb: MemoryMb | None = None
    disk_mb: DiskMb | None = None
    pids: Pids | None = None


NO_NUL = r"^[^\u0000]*$"
NO_NUL_MEANING = "text without NUL characters"
EnvName = Annotated[
    str,
    Meta(
        pattern=ENV_NAME_PATTERN,
        description="the name of an environment variable, as in [A-Za-z_][A-Za-z0-9_]*",
    ),
]
EnvValue = Annotated[str, Meta(max_length=32768, pattern=NO_NUL, description=NO_NUL_MEANING)]
Env = Annotated[dict[EnvName, EnvValue], Meta(max_length=200)]
LabelKey = Annotated[
    str,
    Meta(pattern=LABEL_KEY_PATTERN, description="letters, digits and inner - . _ /, at most 63 characters"),
]
LabelValue = Annotated[str, Meta(max_length=255, pattern=NO_NUL, description=NO_NUL_MEANING)]
MAX_LABELS = 64
Labels = Annotated[dict[LabelKey, LabelValue], Meta(max_length=MAX_LABELS)]
WorkspaceName = Annotated[
    str,
    Meta(
        pattern=NAME_PATTERN,
        max_length=40,
        description="a DNS label: lower-case letters, digits and inner hyphens, at most 40 characters",
    ),
]
Description = Annotated[str, Meta(max_length=1000, pattern=NO_NUL, description=NO_NUL_MEANING)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Ports = Annotated[tuple[Port, ...], Meta(max_length=100)]
Provisioning = Annotated[
    tuple[
        Annotated[
            str, Meta(min_length=1, max_length=8192, pattern=NO_NUL, description="a shell command line")
        ],
        ...,
    ],
    Meta(max_length=50),
]
TtlSeconds = Annotated[int, Meta(ge=60, le=MAX_TTL_SECONDS)]
ShortName = Annotated[str, Meta(min_length=1, max_length=100)]


@frozen(kw_only=True)
class NewWorkspace:
    """A request for a workspace. What is absent comes from the template or is made up."""

    name: WorkspaceName | None = None
    description: Description = ""
    repo: Repo | None = None
    template: ShortName | None = None
    parameters: Annotated[
        dict[str, Any], Meta(max_length=100, description="of the template, by name; it says which it has")
    ] = field(factory=dict)
    provider: ShortName | None = None
    node: ShortName | None = None
    resources: NewResources | None = None
    ttl_seconds: TtlSeconds | None | UnsetType = UNSET
    idle_timeout_seconds: TtlSeconds | None | UnsetType = UNSET
    provisioning: Provisioning = ()
    plugins: Annotated[tuple[ShortName, ...], Meta(max_length=50)] = ()
    env: Env = field(factory=dict)
    secrets: Annotated[
        tuple[EnvName, ...],
        Meta(max_length=200, description="names of `env` whose values are never shown"),
    ] = ()
    labels: Labels = field(factory=dict)
    ports: Ports | None = None
    pinned: bool = False


@frozen(kw_only=True)
class WorkspacePatch:
    """A JSON merge patch (RFC 7396) of a workspace: absent keeps, null resets."""

    name: WorkspaceName | UnsetType = UNSET
    description: Description | None | UnsetType = UNSET
    labels: Annotated[dict[LabelKey, LabelValue | None], Meta(max_length=64)] | None | UnsetType = UNSET
    ttl_seconds: TtlSeconds | None | UnsetType = UNSET
    idle_timeout_seconds: TtlSeconds | None | UnsetType = UNSET
    pinned: bool | None | UnsetType = UNSET
    ports: Ports | None | UnsetType = UNSET


@frozen(kw_only=True)
class ActionRequest:
    """How an action on a workspace is to be done."""

    force: bool = False  # kill instead of asking to end
    timeout_seconds: (
        Annotated[int, Meta(ge=0, le=600, description="to end by itself before it is killed")] | None
    ) = None


@frozen(kw_only=True)
class Tunnel:
    """A way from outside to one port of a machine."""

    id: str
    workspace_id: str
    port: Port
    protocol: str  # http or tcp
    url: str | None
    address: str | None
    created_at: datetime
    expires_at: datetime | None
    bytes_in: int
    bytes_out: int


@frozen(kw_only=True)
class Service:
    """What runs beside a machine, on its network, under a name of its own."""

    name: WorkspaceName  # its host name on the network
    image: str
    recipe: str | None = None  # what the image is built from where it is not there
    command: tuple[str, ...] = ()
    env: dict[str, str] = field(factory=dict)
    data: str | None = None  # the directory that is kept while the machine is rebuilt
    memory_mb: MemoryMb = 256
    cpus: Cpus = 0.5
    ready: str | None = None  # a shell line that succeeds once it takes connections
    ready_seconds: int = 60  # that it may take until then


def total_resources(resources: Resources, services: Iterable[Service]) -> Resources:
    """Return the most that a machine and the services beside it may use of processors and memory together."""
    beside = tuple(services)
    return evolve(
        resources,
        cpus=resources.cpus + sum(service.cpus for service in beside),
        memory_mb=resources.memory_mb + sum(service.memory_mb for service in beside),
    )


@frozen(kw_only=True)
class GitState:
    """What a workspace has that no remote has, in all its repositories together."""

    looked_at: datetime
    branch: str | None  # of the first repository; None where none is checked out
    uncommitted: int  # files changed or new
    unpushed: int  # commits that no remote branch has
    stashes: int
    repositories: int = 1
    loose: int = 0  # files outside any repository
    unreadable: int = 0  # repositories that could not be read, or were not come to

    @property
    def is_clean(self) -> bool:
        """Whether nothing would be lost with the workspace."""
        return not (self.uncommitted or self.unpushed or self.stashes or self.loose or self.unreadable)


# Not slotted: a list page makes fifty of these, and plain attribute dictionaries are filled faster.
@frozen(kw_only=True, slots=False)
class Workspace:
    """A workspace as the books have it."""

    id: str
    name: str
    description: str
    owner_id: str
    owner: str
    status: Status
    health: Health
    version: int
    template: str
    provider: str
    node: str
    image: str
    repo: Repo | None
    resources: Resources
    env: dict[str, str]  # without the secret ones
    secrets: tuple[str, ...]
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
    trashed_at: datetime | None
    current_operation: Operation | None
    last_error: Problem | None
    provider_ref: str | None  # what the provider calls the machine; None before there is one
    address: str | None
    is_cloned: bool  # the repository's files are in place
    parameters: dict[str, Any] = field(factory=dict)  # what its template was given
    recipe: str | None = None  # what the image is built from where it is not there
    services: tuple[Service, ...] = ()  # what runs beside the machine
    is_detecting: bool = False  # its template is found once it is cloned
    files: str | None = None  # what the provider calls its files; None for the first ones
    git: GitState | None = None  # its repository as it was last looked at

    @property
    def allowed_actions(self) -> tuple[Action, ...]:
        """What may be asked of this workspace now."""
        return allowed_actions(self.status, self.current_operation, has_machine=self.provider_ref is not None)


def allowed_actions(
    status: Status, current: Operation | None, *, has_machine: bool = True
) -> tuple[Action, ...]:
    """Return what may be asked of a workspace in this state; delete always."""
    if current is None:
        return _allowed(status, None, False, has_machine)
    return _allowed(status, current.type, current.may_cancel, has_machine)


@cache
def _allowed(
    status: Status, current: OperationType | None, may_cancel: bool, has_machine: bool
) -> tuple[Action, ...]:
    actions = set(_ACTIONS[status])
    if status is Status.FAILED and not has_machine:
        actions.discard(Action.START)
    if not may_cancel:
        actions.discard(Action.CANCEL)
    if current is not None:
        actions &= {Action.CANCEL, *_PREEMPTING.get(current, ())}
    return tuple(action for action in Action if action in actions or action is Action.DELETE)


# The actions, besides delete, that take a workspace from a running operation.
_PREEMPTING: Mapping[OperationType, tuple[Action, ...]] = {
    OperationType.START: (Action.STOP,),
    OperationType.STOP: (Action.STOP,),
    OperationType.RESTART: (Action.STOP,),
    OperationType.EXPIRE: (Action.STOP,),
}


def may_lead_to(status: Status) -> tuple[Status, ...]:
    """Return the statuses from which a workspace may come to this one."""
    return tuple(before for before, after in TRANSITIONS.items() if status in after)
