"""Snapshots at a Docker Engine: an image for the disk, and a volume with one archive for the files."""

import asyncio
import json
import tarfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiodocker.exceptions import DockerError

from vmd.model.snapshot import Manifest
from vmd.model.workspace import WORKDIR
from vmd.providers.base import ProviderError
from vmd.providers.docker.archiving import ARCHIVE, FILES, LABEL_HELPER, STORE, Archiver, Line
from vmd.providers.docker.body import LABEL_INSTANCE, LABEL_OPERATION, LABEL_SNAPSHOT, LABEL_WORKSPACE
from vmd.providers.docker.engine import CONFLICT, NOT_FOUND, Engine, require_ours
from vmd.providers.docker.stillness import Stillness
from vmd.providers.snapshots import Disk, Exported, Taken
from vmd.providers.tars import MAX_PIECE_BYTES, Guard, TarError, walk

SNAPSHOT_IMAGES = "vmd-snapshot"  # repositories of images: of snapshots,
MACHINE_IMAGES = (
    "vmd-machine"  # and of the machines made from them, so that those can do without the snapshot
)
COMMIT_SECONDS = 3600.0
MAX_DISK_BYTES = 1 << 40
MAX_DISK_ENTRIES = 10_000_000
_ARCHIVE_PATH = f"{STORE}/{ARCHIVE}"


def files_volume(workspace_id: str, files: str | None) -> str:
    """Return the name of the volume with a workspace's files."""
    return f"vmd-{workspace_id}" if files is None else f"vmd-{workspace_id}-{files}"


