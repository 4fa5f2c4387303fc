"""Snapshots of machines that exist in memory only."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from attrs import frozen

from vmd.model.snapshot import Manifest
from vmd.providers.base import Power, ProviderError
from vmd.providers.snapshots import Disk, Exported, Taken

if TYPE_CHECKING:
    from vmd.providers.fake import FakeHost


@frozen(kw_only=True)
class FakeSnapshot:
    """The files of a workspace as they were, and the image its machine was made of."""

    files: dict[str, str]
    image: str


def files_key(workspace_id: str, files: str | None) -> str:
    """Return what a host calls a workspace's files of this name."""
    return workspace_id if files is None else f"{workspace_id}/{files}"


class FakeSnapshots:
    """Keeps the promises of `Snapshots` over a FakeHost."""

    def __init__(
        self, host: "FakeHost", go: Callable[[str], Awaitable[Any]], strike: Callable[[Any], None]
    ) -> None:
        self._host = host
        self._go = go
        self._strike = strike

    async def take(self, snapshot_id: str, ref: str) -> Taken:
        """Copy the files."""
        machine = self._host.machines.get(ref)
        if machine is None:
            raise ProviderError("There is no machine to take a snapshot of.")
        if machine.power is Power.RUNNING:
            self._host.frozen.add(ref)
        fault = await self._go("take")
        kept = FakeSnapshot(files=dict(self._host.files_of(machine)), image=self._host.specs[ref].image)
        self._host.snapshots[snapshot_id] = kept
        self._strike(fault)
        self._host.frozen.discard(ref)
        manifest = _manifest(kept.files)
        return Taken(manifest=manifest, size_bytes=manifest.bytes, paused_seconds=0.0)

    async def thaw(self, ref: str) -> None:
        """Note that the machine goes on."""
        await self._go("thaw")
        self._host.frozen.discard(ref)

    async def unpack(self, snapshot_id: str, workspace_id: str, files: str | None) -> Manifest:
        """Copy the files back."""
        fault = await self._go("unpack")
        copied = dict(self._kept(snapshot_id).files)
        there = self._host.files.setdefault(files_key(workspace_id, files), {})
        if there:
            raise ProviderError("The archiver failed: /files is not empty.")
        there.update(copied)
        self._strike(fault)
        return _manifest(copied)

    async def discard_files(self, workspace_id: str, files: str | None) -> None:
        """Forget files."""
        fault = await self._go("discard_files")
        self._host.files.pop(files_key(workspace_id, files), None)
        self._strike(fault)

    async def destroy(self, snapshot_id: str) -> None:
        """Forget a snapshot."""
        fault = await self._go("destroy_snapshot")
        self._host.snapshots.pop(snapshot_id, None)
        self._strike(fault)

    async def held(self) -> Sequence[tuple[str, str, str]]:
        """Return all snapshots."""
        await self._go("held")
        return [(snapshot_id, "files", f"vmd-{snapshot_id}") for snapshot_id in self._host.snapshots]

    async def clear(self) -> None:
        """Do nothing: nothing is ever left."""
        await self._go("clear")

    @asynccontextmanager
    async def export(self, snapshot_id: str) -> AsyncIterator[Exported]:
        """Give out the files as JSON, and the image's name as the disk."""
        await self._go("export")
        kept = self._kept(snapshot_id)
        files = json.dumps(kept.files).encode()
        yield Exported(
            disk=Disk(architecture="fake"),
            files_bytes=len(files),
            files=_one(files),
            disk_files=_one(kept.image.encode()),
        )

    async def add_files(self, snapshot_id: str, size: int, chunks: AsyncIterator[bytes]) -> Manifest:
        """Take in such files."""
        await self._go("add_files")
        data = b"".join([chunk async for chunk in chunks])
        try:
            files = json.loads(data)
        except ValueError:
            raise ProviderError("The archiver failed: the archive is damaged.") from None
        self._host.snapshots[snapshot_id] = FakeSnapshot(files=files, image="")
        return _manifest(files)

    async def add_disk(self, snapshot_id: str, disk: Disk, chunks: AsyncIterator[bytes]) -> int:
        """Take in such a disk."""
        fault = await self._go("add_disk")
        image = b"".join([chunk async for chunk in chunks]).decode()
        self._host.snapshots[snapshot_id] = FakeSnapshot(files=self._kept(snapshot_id).files, image=image)
        self._strike(fault)
        return len(image)

    def _kept(self, snapshot_id: str) -> FakeSnapshot:
        try:
            return self._host.snapshots[snapshot_id]
        except KeyError:
            raise ProviderError("The snapshot is not there any more.") from None


def _manifest(files: dict[str, str]) -> Manifest:
    digest = blake2b(json.dumps(files, sort_keys=True).encode(), digest_size=32)
    return Manifest(
        entries=len(files), bytes=sum(len(text) for text in files.values()), digest=digest.hexdigest()
    )


async def _one(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data
