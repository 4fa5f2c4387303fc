"""What a supervisor kept in a container, read while the container is off.

The engine sends a directory as a tar archive. It is read as it comes and never unpacked; what is in it may
have been changed by whoever is root in the container.
"""

import re
import tarfile
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiodocker.exceptions import DockerError
from attrs import evolve

from vmd.providers.base import ProviderError
from vmd.providers.docker.body import STATE_DIRECTORY
from vmd.providers.docker.engine import NOT_FOUND, Engine
from vmd.providers.process import Chunk, Kept, ProcessReport, ProcessState, Stream
from vmd.providers.tars import File, walk

MAX_FILE_BYTES = 1 << 30
MAX_FILES = 100
MAX_NOTE_BYTES = 200
_SEGMENT = re.compile(r"(out|err)\.([0-9]{10})$")
_PREFIXES = {Stream.STDOUT: "out", Stream.STDERR: "err"}


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
                    segment_bytes = _number((await file.content.read_all(MAX_NOTE_BYTES)).split()[:1])
                elif file.name == "end":
                    note = await file.content.read_all(MAX_NOTE_BYTES)
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
                    segment_bytes = _number((await file.content.read_all(MAX_NOTE_BYTES)).split()[:1])
                match = _SEGMENT.match(file.name)
                if match is None or match[1] != _PREFIXES[stream] or not segment_bytes:
                    continue
                at = int(match[2]) * segment_bytes
                async for data in file.content.pieces():
                    skipped = max(0, offset - at)
                    if skipped < len(data):
                        yield Chunk(offset=at + skipped, data=data[skipped:])
                    at += len(data)

    async def _files(self, ref: str, process_id: str) -> AsyncGenerator[File, None]:
        """Yield the files of a process in the order of their names; none if it has no directory."""
        path = f"{STATE_DIRECTORY}/p/{process_id}"
        try:
            async with self._engine.receive(f"containers/{ref}/archive", {"path": path}) as archive:
                async for file in walk(archive, most=MAX_FILES, largest=MAX_FILE_BYTES):
                    yield evolve(file, name=file.name.rpartition("/")[2])
        except DockerError as error:
            if error.status != NOT_FOUND:
                raise ProviderError(f"The engine cannot read in the machine: {error.message}.") from None
        except (tarfile.TarError, EOFError) as error:
            raise ProviderError(f"What the machine kept is damaged: {error}.") from None


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
