"""Commands over HTTP."""

import base64
from contextlib import aclosing, suppress
from typing import Annotated, Any

from aiohttp import web
from attrs import frozen
from msgspec import Meta

from vmd.http.openapi import docs, refuses, returns, takes
from vmd.http.streams import Streams
from vmd.http.wire import (
    ACTOR,
    DEFAULT_LIMIT,
    Cursor,
    Limit,
    encode_json,
    read_body,
    read_cursor,
    read_once,
    read_query,
    respond,
    respond_page,
    write_or_abort,
)
from vmd.http.workspaces import IDEMPOTENCY_KEY, NoQuery, accepted
from vmd.model.command import Command, NewCommand, SignalRequest
from vmd.model.errors import ErrorCode
from vmd.model.operation import Operation
from vmd.orchestrator.commands import Commands, Printed
from vmd.providers.process import Chunk, Stream

NDJSON = "application/x-ndjson"
OCTETS = "application/octet-stream"
MAX_OFFSET = 1 << 62
MAX_LINE_BYTES = 120_000  # more than clients read in one piece; control characters take six bytes each

_TAGS = ["commands"]
_CREATE_DESCRIPTION = """\
With `Accept: application/x-ndjson` the answer is a live stream, one JSON object a line: `{"type": "start",
"command_id", "operation_id"}`, then `{"type": "stdout" | "stderr", "data", "offset"}`, last `{"type":
"exit", "exit_code", "signal"}`. `data` is text; a piece that is not UTF-8 has its bytes in base64 and says
`"encoding": "base64"`, and so does one of many control characters. `offset` counts bytes. `{"type":
"dropped", "stream", "offset", "bytes"}` says that a piece is no longer kept. Closing the stream leaves the
command running. Otherwise the answer is the Operation, whose `command_id` names the command.

A string is run by the user's shell, an array as it stands. A program that does not exist gives the exit
code 127, as in a shell.
"""
_OUTPUT_DESCRIPTION = """\
The exact bytes of one stream. The oldest are dropped when there are more than `commands.output_bytes`; the
header `Vmd-Offset` says at which byte the answer begins. Once a workspace is stopped, what its commands had
printed can still be read.
"""

Offset = Annotated[int, Meta(ge=0, le=MAX_OFFSET, description="the first byte that is wanted")]


@frozen(kw_only=True)
class CommandPage:
    """Commands, newest first."""

    items: tuple[Command, ...]
    next_cursor: str | None


@frozen(kw_only=True)
class CommandsQuery:
    """The query of the list."""

    limit: Limit = DEFAULT_LIMIT
    cursor: Cursor | None = None


@frozen(kw_only=True)
class OutputQuery:
    """Which output is wanted."""

    stream: Stream = Stream.STDOUT
    offset: Offset = 0
    follow: Annotated[bool, Meta(description="stay open until the command has ended")] = False


@frozen(kw_only=True)
class StreamQuery:
    """Where a live stream goes on."""

    stdout_offset: Offset = 0
    stderr_offset: Offset = 0


