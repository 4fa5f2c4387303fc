"""WebSockets: who may open one, how it is closed, and that none is left open when the daemon goes away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from aiohttp import WSMessage, WSMsgType, web
from aiohttp.abc import AbstractStreamWriter
from msgspec import Meta

from vmd.http.frames import PING
from vmd.http.wire import SEND_SECONDS
from vmd.model.errors import ErrorCode, Refused

HEARTBEAT_SECONDS = 15.0
CLOSE_SECONDS = 1.0
CLOSE_OK = 1000  # RFC 6455
CLOSE_GOING_AWAY = 4000
CLOSE_TAKEN_OVER = 4001
CLOSE_TOO_SLOW = 4002
CLOSE_WORKSPACE_GONE = 4004

_REASONS = {
    CLOSE_OK: b"",
    CLOSE_GOING_AWAY: b"going away",
    CLOSE_TAKEN_OVER: b"taken over by another connection",
    CLOSE_TOO_SLOW: b"too slow: come back for what was missed",
    CLOSE_WORKSPACE_GONE: b"the workspace is gone",
}

TicketText = Annotated[str, Meta(description="from POST /ws-tickets, in place of a credential")]


class Sockets:
    """All WebSockets that are open."""

    def __init__(self, origins: frozenset[str]) -> None:
        """Allow pages of these origins, besides the daemon's own."""
        self._origins = origins
        self._open: set[Socket] = set()
        self.is_closing = False

    def require_origin(self, request: web.Request) -> None:
        """Refuse a page of another site, before anything else is looked at."""
        origin = request.headers.get("Origin")
        if origin is None or origin in self._origins:  # programs send none
            return
        if origin.partition("://")[2] == request.headers.get("Host"):
            return
        raise Refused(
            ErrorCode.FORBIDDEN,
            "Pages of this origin may not connect; an administrator can add it to http.origins.",
        )

    @staticmethod
    def require_upgrade(request: web.Request) -> None:
        """Refuse what asks for no WebSocket, before anything is done for it."""
        if not web.WebSocketResponse().can_prepare(request).ok:
            raise Refused(ErrorCode.MALFORMED_REQUEST, "This is a WebSocket: send an upgrade request.")

    @asynccontextmanager
    async def open(
        self, request: web.Request, max_message_bytes: int, *, has_heartbeat: bool = True
    ) -> AsyncIterator["Socket"]:
        """Upgrade for as long as the block takes; soon after it, nothing is kept of a reader that stalls.

        Without a heartbeat, pongs are among the messages, and it is for the caller to notice a dead client.
        """
        heartbeat = HEARTBEAT_SECONDS if has_heartbeat else None
        response = web.WebSocketResponse(
            heartbeat=heartbeat, autoping=has_heartbeat, compress=False, max_msg_size=max_message_bytes
        )
        socket = Socket(request, response, await response.prepare(request))
        self._open.add(socket)
        try:
            yield socket
        finally:
            self._open.discard(socket)
            socket.cut_off_soon()

    async def close_all(self) -> None:
        """Close every socket, since the daemon goes away."""
        self.is_closing = True
        closing = (
            asyncio.wait_for(socket.close(CLOSE_GOING_AWAY), CLOSE_SECONDS) for socket in tuple(self._open)
        )
        await asyncio.gather(*closing, return_exceptions=True)


class Socket:
    """One WebSocket that is open, and the way out to its reader."""

    def __init__(
        self, request: web.Request, response: web.WebSocketResponse, writer: AbstractStreamWriter
    ) -> None:
        if request.transport is None:
            raise ConnectionResetError
        self.response = response
        self._protocol = request.protocol
        self._transport = request.transport
        self._writer = writer

    async def messages(self) -> AsyncIterator[WSMessage]:
        """Yield what the other side sends; pings are answered only while this is read."""
        async for message in self.response:
            if message.type is WSMsgType.PING:
                await self.response.pong(message.data)
            else:
                yield message

    def ping(self) -> None:
        """Ask for a sign of life, unless the reader is behind."""
        self.try_to_send(PING)

    def try_to_send(self, frame: bytes) -> bool:
        """Send a whole frame at once and return True, unless the reader is behind or away."""
        return not self._protocol.writing_paused and self._write(frame)

    async def send(self, frame: bytes) -> None:
        """Send when the reader has caught up; raise TimeoutError or ConnectionError if it never will."""
        if self._protocol.writing_paused:
            async with asyncio.timeout(SEND_SECONDS):
                # Shielded: a drain that was cancelled leaves aiohttp a future that cancels the next one.
                await asyncio.shield(self._writer.drain())
        if not self._write(frame):
            raise ConnectionResetError

    async def close(self, code: int) -> None:
        """Say why, and close, whether the reader takes it or not."""
        self.cut_off_soon()
        await self.response.close(code=code, message=_REASONS[code])

    def cut_off_soon(self) -> None:
        """Drop in a moment what the reader has not taken by then; nothing happens if it is away."""
        asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._transport.abort)

    def _write(self, frame: bytes) -> bool:
        if self._transport.is_closing() or self.response.closed:
            return False
        self._transport.write(frame)  # aiohttp would make the header of a shared frame for each anew
        return True
