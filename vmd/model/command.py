"""Commands: programs that were run in a workspace, and how they ended."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from attrs import field, frozen
from msgspec import Meta

from vmd.model.workspace import NO_NUL, NO_NUL_MEANING, Env

MAX_STDIN_CHARACTERS = 1024 * 1024
MAX_TIMEOUT_SECONDS = 30 * 24 * 3600
SIGNAL_NAMES = ("HUP", "INT", "QUIT", "KILL", "USR1", "USR2", "TERM", "CONT", "STOP", "TSTP", "WINCH")


class CommandStatus(StrEnum):
    """Where a command stands."""

    RUNNING = "running"
    EXITED = "exited"  # by itself
    KILLED = "killed"  # by a signal
    TIMED_OUT = "timed_out"  # asked to end, then killed, after timeout_seconds
    LOST = "lost"  # its machine stopped, or it was never begun


class StdinEncoding(StrEnum):
    """How the bytes of a command's input are written in JSON."""

    UTF_8 = "utf-8"
    BASE64 = "base64"  # RFC 4648, section 4


Argument = Annotated[str, Meta(max_length=131072, pattern=NO_NUL, description=NO_NUL_MEANING)]
Arguments = Annotated[tuple[Argument, ...], Meta(min_length=1, max_length=4000)]
ShellLine = Annotated[
    str, Meta(min_length=1, max_length=131072, pattern=NO_NUL, description="a shell line without NUL")
]
AbsolutePath = Annotated[
    str, Meta(max_length=4095, pattern=r"^/[^\u0000]*$", description="an absolute path, without NUL")
]
MachineUser = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?$",
        description="NAME, UID, NAME:GROUP or UID:GID of the machine",
    ),
]


@frozen(kw_only=True)
class NewCommand:
    """A program to run. A string is run by the user's own shell with -c, an array as it stands."""

    command: Arguments | ShellLine
    cwd: AbsolutePath | None = None  # /workspace
    env: Env = field(factory=dict, repr=False)
    user: MachineUser | None = None  # the workspace's own, without privileges
    timeout_seconds: Annotated[float, Meta(ge=0.001, le=MAX_TIMEOUT_SECONDS)] | None = None
    stdin: Annotated[str, Meta(max_length=MAX_STDIN_CHARACTERS)] | None = field(default=None, repr=False)
    stdin_encoding: StdinEncoding = StdinEncoding.UTF_8


@frozen(kw_only=True)
class SignalRequest:
    """A signal to send to a command and what it started."""

    signal: Annotated[
        str,
        Meta(
            pattern=f"^({'|'.join(SIGNAL_NAMES)})$",
            description=f"one of {', '.join(SIGNAL_NAMES)}",
        ),
    ]


@frozen(kw_only=True)
class Command:
    """A command, without its input and environment."""

    id: str
    workspace_id: str
    operation_id: str
    actor: str
    command: tuple[str, ...] | str
    cwd: str
    user: str | None
    timeout_seconds: float | None
    status: CommandStatus
    exit_code: int | None  # 128 and more when a signal ended it; null while it runs, and when it is lost
    signal: str | None  # the name of that signal, such as KILL
    created_at: datetime
    started_at: datetime
    finished_at: datetime | None
    stdout_bytes: int  # printed so far
    stderr_bytes: int
    stdout_dropped_bytes: int  # of these, the oldest, that are no longer kept
    stderr_dropped_bytes: int
