"""The standard streams as bytes, past Python's buffers: what a signal interrupts stays whole."""

import os
import select

STDIN, STDOUT, STDERR = 0, 1, 2


class OutputGone(Exception):
    """Nobody reads standard output or error any more."""


def open_all() -> None:
    """Have all three open: the place of one that was closed would go to the next file or connection."""
    for descriptor in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it, however long the reader takes; raise OutputGone when there is none."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # whoever shares it has made it so
            select.select([], [descriptor], [])
        except OSError as error:
            raise OutputGone(str(error)) from None


def read_input(limit_bytes: int) -> bytes:
    """Return standard input up to its end, or one byte more than `limit_bytes`; nothing from a terminal."""
    data = b""
    if os.isatty(STDIN):
        return data
    while len(data) <= limit_bytes:
        piece = os.read(STDIN, limit_bytes + 1 - len(data))
        if not piece:
            break
        data += piece
    return data
