"""Terminals over WebSockets, and the list of them over HTTP."""

import asyncio
from collections import deque
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any

import msgspec
from aiohttp import WSMessage, WSMsgType, web
from attrs import fields, frozen
from msgspec import Meta

from vmd.http.frames import binary_frame, text_frame
from vmd.http.openapi import docs, refuses, returns, takes
from vmd.http.sockets import (
    CLOSE_GOING_AWAY,
    CLOSE_OK,
    CLOSE_TAKEN_OVER,
    CLOSE_TOO_SLOW,
    CLOSE_WORKSPACE_GONE,
    HEARTBEAT_SECONDS,
    Socket,
    Sockets,
    TicketText,
)
from vmd.http.wire import (
    ACTOR,
    DEFAULT_LIMIT,
    Cursor,
    Limit,
    encode_json,
    read_cursor,
    read_query,
    respond_page,
)
from vmd.http.workspaces import NoQuery
from vmd.model.command import SIGNAL_NAMES, ShellLine
from vmd.model.errors import ErrorCode, Refused
from vmd.model.shell import Persistence, Shell, ShellStatus
from vmd.model.structuring import Unstructurable, structure
from vmd.orchestrator.shells import Attachment, Shells
from vmd.providers.process import TerminalSize

MAX_MESSAGE_BYTES = 1024 * 1024
MAX_CONTROL_CHARACTERS = 4096
MAX_PENDING_INPUT_BYTES = 256 * 1024  # that one connection may be ahead of its terminal
MAX_SIDE = 2000  # of a terminal, in characters
MAX_COMMAND_CHARACTERS = 4000  # that an address has room for
SILENT_BEATS = 3  # without a sign of life, after which a client is taken for dead

_TAGS = ["shells"]
_SOCKET_DESCRIPTION = """\
A shell is begun, or attached to, by the WebSocket `/ws/workspaces/{id}/shell`, with the query parameters
`cols`, `rows`, `session`, `offset`, `takeover`, `readonly`, `command` and `ticket`, all optional. Binary
frames are the terminal's bytes, both ways. Text frames are JSON: `{"type": "connected", "session_id",
"offset", "replayed_bytes", "persistence"}` comes first, `{"type": "exit", "exit_code"}` last, `{"type":
"error", "code", "detail"}` for what was wrong with a frame; a client sends `{"type": "resize", "cols",
"rows"}` and `{"type": "signal", "signal"}`. A dropped connection leaves the shell running: `session` with
`offset`, which counts the bytes that were received, goes on exactly there; without `offset`, all that is
kept is shown again. Close codes: 4000 the daemon goes away, 4001 taken over, 4002 too slow, 4004 the
machine stopped or the workspace is gone.

Shells that ended are listed for as long as one may be detached.
"""

Side = Annotated[int, Meta(ge=1, le=MAX_SIDE, description="characters")]


@frozen(kw_only=True)
class ShellQuery:
    """The query of a shell's socket."""

    cols: Side = 80
    rows: Side = 24
    session: Annotated[str, Meta(description="a shell to attach to, instead of a new one")] | None = None
    offset: Annotated[int, Meta(ge=0, le=1 << 62)] | None = None
    takeover: bool = False
    readonly: bool = False
    command: Annotated[ShellLine, Meta(max_length=MAX_COMMAND_CHARACTERS)] | None = None
    ticket: TicketText | None = None


@frozen(kw_only=True)
class ResizeFrame:
    """A client's terminal has another size."""

    type: str
    cols: Side
    rows: Side


@frozen(kw_only=True)
class SignalFrame:
    """A client wants a signal sent."""

    type: str
    signal: Annotated[
        str, Meta(pattern=f"^({'|'.join(SIGNAL_NAMES)})$", description=f"one of {', '.join(SIGNAL_NAMES)}")
    ]


@frozen(kw_only=True)
class ShellView:
    """A shell, and how many are attached to it."""

    id: str
    workspace_id: str
    actor: str
    command: str | None
    persistence: Persistence
    status: ShellStatus
    exit_code: int | None
    created_at: datetime
    detached_at: datetime | None
    finished_at: datetime | None
    attached: int


@frozen(kw_only=True)
class ShellPage:
    """Shells, newest first."""

    items: tuple[ShellView, ...]
    next_cursor: str | None


