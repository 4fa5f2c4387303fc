"""Events over WebSockets."""

import asyncio
from typing import Annotated

from aiohttp import web
from attrs import fields, frozen
from msgspec import Meta

from vmd.events import Lagged
from vmd.http.wire import ACTOR, encode_json, read_query
from vmd.model.account import Actor
from vmd.model.errors import ErrorCode, Refused
from vmd.model.event import Event
from vmd.orchestrator.happenings import Happenings, Resync

HEARTBEAT_SECONDS = 30.0
SEND_SECONDS = 10.0  # a reader that takes longer for one frame is cut off
CLOSE_SECONDS = 1.0
MAX_FRAME_BYTES = 64 * 1024
CLOSE_GOING_AWAY = 4000
CLOSE_TOO_SLOW = 4002
CLOSE_WORKSPACE_GONE = 4004


@frozen(kw_only=True)
class EventsQuery:
    """The query of an event stream."""

    after: Annotated[int, Meta(ge=0, description="the `seq` of the last event that is known")] | None = None


class EventHandlers:
    """The handlers of the event sockets."""

    def __init__(self, happenings: Happenings, origins: frozenset[str]) -> None:
        self._happenings = happenings
        self._origins = origins
        self._sockets: set[web.WebSocketResponse] = set()
        self._is_closing = False

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the sockets, from the root."""
        return [
            web.get("/ws/events", self.follow, allow_head=False),
            web.get("/ws/workspaces/{id}/events", self.follow, allow_head=False),
        ]

    async def follow(self, request: web.Request) -> web.WebSocketResponse:
        """Send what was missed, then what happens, one JSON text frame an event."""
        query = read_query(request, EventsQuery)
        workspace_id = request.match_info.get("id")
        self._require_origin(request)
        await self._happenings.require_visible(request[ACTOR], workspace_id)
        socket = web.WebSocketResponse(
            heartbeat=HEARTBEAT_SECONDS, compress=False, max_msg_size=MAX_FRAME_BYTES
        )
        if not socket.can_prepare(request).ok:
            raise Refused(ErrorCode.MALFORMED_REQUEST, "This is a WebSocket: send an upgrade request.")
        await socket.prepare(request)
        self._sockets.add(socket)
        listening = asyncio.create_task(_listen(socket))
        sending = asyncio.create_task(self._send(request[ACTOR], socket, workspace_id, query.after))
        try:
            await asyncio.wait({listening, sending}, return_when=asyncio.FIRST_COMPLETED)
            ending = sending.result() if sending.done() else None
        finally:
            self._sockets.discard(socket)
            for task in (listening, sending):
                task.cancel()
            await asyncio.gather(listening, sending, return_exceptions=True)
        if ending is not None:
            await _close_or_abort(request, socket, ending)
        return socket

    async def close(self) -> None:
        """Close every socket, since the daemon goes away."""
        self._is_closing = True
        closing = (
            asyncio.wait_for(
                socket.close(code=CLOSE_GOING_AWAY, message=_REASONS[CLOSE_GOING_AWAY]), CLOSE_SECONDS
            )
            for socket in tuple(self._sockets)
        )
        await asyncio.gather(*closing, return_exceptions=True)

    def _require_origin(self, request: web.Request) -> None:
        """Refuse a page of another site before the upgrade; programs send no Origin."""
        origin = request.headers.get("Origin")
        if origin is None or origin in self._origins:
            return
        if origin.partition("://")[2] == request.headers.get("Host"):
            return
        raise Refused(
            ErrorCode.FORBIDDEN,
            "Pages of this origin may not connect; an administrator can add it to http.origins.",
        )

    async def _send(
        self, actor: Actor, socket: web.WebSocketResponse, workspace_id: str | None, after: int | None
    ) -> int:
        """Send events for as long as there are any; return why there are no more, as a close code."""
        try:
            async for event in self._happenings.follow(actor, workspace_id, after):
                frame = b'{"type":"resync"}' if isinstance(event, Resync) else _frame(event)
                async with asyncio.timeout(SEND_SECONDS):
                    await socket.send_str(frame.decode())
        except (Lagged, TimeoutError):
            return CLOSE_TOO_SLOW
        except ConnectionError:
            return CLOSE_GOING_AWAY
        return CLOSE_GOING_AWAY if self._is_closing or workspace_id is None else CLOSE_WORKSPACE_GONE


async def _listen(socket: web.WebSocketResponse) -> None:
    """Take frames until the other side closes: it has nothing to say here, and pings need a reader."""
    async for _ in socket:
        pass


async def _close_or_abort(request: web.Request, socket: web.WebSocketResponse, code: int) -> None:
    """Close politely, but never wait for a reader that does not read."""
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await socket.close(code=code, message=_REASONS[code])
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()


_REASONS = {
    CLOSE_GOING_AWAY: b"going away",
    CLOSE_TOO_SLOW: b"too slow: come back with after",
    CLOSE_WORKSPACE_GONE: b"the workspace is gone",
}
_SHOWN = tuple(field.name for field in fields(Event) if field.name != "owner_id")


def _frame(event: Event) -> bytes:
    return encode_json({name: getattr(event, name) for name in _SHOWN})
