"""Snapshots as files: carried from one daemon to another as one plain tar archive.

In it are, in this order: `vmd-snapshot.json` (what it is), `files.tar` (the workspace's files, as the
archiver packs them), `disk/00000000` and on (the pieces of a tar of the machine's disk), and `end.json` (a
digest of all that). Nothing in it is compressed, and nothing of it is unpacked here.
"""

import asyncio
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from hashlib import blake2b

import msgspec
import structlog
from attrs import evolve, frozen

from vmd.model.account import SYSTEM, Actor, Scope
from vmd.model.errors import ErrorCode, Refused, invalid_value
from vmd.model.event import EventType
from vmd.model.snapshot import Manifest, Origin, Snapshot, SnapshotName, SnapshotStatus
from vmd.model.structuring import Unstructurable, structure
from vmd.model.workspace import Description
from vmd.operations.queue import OperationQueue
from vmd.orchestrator.machines import Machines
from vmd.orchestrator.permissions import require_scope, require_unconfined
from vmd.orchestrator.quota import Quotas
from vmd.orchestrator.refusals import refused_by_provider
from vmd.orchestrator.snapshots import begin_deletion, get_snapshot, require_ready, tell
from vmd.providers.base import ProviderError, ProviderUnavailable
from vmd.providers.snapshots import Disk
from vmd.providers.tars import File, Reader, TarError, walk
from vmd.store.database import Database, Transaction
from vmd.store.idempotency import Once, find_answer, keep_answer
from vmd.store.snapshots import delete_snapshot, insert_snapshot, list_abandoned, update_snapshot

FORMAT = 1
PIECE_BYTES = 4 * 1024 * 1024
MAX_HEAD_BYTES = 1024 * 1024
MAX_ENTRIES = 1_000_000
MAX_ENTRY_BYTES = 1 << 40
_HEAD, _FILES, _DISK, _END = "vmd-snapshot.json", "files.tar", "disk/", "end.json"

log = structlog.get_logger()


@frozen(kw_only=True)
class SnapshotHead:
    """What an exported snapshot says of itself."""

    format: int
    provider: str
    name: SnapshotName
    description: Description
    created_at: str
    origin: Origin
    manifest: Manifest
    disk: Disk


