"""Events over WebSockets, and as server-sent events."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Annotated

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from attrs import frozen
from msgspec import Meta

from vmd.events import Lagged
from vmd.http.frames import sent_event, text_frame
from vmd.http.openapi import docs, refuses, returns, takes
from vmd.http.wire import (
    ACTOR,
    SEND_SECONDS,
    malformed,
    read_body,
    read_query,
    respond,
    write_or_abort,
)
from vmd.http.workspaces import NoQuery
from vmd.model.account import Actor
from vmd.model.errors import ErrorCode, Refused
from vmd.model.event import Event
from vmd.orchestrator.happenings import Happenings, Resync
from vmd.orchestrator.tickets import Ticket, Tickets

HEARTBEAT_SECONDS = 15.0
CLOSE_SECONDS = 1.0
MAX_FRAME_BYTES = 64 * 1024
MAX_SEQ_DIGITS = 18
CLOSE_GOING_AWAY = 4000
CLOSE_TOO_SLOW = 4002
CLOSE_WORKSPACE_GONE = 4004

_TAGS = ["events"]
_STREAM_DESCRIPTION = """\
Server-sent events: first what was missed since `after`, then live. The id of each is its `seq`, so a
browser's EventSource comes back where it stood. A first event `resync` says that some are no longer kept. A
client that does not keep up is cut off. The WebSockets `/ws/events` and `/ws/workspaces/{id}/events` send the
same, a JSON text frame an event.
"""
LAST_EVENT_ID = {
    "in": "header",
    "name": "Last-Event-ID",
    "description": "What a browser sends when it comes back; counts in place of `after`.",
    "schema": {"type": "string", "pattern": "^[0-9]{1,18}$"},
}


After = Annotated[int, Meta(ge=0, description="the `seq` of the last event that is known")]


@frozen(kw_only=True)
class SocketQuery:
    """The query of an event socket."""

    after: After | None = None
    ticket: Annotated[str, Meta(description="from POST /ws-tickets, in place of a credential")] | None = None


@frozen(kw_only=True)
class EventsQuery:
    """The query of the server-sent events."""

    after: After | None = None
    workspace_id: str | None = None


@frozen(kw_only=True)
class NewTicket:
    """A request for a ticket."""

    path: Annotated[
        str,
        Meta(
            pattern=r"^(/api/v1)?/ws/[A-Za-z0-9/_-]{1,200}$",
            description="the path of a socket, such as /ws/events",
        ),
    ]


class EventHandlers:
    """The handlers of event streams."""

    def __init__(self, happenings: Happenings, tickets: Tickets, origins: frozenset[str]) -> None:
        self._happenings = happenings
        self._tickets = tickets
        self._origins = origins
        self._sockets: set[web.WebSocketResponse] = set()
        self._is_closing = False

    def routes(self) -> list[web.RouteDef]:
        """Return the routes below the base path."""
        return [
            web.get("/events", self.stream, allow_head=False),
            web.post("/ws-tickets", self.create_ticket),
        ]

    def socket_routes(self) -> list[web.RouteDef]:
        """Return the routes of the sockets, which are found at the root and below the base path."""
        return [
            web.get("/ws/events", self.follow, allow_head=False),
            web.get("/ws/workspaces/{id}/events", self.follow, allow_head=False),
        ]

    async def follow(self, request: web.Request) -> web.WebSocketResponse:
        """Send what was missed, then what happens, one JSON text frame an event."""
        query = read_query(request, SocketQuery)
        workspace_id = request.match_info.get("id")
        self._require_origin(request)
        await self._happenings.require_visible(request[ACTOR], workspace_id)
        socket = web.WebSocketResponse(
            heartbeat=HEARTBEAT_SECONDS, compress=False, max_msg_size=MAX_FRAME_BYTES
        )
        if not socket.can_prepare(request).ok:
            raise Refused(ErrorCode.MALFORMED_REQUEST, "This is a WebSocket: send an upgrade request.")
        outlet = _Outlet(request, socket, await socket.prepare(request))
        self._sockets.add(socket)
        listening = asyncio.create_task(_listen(socket))
        sending = asyncio.create_task(self._send(request[ACTOR], outlet, workspace_id, query.after))
        try:
            await asyncio.wait({listening, sending}, return_when=asyncio.FIRST_COMPLETED)
            ending = sending.result() if sending.done() else None
        finally:
            self._sockets.discard(socket)
            for task in (listening, sending):
                task.cancel()
            await asyncio.gather(listening, sending, return_exceptions=True)
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, outlet.cut_off)
        if ending is not None:
            await socket.close(code=ending, message=_REASONS[ending])
        return socket

    @docs(
        tags=_TAGS,
        summary="Follow events",
        description=_STREAM_DESCRIPTION,
        parameters=[LAST_EVENT_ID],
    )
    @takes(query=EventsQuery)
    @returns(200, str, "The stream.", content_type="text/event-stream")
    @refuses(ErrorCode.NOT_FOUND)
    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Send what was missed, then what happens, as server-sent events."""
        query = read_query(request, EventsQuery)
        after = _last_event_id(request, query.after)
        actor = request[ACTOR]
        await self._happenings.require_visible(actor, query.workspace_id)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        with suppress(Lagged, ConnectionError):
            async with aclosing(self._happenings.follow(actor, query.workspace_id, after)) as events:
                async for chunk in _with_heartbeat(events):
                    await write_or_abort(request, response, chunk)
        return response

    @docs(
        tags=_TAGS,
        summary="Get a ticket for a WebSocket",
        description="For clients that can set neither header nor cookie: give it as the query parameter "
        "`ticket`. It is good for one request to this path within 30 seconds, and kept nowhere, so "
        "`Idempotency-Key` has no effect here.",
    )
    @takes(body=NewTicket, query=NoQuery)
    @returns(201, Ticket, "The ticket.")
    @refuses(ErrorCode.VALIDATION_FAILED)
    async def create_ticket(self, request: web.Request) -> web.Response:
        """Give out a ticket."""
        read_query(request, NoQuery)
        wanted = await read_body(request, NewTicket)
        return respond(self._tickets.issue(request[ACTOR], wanted.path), 201)

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
        self, actor: Actor, outlet: "_Outlet", workspace_id: str | None, after: int | None
    ) -> int:
        """Send events for as long as there are any; return why there are no more, as a close code."""
        try:
            following = self._happenings.follow(actor, workspace_id, after, outlet.take)
            async with aclosing(following) as events:
                async for event in events:
                    await outlet.send(event)
        except (Lagged, TimeoutError):
            return CLOSE_TOO_SLOW
        except ConnectionError:
            return CLOSE_GOING_AWAY
        return CLOSE_GOING_AWAY if self._is_closing or workspace_id is None else CLOSE_WORKSPACE_GONE


