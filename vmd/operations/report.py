"""What a worker tells while it works: phases, log lines, steps done."""

import asyncio
import codecs
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from typing import Any

from attrs import evolve

from vmd.model.event import EventType
from vmd.model.operation import Job, Phase, Progress
from vmd.store.database import Database, Transaction
from vmd.store.operations import find_job, insert_logs, update_job

FLUSH_SECONDS = 0.1
MAX_LINES = 20_000
MAX_CHARACTERS = 4 * 1024 * 1024  # of a log, over one attempt
MAX_BATCH_CHARACTERS = 64 * 1024  # of lines in one event, which every listener must be able to take
MAX_LINE_CHARACTERS = 4096
MIN_SECRET_CHARACTERS = 4
HIDDEN = "***"

_Lines = list[tuple[datetime, str, str]]  # time, stream, message


class Report:
    """Writes a worker's progress into the books; log lines are gathered and written a few times a second."""

    def __init__(self, database: Database, job: Job, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._job = job
        self._clock = clock
        self._lines: _Lines = []
        self._line_count = 0
        self._character_count = 0
        self._is_full = False
        self._secrets: list[str] = []
        self._decoders = {stream: _LineDecoder() for stream in ("stdout", "stderr")}
        self._flush_task: asyncio.Task[None] | None = None

    async def phase(self, phase: Phase, message: str, *, percent: int | None = None, **steps: Any) -> None:
        """Say which part of the work begins, and record the steps that were done before it."""
        self._append("vmd", message)
        progress = Progress(phase=phase, message=message, percent=percent)
        await self._write(
            lambda job: evolve(
                job,
                operation=evolve(job.operation, progress=progress),
                checkpoint={**job.checkpoint, **steps},
            )
        )

    async def checkpoint(self, **steps: Any) -> None:
        """Record steps that a retry need not do again."""
        await self._write(lambda job: evolve(job, checkpoint={**job.checkpoint, **steps}))

    async def forbid_cancel(self, **steps: Any) -> None:
        """Record that the point of no return is passed, with the steps that were done before it."""
        await self._write(
            lambda job: evolve(
                job,
                operation=evolve(job.operation, may_cancel=False),
                checkpoint={**job.checkpoint, **steps},
            )
        )

    async def output(self, stream: str, data: bytes) -> None:
        """Log what a command printed, line by line; bytes that are not UTF-8 are replaced."""
        for line in self._decoders[stream].feed(data):
            self._append(stream, line)

    def hide(self, secrets: Collection[str]) -> None:
        """Replace these values, from now on, wherever a line of the log has them."""
        self._secrets = _pieces_of(secrets)

    def redact(self, text: str) -> str:
        """Return a text without the values to hide."""
        return _without(text, self._secrets)

    def log(self, message: str) -> None:
        """Log a line of our own."""
        self._append("vmd", message)

    async def flush(self) -> None:
        """Write the lines that are gathered, the unfinished last ones too."""
        for stream, decoder in self._decoders.items():
            for line in decoder.finish():
                self._append(stream, line)
        if self._flush_task is not None:
            self._flush_task.cancel()
            self._flush_task = None
        await self._write_lines()

    def _append(self, stream: str, message: str) -> None:
        if self._is_full:
            return
        message = self.redact(message)
        if len(message) > MAX_LINE_CHARACTERS:
            message = message[:MAX_LINE_CHARACTERS] + " …"
        self._line_count += 1
        self._character_count += len(message)
        if self._line_count >= MAX_LINES or self._character_count >= MAX_CHARACTERS:
            self._is_full = True
            stream, message = "vmd", "The log is full; what follows is not kept."
        self._lines.append((self._clock(), stream, message))
        if self._flush_task is None:
            self._flush_task = asyncio.create_task(self._flush_later())

    async def _flush_later(self) -> None:
        await asyncio.sleep(FLUSH_SECONDS)
        self._flush_task = None
        await self._write_lines()

    async def _write_lines(self) -> None:
        lines = self._take_lines()
        if lines:
            await self._database.write(lambda tx: self._insert_lines(tx, lines))

    def _take_lines(self) -> _Lines:
        """Take what is gathered, here on the loop's thread, so that no line is added meanwhile."""
        lines, self._lines = self._lines, []
        return lines

    async def _write(self, change: Callable[[Job], Job]) -> None:
        lines = self._take_lines()

        def unit(tx: Transaction) -> Job:
            job = find_job(tx, self._job.id)
            assert job is not None
            changed = change(job)
            update_job(tx, changed)
            self._insert_lines(tx, lines)
            if changed.operation.progress != job.operation.progress:
                tx.emit(
                    EventType.OPERATION_PROGRESS,
                    actor=job.operation.actor,
                    owner_id=job.owner_id,
                    workspace_id=job.operation.workspace_id,
                    operation_id=job.id,
                    status=changed.operation.status,
                    progress=changed.operation.progress,
                )
            return changed

        self._job = await self._database.write(unit)

    def _insert_lines(self, tx: Transaction, lines: _Lines) -> None:
        for batch in _batches(lines):
            tx.emit(
                EventType.OPERATION_LOG,
                actor=self._job.operation.actor,
                owner_id=self._job.owner_id,
                workspace_id=self._job.operation.workspace_id,
                operation_id=self._job.id,
                lines=insert_logs(tx, self._job.id, batch),
            )


def redact(text: str, secrets: Collection[str]) -> str:
    """Return a text without these values."""
    return _without(text, _pieces_of(secrets))


def _without(text: str, pieces: list[str]) -> str:
    for piece in pieces:
        text = text.replace(piece, HIDDEN)
    return text


def _pieces_of(secrets: Collection[str]) -> list[str]:
    """Return what of the secrets can stand on one line, the longest first."""
    return sorted((line for secret in secrets for line in _lines_of(secret)), key=len, reverse=True)


def _lines_of(secret: str) -> list[str]:
    """Return what of a secret can stand on one line; very short pieces would hide half of every log."""
    return [line for line in secret.splitlines() if len(line) >= MIN_SECRET_CHARACTERS]


def _batches(lines: _Lines) -> Iterator[_Lines]:
    """Yield the lines in order, few enough at once for one event."""
    batch: _Lines = []
    size = 0
    for line in lines:
        if batch and size + len(line[2]) > MAX_BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += len(line[2])
    if batch:
        yield batch


class _LineDecoder:
    """Bytes to lines of text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, data: bytes) -> list[str]:
        text = self._rest + self._decoder.decode(data)
        *lines, self._rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        if len(self._rest) > MAX_LINE_CHARACTERS:
            lines.append(self._rest)
            self._rest = ""
        return lines

    def finish(self) -> list[str]:
        rest, self._rest = self._rest + self._decoder.decode(b"", True), ""
        return [rest] if rest else []