@frozen(kw_only=True)
class ShellsQuery:
    """The query of the list."""

    limit: Limit = DEFAULT_LIMIT
    cursor: Cursor | None = None


class ShellHandlers:
    """The handlers of shells."""

    def __init__(self, shells: Shells, sockets: Sockets) -> None:
        self._shells = shells
        self._sockets = sockets

    def routes(self) -> list[web.RouteDef]:
        """Return the routes below the base path."""
        return [
            web.get("/workspaces/{id}/shells", self.list, allow_head=False),
            web.delete("/workspaces/{id}/shells/{shell}", self.end),
        ]

    def socket_routes(self) -> list[web.RouteDef]:
        """Return the routes of the sockets, which are found at the root and below the base path."""
        return [web.get("/ws/workspaces/{id}/shell", self.connect, allow_head=False)]

    @docs(tags=_TAGS, summary="List shells", description=_SOCKET_DESCRIPTION)
    @takes(query=ShellsQuery)
    @returns(200, ShellPage, "A page, newest first.")
    async def list(self, request: web.Request) -> web.Response:
        """Return a page of shells."""
        query = read_query(request, ShellsQuery)
        after = read_cursor(query.cursor, "sh")
        page = await self._shells.list(request[ACTOR], request.match_info["id"], after, query.limit)
        return respond_page(tuple(self._view(shell) for shell in page.items), page)

    @docs(tags=_TAGS, summary="End a shell", description="Hangs up; what does not end by that is killed.")
    @takes(query=NoQuery)
    @returns(204, None, "It is ending.")
    @refuses(ErrorCode.PROVIDER_ERROR, ErrorCode.PROVIDER_UNAVAILABLE)
    async def end(self, request: web.Request) -> web.Response:
        """End a shell."""
        read_query(request, NoQuery)
        await self._shells.end(request[ACTOR], request.match_info["id"], request.match_info["shell"])
        return web.Response(status=204)

    def _view(self, shell: Shell) -> ShellView:
        members = {field.name: getattr(shell, field.name) for field in fields(Shell)}
        return ShellView(**members, attached=self._shells.count_attached(shell.id))

    async def connect(self, request: web.Request) -> web.WebSocketResponse:
        """Begin a shell or attach to one, and carry its bytes both ways."""
        query = read_query(request, ShellQuery)
        self._sockets.require_origin(request)
        await self._shells.require_possible(request[ACTOR], request.match_info["id"], query.session)
        self._sockets.require_upgrade(request)
        attachment = await self._attach(request, query)
        try:
            async with self._sockets.open(request, MAX_MESSAGE_BYTES, has_heartbeat=False) as socket:
                terminal = _Terminal(socket, attachment, is_readonly=query.readonly)
                code = await terminal.run()
                if code is not None:
                    await socket.close(CLOSE_GOING_AWAY if self._sockets.is_closing else code)
                return socket.response
        finally:
            await attachment.detach()

    async def _attach(self, request: web.Request, query: ShellQuery) -> Attachment:
        actor, workspace_id = request[ACTOR], request.match_info["id"]
        size = TerminalSize(columns=query.cols, rows=query.rows)
        if query.session is None:
            return await self._shells.create(actor, workspace_id, query.command, size)
        return await self._shells.attach(
            actor,
            workspace_id,
            query.session,
            offset=query.offset,
            size=None if query.readonly else size,
            takeover=query.takeover,
        )


