"""What a user types to the terminal's own end: `~.` and `~?` after a new line, as in ssh."""

from collections.abc import Iterator
from enum import StrEnum

HELP = """\
~.  detach: leave, and let the shell go on
~?  this help
~~  a ~ itself
These are seen after a new line only."""


class Escape(StrEnum):
    """What is meant for this end."""

    DETACH = "."
    HELP = "?"


class Escapes:
    """Takes escapes out of what is typed, wherever the pieces end."""

    def __init__(self) -> None:
        self._is_new_line = True
        self._is_open = False  # a ~ waits for what follows it

    def feed(self, data: bytes) -> Iterator[bytes | Escape]:
        """Yield what is meant for the other end, and the escapes, in their order."""
        typed = bytearray()
        for byte in data:
            character = bytes((byte,))
            if self._is_open:
                self._is_open = False
                if character in b".?":
                    if typed:
                        yield bytes(typed)
                        typed.clear()
                    yield Escape(character.decode())
                    self._is_new_line = True
                    continue
                typed += b"~" if character == b"~" else b"~" + character
            elif self._is_new_line and character == b"~":
                self._is_open = True
                continue
            else:
                typed += character
            self._is_new_line = character in b"\r\n"
        if typed:
            yield bytes(typed)