class CommandHandlers:
    """The handlers of `/workspaces/{id}/commands`."""

    def __init__(self, commands: Commands, streams: Streams) -> None:
        self._commands = commands
        self._streams = streams

    def routes(self) -> list[web.RouteDef]:
        """Return the routes below the base path."""
        base = "/workspaces/{id}/commands"
        return [
            web.post(base, self.create),
            web.get(base, self.list, allow_head=False),
            web.get(f"{base}/{{command}}", self.get, allow_head=False),
            web.get(f"{base}/{{command}}/output", self.output, allow_head=False),
            web.get(f"{base}/{{command}}/stream", self.stream, allow_head=False),
            web.post(f"{base}/{{command}}/signal", self.signal),
        ]

    @docs(tags=_TAGS, summary="Run a command", description=_CREATE_DESCRIPTION, parameters=[IDEMPOTENCY_KEY])
    @takes(body=NewCommand, query=NoQuery)
    @returns(202, Operation, "The command runs.", headers=("Location",))
    @returns(200, dict[str, Any], "With `Accept: application/x-ndjson`: the stream.", content_type=NDJSON)
    @refuses(
        ErrorCode.INVALID_STATE,
        ErrorCode.VALIDATION_FAILED,
        ErrorCode.IDEMPOTENCY_MISMATCH,
        ErrorCode.PROVIDER_ERROR,
        ErrorCode.PROVIDER_UNAVAILABLE,
    )
    async def create(self, request: web.Request) -> web.StreamResponse:
        """Begin a command, and answer with its operation or its output."""
        read_query(request, NoQuery)
        wanted = await read_body(request, NewCommand)
        once = await read_once(request)
        actor, workspace_id = request[ACTOR], request.match_info["id"]
        operation = await self._commands.create(actor, workspace_id, wanted, once)
        if NDJSON not in request.headers.get("Accept", ""):
            return accepted(operation)
        command_id = operation.command_id or ""
        start = {"type": "start", "command_id": command_id, "operation_id": operation.id}
        return await self._send_stream(request, command_id, {}, start)

    @docs(tags=_TAGS, summary="List commands")
    @takes(query=CommandsQuery)
    @returns(200, CommandPage, "A page, newest first.")
    async def list(self, request: web.Request) -> web.Response:
        """Return a page of commands."""
        query = read_query(request, CommandsQuery)
        after = read_cursor(query.cursor, "cmd")
        page = await self._commands.list(request[ACTOR], request.match_info["id"], after, query.limit)
        return respond_page(page.items, page)

    @docs(tags=_TAGS, summary="Get a command")
    @takes(query=NoQuery)
    @returns(200, Command, "The command.")
    async def get(self, request: web.Request) -> web.Response:
        """Return one command."""
        read_query(request, NoQuery)
        return respond(await self._commands.get(request[ACTOR], *_names(request)))

    @docs(tags=_TAGS, summary="Read what a command printed", description=_OUTPUT_DESCRIPTION)
    @takes(query=OutputQuery)
    @returns(200, bytes, "The bytes.", content_type=OCTETS, headers=("Vmd-Offset",))
    @refuses(ErrorCode.PROVIDER_ERROR, ErrorCode.PROVIDER_UNAVAILABLE)
    async def output(self, request: web.Request) -> web.StreamResponse:
        """Send the bytes of one stream."""
        query = read_query(request, OutputQuery)
        actor, names = request[ACTOR], _names(request)
        command = await self._commands.get(actor, *names)
        is_stdout = query.stream is Stream.STDOUT
        dropped = command.stdout_dropped_bytes if is_stdout else command.stderr_dropped_bytes
        chunks = self._commands.output(actor, *names, query.stream, query.offset, follow=query.follow)
        async with aclosing(chunks):
            first = None if query.follow else await anext(chunks, None)  # it may be a refusal
            begin = max(query.offset, dropped) if first is None else first.offset
            headers = {"Vmd-Offset": str(begin)}
            async with self._streams.open(request, OCTETS, **headers) as response:
                if first is not None:
                    await write_or_abort(request, response, first.data)
                async for chunk in chunks:
                    await write_or_abort(request, response, chunk.data)
        return response

    @docs(
        tags=_TAGS,
        summary="Follow a command again",
        description="The live stream that running it gives, from these offsets on.",
    )
    @takes(query=StreamQuery)
    @returns(200, dict[str, Any], "The stream.", content_type=NDJSON)
    @refuses(ErrorCode.PROVIDER_ERROR, ErrorCode.PROVIDER_UNAVAILABLE)
    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Send what a command prints, from where a client stood."""
        query = read_query(request, StreamQuery)
        workspace_id, command_id = _names(request)
        command = await self._commands.get(request[ACTOR], workspace_id, command_id)
        start = {"type": "start", "command_id": command.id, "operation_id": command.operation_id}
        offsets = {Stream.STDOUT: query.stdout_offset, Stream.STDERR: query.stderr_offset}
        return await self._send_stream(request, command_id, offsets, start)

    @docs(tags=_TAGS, summary="Send a signal to a command", parameters=[IDEMPOTENCY_KEY])
    @takes(body=SignalRequest, query=NoQuery)
    @returns(200, Command, "The signal was sent.")
    @refuses(
        ErrorCode.INVALID_STATE,
        ErrorCode.VALIDATION_FAILED,
        ErrorCode.IDEMPOTENCY_MISMATCH,
        ErrorCode.PROVIDER_ERROR,
        ErrorCode.PROVIDER_UNAVAILABLE,
    )
    async def signal(self, request: web.Request) -> web.Response:
        """Send a signal to a command and what it started."""
        read_query(request, NoQuery)
        wanted = await read_body(request, SignalRequest)
        once = await read_once(request)
        return respond(await self._commands.signal(request[ACTOR], *_names(request), wanted.signal, once))

    async def _send_stream(
        self, request: web.Request, command_id: str, offsets: dict[Stream, int], start: dict[str, str]
    ) -> web.StreamResponse:
        items = self._commands.follow(request[ACTOR], request.match_info["id"], command_id, offsets)
        texts = {stream: Pieces(stream, offsets.get(stream, 0)) for stream in Stream}
        async with self._streams.open(request, NDJSON) as response, aclosing(items):
            await write_or_abort(request, response, encode_json(start) + b"\n")
            async for item in items:
                await write_or_abort(request, response, _lines(item, texts))
        return response


class Pieces:
    """One stream's chunks as lines; a character whose bytes come in two chunks is kept in one piece."""

    def __init__(self, stream: Stream, offset: int) -> None:
        self._stream = stream
        self._at = offset  # where the next byte belongs
        self._rest = b""

    def feed(self, chunk: Chunk) -> bytes:
        """Return the lines for a chunk."""
        lines = b""
        if chunk.offset > self._at + len(self._rest):
            lines = self.finish()
            missing = chunk.offset - self._at
            lines += _line(type="dropped", stream=self._stream, offset=self._at, bytes=missing)
            self._at = chunk.offset
        data = self._rest + chunk.data
        cut = _whole_characters(data)
        self._rest = data[cut:]
        return lines + self._piece(data[:cut])

    def finish(self) -> bytes:
        """Return the line for what is left."""
        rest, self._rest = self._rest, b""
        return self._piece(rest)

    def _piece(self, data: bytes) -> bytes:
        if not data:
            return b""
        offset = self._at
        self._at += len(data)
        with suppress(UnicodeDecodeError):
            line = _line(type=self._stream, data=data.decode(), offset=offset)
            if len(line) <= MAX_LINE_BYTES:
                return line
        text = base64.b64encode(data).decode()
        return _line(type=self._stream, data=text, offset=offset, encoding="base64")


def _lines(item: Printed | Command, texts: dict[Stream, Pieces]) -> bytes:
    if isinstance(item, Printed):
        return texts[item.stream].feed(item.chunk)
    last = b"".join(pieces.finish() for pieces in texts.values())
    return last + _line(type="exit", exit_code=item.exit_code, signal=item.signal)


def _line(**members: object) -> bytes:
    return encode_json(members) + b"\n"


def _whole_characters(data: bytes) -> int:
    """Return how many bytes there are before a character that may go on in the next chunk (RFC 3629)."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte < 0x80:
            return len(data)
        if 0xC2 <= byte <= 0xF4:
            size = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if back < size else len(data)
    return len(data)


def _names(request: web.Request) -> tuple[str, str]:
    return request.match_info["id"], request.match_info["command"]