class _Outlet:
    """The way out to one socket's reader."""

    def __init__(
        self, request: web.Request, socket: web.WebSocketResponse, writer: AbstractStreamWriter
    ) -> None:
        if request.transport is None:
            raise ConnectionResetError
        self._protocol = request.protocol
        self._transport = request.transport
        self._socket = socket
        self._writer = writer

    def take(self, event: Event) -> bool:
        """Send at once and return True, unless the reader is behind or away."""
        return not self._protocol.writing_paused and self._write(event)

    async def send(self, event: Event | Resync) -> None:
        """Send when the reader has caught up; raise TimeoutError or ConnectionError if it never will."""
        if self._protocol.writing_paused:
            async with asyncio.timeout(SEND_SECONDS):
                # Shielded: a drain that was cancelled leaves aiohttp a future that cancels the next one.
                await asyncio.shield(self._writer.drain())
        if not self._write(event):
            raise ConnectionResetError

    def cut_off(self) -> None:
        """Drop what the reader has not taken yet; nothing happens if it is away."""
        self._transport.abort()

    def _write(self, event: Event | Resync) -> bool:
        if self._transport.is_closing() or self._socket.closed:
            return False
        self._transport.write(text_frame(event))  # the socket itself would make its header for each anew
        return True


async def _listen(socket: web.WebSocketResponse) -> None:
    """Take frames until the other side closes: it has nothing to say here, and pings need a reader."""
    async for _ in socket:
        pass


_REASONS = {
    CLOSE_GOING_AWAY: b"going away",
    CLOSE_TOO_SLOW: b"too slow: come back with after",
    CLOSE_WORKSPACE_GONE: b"the workspace is gone",
}


def _last_event_id(request: web.Request, after: int | None) -> int | None:
    """Return where to go on: a browser that comes back says so in a header, which the URL cannot know of."""
    text = request.headers.get("Last-Event-ID")
    if text is None:
        return after
    if not (text.isascii() and text.isdecimal() and len(text) <= MAX_SEQ_DIGITS):
        raise malformed("Last-Event-ID must be the `seq` of an event.")
    return int(text)


async def _with_heartbeat(events: AsyncIterator[Event | Resync]) -> AsyncIterator[bytes]:
    """Yield events as they are sent, and a comment whenever there is none for a while."""
    coming = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            await asyncio.wait({coming}, timeout=HEARTBEAT_SECONDS)
            if not coming.done():
                yield b":\n\n"
                continue
            event = coming.result()
            if event is None:
                return
            yield sent_event(event)
            coming = asyncio.ensure_future(anext(events, None))
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