class DockerSnapshots:
    """Keeps the promises of `Snapshots` with engine calls, which may be repeated."""

    def __init__(self, engine: Engine, instance: str, stillness: Stillness) -> None:
        self._engine = engine
        self._stillness = stillness
        self._instance = instance
        self._archiver = Archiver(engine, instance)

    # Take.

    async def take(self, snapshot_id: str, ref: str) -> Taken:
        """Commit the container and archive its volume side by side, while it is paused."""
        found = await self._engine.find(f"containers/{ref}/json")
        volume = next(
            (m["Name"] for m in (found or {}).get("Mounts", ()) if m["Destination"] == WORKDIR), None
        )
        if found is None or volume is None:
            raise ProviderError("There is no machine to take a snapshot of.")
        await self._stillness.thaw(ref)  # which an earlier try may have left as it was
        await self.destroy(snapshot_id)
        await self._create_volume(snapshot_id, {LABEL_SNAPSHOT: snapshot_id})
        if not found["State"]["Running"]:
            packed, checking = await self._keep(snapshot_id, ref, volume)
            paused_seconds = 0.0
        else:
            async with self._stillness.of(ref):
                began = time.monotonic()
                packed, checking = await self._keep(snapshot_id, ref, volume)
            paused_seconds = time.monotonic() - began
        checked = await checking
        if not checked.manifest.describes(packed.manifest) or checked.stored != packed.stored:
            raise ProviderError("What was kept of the files differs from them; take the snapshot again.")
        size_bytes = packed.stored + await self._layer_bytes(snapshot_id)
        return Taken(manifest=packed.manifest, size_bytes=size_bytes, paused_seconds=paused_seconds)

    async def _keep(self, snapshot_id: str, ref: str, volume: str) -> "tuple[Line, asyncio.Task[Line]]":
        """Keep disk and files at the same time; return what was kept, and the task that reads it back."""
        packing: asyncio.Future[Line] = asyncio.get_running_loop().create_future()
        committing = asyncio.create_task(self._commit(snapshot_id, ref))
        archiving = asyncio.create_task(self._archive(snapshot_id, volume, packing))
        try:
            packed, _ = await asyncio.gather(packing, committing)
        except BaseException:
            committing.cancel()  # which ends once the engine has come to an end with it
            archiving.cancel()
            await asyncio.gather(packing, committing, archiving, return_exceptions=True)
            raise
        return packed, archiving

    async def _archive(self, snapshot_id: str, volume: str, packing: "asyncio.Future[Line]") -> Line:
        """Archive the volume; tell when that is done, then return what was read back."""
        volumes = {FILES: (volume, False), STORE: (f"vmd-{snapshot_id}", True)}
        argv = ("snapshot", FILES, _ARCHIVE_PATH)
        try:
            async with (
                self._archiver.container(snapshot_id, argv, volumes) as helper,
                self._archiver.running(helper) as run,
            ):
                packing.set_result(await run.line("packed"))
                return await run.line("checked")
        except BaseException as error:
            if not packing.done():
                packing.set_exception(error)
            raise

    async def thaw(self, ref: str) -> None:
        """Unpause the container if it is paused."""
        await self._stillness.thaw(ref)

    async def _commit(self, snapshot_id: str, ref: str) -> None:
        """Make the image; its labels say whose it is, in place of those of the machine."""
        labels = {
            LABEL_INSTANCE: self._instance,
            LABEL_SNAPSHOT: snapshot_id,
            LABEL_WORKSPACE: "",
            LABEL_OPERATION: "",
        }
        params = {
            "container": ref,
            "repo": SNAPSHOT_IMAGES,
            "tag": snapshot_id,
            "pause": 0,
            "changes": _label_instruction(labels),
        }
        try:
            await self._engine.call("commit", "POST", data={}, params=params, timeout_seconds=COMMIT_SECONDS)
        except DockerError as error:
            raise ProviderError(f"The engine cannot keep the disk: {error.message}.") from None

    async def _layer_bytes(self, snapshot_id: str) -> int:
        history = await self._engine.find(f"images/{SNAPSHOT_IMAGES}:{snapshot_id}/history")
        return int(history[0]["Size"]) if history else 0

    async def _create_volume(self, suffix: str, labels: Mapping[str, str]) -> None:
        name = f"vmd-{suffix}"
        body = {"Name": name, "Labels": {LABEL_INSTANCE: self._instance, **labels}}
        volume = await self._engine.call("volumes/create", "POST", data=body)
        require_ours(self._instance, volume, "volume", name)

    # Restore.

    async def unpack(self, snapshot_id: str, workspace_id: str, files: str | None) -> Manifest:
        """Unpack the archive into a volume, which is made if it is not there and must be empty."""
        volume = files_volume(workspace_id, files)
        await self._create_volume(volume.removeprefix("vmd-"), {LABEL_WORKSPACE: workspace_id})
        if await self._engine.find(f"volumes/vmd-{snapshot_id}") is None:
            raise ProviderError("The snapshot is not there any more.")
        volumes = {FILES: (volume, True), STORE: (f"vmd-{snapshot_id}", False)}
        argv = ("unpack", _ARCHIVE_PATH, FILES)
        async with (
            self._archiver.container(snapshot_id, argv, volumes) as helper,
            self._archiver.running(helper) as run,
        ):
            return (await run.line("unpacked")).manifest

    async def image_for(self, snapshot_id: str, ref: str) -> str:
        """Return the name of an image with the snapshot's disk, which is this machine's alone."""
        try:
            await self._engine.call(
                f"images/{SNAPSHOT_IMAGES}:{snapshot_id}/tag",
                "POST",
                params={"repo": MACHINE_IMAGES, "tag": ref},
            )
        except DockerError as error:
            raise ProviderError(f"The snapshot is not there any more: {error.message}.") from None
        return f"{MACHINE_IMAGES}:{ref}"

    async def discard_files(self, workspace_id: str, files: str | None) -> None:
        """Remove a volume."""
        await self.clear()  # an archiver of an earlier daemon may have it still
        await self._engine.remove(f"volumes/{files_volume(workspace_id, files)}", {"force": 1})

    async def discard_images(self, prefix: str) -> None:
        """Remove the images of the machines whose ref begins like this."""
        filters = json.dumps({"reference": [f"{MACHINE_IMAGES}:{prefix}*"]})
        for image in await self._engine.call("images/json", params={"filters": filters}):
            for tag in image["RepoTags"] or ():
                if tag.startswith(f"{MACHINE_IMAGES}:{prefix}"):
                    await self._remove_image(tag)

    # The end.

    async def destroy(self, snapshot_id: str) -> None:
        """Remove the archiver's containers, the volume and the images that bear the snapshot's label."""
        label = f"{LABEL_SNAPSHOT}={snapshot_id}"
        for container in await self._list("containers/json", label, LABEL_HELPER, all=1):
            await self._engine.remove(f"containers/{container['Id']}", {"force": 1, "v": 1})
        await self._engine.remove(f"volumes/vmd-{snapshot_id}", {"force": 1})
        await self._remove_image(f"{SNAPSHOT_IMAGES}:{snapshot_id}")
        for image in await self._list("images/json", label, all=0):
            if set(image["RepoTags"] or ()) <= {"<none>:<none>"}:
                await self._remove_image(image["Id"])

    async def _remove_image(self, name: str) -> None:
        """Remove an image, or its name alone while it has others; layers that others build on stay."""
        try:
            await self._engine.call(f"images/{name}", "DELETE", params={"force": 1})
        except DockerError as error:
            if error.status == NOT_FOUND or (error.status == CONFLICT and "dependent child" in error.message):
                return
            raise ProviderError(f"The engine cannot remove {name}: {error.message}.") from None

    async def held(self) -> Sequence[tuple[str, str, str]]:
        """Return the containers, volumes and images that bear a snapshot's label."""
        containers, volumes, images = await asyncio.gather(
            self._list("containers/json", LABEL_SNAPSHOT, LABEL_HELPER, all=1),
            self._list("volumes", LABEL_SNAPSHOT),
            self._list("images/json", LABEL_SNAPSHOT),
        )
        found = [("container", held, held["Names"][0].removeprefix("/")) for held in containers]
        found += [("files", held, held["Name"]) for held in volumes]
        found += [("image", held, tag) for held in images for tag in _own_tags(held)]
        return [(held["Labels"][LABEL_SNAPSHOT], kind, name) for kind, held, name in found]

    async def clear(self) -> None:
        """Remove the containers of archivers that an earlier daemon started."""
        for container in await self._list("containers/json", LABEL_HELPER, all=1):
            if self._archiver.is_leftover(container["Labels"]):
                await self._engine.remove(f"containers/{container['Id']}", {"force": 1, "v": 1})

    async def _list(self, path: str, *labels: str, **params: Any) -> list[dict[str, Any]]:
        wanted = [f"{LABEL_INSTANCE}={self._instance}", *labels]
        answer = await self._engine.call(path, params={"filters": json.dumps({"label": wanted}), **params})
        found: list[dict[str, Any]] = answer["Volumes"] or [] if path == "volumes" else answer
        return found

    # To and from elsewhere.

    @asynccontextmanager
    async def export(self, snapshot_id: str) -> AsyncIterator[Exported]:
        """Read the archive out of its volume, and the disk out of a container that is never started."""
        image = await self._engine.find(f"images/{SNAPSHOT_IMAGES}:{snapshot_id}/json")
        if image is None:
            raise ProviderError("The snapshot is not there any more.")
        volumes = {STORE: (f"vmd-{snapshot_id}", False)}
        body = {
            "Image": f"{SNAPSHOT_IMAGES}:{snapshot_id}",
            "Entrypoint": ["/nothing"],
            "NetworkDisabled": True,
        }
        async with (
            self._archiver.container(snapshot_id, ("check", _ARCHIVE_PATH), volumes) as helper,
            self._archiver.made(snapshot_id, body) as machine,
            self._engine.receive(f"containers/{helper}/archive", {"path": _ARCHIVE_PATH}) as packed,
        ):
            files = walk(packed, most=1, largest=MAX_DISK_BYTES)
            archive = await anext(files)
            yield Exported(
                disk=Disk(architecture=image["Architecture"], env=_env_of(image)),
                files_bytes=archive.size,
                files=archive.content.pieces(),
                disk_files=self._export_disk(machine),
            )

    async def _export_disk(self, machine: str) -> AsyncGenerator[bytes, None]:
        async with self._engine.receive(f"containers/{machine}/export") as disk:
            while data := await disk.read(MAX_PIECE_BYTES):
                yield data

    async def add_files(self, snapshot_id: str, size: int, chunks: AsyncIterator[bytes]) -> Manifest:
        """Put the archive into a volume, and have it read by the archiver."""
        await self._create_volume(snapshot_id, {LABEL_SNAPSHOT: snapshot_id})
        volumes = {STORE: (f"vmd-{snapshot_id}", True)}
        argv = ("check", _ARCHIVE_PATH)
        async with self._archiver.container(snapshot_id, argv, volumes) as helper:
            await self._engine.send(
                f"containers/{helper}/archive", _as_tar(size, chunks), {"path": STORE}, "PUT"
            )
            async with self._archiver.running(helper) as run:
                line: Line = await run.line("checked")
        return line.manifest

    async def add_disk(self, snapshot_id: str, disk: Disk, chunks: AsyncIterator[bytes]) -> int:
        """Import the disk as an image of one layer; nothing but its files and environment is taken over."""
        here = (await self._engine.call("version"))["Arch"]
        if disk.architecture != here:
            raise ProviderError(f"The snapshot is of a machine of the kind {disk.architecture}, not {here}.")
        labels = {LABEL_INSTANCE: self._instance, LABEL_SNAPSHOT: snapshot_id}
        changes = [_label_instruction(labels), *(f"ENV {key}={_quote(disk.env[key])}" for key in disk.env)]
        params = {"fromSrc": "-", "repo": SNAPSHOT_IMAGES, "tag": snapshot_id}
        query = [*params.items(), *(("changes", change) for change in changes)]
        await self._engine.send("images/create", _guarded(chunks), query)
        return await self._layer_bytes(snapshot_id)


