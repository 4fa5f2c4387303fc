"""What a supervisor kept in a container, read while the container is off.

The engine sends a directory as a tar archive. It is read as it comes and never unpacked; what is in it may
have been changed by whoever is root in the container.
"""

import re
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import aiohttp
from aiodocker.exceptions import DockerError
from attrs import evolve, frozen

from vmd.providers.base import ProviderError
from vmd.providers.docker.body import STATE_DIRECTORY
from vmd.providers.docker.engine import NOT_FOUND, Engine
from vmd.providers.process import Chunk, Kept, ProcessReport, ProcessState, Stream

MAX_FILE_BYTES = 1 << 30
MAX_FILES = 100
MAX_PIECE_BYTES = 64 * 1024
MAX_NOTE_BYTES = 200
_SEGMENT = re.compile(r"(out|err)\.([0-9]{10})$")
_PREFIXES = {Stream.STDOUT: "out", Stream.STDERR: "err"}


class _Content:
    """One file's part of an archive."""

    def __init__(self, archive: aiohttp.StreamReader, size: int) -> None:
        self._archive = archive
        self._left = size

    async def read(self, most: int) -> bytes:
        data = await self._archive.read(min(most, self._left)) if self._left else b""
        if self._left and not data:
            raise EOFError("it is cut off")
        self._left -= len(data)
        return data

    async def skip(self) -> None:
        while self._left:
            await self.read(MAX_PIECE_BYTES)


@frozen(kw_only=True)
class _File:
    name: str
    size: int
    content: _Content


class KeptOutput:
    """Reads the directories of processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def find(self, ref: str, process_id: str) -> ProcessReport | None:
        """Return how a process had ended, and what it had printed; None if there is no trace of it."""
        segment_bytes, note = 0, b""
        kept: dict[str, Kept] = {}
        async with aclosing(self._files(ref, process_id)) as files:
            async for file in files:
                if file.name == "begin":
                    segment_bytes = _number((await _read_note(file)).split()[:1])
                elif file.name == "end":
                    note = await _read_note(file)
                elif (match := _SEGMENT.match(file.name)) and segment_bytes:
                    at = int(match[2]) * segment_bytes
                    before = kept.get(match[1])
                    kept[match[1]] = Kept(first=before.first if before else at, end=at + file.size)
        if not segment_bytes:
            return None
        lost = ProcessReport(
            id=process_id,
            state=ProcessState.LOST,
            stdout=kept.get("out", Kept()),
            stderr=kept.get("err", Kept()),
        )
        return _with_end(lost, note)

    async def read(
        self, ref: str, process_id: str, stream: Stream, offset: int
    ) -> AsyncGenerator[Chunk, None]:
        """Yield the kept bytes of one stream from `offset` on."""
        segment_bytes = 0
        async with aclosing(self._files(ref, process_id)) as files:
            async for file in files:
                if file.name == "begin":
                    segment_bytes = _number((await _read_note(file)).split()[:1])
                match = _SEGMENT.match(file.name)
                if match is None or match[1] != _PREFIXES[stream] or not segment_bytes:
                    continue
                at = int(match[2]) * segment_bytes
                async for data in _pieces(file):
                    skipped = max(0, offset - at)
                    if skipped < len(data):
                        yield Chunk(offset=at + skipped, data=data[skipped:])
                    at += len(data)

    async def _files(self, ref: str, process_id: str) -> AsyncGenerator[_File, None]:
        """Yield the files of a process in the order of their names; none if it has no directory."""
        path = f"{STATE_DIRECTORY}/p/{process_id}"
        try:
            with self._engine.translated():
                async with self._engine.streams._query(
                    f"containers/{ref}/archive", params={"path": path}, timeout=None
                ) as response:
                    try:
                        async for file in _walk(response.content):
                            yield file
                    finally:
                        response.close()
        except DockerError as error:
            if error.status != NOT_FOUND:
                raise ProviderError(f"The engine cannot read in the machine: {error.message}.") from None
        except (tarfile.TarError, EOFError) as error:
            raise ProviderError(f"What the machine kept is damaged: {error}.") from None


async def _walk(archive: aiohttp.StreamReader) -> AsyncIterator[_File]:
    """Yield each plain file of a tar archive; what is not read of it is skipped."""
    for _ in range(MAX_FILES):
        head = await archive.readexactly(tarfile.BLOCKSIZE)
        if not head.strip(b"\0"):
            return
        entry = tarfile.TarInfo.frombuf(head, "utf-8", "replace")
        if not 0 <= entry.size <= MAX_FILE_BYTES:
            raise tarfile.TarError(f"a file of {entry.size} bytes")
        content = _Content(archive, entry.size)
        if entry.isreg():
            yield _File(name=entry.name.rpartition("/")[2], size=entry.size, content=content)
        await content.skip()
        if rest := entry.size % tarfile.BLOCKSIZE:
            await archive.readexactly(tarfile.BLOCKSIZE - rest)


async def _pieces(file: _File) -> AsyncIterator[bytes]:
    while data := await file.content.read(MAX_PIECE_BYTES):
        yield data


async def _read_note(file: _File) -> bytes:
    note = b""
    while len(note) < MAX_NOTE_BYTES and (data := await file.content.read(MAX_NOTE_BYTES)):
        note += data
    return note


def _number(words: list[bytes]) -> int:
    return int(words[0]) if words and words[0].isdigit() and len(words[0]) < 16 else 0


def _with_end(lost: ProcessReport, note: bytes) -> ProcessReport:
    """Return the report of a process with what its `end` says: exit code, signal, whether it timed out."""
    words = note.split()
    if len(words) != 3 or not all(word.isdigit() and len(word) < 4 for word in words):
        return lost
    code, number, is_timed_out = (int(word) for word in words)
    return evolve(
        lost,
        state=ProcessState.EXITED,
        exit_code=code & 0xFF,
        signal=number or None,
        is_timed_out=bool(is_timed_out),
    )
