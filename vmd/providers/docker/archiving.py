"""The archiver at work: in containers of their own, which see volumes and nothing else."""

import io
import tarfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from secrets import token_hex
from typing import Any

import msgspec
from aiodocker.exceptions import DockerError
from attrs import frozen

from vmd.model.snapshot import Manifest
from vmd.providers.base import ProviderError
from vmd.providers.docker.body import LABEL_INSTANCE, LABEL_SNAPSHOT
from vmd.providers.docker.engine import Engine
from vmd.providers.executables import ARCHIVER, digest, find_executable

FILES = "/files"  # where the archiver's container has a workspace's files
STORE = "/snapshot"  # and a snapshot's volume, with one file
ARCHIVE = "files.tar"
LABEL_HELPER = "vmd.helper"  # of containers that live for one piece of work: the daemon's run it belongs to
# Root inside, to read and write the files of everybody; nothing that reaches beyond the volumes.
_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETFCAP")
_MEMORY_BYTES = 1024**3
_MAX_SAID = 4096


@frozen(kw_only=True)
class Line:
    """What the archiver says when a part of its work is done."""

    manifest: Manifest
    stored: int  # the archive's size


class ArchiverRun:
    """An archiver that runs."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._said = {1: b"", 2: b""}  # by the stream's number

    async def line(self, title: str) -> Line:
        """Return what it says under this title; raise ProviderError with its reason when it ends before."""
        while b"\n" not in self._said[1]:
            message = await self._stream.read_out()
            if message is None:
                reason = self._said[2].decode("utf-8", "replace").strip()
                raise ProviderError(f"The archiver failed: {reason or 'it was killed'}.")
            self._said[message.stream] = (self._said[message.stream] + message.data)[:_MAX_SAID]
        line, _, self._said[1] = self._said[1].partition(b"\n")
        word, _, text = line.partition(b" ")
        if word.decode("ascii", "replace") != title:
            raise ProviderError("The archiver did not say what was expected.")
        said = msgspec.json.decode(text)
        stored = said.pop("stored")
        return Line(manifest=Manifest(**said), stored=stored)


class Archiver:
    """Makes the archiver's containers."""

    def __init__(self, engine: Engine, instance: str) -> None:
        self._engine = engine
        self._instance = instance
        self._run = token_hex(8)
        self._image: str | None = None

    @asynccontextmanager
    async def container(
        self, snapshot_id: str, argv: Sequence[str], volumes: Mapping[str, tuple[str, bool]]
    ) -> AsyncIterator[str]:
        """Make a container for one piece of work, and remove it afterwards; yield its name.

        `volumes` are (name, whether it may be written to) by the directory to have it in.
        """
        body = await self._body(snapshot_id, argv, volumes)
        async with self.made(snapshot_id, body) as name:
            yield name

    @asynccontextmanager
    async def made(self, snapshot_id: str, body: dict[str, Any]) -> AsyncIterator[str]:
        """Make a container that is removed afterwards; yield its name."""
        name = f"vmd-{snapshot_id}-{token_hex(6)}"
        labels = {LABEL_INSTANCE: self._instance, LABEL_SNAPSHOT: snapshot_id, LABEL_HELPER: self._run}
        try:
            await self._engine.call(
                "containers/create",
                "POST",
                data={**body, "Labels": {**body.get("Labels", {}), **labels}},
                params={"name": name},
            )
            yield name
        except DockerError as error:
            raise ProviderError(f"The engine refused: {error.message}.") from None
        finally:
            await self._engine.remove(f"containers/{name}", {"force": 1, "v": 1})

    @asynccontextmanager
    async def running(self, name: str) -> AsyncIterator[ArchiverRun]:
        """Start the container, and listen to what it says."""
        with self._engine.translated():
            container = self._engine.streams.containers.container(name)
            stream = container.attach(stdout=True, stderr=True)
            async with stream:
                await self._engine.call(f"containers/{name}/start", "POST")
                yield ArchiverRun(stream)

    def is_leftover(self, labels: Mapping[str, str]) -> bool:
        """Whether a helper's container belongs to a daemon that is no more."""
        return labels.get(LABEL_HELPER) != self._run

    async def _body(
        self, snapshot_id: str, argv: Sequence[str], volumes: Mapping[str, tuple[str, bool]]
    ) -> dict[str, Any]:
        mounts = [
            {
                "Type": "volume",
                "Source": source,
                "Target": target,
                "ReadOnly": not is_writable,
                "VolumeOptions": {"NoCopy": True},
            }
            for target, (source, is_writable) in volumes.items()
        ]
        return {
            "Image": await self._ensure_image(),
            "User": "0:0",
            "Entrypoint": ["/archiver", *argv],
            "Cmd": [],
            "NetworkDisabled": True,
            "HostConfig": {
                "NetworkMode": "none",
                "Mounts": mounts,
                "CapDrop": ["ALL"],
                "CapAdd": list(_CAPABILITIES),
                "SecurityOpt": ["no-new-privileges"],
                "ReadonlyRootfs": True,
                "Memory": _MEMORY_BYTES,
                "PidsLimit": 16,
                "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}},
            },
        }

    async def _ensure_image(self) -> str:
        """Return an image with the archiver and nothing else, which every daemon at the engine shares."""
        if self._image is not None and await self._engine.find(f"images/{self._image}/json") is not None:
            return self._image
        machine = (await self._engine.call("info"))["Architecture"]
        executable = find_executable(ARCHIVER, machine)
        if executable is None:
            raise ProviderError(f"There is no archiver for machines of the kind {machine}.")
        tag = digest(executable)
        self._image = f"vmd-archiver:{tag}"
        if await self._engine.find(f"images/{self._image}/json") is None:
            params = {"fromSrc": "-", "repo": "vmd-archiver", "tag": tag}
            await self._engine.send("images/create", _tar_of("archiver", executable), params)
        return self._image


def _tar_of(name: str, content: bytes) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    entry.mode = 0o755
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()
