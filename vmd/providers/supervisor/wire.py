"""The frames between daemon and supervisor.

A frame is its size without these four bytes, a type, and a body; numbers are little-endian. An id is a byte
for its length and that many characters.

To the supervisor: HELLO; START, fields of a tag, four bytes of size and a value; INPUT id, bytes; SIGNAL id,
number, whether to the whole session; RESIZE id, rows and columns of two bytes; FOLLOW a number of four bytes
for the reader, id, stream (0 or 1), offset and window of eight bytes, whether to go on; CREDIT reader, eight
bytes of more window; UNFOLLOW reader; FORGET id; LIST; END id, number of
the signal to begin with; LOOK id; CLOSE_INPUT id.

From it: READY version; STARTED id; REFUSED id, why; DATA reader, offset, bytes; FINISHED reader, offset;
TAKEN id, four bytes of how much input; REPORT of a process; LISTED after the last report of a list; UNKNOWN
id.
"""

import signal
import struct
from collections.abc import Iterator
from enum import IntEnum

from vmd.providers.process import Kept, ProcessReport, ProcessSpec, ProcessState

VERSION = 1
MAX_FRAME_BYTES = 1024 * 1024  # that a supervisor may send; it sends 64 KiB at most
MAX_OFFSET = 1 << 62  # of a byte in a stream
MAX_SIGNAL = signal.NSIG

_HEAD = struct.Struct("<IB")
_REPORT = struct.Struct("<BBBxiiQQQQ")
_STATES = (ProcessState.RUNNING, ProcessState.EXITED, ProcessState.LOST)


class ToSupervisor(IntEnum):
    """What is asked."""

    HELLO = 1
    START = 2
    INPUT = 3
    SIGNAL = 4
    RESIZE = 5
    FOLLOW = 6
    CREDIT = 7
    UNFOLLOW = 8
    FORGET = 9
    LIST = 10
    END = 11
    LOOK = 12
    CLOSE_INPUT = 13


class FromSupervisor(IntEnum):
    """What is answered."""

    READY = 65
    STARTED = 66
    REFUSED = 67
    DATA = 68
    FINISHED = 69
    TAKEN = 70
    REPORT = 71
    LISTED = 72
    UNKNOWN = 73


class BadFrame(Exception):
    """What came is no frame of a supervisor."""


def frame(kind: ToSupervisor, *parts: bytes) -> bytes:
    """Return a frame of these parts."""
    body = b"".join(parts)
    return _HEAD.pack(len(body) + 1, kind) + body


def identifier(process_id: str) -> bytes:
    """Return an id as it stands in frames."""
    return bytes((len(process_id),)) + process_id.encode("ascii")


def start_frame(spec: ProcessSpec) -> bytes:
    """Return the frame that starts a process."""
    fields: list[tuple[bytes, bytes]] = [
        (b"i", spec.id.encode()),
        (b"u", spec.user.encode()),
        (b"c", spec.cwd.encode()),
        (b"k", struct.pack("<Q", spec.kept_bytes)),
    ]
    fields += [(b"a", argument.encode()) for argument in spec.arguments]
    fields += [(b"e", f"{name}={value}".encode()) for name, value in spec.env.items()]
    if spec.line is not None:
        fields.append((b"l", spec.line.encode()))
    if spec.terminal is not None:
        fields.append((b"T", struct.pack("<HH", spec.terminal.rows, spec.terminal.columns)))
    if spec.timeout_seconds is not None:
        fields.append((b"t", struct.pack("<Q", max(1, round(spec.timeout_seconds * 1000)))))
    if spec.stdin:
        fields.append((b"d", spec.stdin))
    parts = [tag + struct.pack("<I", len(value)) + value for tag, value in fields]
    return frame(ToSupervisor.START, *parts)


def split_id(body: bytes) -> tuple[str, bytes]:
    """Return the id that a body begins with, and the rest of it."""
    size = body[0] if body else 0
    if len(body) < 1 + size:
        raise BadFrame("an id is cut off")
    return body[1 : 1 + size].decode("ascii", "replace"), body[1 + size :]


def read_report(body: bytes) -> ProcessReport:
    """Return the report in a frame's body."""
    process_id, rest = split_id(body)
    try:
        state, is_terminal, is_timed_out, code, number, *kept = _REPORT.unpack(rest)
        found = _STATES[state]
    except (struct.error, IndexError):
        raise BadFrame("a report is damaged") from None
    is_over = found is ProcessState.EXITED
    return ProcessReport(
        id=process_id,
        state=found,
        is_terminal=bool(is_terminal),
        is_timed_out=bool(is_timed_out),
        exit_code=code & 0xFF if is_over else None,
        signal=number if is_over and 0 < number < MAX_SIGNAL else None,
        stdout=_kept(kept[0], kept[1]),
        stderr=_kept(kept[2], kept[3]),
    )


def _kept(first: int, end: int) -> Kept:
    if not first <= end < MAX_OFFSET:
        raise BadFrame("offsets are impossible")
    return Kept(first=first, end=end)


class FrameReader:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the type and body of each frame that is complete now; raise BadFrame."""
        rest = self._rest
        rest += data
        at = 0
        try:
            while len(rest) - at >= _HEAD.size:
                size, kind = _HEAD.unpack_from(rest, at)
                if not 1 <= size <= MAX_FRAME_BYTES:
                    raise BadFrame(f"a frame of {size} bytes")
                end = at + 4 + size
                if len(rest) < end:
                    break
                yield kind, bytes(memoryview(rest)[at + _HEAD.size : end])
                at = end
        finally:
            del rest[:at]
