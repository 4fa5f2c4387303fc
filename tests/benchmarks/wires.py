"""Bare connections to the daemon, so light that what is measured is the daemon and what lies behind it."""

import asyncio
import time
from os import urandom
from typing import Any, cast
from urllib.parse import urlencode

from tests.benchmarks.process import HOST

MAX_SECONDS = 120.0  # that anything may take to come
KEPT_BYTES = 256  # of what came last, for marks that come in two pieces
PING, PONG = b"\x89\x00", b"\x8a\x80\x00\x00\x00\x00"
_HEAD = "{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {token}\r\n{more}\r\n"
_UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    "Sec-WebSocket-Version: 13\r\n"
)


class Wire(asyncio.Protocol):
    """One connection; counts what comes, looks for a mark in it, and forgets it."""

    def __init__(self, request: bytes) -> None:
        self.count = 0
        self._request = request
        self._recent = b""
        self._mark = b""
        self._found: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, but no subclass
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if data == PING:
            self._transport.write(PONG)
            return
        self.count += len(data)
        self._look(self._recent + data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._found.done():
            self._found.set_exception(exc or ConnectionResetError(f"closed after {self._recent!r}"))
            self._found.exception()  # it need not be waited for

    async def until(self, mark: bytes) -> float:
        """Return when the mark came, by `time.perf_counter`, and begin anew behind it."""
        self._mark = mark
        self._look(self._recent)
        async with asyncio.timeout(MAX_SECONDS):
            found = await self._found
        self._found = asyncio.get_running_loop().create_future()
        return found

    def again(self) -> None:
        """Send the request once more, over the same connection."""
        self._transport.write(self._request)

    def type(self, keys: bytes) -> None:
        """Send a short binary frame of a WebSocket's."""
        mask = urandom(4)
        masked = bytes(key ^ mask[at % 4] for at, key in enumerate(keys))
        self._transport.write(bytes((0x82, 0x80 | len(keys))) + mask + masked)

    def close(self) -> None:
        """Hang up."""
        self._transport.abort()

    def _look(self, data: bytes) -> None:
        at = data.find(self._mark) if self._mark else -1
        if at >= 0 and not self._found.done():
            self._found.set_result(time.perf_counter())
            data = data[at + len(self._mark) :]
            self._mark = b""
        self._recent = data[-KEPT_BYTES:]


class Daemon:
    """Opens wires to one workspace of a daemon."""

    def __init__(self, port: int, token: str, workspace_id: str) -> None:
        self._port = port
        self._token = token
        self.workspace_id = workspace_id

    def address(self) -> dict[str, Any]:
        """Return what another process makes one of these with."""
        return {"port": self._port, "token": self._token, "workspace_id": self.workspace_id}

    async def get(self, path: str = "") -> Wire:
        """Ask for something below the workspace."""
        return await self._open("GET", f"/api/v1/workspaces/{self.workspace_id}{path}", "", b"")

    async def post(self, path: str, body: bytes, accept: str = "application/json") -> Wire:
        """Send JSON to something below the workspace."""
        more = f"Accept: {accept}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return await self._open("POST", f"/api/v1/workspaces/{self.workspace_id}{path}", more, body)

    async def shell(self, command: str | None = None) -> Wire:
        """Open a terminal."""
        query = "" if command is None else f"?{urlencode({'command': command})}"
        return await self._open("GET", f"/ws/workspaces/{self.workspace_id}/shell{query}", _UPGRADE, b"")

    async def _open(self, method: str, path: str, more: str, body: bytes) -> Wire:
        head = _HEAD.format(
            method=method, path=path, host=HOST, port=self._port, token=self._token, more=more
        )
        _, wire = await asyncio.get_running_loop().create_connection(
            lambda: Wire(head.encode() + body), HOST, self._port
        )
        return wire
