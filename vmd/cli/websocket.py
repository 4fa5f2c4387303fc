"""A WebSocket to a daemon (RFC 6455), for a loop that waits for several things at once."""

import socket
import ssl
import time
from collections import deque
from collections.abc import Iterable
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import Event, State
from websockets.uri import parse_uri

from vmd.cli.client import Endpoint, refusal, wait_for_ever

CONNECT_SECONDS = 15.0
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
PING_SECONDS = 20.0  # of silence, after which the other side is asked whether it lives
DEAD_SECONDS = 45.0  # of silence, after which it does not
ABNORMAL = 1006  # there was no close frame
_READ_BYTES = 64 * 1024
_NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Closed(Exception):
    """The connection is over, with this code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the connection was closed with code {code}")
        self.code = code


class WebSocket:
    """A connection whose methods do not block, once it is open. Wait for it with select."""

    def __init__(self, opened: socket.socket, protocol: ClientProtocol) -> None:
        self._socket = opened
        self._protocol = protocol
        self._unsent = bytearray()
        self._messages: list[bytes | str] = []
        self._text: bytearray | None = None  # that is not whole yet
        self._close_code: int | None = None
        self._heard_at = self._pinged_at = time.monotonic()
        self._sent_bytes = 0
        self._taken_bytes = 0
        self._marks: deque[int] = deque()  # sent bytes at each ping that was not answered yet

    @classmethod
    def open(cls, endpoint: Endpoint, path: str) -> "WebSocket":
        """Connect, and block until that is done; raise Refusal or OSError."""
        connection = endpoint.connect(CONNECT_SECONDS)
        connection.connect()
        opened: socket.socket = connection.sock
        try:
            protocol = ClientProtocol(parse_uri(_address(endpoint, path)), max_size=MAX_MESSAGE_BYTES)
            socket_of_ours = cls(opened, protocol)
            socket_of_ours._shake_hands(endpoint)
            wait_for_ever(opened)
            opened.setblocking(False)
        except BaseException:
            opened.close()
            raise
        return socket_of_ours

    def _shake_hands(self, endpoint: Endpoint) -> None:
        request = self._protocol.connect()
        request.headers.update(endpoint.headers)
        self._protocol.send_request(request)
        self._socket.sendall(b"".join(self._protocol.data_to_send()))
        while self._protocol.state is State.CONNECTING and self._protocol.handshake_exc is None:
            self._feed(self._socket.recv(_READ_BYTES))
        error = self._protocol.handshake_exc
        if isinstance(error, InvalidStatus):
            answer = error.response
            raise refusal(answer.status_code, answer.reason_phrase, bytes(answer.body))
        if error is not None:
            raise ConnectionError(str(error))

    def fileno(self) -> int:
        """Return what select takes."""
        return self._socket.fileno()

    @property
    def is_open(self) -> bool:
        """Whether the other side has not said goodbye yet."""
        return self._protocol.state is State.OPEN

    @property
    def has_more(self) -> bool:
        """Whether `receive` has something to tell that no select knows of."""
        is_pending = isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0
        return bool(self._messages) or self._close_code is not None or is_pending

    @property
    def has_unsent(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._unsent)

    @property
    def untaken_bytes(self) -> int:
        """How much of what was sent the other side has not taken yet, as far as is known."""
        return self._sent_bytes - self._taken_bytes

    def receive(self) -> list[bytes | str]:
        """Return the messages that have come; raise Closed after the last of them."""
        if self._close_code is None:
            data = self._read()
            if data is not None:
                self._feed(data)
                self.flush()
        messages, self._messages = self._messages, []
        if not messages and self._close_code is not None:
            raise Closed(self._close_code)
        return messages

    def send(self, message: bytes | str) -> None:
        """Send a message as soon as the other side takes it; one that is gone gets nothing.

        Bytes are followed by a ping: frames are taken in order, so its pong says that the bytes were taken.
        """
        if not self.is_open:
            return
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
            self._sent_bytes += len(message)
            self._marks.append(self._sent_bytes)
            self._protocol.send_ping(b"%d" % self._sent_bytes)
        self.flush()

    def flush(self) -> None:
        """Write what can be written now."""
        self._unsent += b"".join(self._protocol.data_to_send())
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent[:_READ_BYTES])
            except _NOT_NOW:
                return
            except OSError:  # reading tells why
                self._unsent.clear()
                return
            del self._unsent[:sent]

    def beat(self) -> None:
        """Ask a silent other side whether it lives; raise Closed when it does not."""
        now = time.monotonic()
        if now - self._heard_at > DEAD_SECONDS:
            raise Closed(ABNORMAL)
        if now - max(self._heard_at, self._pinged_at) > PING_SECONDS and self.is_open:
            self._pinged_at = now
            self._protocol.send_ping(b"")
            self.flush()

    def close(self) -> None:
        """Say goodbye if that can be done at once, and close."""
        if self.is_open:
            self._protocol.send_close(1000)
            self.flush()
        self._socket.close()

    def _read(self) -> bytes | None:
        """Return what has come: None for nothing yet, no bytes for the end."""
        try:
            return self._socket.recv(_READ_BYTES)
        except _NOT_NOW:
            return None
        except OSError:
            return b""

    def _feed(self, data: bytes) -> None:
        self._heard_at = time.monotonic()
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        self._take(self._protocol.events_received())
        if self._protocol.close_rcvd is not None:
            self._close_code = self._protocol.close_rcvd.code
        elif not data or self._protocol.parser_exc is not None:
            self._close_code = ABNORMAL

    def _take(self, events: Iterable[Event]) -> None:
        for event in events:
            if not isinstance(event, Frame):
                continue
            if event.opcode is Opcode.PONG:
                self._take_pong(bytes(event.data))
            if event.opcode is Opcode.TEXT:
                self._text = bytearray()
            if event.opcode in (Opcode.TEXT, Opcode.CONT) and self._text is not None:
                self._text += event.data
                if event.fin:
                    self._messages.append(self._text.decode())
                    self._text = None
            elif event.opcode in (Opcode.BINARY, Opcode.CONT):
                self._messages.append(bytes(event.data))

    def _take_pong(self, data: bytes) -> None:
        """Take note of what was taken; a pong may stand for those before it too (RFC 6455, 5.5.3)."""
        if data in (b"%d" % mark for mark in self._marks):
            self._taken_bytes = int(data)
            while self._marks and self._marks[0] <= self._taken_bytes:
                self._marks.popleft()


def _address(endpoint: Endpoint, path: str) -> str:
    if endpoint.data_dir is not None:
        return f"ws://localhost{path}"
    parts = urlsplit(endpoint.url)
    scheme = "wss" if parts.scheme == "https" else "ws"
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{path}"