class SnapshotFiles:
    """The use cases of carrying snapshots."""

    def __init__(self, database: Database, queue: OperationQueue, machines: Machines, quotas: Quotas) -> None:
        self._database = database
        self._queue = queue
        self._machines = machines
        self._quotas = quotas
        self._importing: set[str] = set()

    async def export(
        self, actor: Actor, workspace_id: str, snapshot_id: str
    ) -> tuple[Snapshot, AsyncGenerator[bytes, None]]:
        """Return a snapshot and its bytes as one archive, which begins only once all is known to be there."""
        require_scope(actor, Scope.WRITE)

        def unit(tx: Transaction) -> Snapshot:
            found = get_snapshot(tx, actor, workspace_id, snapshot_id)
            require_ready(found)
            return found

        snapshot = await self._database.read(unit)
        chunks = self._export(snapshot)
        try:
            first = await anext(chunks)
        except (ProviderError, ProviderUnavailable) as error:
            raise refused_by_provider(error) from None
        return snapshot, _after(first, chunks)

    async def _export(self, snapshot: Snapshot) -> AsyncGenerator[bytes, None]:
        provider = self._machines.provider(snapshot.provider)
        assert snapshot.manifest is not None
        async with provider.snapshots.export(snapshot.id) as exported:
            head = SnapshotHead(
                format=FORMAT,
                provider=snapshot.provider,
                name=snapshot.name,
                description=snapshot.description,
                created_at=snapshot.created_at.isoformat(),
                origin=snapshot.origin,
                manifest=snapshot.manifest,
                disk=exported.disk,
            )
            writer = _Writer()
            yield writer.whole(_HEAD, msgspec.json.encode(head))
            yield writer.begin(_FILES, exported.files_bytes)
            async for chunk in exported.files:
                yield writer.data(chunk)
            yield writer.end(exported.files_bytes)
            number = 0
            async for piece in _pieces(exported.disk_files):
                yield writer.whole(f"{_DISK}{number:08}", piece)
                number += 1
            yield writer.finish()

    async def import_(
        self, actor: Actor, archive: Reader, *, name: str | None, provider: str | None, once: Once | None
    ) -> Snapshot:
        """Take in an exported snapshot; what is wrong with it is told, and nothing of it stays."""
        require_scope(actor, Scope.WRITE)
        require_unconfined(actor)
        first = await self._database.read(lambda tx: find_answer(tx, actor.user_id, once, Snapshot))
        if first is not None:
            return first
        try:
            async with aclosing(_Reader(archive).entries()) as entries:
                head = await _read_head(entries)
                place = self._machines.place(provider, None)
                if head.provider != place[0]:
                    raise invalid_value(
                        "/provider",
                        f"The file is a snapshot of the provider {head.provider}, not {place[0]}.",
                    )
                snapshot = await self._begin(actor, head, name, place)
                try:
                    size_bytes = await self._take_in(snapshot, head, entries)
                    whole = evolve(snapshot, manifest=head.manifest, size_bytes=size_bytes)
                    return await self._end(actor, whole, once)
                except BaseException:
                    await asyncio.shield(self._undo(snapshot))
                    raise
                finally:
                    self._importing.discard(snapshot.id)
        except (TarError, tarfile.TarError, EOFError, ValueError) as error:
            raise _bad_file(error) from None
        except (ProviderError, ProviderUnavailable) as error:
            raise refused_by_provider(error) from None

    async def _begin(
        self, actor: Actor, head: SnapshotHead, name: str | None, place: tuple[str, str]
    ) -> Snapshot:
        def unit(tx: Transaction) -> Snapshot:
            self._quotas.require_snapshot(tx, actor.user_id)
            snapshot = Snapshot(
                id=tx.new_id("snap"),
                workspace_id=tx.new_id("ws"),  # of none that is here, since its own is another daemon's
                owner_id=actor.user_id,
                name=name or head.name,
                description=head.description,
                status=SnapshotStatus.CREATING,
                is_final=False,
                provider=place[0],
                node=place[1],
                actor=actor.name,
                origin=head.origin,
                size_bytes=None,
                manifest=None,
                error=None,
                created_at=tx.now,
                current_operation=None,
            )
            self._importing.add(snapshot.id)
            insert_snapshot(tx, snapshot)
            tell(tx, EventType.SNAPSHOT_CREATED, snapshot, actor.name, None)
            return snapshot

        return await self._database.write(unit)

    async def _take_in(
        self, snapshot: Snapshot, head: SnapshotHead, entries: AsyncGenerator[File, None]
    ) -> int:
        target = self._machines.provider(snapshot.provider).snapshots
        files = await anext(entries, None)
        if files is None or files.name != _FILES:
            raise TarError("it has no files")
        try:
            manifest = await target.add_files(snapshot.id, files.size, files.content.pieces())
        except ProviderError as error:
            raise TarError(str(error)) from None  # the archiver says what is wrong with it
        if not manifest.describes(head.manifest):
            raise TarError("its files are not those that it says it has")
        async with aclosing(_read_disk(entries)) as disk:
            return files.size + await target.add_disk(snapshot.id, head.disk, disk)

    async def _end(self, actor: Actor, snapshot: Snapshot, once: Once | None) -> Snapshot:
        def unit(tx: Transaction) -> Snapshot:
            ready = evolve(snapshot, status=SnapshotStatus.READY)
            update_snapshot(tx, ready)
            keep_answer(tx, actor.user_id, once, ready)
            tell(tx, EventType.SNAPSHOT_READY, ready, actor.name, None, size_bytes=ready.size_bytes)
            return ready

        return await self._database.write(unit)

    async def _undo(self, snapshot: Snapshot) -> None:
        """Leave nothing of an import; what cannot be destroyed now is by the next sweep."""
        with suppress(ProviderError, ProviderUnavailable):
            await self._machines.provider(snapshot.provider).snapshots.destroy(snapshot.id)
            await self._database.write(lambda tx: delete_snapshot(tx, snapshot.id))

    async def sweep(self) -> None:
        """Destroy what is left of imports that were cut off."""

        def unit(tx: Transaction) -> int:
            abandoned = [found for found in list_abandoned(tx) if found.id not in self._importing]
            for snapshot in abandoned:
                begin_deletion(tx, SYSTEM.name, snapshot)
            return len(abandoned)

        if await self._database.write(unit):
            self._queue.wake()


