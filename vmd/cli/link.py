"""The connection to a shell, made again when it breaks, with each byte once."""

import json
import threading
import time
from collections.abc import Callable, Iterator

from attrs import frozen

from vmd.cli.client import Refusal
from vmd.cli.failure import Failure
from vmd.cli.patience import Patience
from vmd.cli.websocket import Closed, WebSocket

NOTE_SECONDS = 1.0  # without a connection, after which the user is told
MAX_WAITING_BYTES = 64 * 1024  # of input; with more, the daemon would not get to read that this end lives
_BEAT_SECONDS = 5.0
TAKEN_OVER = 4001
_REASONS = {
    4000: "the daemon goes away",
    4002: "the connection was too slow and was closed",
}
_ENDINGS = {
    TAKEN_OVER: "another connection has taken this shell over; take it back with `{again}`",
    4003: "the token was revoked; get another one, and come back with `{again}`",
    4004: "the shell has ended with its machine, as the workspace was stopped, rebuilt or deleted; if it is "
    "still there, start it, and attach for a new shell",
}


@frozen
class Note:
    """Something to tell the user."""

    text: str


@frozen
class Exit:
    """The shell has ended with this exit code."""

    code: int


class Link:
    """A shell's output and input. Wait for `sources`, for `timeout_seconds` at most, and take a `turn`."""

    def __init__(
        self,
        name: str,
        connect: Callable[[str | None, int | None], WebSocket],
        again: Callable[..., str],
        wake: Callable[[], None],
    ) -> None:
        """Take how to connect to a session from an offset on, how a user does, and what wakes the loop."""
        self.session: str | None = None
        self._name = name
        self._connect = connect
        self._again = again
        self._wake = wake
        self._socket: WebSocket | None = None
        self._attempt: _Attempt | None = None
        self._attempt_at = 0.0
        self._offset: int | None = None
        self._has_news = False
        self._waiting = bytearray()  # input, for a connection
        self._patience = Patience()
        self._reason = "the connection broke"
        self._is_noted = False
        self._is_lossy = False  # the connection that broke had input on its way

    def begin(self, opened: WebSocket) -> None:
        """Use a connection that is open."""
        self._socket = opened
        self._has_news = False
        self._patience.connected()

    def close(self) -> None:
        """Leave the shell."""
        if self._socket is not None:
            self._socket.close()

    # Waiting.

    @property
    def socket(self) -> WebSocket | None:
        """What to wait for, if there is a connection."""
        return self._socket

    @property
    def timeout_seconds(self) -> float:
        """How long a turn can be waited for."""
        if self._socket is not None:
            return 0.0 if self._socket.has_more else _BEAT_SECONDS
        if self._attempt is not None:
            return NOTE_SECONDS
        return max(0.0, min(NOTE_SECONDS, self._attempt_at - time.monotonic()))

    @property
    def takes_input(self) -> bool:
        """Whether there is room for more input."""
        untaken = 0 if self._socket is None else self._socket.untaken_bytes
        return len(self._waiting) + untaken < MAX_WAITING_BYTES

    # Sending.

    def write(self, data: bytes) -> None:
        """Give the shell input, when it can be reached."""
        if self._socket is None or self.session is None or not self._socket.is_open:
            self._waiting += data
        else:
            self._socket.send(data)

    def resize(self, columns: int, rows: int) -> None:
        """Tell the shell of another size; a new connection begins with the size of then."""
        if self._socket is not None:
            self._socket.send(json.dumps({"type": "resize", "cols": columns, "rows": rows}))

    # Receiving.

    def turn(self) -> Iterator[bytes | Note | Exit]:
        """Do what can be done now, and yield what came of it; raise Failure when there is no way on."""
        if self._socket is None:
            yield from self._seek()
            return
        try:
            self._socket.flush()
            for message in self._socket.receive():
                yield from self._take(message)
            self._socket.beat()
        except Closed as closed:
            self._lose(self._socket, closed.code)

    def _take(self, message: bytes | str) -> Iterator[bytes | Note | Exit]:
        if isinstance(message, bytes):
            self._offset = (self._offset or 0) + len(message)
            self._has_news = True
            yield message
            return
        told = json.loads(message)
        if told["type"] == "connected":
            yield from self._connected(told)
        elif told["type"] == "exit" and told["exit_code"] is not None:
            yield Exit(told["exit_code"])
        elif told["type"] == "error":
            yield Note(told["detail"])

    def _connected(self, told: dict[str, object]) -> Iterator[Note]:
        self.session, self._offset = str(told["session_id"]), int(str(told["offset"]))
        if self._waiting and self._socket is not None:
            self._socket.send(bytes(self._waiting))
            self._waiting.clear()
        if self._is_lossy:
            yield Note("connected again; input that was on its way may be lost")
        elif self._is_noted:
            yield Note("connected again")
        self._is_noted = self._is_lossy = False

    def _lose(self, opened: WebSocket, code: int) -> None:
        opened.close()
        self._socket = None
        self._is_lossy = self._is_lossy or opened.untaken_bytes > 0
        if code in _ENDINGS:
            flags = ("--takeover",) if code == TAKEN_OVER else ()
            raise Failure(_ENDINGS[code].format(again=self._again(self.session, *flags)))
        self._reason = _REASONS.get(code, "the connection broke")
        self._patience.broken(had_news=self._has_news)
        self._plan()

    # Connecting again.

    def _plan(self) -> None:
        pause = self._patience.next_pause()
        if pause is None:
            raise Failure(
                f"{self._name} does not come back: {self._reason}; the shell goes on for a while, come back "
                f"with `{self._again(self.session)}`"
            )
        self._attempt_at = time.monotonic() + pause

    def _seek(self) -> Iterator[Note]:
        if not self._is_noted and self._patience.broken_seconds > NOTE_SECONDS:
            self._is_noted = True
            yield Note(f"{self._reason}; connecting again")
        if self._attempt is None:
            if time.monotonic() >= self._attempt_at:
                self._attempt = _Attempt(lambda: self._connect(self.session, self._offset), self._wake)
            return
        outcome = self._attempt.outcome
        if outcome is None:
            return
        self._attempt = None
        if isinstance(outcome, WebSocket):
            self.begin(outcome)
        elif isinstance(outcome, OSError) or (isinstance(outcome, Refusal) and outcome.may_pass):
            self._reason = str(outcome)
            self._plan()
        else:
            raise outcome


class _Attempt:
    """A connection that is being made, beside the loop."""

    def __init__(self, connect: Callable[[], WebSocket], wake: Callable[[], None]) -> None:
        self.outcome: WebSocket | Exception | None = None
        self._connect = connect
        self._wake = wake
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self.outcome = self._connect()
        except Exception as error:
            self.outcome = error
        self._wake()
