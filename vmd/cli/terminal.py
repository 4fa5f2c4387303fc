"""The terminal that a command was typed at, if there is one."""

import contextlib
import os
import termios
import tty
from collections.abc import Iterator

from vmd.cli.standard import STDERR, STDIN, STDOUT, OutputGone, write_all

MAX_SIDE = 2000  # characters that a daemon takes
_DEFAULT_SIZE = (80, 24)


class Terminal:
    """Standard input, raw for a while; and what is said to its user meanwhile."""

    def __init__(self) -> None:
        self.is_there = os.isatty(STDIN)
        self._is_raw = False

    @contextlib.contextmanager
    def raw(self) -> Iterator[None]:
        """Pass on every key until the end of the block, and then be as before, whatever happens."""
        if not self.is_there:
            yield
            return
        before = termios.tcgetattr(STDIN)
        try:
            self._is_raw = True
            self.be_raw_again()
            yield
        finally:
            self._is_raw = False
            with contextlib.suppress(termios.error):  # it was hung up
                termios.tcsetattr(STDIN, termios.TCSANOW, before)

    def be_raw_again(self) -> None:
        """Be raw also after a shell had the terminal in between."""
        if self._is_raw:
            with contextlib.suppress(termios.error):
                tty.setraw(STDIN, termios.TCSANOW)

    @staticmethod
    def size() -> tuple[int, int]:
        """Return columns and rows, of any of the standard streams."""
        for descriptor in (STDOUT, STDIN, STDERR):
            with contextlib.suppress(OSError):
                columns, rows = os.get_terminal_size(descriptor)
                if columns > 0 and rows > 0:
                    return min(columns, MAX_SIDE), min(rows, MAX_SIDE)
        return _DEFAULT_SIZE

    def say(self, text: str) -> None:
        """Tell the user something, on lines of its own."""
        if self._is_raw:
            text = "\r\n" + text.replace("\n", "\r\n")
        with contextlib.suppress(OutputGone):
            write_all(STDERR, text.encode() + (b"\r\n" if self._is_raw else b"\n"))

    def end_line(self) -> None:
        """Begin a new line, where the cursor may be in the middle of one."""
        if self._is_raw:
            with contextlib.suppress(OutputGone):
                write_all(STDERR, b"\r\n")
