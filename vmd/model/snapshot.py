"""Snapshots: a workspace's disk and files at one moment, kept to go back to or to make others from."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from attrs import field, frozen
from msgspec import Meta

from vmd.model.errors import Problem
from vmd.model.workspace import Description, NewWorkspace, Repo, Resources, Service

SnapshotName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=100,
        pattern=r"^[^\u0000-\u001f\u007f]+$",
        description="1 to 100 characters, none of them a control character",
    ),
]


class SnapshotStatus(StrEnum):
    """Where a snapshot stands."""

    CREATING = "creating"
    READY = "ready"  # whole: what is in it was read back and compared
    FAILED = "failed"  # nothing of it is left but the reason


@frozen(kw_only=True)
class Manifest:
    """What a tree of files is, in numbers that are the same for the tree and every faithful copy of it."""

    entries: int
    bytes: int  # of the files' contents, holes included
    digest: str  # BLAKE2b-256 of names, contents, modes, owners, links, extended attributes and times
    skipped: int = 0  # sockets and devices, which are no files that could be kept

    def describes(self, other: "Manifest") -> bool:
        """Whether both are of the same files."""
        return (self.entries, self.bytes, self.digest) == (other.entries, other.bytes, other.digest)


@frozen(kw_only=True)
class Origin:
    """What a workspace that is made from a snapshot starts with; never the value of a secret."""

    workspace: str  # the name of the one it was taken of
    template: str
    image: str
    recipe: str | None = None
    parameters: dict[str, Any] = field(factory=dict)
    repo: Repo | None = None
    resources: Resources = field(factory=Resources)
    env: dict[str, str] = field(factory=dict)
    secrets: tuple[str, ...] = ()  # the names of those that it had
    provisioning: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    services: tuple[Service, ...] = ()
    ports: tuple[int, ...] = ()


@frozen(kw_only=True)
class Snapshot:
    """A snapshot as the books have it."""

    id: str
    workspace_id: str  # which may be gone
    owner_id: str
    name: str
    description: str
    status: SnapshotStatus
    is_final: bool  # taken before its workspace expired
    provider: str
    node: str
    actor: str
    origin: Origin
    size_bytes: int | None  # that it takes at the provider, besides what it shares with its image
    manifest: Manifest | None
    error: Problem | None
    created_at: datetime
    current_operation: str | None  # the id of the one that makes or deletes it


@frozen(kw_only=True)
class NewSnapshot:
    """A request for a snapshot."""

    name: SnapshotName | None = None
    description: Description = ""


@frozen(kw_only=True)
class RestoreRequest:
    """Where to restore a snapshot to: the workspace it was taken of, unless it says otherwise."""

    new_workspace: NewWorkspace | None = None
