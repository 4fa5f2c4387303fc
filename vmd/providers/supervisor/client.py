"""The supervisor of a machine, as the daemon speaks to it over one stream of frames."""

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import structlog

from vmd.model.shell import Persistence
from vmd.providers.base import ProviderError, ProviderUnavailable
from vmd.providers.process import (
    Chunk,
    ProcessReport,
    ProcessSpec,
    ProcessState,
    Stream,
    TerminalSize,
    UnknownUser,
)
from vmd.providers.supervisor.wire import (
    MAX_OFFSET,
    VERSION,
    BadFrame,
    FrameReader,
    FromSupervisor,
    ToSupervisor,
    frame,
    identifier,
    read_report,
    split_id,
    start_frame,
)

ANSWER_SECONDS = 10.0  # for a supervisor to answer; the machine may be busy
INPUT_WINDOW_BYTES = 64 * 1024  # of one process's input that may be under way
MAX_MERGED_BYTES = 64 * 1024
MAX_SMALL_BYTES = 4 * 1024
MIN_PIECES = 16  # that a reader may have waiting, and one more for every so many bytes of its window
LEAST_MEAN_BYTES = 1024
MAX_LISTED = 100_000
_ALL = 1 << 32  # more input than can be under way
_NUMBER = struct.Struct("<I")
_OFFSET = struct.Struct("<Q")
_DATA = struct.Struct("<IQ")

log = structlog.get_logger()


class OtherVersion(Exception):
    """The supervisor speaks another version of the frames."""


