"""What a provider does with snapshots. Every call may be repeated, but for what it says itself."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from attrs import field, frozen

from vmd.model.snapshot import Manifest


@frozen(kw_only=True)
class Taken:
    """A snapshot that was made, and read back."""

    manifest: Manifest
    size_bytes: int  # that it takes, besides what it shares with its image
    paused_seconds: float  # for which the machine stood still


@frozen(kw_only=True)
class Disk:
    """What else than its files makes a machine's disk."""

    architecture: str  # as the engine calls it, e.g. amd64
    env: dict[str, str] = field(factory=dict)  # of its image


@frozen(kw_only=True)
class Exported:
    """A snapshot that is read: the files first, then the disk."""

    disk: Disk
    files_bytes: int
    files: AsyncIterator[bytes]  # an archive of the archiver's
    disk_files: AsyncIterator[bytes]  # a tar, which ends the iterator


class Snapshots(Protocol):
    """Takes, restores, carries and destroys snapshots; methods raise ProviderError or ProviderUnavailable."""

    async def take(self, snapshot_id: str, ref: str) -> Taken:
        """Keep a machine's disk and its workspace's files as they are at one moment.

        Begins anew when it is repeated, having removed what an earlier try left. A machine that runs
        stands still meanwhile: what is kept is what a power cut would have left on its disks, with all
        that its programs had written.
        """

    async def thaw(self, ref: str) -> None:
        """Let a machine go on that a snapshot made stand still; one that is gone or goes on is fine."""

    async def unpack(self, snapshot_id: str, workspace_id: str, files: str | None) -> Manifest:
        """Fill the files of this name, which must be empty or not there, with those of a snapshot.

        A try that was cut off leaves a part: discard the files, and their machine, before another.
        """

    async def discard_files(self, workspace_id: str, files: str | None) -> None:
        """Destroy files of a workspace that no machine uses."""

    async def destroy(self, snapshot_id: str) -> None:
        """Destroy all there is of a snapshot; machines that were made from it go on."""

    async def held(self) -> Sequence[tuple[str, str, str]]:
        """Return (snapshot id, kind, name) of everything the provider holds of snapshots."""

    async def clear(self) -> None:
        """Remove what earlier daemons left in the middle of their work with snapshots."""

    def export(self, snapshot_id: str) -> AbstractAsyncContextManager[Exported]:
        """Open a snapshot to be read."""

    async def add_files(self, snapshot_id: str, size: int, chunks: AsyncIterator[bytes]) -> Manifest:
        """Take in the files of a snapshot from elsewhere; return what is in them, having unpacked nothing."""

    async def add_disk(self, snapshot_id: str, disk: Disk, chunks: AsyncIterator[bytes]) -> int:
        """Take in the disk of a snapshot from elsewhere; return the bytes that it takes."""