class _Writer:
    """Puts the archive together, and remembers the digest of what was in it."""

    def __init__(self) -> None:
        self._digest = blake2b(digest_size=32)

    def begin(self, name: str, size: int) -> bytes:
        entry = tarfile.TarInfo(name)
        entry.size = size
        return entry.tobuf(tarfile.GNU_FORMAT)

    def data(self, chunk: bytes) -> bytes:
        self._digest.update(chunk)
        return chunk

    def end(self, size: int) -> bytes:
        return bytes(-size % tarfile.BLOCKSIZE)

    def whole(self, name: str, content: bytes) -> bytes:
        return self.begin(name, len(content)) + self.data(content) + self.end(len(content))

    def finish(self) -> bytes:
        end = msgspec.json.encode({"digest": self._digest.hexdigest()})
        return self.whole(_END, end) + bytes(2 * tarfile.BLOCKSIZE)


class _Reader:
    """Reads an archive, and remembers the digest of what was in it."""

    def __init__(self, archive: Reader) -> None:
        self._archive = archive
        self._digest = blake2b(digest_size=32)

    async def entries(self) -> AsyncGenerator[File, None]:
        async for file in walk(self._archive, most=MAX_ENTRIES, largest=MAX_ENTRY_BYTES):
            if file.name == _END:
                said = msgspec.json.decode(await file.content.read_all(MAX_HEAD_BYTES))
                if not isinstance(said, dict) or said.get("digest") != self._digest.hexdigest():
                    raise TarError("it was changed or damaged on its way")
                yield file
                return
            file.content.on_read = self._digest.update
            yield file


async def _read_head(entries: AsyncGenerator[File, None]) -> SnapshotHead:
    first = await anext(entries, None)
    if first is None or first.name != _HEAD or first.size > MAX_HEAD_BYTES:
        raise TarError("it does not begin with what it is")
    data = msgspec.json.decode(await first.content.read_all(MAX_HEAD_BYTES))
    version = data.get("format") if isinstance(data, dict) else None
    if version != FORMAT:
        raise Refused(
            ErrorCode.VALIDATION_FAILED,
            f"The file is of format {version}, and this vmd reads format {FORMAT}; use another vmd.",
        )
    try:
        head: SnapshotHead = structure(data, SnapshotHead)
    except Unstructurable as error:
        raise TarError(f"what it says of itself is wrong: {error}") from None
    for name, value in head.disk.env.items():
        if not name.replace("_", "a").isalnum() or not value.isprintable():
            raise TarError("its environment has a variable that no image can have")
    return head


async def _read_disk(entries: AsyncGenerator[File, None]) -> AsyncGenerator[bytes, None]:
    """Yield the disk, and end without an error only if all of the archive was there."""
    number = 0
    async for file in entries:
        if file.name == _END:
            return
        if file.name != f"{_DISK}{number:08}":
            raise TarError("an entry is there that no snapshot has")
        number += 1
        async for piece in file.content.pieces():
            yield piece
    raise TarError("it is cut off")


async def _pieces(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    waiting = bytearray()
    async for chunk in chunks:
        waiting += chunk
        if len(waiting) >= PIECE_BYTES:
            yield bytes(waiting[:PIECE_BYTES])
            del waiting[:PIECE_BYTES]
    if waiting:
        yield bytes(waiting)


async def _after(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        yield first
        async for chunk in rest:
            yield chunk


def _bad_file(error: Exception) -> Refused:
    detail = str(error).rstrip(".") or type(error).__name__
    return Refused(
        ErrorCode.VALIDATION_FAILED,
        f"The file cannot be imported: {detail}. Nothing of it was kept; export the snapshot again.",
    )
