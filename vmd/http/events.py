"""Events over WebSockets, and as server-sent events."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Annotated

from aiohttp import web
from attrs import frozen
from msgspec import Meta

from vmd.events import Lagged
from vmd.http.frames import event_frame, sent_event
from vmd.http.openapi import docs, refuses, returns, takes
from vmd.http.sockets import (
    CLOSE_GOING_AWAY,
    CLOSE_TOO_SLOW,
    CLOSE_WORKSPACE_GONE,
    HEARTBEAT_SECONDS,
    Socket,
    Sockets,
    TicketText,
)
from vmd.http.wire import (
    ACTOR,
    malformed,
    read_body,
    read_query,
    respond,
    write_or_abort,
)
from vmd.http.workspaces import NoQuery
from vmd.model.account import Actor
from vmd.model.errors import ErrorCode
from vmd.model.event import Event
from vmd.orchestrator.happenings import Happenings, Resync
from vmd.orchestrator.tickets import Ticket, Tickets

MAX_FRAME_BYTES = 64 * 1024
MAX_SEQ_DIGITS = 18

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
    ticket: TicketText | None = None


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

    def __init__(self, happenings: Happenings, tickets: Tickets, sockets: Sockets) -> None:
        self._happenings = happenings
        self._tickets = tickets
        self._sockets = sockets

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
        self._sockets.require_origin(request)
        await self._happenings.require_visible(request[ACTOR], workspace_id)
        self._sockets.require_upgrade(request)
        async with self._sockets.open(request, MAX_FRAME_BYTES) as socket:
            listening = asyncio.create_task(_listen(socket))
            sending = asyncio.create_task(self._send(request[ACTOR], socket, workspace_id, query.after))
            try:
                await asyncio.wait({listening, sending}, return_when=asyncio.FIRST_COMPLETED)
                ending = sending.result() if sending.done() else None
            finally:
                for task in (listening, sending):
                    task.cancel()
                await asyncio.gather(listening, sending, return_exceptions=True)
            if ending is not None:
                await socket.close(ending)
            return socket.response

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

    async def _send(self, actor: Actor, socket: Socket, workspace_id: str | None, after: int | None) -> int:
        """Send events for as long as there are any; return why there are no more, as a close code."""
        try:
            following = self._happenings.follow(
                actor, workspace_id, after, lambda event: socket.try_to_send(event_frame(event))
            )
            async with aclosing(following) as events:
                async for event in events:
                    await socket.send(event_frame(event))
        except (Lagged, TimeoutError):
            return CLOSE_TOO_SLOW
        except ConnectionError:
            return CLOSE_GOING_AWAY
        is_over = workspace_id is not None and not self._sockets.is_closing
        return CLOSE_WORKSPACE_GONE if is_over else CLOSE_GOING_AWAY


async def _listen(socket: Socket) -> None:
    """Take frames until the other side closes: it has nothing to say here."""
    async for _ in socket.messages():
        pass


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
