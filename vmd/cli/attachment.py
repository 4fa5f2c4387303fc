"""A terminal of a workspace, at the terminal here."""

import os
import select
import signal
from typing import Any
from urllib.parse import quote, urlencode

from attrs import frozen

from vmd.cli.client import Endpoint
from vmd.cli.escapes import HELP, Escape, Escapes
from vmd.cli.link import Exit, Link, Note
from vmd.cli.signals import Signals, Stopped
from vmd.cli.standard import STDIN, STDOUT, OutputGone, write_all
from vmd.cli.terminal import Terminal
from vmd.cli.websocket import WebSocket

_READ_BYTES = 16 * 1024
_CTRL_C = b"\x03"


@frozen(kw_only=True)
class Wanted:
    """Which shell, and how."""

    workspace: str  # as its user calls it
    workspace_id: str
    session: str | None
    command: str | None
    is_readonly: bool
    takeover: bool

    def path(self, session: str | None, offset: int | None, size: tuple[int, int]) -> str:
        """Return the address of the socket; the first connection is the one without an offset."""
        query = {"cols": str(size[0]), "rows": str(size[1])}
        if session is not None:
            query["session"] = session
        elif self.command is not None:
            query["command"] = self.command
        if offset is not None:
            query["offset"] = str(offset)
        elif self.takeover:
            query["takeover"] = "true"
        if self.is_readonly:
            query["readonly"] = "true"
        return f"/ws/workspaces/{self.workspace_id}/shell?{urlencode(query, quote_via=quote)}"

    def again(self, session: str | None, *flags: str) -> str:
        """Return what its user types to come back."""
        which = [] if session is None else ["--session", session]
        return " ".join(["vmd attach", *which, *flags, self.workspace])


def attach(endpoint: Endpoint, wanted: Wanted) -> int:
    """Be at a shell until it ends, and return its exit code; or until the user leaves."""
    terminal = Terminal()

    def connect(session: str | None, offset: int | None) -> WebSocket:
        return WebSocket.open(endpoint, wanted.path(session, offset, terminal.size()))

    signals = Signals()
    link = Link(endpoint.name, connect, wanted.again, signals.wake)
    link.begin(connect(wanted.session, None))
    status = 0
    try:
        with signals, terminal.raw():
            code = Attachment(link, terminal, signals, is_readonly=wanted.is_readonly).run()
        if code is not None:
            return code
    except Stopped as stopped:
        status = 128 + stopped.number
    except OutputGone:
        raise BrokenPipeError from None
    finally:
        link.close()
    terminal.say(f"vmd: detached; the shell goes on, come back with `{wanted.again(link.session)}`")
    return status


class Attachment:
    """Carries bytes between a terminal and a link."""

    def __init__(self, link: Link, terminal: Terminal, signals: Signals, *, is_readonly: bool) -> None:
        self._link = link
        self._terminal = terminal
        self._signals = signals
        self._is_readonly = is_readonly
        self._escapes = Escapes()
        self._has_input = terminal.is_there or not is_readonly
        self._is_leaving = False

    def run(self) -> int | None:
        """Return the shell's exit code when it has ended, None when the user leaves."""
        try:
            while not self._is_leaving:
                ready = self._wait()
                if self._signals in ready:
                    self._heed(self._signals.take())
                for event in self._link.turn():
                    if isinstance(event, Exit):
                        return event.code
                    self._show(event)
                if STDIN in ready:
                    self._read_input()
        except Exception:
            self._terminal.end_line()
            raise
        self._terminal.end_line()
        return None

    def _wait(self) -> list[Any]:
        """Return which sources have something."""
        socket = self._link.socket
        sources: list[Any] = [self._signals]
        if socket is not None:
            sources.append(socket)
        if self._has_input and self._link.takes_input:
            sources.append(STDIN)
        sinks = [socket] if socket is not None and socket.has_unsent else []
        ready: list[Any] = select.select(sources, sinks, [], self._link.timeout_seconds)[0]
        return ready

    def _heed(self, numbers: frozenset[int]) -> None:
        if signal.SIGCONT in numbers:
            self._terminal.be_raw_again()
        if numbers & {signal.SIGCONT, signal.SIGWINCH} and not self._is_readonly:
            self._link.resize(*self._terminal.size())

    def _show(self, event: bytes | Note) -> None:
        if isinstance(event, bytes):
            write_all(STDOUT, event)
        else:
            self._terminal.say(f"vmd: {event.text}")

    def _read_input(self) -> None:
        try:
            data = os.read(STDIN, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # it was hung up
            data = b""
        if not data:
            self._has_input = False
            self._is_leaving = self._terminal.is_there
        elif not self._terminal.is_there:
            self._link.write(data)
        else:
            self._take_keys(data)

    def _take_keys(self, data: bytes) -> None:
        if self._is_readonly and _CTRL_C in data:
            self._is_leaving = True
        for typed in self._escapes.feed(data):
            if typed is Escape.DETACH:
                self._is_leaving = True
                return
            if typed is Escape.HELP:
                self._terminal.say(HELP)
            elif isinstance(typed, bytes) and not self._is_readonly:
                self._link.write(typed)