async def _guarded(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    guard = Guard(max_entries=MAX_DISK_ENTRIES, max_bytes=MAX_DISK_BYTES)
    async for chunk in chunks:
        guard.feed(chunk)
        yield chunk
    guard.finish()


async def _as_tar(size: int, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield a tar archive with one file, whose content comes as it comes."""
    entry = tarfile.TarInfo(ARCHIVE)
    entry.size = size
    entry.mode = 0o600
    yield entry.tobuf(tarfile.GNU_FORMAT)
    sent = 0
    async for chunk in chunks:
        sent += len(chunk)
        yield chunk
    if sent != size:
        raise TarError("it is cut off")
    yield bytes(-size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)


def _own_tags(image: Mapping[str, Any]) -> list[str]:
    """Return the names that make an image a snapshot's; the machines' own are counted with the machines."""
    tags = image["RepoTags"] or ["<none>:<none>"]
    own = [tag for tag in tags if tag.startswith(f"{SNAPSHOT_IMAGES}:")]
    return own or ([image["Id"]] if tags == ["<none>:<none>"] else [])


def _env_of(image: Mapping[str, Any]) -> dict[str, str]:
    pairs = (line.partition("=") for line in image["Config"].get("Env") or ())
    return {name: value for name, _, value in pairs if name}


def _label_instruction(labels: Mapping[str, str]) -> str:
    return "LABEL " + " ".join(f"{name}={_quote(value)}" for name, value in labels.items())


def _quote(value: str) -> str:
    """Return a value as an instruction of the engine takes it, with nothing in it that it would replace."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'
