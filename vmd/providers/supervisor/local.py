"""A supervisor inside the daemon, for machines that cannot run one: what it keeps, it keeps in memory."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol

from attrs import evolve

from vmd.model.shell import Persistence
from vmd.providers.base import ProviderError, ProviderUnavailable
from vmd.providers.process import (
    Chunk,
    Kept,
    ProcessReport,
    ProcessSpec,
    ProcessState,
    Stream,
    TerminalSize,
)

MAX_KEPT_BYTES = 1024 * 1024  # of each stream, whatever is asked for
GRACE_SECONDS = 5.0
MAX_PIECE_BYTES = 64 * 1024


class Spawned(Protocol):
    """A process that runs. Methods raise ProviderError or ProviderUnavailable."""

    async def write(self, data: bytes) -> None:
        """Give it input."""

    async def close_input(self) -> None:
        """End its input."""

    async def signal(self, number: int) -> None:
        """Send it and its group a signal."""

    async def resize(self, size: TerminalSize) -> None:
        """Change the size of its terminal."""

    async def wait(self) -> int | None:
        """Return its exit code after all its output; None if it was lost."""


Output = Callable[[Stream, bytes], Awaitable[None]]  # returns when there may be more


class Spawner(Protocol):
    """Starts processes in one machine."""

    async def spawn(self, spec: ProcessSpec, output: Output) -> Spawned:
        """Start a process; raise UnknownUser, ProviderError or ProviderUnavailable."""


class LocalSupervisor:
    """Looks after processes as long as the daemon lives."""

    def __init__(self, spawner: Spawner, persistence: Persistence = Persistence.DAEMON) -> None:
        self.persistence = persistence
        self.on_report: Callable[[ProcessReport], None] = lambda report: None
        self._spawner = spawner
        self._processes: dict[str, _Process] = {}
        self._closed = asyncio.Event()

    def reopen(self) -> "LocalSupervisor":
        """Serve who connects now; who did before is let go."""
        self._let_go()
        self._closed = asyncio.Event()
        return self

    def lose_all(self) -> None:
        """Note that the machine has stopped."""
        for process in self._processes.values():
            process.lose()
        self._let_go()

    def _let_go(self) -> None:
        self._closed.set()
        for process in self._processes.values():
            process.let_go()

    @property
    def is_open(self) -> bool:
        """Whether whoever connected last was not let go."""
        return not self._closed.is_set()

    async def wait_closed(self) -> None:
        """Return when whoever connected last was let go."""
        await self._closed.wait()

    async def close(self) -> None:
        """Let go; the processes go on."""
        self._let_go()

    async def start(self, spec: ProcessSpec) -> None:
        """Start a process unless one of its id was started before."""
        if spec.id in self._processes:
            return
        process = self._processes[spec.id] = _Process(spec)
        try:
            process.spawned = await self._spawner.spawn(spec, process.take)
        except BaseException:
            del self._processes[spec.id]
            raise
        process.task = asyncio.create_task(self._look_after(process, process.spawned))

    async def _look_after(self, process: "_Process", spawned: Spawned) -> None:
        timer = asyncio.create_task(process.time_out())
        try:
            if process.spec.terminal is None:
                with contextlib.suppress(ProviderError, ProviderUnavailable):
                    await spawned.write(process.spec.stdin)
                    await spawned.close_input()
            code = await spawned.wait()
        except (ProviderError, ProviderUnavailable):
            code = None
        finally:
            timer.cancel()
        if process.report.state is ProcessState.RUNNING:
            process.finish(code)
            self.on_report(process.report)

    async def look(self, process_id: str) -> ProcessReport | None:
        """Return how a process stands."""
        process = self._processes.get(process_id)
        return None if process is None else process.report

    async def list(self) -> Sequence[ProcessReport]:
        """Return how all processes stand."""
        return [process.report for process in self._processes.values()]

    def follow(
        self, process_id: str, stream: Stream, offset: int, *, live: bool, window: int
    ) -> "LocalFollower":
        """Return a reader; there is no window, since nothing is sent."""
        process = self._processes.get(process_id)
        if process is None:
            return LocalFollower(_KeptStream(0), 0, live=False, is_over=lambda: True)
        kept = process.streams[stream]
        return LocalFollower(
            kept, offset, live=live, is_over=lambda: process.report.state is not ProcessState.RUNNING
        )

    async def write(self, process_id: str, data: bytes) -> None:
        """Give a process input."""
        process = self._processes.get(process_id)
        if process is not None and process.spawned is not None:
            await process.spawned.write(data)

    def signal(self, process_id: str, number: int) -> None:
        """Send a signal to a process group."""
        process = self._processes.get(process_id)
        if process is not None:
            process.do(lambda spawned: spawned.signal(number))

    def resize(self, process_id: str, size: TerminalSize) -> None:
        """Change the size of a terminal."""
        process = self._processes.get(process_id)
        if process is not None:
            process.do(lambda spawned: spawned.resize(size))

    def end(self, process_id: str, number: int) -> None:
        """Send a signal, and kill what is left a few seconds later."""
        process = self._processes.get(process_id)
        if process is not None:
            process.end(number)

    def forget(self, process_id: str) -> None:
        """Remove what is kept of a process that has ended."""
        process = self._processes.get(process_id)
        if process is not None and process.report.state is not ProcessState.RUNNING:
            del self._processes[process_id]


class _Process:
    def __init__(self, spec: ProcessSpec) -> None:
        limit = min(spec.kept_bytes, MAX_KEPT_BYTES)
        self.spec = spec
        self.streams = {stream: _KeptStream(limit) for stream in Stream}
        self.spawned: Spawned | None = None
        self.task: asyncio.Task[None] | None = None
        self._doing: set[asyncio.Task[None]] = set()
        self._report = ProcessReport(
            id=spec.id, state=ProcessState.RUNNING, is_terminal=spec.terminal is not None
        )

    @property
    def report(self) -> ProcessReport:
        return evolve(
            self._report,
            stdout=self.streams[Stream.STDOUT].kept,
            stderr=self.streams[Stream.STDERR].kept,
        )

    async def take(self, stream: Stream, data: bytes) -> None:
        kept = self.streams[stream]
        kept.append(data)
        while self._report.state is ProcessState.RUNNING and kept.is_ahead:
            await kept.wait()

    def finish(self, code: int | None) -> None:
        state = ProcessState.LOST if code is None else ProcessState.EXITED
        number = None if code is None or not 128 < code < 128 + signal.NSIG else code - 128
        self._report = evolve(self._report, state=state, exit_code=code, signal=number)
        self._wake()

    def lose(self) -> None:
        if self._report.state is ProcessState.RUNNING:
            self.finish(None)

    def let_go(self) -> None:
        for stream in self.streams.values():
            stream.let_go()

    async def time_out(self) -> None:
        if self.spec.timeout_seconds is None:
            return
        await asyncio.sleep(self.spec.timeout_seconds)
        self._report = evolve(self._report, is_timed_out=True)
        self.end(signal.SIGTERM)

    def end(self, number: int) -> None:
        async def do(spawned: Spawned) -> None:
            await spawned.signal(number)
            await asyncio.sleep(GRACE_SECONDS)
            if self._report.state is ProcessState.RUNNING:
                await spawned.signal(signal.SIGKILL)

        self.do(do)

    def do(self, what: Callable[[Spawned], "asyncio.Future[None] | object"]) -> None:
        """Do something to the process that its caller does not wait for."""
        spawned = self.spawned
        if spawned is None or self._report.state is not ProcessState.RUNNING:
            return

        async def run() -> None:
            with contextlib.suppress(ProviderError, ProviderUnavailable):
                await what(spawned)  # type: ignore[misc]

        task = asyncio.create_task(run())
        self._doing.add(task)
        task.add_done_callback(self._doing.discard)

    def _wake(self) -> None:
        for stream in self.streams.values():
            stream.wake()


class _KeptStream:
    """The last bytes of a stream, and those who wait for more."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = bytearray()
        self._first = 0
        self._news = asyncio.Event()
        self._generation = 0
        self._readers: set[LocalFollower] = set()

    @property
    def kept(self) -> Kept:
        return Kept(first=self._first, end=self._first + len(self._data))

    @property
    def generation(self) -> int:
        """Counts how often those who wait were let go."""
        return self._generation

    @property
    def is_ahead(self) -> bool:
        """Whether a reader is so far behind that it would miss what is printed on."""
        least = min((reader.at for reader in self._readers), default=self.kept.end)
        return self.kept.end - least > self._limit // 2

    def add_reader(self, reader: "LocalFollower") -> None:
        """Let nothing be dropped that a reader has not read."""
        self._readers.add(reader)

    def discard_reader(self, reader: "LocalFollower") -> None:
        """Wait for a reader no longer."""
        self._readers.discard(reader)
        self.wake()

    def append(self, data: bytes) -> None:
        self._data += data
        surplus = len(self._data) - self._limit
        if surplus > self._limit // 4:  # a quarter at a time, since what is left is moved
            del self._data[:surplus]
            self._first += surplus
        self.wake()

    def read(self, offset: int) -> Chunk | None:
        """Return a piece from `offset` on, or from the first byte there is; None at the end."""
        start = max(0, offset - self._first)
        data = bytes(self._data[start : start + MAX_PIECE_BYTES])
        return Chunk(offset=self._first + start, data=data) if data else None

    async def wait(self) -> None:
        await self._news.wait()

    def wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def let_go(self) -> None:
        self._generation += 1
        self._readers.clear()
        self.wake()


class LocalFollower:
    """A reader of a stream in memory."""

    def __init__(self, stream: _KeptStream, offset: int, *, live: bool, is_over: Callable[[], bool]) -> None:
        self.at = offset
        self._stream = stream
        self._until = None if live else stream.kept.end
        self._is_over = is_over
        self._generation = stream.generation
        self._is_closed = False
        if live:
            stream.add_reader(self)

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """Yield what is there, then what comes."""
        try:
            while not self._is_closed:
                if self._stream.generation != self._generation:
                    raise ProviderUnavailable("The connection into the machine was lost; try again.")
                chunk = self._stream.read(self.at)
                if chunk is not None and (self._until is None or chunk.offset < self._until):
                    self.at = chunk.end
                    yield chunk
                    self._stream.wake()
                elif self._until is not None or self._is_over():
                    return
                else:
                    await self._stream.wait()
        finally:
            self._stream.discard_reader(self)

    def close(self) -> None:
        """Want no more."""
        self._is_closed = True
        self._stream.discard_reader(self)
