"""What runs in a machine: commands and terminals, and the supervisor that looks after them.

A supervisor keeps what its processes print, and how they ended, until it is told to forget them. Where it
lives inside the machine, both outlive the daemon. Whatever it says is untrusted: it may be anything that a
machine's root makes up, but never more than was asked for.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from attrs import field, frozen

from vmd.model.shell import Persistence

MACHINE_USER = "1000:1000"  # whom commands run as, where they do not say


class UnknownUser(Exception):
    """The machine has no such user."""


class Stream(StrEnum):
    """What a process prints to; a terminal has only the first."""

    STDOUT = "stdout"
    STDERR = "stderr"


class ProcessState(StrEnum):
    """Where a process stands."""

    RUNNING = "running"
    EXITED = "exited"
    LOST = "lost"  # the machine or its supervisor ended first


@frozen(kw_only=True)
class TerminalSize:
    """The size of a terminal in characters."""

    columns: int = 80
    rows: int = 24


@frozen(kw_only=True)
class ProcessSpec:
    """A process to start. Either arguments or a shell line, or neither for a login shell on a terminal."""

    id: str  # a second start of the same id does nothing
    arguments: tuple[str, ...] = ()
    line: str | None = None
    user: str = MACHINE_USER  # NAME, UID, NAME:GROUP or UID:GID of the machine
    cwd: str = "/workspace"
    env: Mapping[str, str] = field(factory=dict, repr=False)
    terminal: TerminalSize | None = None
    stdin: bytes = field(default=b"", repr=False)
    timeout_seconds: float | None = None
    kept_bytes: int  # of each stream; the oldest quarter is dropped when there is more


@frozen(kw_only=True)
class Kept:
    """Which bytes of a stream are kept, by their offsets."""

    first: int = 0
    end: int = 0


@frozen(kw_only=True)
class ProcessReport:
    """How a process stands."""

    id: str
    state: ProcessState
    is_terminal: bool = False
    is_timed_out: bool = False
    exit_code: int | None = None  # 128 and more for one that a signal ended
    signal: int | None = None
    stdout: Kept = field(factory=Kept)
    stderr: Kept = field(factory=Kept)


@frozen(kw_only=True)
class Chunk:
    """Bytes of a stream. An offset beyond the last chunk's end says that bytes between were dropped."""

    offset: int
    data: bytes

    @property
    def end(self) -> int:
        """The offset of the byte after it."""
        return self.offset + len(self.data)


class Follower(Protocol):
    """One reader of a stream. Close it, or take all that comes."""

    def __aiter__(self) -> AsyncIterator[Chunk]:
        """Yield what is there, then what comes; end with the process, or raise ProviderUnavailable."""

    def close(self) -> None:
        """Want no more."""


class Supervisor(Protocol):
    """Looks after the processes of one machine. Methods raise ProviderError or ProviderUnavailable."""

    persistence: Persistence
    on_report: Callable[[ProcessReport], None]  # told of each process that ends

    @property
    def is_open(self) -> bool:
        """Whether it can still be asked."""

    async def wait_closed(self) -> None:
        """Return when it can no longer be asked."""

    async def start(self, spec: ProcessSpec) -> None:
        """Start a process unless one of its id was started before; raise UnknownUser."""

    async def look(self, process_id: str) -> ProcessReport | None:
        """Return how a process stands, None for one that is not known."""

    async def list(self) -> Sequence[ProcessReport]:
        """Return how all known processes stand."""

    def follow(self, process_id: str, stream: Stream, offset: int, *, live: bool, window: int) -> Follower:
        """Return a reader from `offset` on, or from the first byte that is kept; not `live`: up to now.

        It is sent at most `window` bytes that it did not take yet. A live reader that keeps up holds up a
        process that would otherwise print over what it has not read.
        """

    async def write(self, process_id: str, data: bytes) -> None:
        """Give a process input; return when it may be given more."""

    def signal(self, process_id: str, number: int) -> None:
        """Send a signal to the process group in the foreground."""

    def resize(self, process_id: str, size: TerminalSize) -> None:
        """Change the size of a terminal, of which its processes are told."""

    def end(self, process_id: str, number: int) -> None:
        """Send a signal to its whole session, and kill what is left of that a few seconds later."""

    def forget(self, process_id: str) -> None:
        """Remove what is kept of a process that has ended."""

    async def close(self) -> None:
        """Let go of it; what it looks after goes on."""