class _Terminal:
    """One connection between a socket and a shell."""

    def __init__(self, socket: Socket, attachment: Attachment, *, is_readonly: bool) -> None:
        self._socket = socket
        self._attachment = attachment
        self._is_readonly = is_readonly
        self._input: deque[bytes] = deque()
        self._pending_bytes = 0
        self._has_input = asyncio.Event()
        self._has_room = asyncio.Event()
        self._silent_beats = 0

    async def run(self) -> int | None:
        """Carry bytes until either side ends; return how to close the socket, None if it is closed."""
        tasks = [
            asyncio.create_task(self._send()),
            asyncio.create_task(self._receive()),
            asyncio.create_task(self._give_input()),
            asyncio.create_task(self._wait_for_takeover()),
            asyncio.create_task(self._watch_over()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return next(iter(done)).result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self) -> int:
        """Send what the terminal shows, and at its end how it ended."""
        shell, beginning = self._attachment.shell, self._attachment.beginning
        try:
            await self._tell(
                type="connected",
                session_id=shell.id,
                offset=beginning.offset,
                replayed_bytes=beginning.replayed_bytes,
                persistence=shell.persistence,
            )
            at = beginning.offset
            async for chunk in self._attachment.output():
                if chunk.offset != at:  # others were faster, and what was not sent here is no longer kept
                    return CLOSE_TOO_SLOW
                await self._socket.send(binary_frame(chunk.data))
                at = chunk.end
            code = await self._attachment.exit_code()
            await self._tell(type="exit", exit_code=code)
        except TimeoutError:
            return CLOSE_TOO_SLOW
        except ConnectionError:
            return CLOSE_GOING_AWAY
        except Refused as error:
            with suppress(ConnectionError, TimeoutError):
                await self._tell_refusal(error)
            return CLOSE_GOING_AWAY
        return CLOSE_WORKSPACE_GONE if code is None else CLOSE_OK

    async def _receive(self) -> None:
        """Take what the client sends; input that the terminal does not take holds up the client."""
        async for message in self._socket.messages():
            self._silent_beats = 0
            try:
                await self._take(message)
            except Refused as error:
                await self._tell_refusal(error)

    async def _take(self, message: WSMessage) -> None:
        if message.type is WSMsgType.TEXT:
            await self._take_control(message.data)
        elif message.type is WSMsgType.BINARY and self._is_readonly:
            raise Refused(
                ErrorCode.FORBIDDEN, "This connection only looks on; connect without readonly to type."
            )
        elif message.type is WSMsgType.BINARY:
            self._input.append(message.data)
            self._pending_bytes += len(message.data)
            self._has_input.set()
            while self._pending_bytes > MAX_PENDING_INPUT_BYTES:
                self._has_room.clear()
                await self._has_room.wait()
            self._silent_beats = 0

    async def _take_control(self, text: str) -> None:
        if len(text) > MAX_CONTROL_CHARACTERS:
            raise Refused(
                ErrorCode.TOO_LARGE, f"A control frame has {MAX_CONTROL_CHARACTERS} characters at most."
            )
        frame = _read_control(text)
        if self._is_readonly:
            raise Refused(ErrorCode.FORBIDDEN, "This connection only looks on; connect without readonly.")
        if isinstance(frame, ResizeFrame):
            await self._attachment.resize(TerminalSize(columns=frame.cols, rows=frame.rows))
        else:
            await self._attachment.signal(frame.signal)

    async def _give_input(self) -> None:
        """Give the terminal what came, in order; what cannot be given is said to be lost."""
        while True:
            while not self._input:
                self._has_input.clear()
                await self._has_input.wait()
            data = self._input.popleft()
            try:
                await self._attachment.write(data)
            except Refused as error:
                with suppress(ConnectionError, TimeoutError):
                    await self._tell_refusal(error)
            self._pending_bytes -= len(data)
            self._has_room.set()

    async def _wait_for_takeover(self) -> int:
        await self._attachment.taken_over.wait()
        return CLOSE_TAKEN_OVER

    async def _watch_over(self) -> int:
        """Notice a client that is gone without a word; one that is not listened to is not taken for it."""
        while self._silent_beats < SILENT_BEATS:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            if self._pending_bytes <= MAX_PENDING_INPUT_BYTES:
                self._silent_beats += 1
            self._socket.ping()
        return CLOSE_GOING_AWAY

    async def _tell_refusal(self, error: Refused) -> None:
        await self._tell(type="error", code=error.code, detail=error.detail)

    async def _tell(self, **members: Any) -> None:
        await self._socket.send(text_frame(encode_json(members)))


def _read_control(text: str) -> ResizeFrame | SignalFrame:
    """Return a control frame; raise Refused saying what is wrong with it."""
    try:
        data = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refused(ErrorCode.MALFORMED_REQUEST, f"A text frame is JSON: {error}.") from None
    kind = data.get("type") if isinstance(data, dict) else None
    try:
        if kind == "resize":
            return structure(data, ResizeFrame)
        if kind == "signal":
            return structure(data, SignalFrame)
    except Unstructurable as error:
        raise Refused(ErrorCode.VALIDATION_FAILED, f"Some values are wrong: {error}.") from None
    raise Refused(ErrorCode.MALFORMED_REQUEST, "The type of a text frame is resize or signal.")
