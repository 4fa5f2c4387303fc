"""What an owner may use, and what a workspace takes of it."""

from typing import Annotated

from attrs import evolve, fields, frozen
from msgspec import UNSET, Meta, UnsetType

from vmd.model.workspace import MAX_TTL_SECONDS, Resources, Service, Workspace

CPU_DIGITS = 3  # behind the point that sums of processors are told and compared with
Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]
CpuCount = Annotated[float, Meta(ge=0, le=1_000_000_000)]
TtlLimit = Annotated[int, Meta(ge=60, le=MAX_TTL_SECONDS)]


@frozen(kw_only=True)
class Limits:
    """The most one owner may use; None sets no limit."""

    workspaces: Count | None = 50  # those in trash count too, since their disks are still there
    running: Count | None = 20
    cpus: CpuCount | None = None  # of all that is switched on
    memory_mb: Count | None = None
    disk_mb: Count | None = None
    snapshots: Count | None = None
    max_ttl_seconds: TtlLimit | None = None


@frozen(kw_only=True)
class OwnLimits:
    """The limits of one user that are not the usual ones; null sets none, what is absent is as usual."""

    workspaces: Count | None | UnsetType = UNSET
    running: Count | None | UnsetType = UNSET
    cpus: CpuCount | None | UnsetType = UNSET
    memory_mb: Count | None | UnsetType = UNSET
    disk_mb: Count | None | UnsetType = UNSET
    snapshots: Count | None | UnsetType = UNSET
    max_ttl_seconds: TtlLimit | None | UnsetType = UNSET

    def over(self, usual: Limits) -> Limits:
        """Return the limits that hold for this user."""
        given = {name: getattr(self, name) for name in LIMIT_NAMES}
        return evolve(usual, **{name: value for name, value in given.items() if value is not UNSET})


LIMIT_NAMES = tuple(limit.name for limit in fields(Limits))


@frozen(kw_only=True)
class Demand:
    """What a workspace takes of a host while its machine is on, with what runs beside it."""

    provider: str
    node: str
    cpus: float
    memory_mb: int
    disk_mb: int | None  # also while it is off


def demand(provider: str, node: str, resources: Resources, services: tuple[Service, ...] = ()) -> Demand:
    """Return what a machine of this size takes, with the services beside it."""
    return Demand(
        provider=provider,
        node=node,
        cpus=resources.cpus + sum(service.cpus for service in services),
        memory_mb=resources.memory_mb + sum(service.memory_mb for service in services),
        disk_mb=resources.disk_mb,
    )


def demand_of(workspace: Workspace) -> Demand:
    """Return what a workspace takes."""
    return demand(workspace.provider, workspace.node, workspace.resources, workspace.services)