class SupervisorClient:
    """Speaks to a supervisor over a link that somebody else reads and writes."""

    persistence = Persistence.MACHINE

    def __init__(self, write: Callable[[bytes], None], close_link: Callable[[], None]) -> None:
        """Take what writes to the link and closes it; `feed` it what comes, and say when it is `lost`."""
        self._write = write
        self._close_link = close_link
        self._reader = FrameReader()
        self._closed = asyncio.Event()
        self._ready: asyncio.Future[None] = _future()
        self._starts: dict[str, asyncio.Future[None]] = {}
        self._looks: dict[str, list[asyncio.Future[ProcessReport | None]]] = {}
        self._lists: deque[asyncio.Future[list[ProcessReport]]] = deque()
        self._listed: list[ProcessReport] = []
        self._followers: dict[int, LinkFollower] = {}
        self._last_follower = 0
        self._untaken: dict[str, int] = {}  # bytes of input under way, by process
        self._room: dict[str, asyncio.Event] = {}
        self._running: set[str] = set()  # whose ends are told, each once, whatever else is reported
        self.on_report: Callable[[ProcessReport], None] = lambda report: None
        self._handlers: Mapping[int, Callable[[bytes], None]] = {
            FromSupervisor.READY: self._take_ready,
            FromSupervisor.STARTED: self._take_started,
            FromSupervisor.REFUSED: self._take_refused,
            FromSupervisor.DATA: self._take_data,
            FromSupervisor.FINISHED: self._take_finished,
            FromSupervisor.TAKEN: self._take_taken,
            FromSupervisor.REPORT: self._take_report,
            FromSupervisor.LISTED: self._take_listed,
            FromSupervisor.UNKNOWN: self._take_unknown,
        }

    # The link.

    async def greet(self) -> None:
        """Make sure that a supervisor of our version listens; raise OtherVersion, or ProviderUnavailable."""
        self._send(ToSupervisor.HELLO)
        await self._answer(self._ready)

    def feed(self, data: bytes) -> None:
        """Take what came over the link; a supervisor that talks nonsense is hung up on."""
        try:
            for kind, body in self._reader.feed(data):
                self._take(kind, body)
        except (BadFrame, struct.error) as error:
            if self._ready.done():  # else it is not known to be one
                log.warning("a supervisor talks nonsense and is hung up on", why=str(error))
            self.lost()

    def lost(self) -> None:
        """End everything that waits for the link."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._close_link()
        waiting: list[asyncio.Future[Any]] = [self._ready, *self._starts.values(), *self._lists]
        waiting += [future for futures in self._looks.values() for future in futures]
        for future in waiting:
            if not future.done():
                future.set_exception(_unavailable())
                future.exception()  # it need not be waited for
        for follower in self._followers.values():
            follower.lose()
        for room in self._room.values():
            room.set()

    @property
    def is_open(self) -> bool:
        """Whether the link stands."""
        return not self._closed.is_set()

    async def wait_closed(self) -> None:
        """Return when the link is gone."""
        await self._closed.wait()

    async def close(self) -> None:
        """Hang up."""
        self.lost()

    # Processes.

    async def start(self, spec: ProcessSpec) -> None:
        """Start a process unless one of its id was started before."""
        future = self._starts.get(spec.id)
        if future is None:
            future = self._starts[spec.id] = _future()
            self._write_frame(start_frame(spec))
        self._running.add(spec.id)  # first, since it may have ended before its start is answered
        try:
            await self._answer(future)
        except BaseException:
            self._running.discard(spec.id)
            raise
        finally:
            self._starts.pop(spec.id, None)

    async def look(self, process_id: str) -> ProcessReport | None:
        """Return how a process stands, None for one that is not known."""
        future = _future()
        self._looks.setdefault(process_id, []).append(future)
        self._send(ToSupervisor.LOOK, identifier(process_id))
        report: ProcessReport | None = await self._answer(future)
        return report

    async def list(self) -> Sequence[ProcessReport]:
        """Return how all known processes stand."""
        future = _future()
        self._lists.append(future)
        self._send(ToSupervisor.LIST)
        reports: list[ProcessReport] = await self._answer(future)
        return reports

    def follow(
        self, process_id: str, stream: Stream, offset: int, *, live: bool, window: int
    ) -> "LinkFollower":
        """Return a reader of one stream."""
        self._last_follower = (self._last_follower + 1) & 0xFFFFFFFF
        follower = LinkFollower(self, self._last_follower, offset, window)
        self._followers[follower.number] = follower
        self._send(
            ToSupervisor.FOLLOW,
            _NUMBER.pack(follower.number),
            identifier(process_id),
            struct.pack("<BQQB", stream is Stream.STDERR, offset, window, live),
        )
        return follower

    async def write(self, process_id: str, data: bytes) -> None:
        """Give a process input; return when it may be given more."""
        for at in range(0, len(data), INPUT_WINDOW_BYTES):
            part = data[at : at + INPUT_WINDOW_BYTES]
            self._untaken[process_id] = self._untaken.get(process_id, 0) + len(part)
            self._send(ToSupervisor.INPUT, identifier(process_id), part)
            while self._untaken.get(process_id, 0) >= INPUT_WINDOW_BYTES and self.is_open:
                room = self._room.setdefault(process_id, asyncio.Event())
                room.clear()
                await room.wait()

    def signal(self, process_id: str, number: int) -> None:
        """Send a signal to the process group in the foreground."""
        self._send(ToSupervisor.SIGNAL, identifier(process_id), bytes((number, 0)))

    def resize(self, process_id: str, size: TerminalSize) -> None:
        """Change the size of a terminal."""
        packed = struct.pack("<HH", size.rows, size.columns)
        self._send(ToSupervisor.RESIZE, identifier(process_id), packed)

    def end(self, process_id: str, number: int) -> None:
        """Send a signal to a session, and have what is left of it killed."""
        self._send(ToSupervisor.END, identifier(process_id), bytes((number,)))

    def forget(self, process_id: str) -> None:
        """Remove what is kept of a process that has ended."""
        self._send(ToSupervisor.FORGET, identifier(process_id))

    # What comes.

    def _take(self, kind: int, body: bytes) -> None:
        handler = self._handlers.get(kind)
        if handler is None:
            raise BadFrame(f"a frame of type {kind}")
        handler(body)

    def _take_data(self, body: bytes) -> None:
        number, offset = _DATA.unpack_from(body)
        follower = self._followers.get(number)
        if follower is not None:
            follower.take(offset, body[_DATA.size :])

    def _take_finished(self, body: bytes) -> None:
        number, _ = _DATA.unpack(body)
        follower = self._followers.pop(number, None)
        if follower is not None:
            follower.finish()

    def _take_ready(self, body: bytes) -> None:
        if _NUMBER.unpack(body)[0] == VERSION:
            _settle(self._ready, None)
            return
        if not self._ready.done():
            self._ready.set_exception(OtherVersion())
        self.lost()

    def _take_started(self, body: bytes) -> None:
        process_id, _ = split_id(body)
        if process_id in self._starts:
            _settle(self._starts[process_id], None)

    def _take_refused(self, body: bytes) -> None:
        process_id, why = split_id(body)
        future = self._starts.get(process_id)
        if future is not None and not future.done():
            future.set_exception(_refusal(why.decode("utf-8", "replace")[:200]))

    def _take_taken(self, body: bytes) -> None:
        process_id, rest = split_id(body)
        self._make_room(process_id, _NUMBER.unpack(rest)[0])

    def _take_unknown(self, body: bytes) -> None:
        process_id, _ = split_id(body)
        self._make_room(process_id, _ALL)
        for look in self._looks.pop(process_id, ()):
            _settle(look, None)

    def _take_listed(self, body: bytes) -> None:
        if self._lists:
            _settle(self._lists.popleft(), self._listed)
        self._listed = []

    def _take_report(self, body: bytes) -> None:
        report = read_report(body)
        if self._lists and len(self._listed) < MAX_LISTED:
            self._listed.append(report)
            if report.state is ProcessState.RUNNING:
                self._running.add(report.id)
        for look in self._looks.pop(report.id, ()):
            _settle(look, report)
        if report.exit_code is not None and report.id in self._running:
            self._running.discard(report.id)
            self._make_room(report.id, _ALL)
            self.on_report(report)

    def _make_room(self, process_id: str, count: int) -> None:
        left = max(0, self._untaken.get(process_id, 0) - count)
        if left:
            self._untaken[process_id] = left
        else:
            self._untaken.pop(process_id, None)
        if left < INPUT_WINDOW_BYTES and process_id in self._room:
            self._room.pop(process_id).set()

    # What goes.

    def grant(self, number: int, count: int) -> None:
        """Let the supervisor send a reader this much more."""
        if number in self._followers:
            self._send(ToSupervisor.CREDIT, _NUMBER.pack(number), _OFFSET.pack(count))

    def unfollow(self, number: int) -> None:
        """Want no more of what a reader gets."""
        if self._followers.pop(number, None) is not None and self.is_open:
            self._send(ToSupervisor.UNFOLLOW, _NUMBER.pack(number))

    def _send(self, kind: ToSupervisor, *parts: bytes) -> None:
        self._write_frame(frame(kind, *parts))

    def _write_frame(self, data: bytes) -> None:
        if not self.is_open:
            raise _unavailable()
        self._write(data)

    async def _answer(self, future: "asyncio.Future[Any]") -> Any:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await asyncio.shield(future)
        except TimeoutError:
            self.lost()
            raise _unavailable() from None


class LinkFollower:
    """A reader whose bytes come over a link."""

    def __init__(self, client: SupervisorClient, number: int, offset: int, window: int) -> None:
        self.number = number
        self._client = client
        self._at = offset  # before which nothing may come
        self._window = window
        self._credit = window  # what may still come
        self._taken = 0  # since more was last granted
        self._chunks: deque[Chunk] = deque()
        self._arrived = asyncio.Event()
        self._is_finished = False  # or closed
        self._is_lost = False

    def take(self, offset: int, data: bytes) -> None:
        """Keep what came, for whoever iterates; raise BadFrame for what cannot come, or was not granted."""
        self._credit -= len(data)
        if self._credit < 0:
            raise BadFrame("more than was asked for")
        chunk = Chunk(offset=offset, data=data)
        if offset < self._at or chunk.end > MAX_OFFSET:
            raise BadFrame("offsets are impossible")
        self._at = chunk.end
        self._pile(chunk)
        self._arrived.set()

    def finish(self) -> None:
        """Note that nothing more comes."""
        self._is_finished = True
        self._arrived.set()

    def lose(self) -> None:
        """Note that the link is gone."""
        self._is_lost = True
        self._arrived.set()

    def close(self) -> None:
        """Want no more."""
        self._client.unfollow(self.number)
        self.finish()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """Yield what came, in pieces as large as it has piled up."""
        try:
            while True:
                while not self._chunks:
                    if self._is_finished:
                        return
                    if self._is_lost:
                        raise _unavailable()
                    self._arrived.clear()
                    await self._arrived.wait()
                chunk = self._next()
                yield chunk
                self._grant(len(chunk.data))
        finally:
            self.close()

    def _pile(self, chunk: Chunk) -> None:
        """Add a piece, a small one to that which it follows on; raise BadFrame for too many apart."""
        last = self._chunks[-1] if self._chunks else None
        if (
            last is not None
            and last.end == chunk.offset
            and len(last.data) + len(chunk.data) <= MAX_SMALL_BYTES
        ):
            self._chunks[-1] = Chunk(offset=last.offset, data=last.data + chunk.data)
            return
        self._chunks.append(chunk)
        # Each takes more memory than its bytes. Ours has gaps only where whole segments were dropped.
        if len(self._chunks) > MIN_PIECES + self._window // LEAST_MEAN_BYTES:
            raise BadFrame("too many pieces")

    def _next(self) -> Chunk:
        """Return the first piece, with those that follow on it."""
        first = self._chunks.popleft()
        size, end = len(first.data), first.end
        parts = [first.data]
        while self._chunks and self._chunks[0].offset == end and size < MAX_MERGED_BYTES:
            chunk = self._chunks.popleft()
            parts.append(chunk.data)
            size += len(chunk.data)
            end = chunk.end
        return first if len(parts) == 1 else Chunk(offset=first.offset, data=b"".join(parts))

    def _grant(self, count: int) -> None:
        self._taken += count
        if self._taken >= self._window // 2 and not self._is_finished and not self._is_lost:
            self._credit += self._taken
            self._client.grant(self.number, self._taken)
            self._taken = 0


def _future() -> "asyncio.Future[Any]":
    return asyncio.get_running_loop().create_future()


def _settle(future: "asyncio.Future[Any]", result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _unavailable() -> ProviderUnavailable:
    return ProviderUnavailable("The connection into the machine was lost; try again.")


def _refusal(why: str) -> Exception:
    if why.startswith("user:"):
        return UnknownUser(f"The user {why.removeprefix('user:').strip()}.")
    return ProviderError(f"The machine cannot start it: {why}.")
