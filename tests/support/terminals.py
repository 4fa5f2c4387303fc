"""A person's terminal: what a shell's socket sends, drawn on a screen that can be looked at."""

import asyncio
import json
from collections.abc import Callable
from typing import Any, Self

import aiohttp
import pyte
from aiohttp.client_proto import ResponseHandler

from tests.support.api import Api

SECONDS = 30


class _Screen(pyte.Screen):
    """A screen that passes over a private sequence of vim's, which pyte 0.8 takes for colours."""

    def select_graphic_rendition(self, *attrs: int, private: bool = False) -> None:
        if not private:
            super().select_graphic_rendition(*attrs)


class Terminal:
    """A screen, and a connection to a shell that may be dropped and made again."""

    def __init__(self, path: str, *, columns: int = 80, rows: int = 24) -> None:
        self.path = f"/ws{path}/shell"
        self.size = {"cols": str(columns), "rows": str(rows)}
        self.session: str | None = None
        self.offset = 0  # of the byte that comes next
        self.shown = b""
        self.told: list[Any] = []
        self.close_code: int | None = None
        self._screen = _Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._undrawn = bytearray()
        self._news = asyncio.Event()
        self._taking: asyncio.Task[None] | None = None

    @property
    def screen(self) -> pyte.Screen:
        """The screen as it is now. Drawing takes long, so it is only done when somebody looks."""
        undrawn, self._undrawn = self._undrawn, bytearray()
        self._stream.feed(bytes(undrawn))
        return self._screen

    async def attach(self, api: Api, **query: Any) -> Self:
        """Connect, to the same session as before unless the query names another."""
        if self._taking is not None:
            await self._taking  # what had arrived before the connection was lost counts
        session = {} if self.session is None else {"session": self.session, "offset": str(self.offset)}
        given = {name: str(value) for name, value in query.items() if value is not None}
        self.socket = await api.session.ws_connect(
            self.path,
            params={**self.size, **session, **given},
            max_msg_size=0,
            timeout=aiohttp.ClientWSTimeout(ws_close=0.1),
        )
        self.told, self.close_code = [], None
        self._taking = asyncio.create_task(self._take_all())
        await self.until_told("connected")
        return self

    async def _take_all(self) -> None:
        async for message in self.socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                self.offset += len(message.data)
                self.shown += message.data
                self._undrawn += message.data
            else:
                self._take_text(json.loads(message.data))
            self._news.set()
        self.close_code = self.socket.close_code
        self._news.set()

    def _take_text(self, told: Any) -> None:
        if told["type"] == "connected":  # at once, since what comes now counts from its offset
            self.session, self.offset = told["session_id"], told["offset"]
        self.told.append(told)

    async def send(self, data: bytes | str) -> None:
        await self.socket.send_bytes(data.encode() if isinstance(data, str) else data)

    async def tell(self, **members: Any) -> None:
        await self.socket.send_str(json.dumps(members))

    def drop(self) -> None:
        """Break the connection as a lost network does: without a word, and whatever is on its way."""
        transport = self._protocol().transport
        assert transport is not None
        transport.abort()

    def stop_reading(self) -> None:
        """Leave what the daemon sends where it is, as a program that hangs does."""
        self._protocol().pause_reading()

    def _protocol(self) -> ResponseHandler:
        assert self.socket._conn is not None
        assert self.socket._conn.protocol is not None
        return self.socket._conn.protocol

    async def close(self) -> None:
        await self.socket.close()
        if self._taking is not None:
            await self._taking

    async def until(self, is_so: Callable[[], Any]) -> None:
        """Return as soon as it is so after something came."""
        async with asyncio.timeout(SECONDS):
            while not is_so():
                self._news.clear()
                await self._news.wait()

    async def until_more(self) -> None:
        """Return as soon as anything came."""
        before = self.offset
        await self.until(lambda: self.offset > before)

    async def until_told(self, kind: str) -> Any:
        """Return the first text frame of this type."""
        await self.until(lambda: [told for told in self.told if told["type"] == kind])
        return next(told for told in self.told if told["type"] == kind)

    async def until_shown(self, text: bytes | str) -> None:
        """Return as soon as these bytes came."""
        data = text.encode() if isinstance(text, str) else text
        await self.until(lambda: data in self.shown)

    async def until_drawn(self, text: str) -> None:
        """Return as soon as this stands on the screen."""
        await self.until(lambda: any(text in line for line in self.screen.display))

    async def until_closed(self) -> int:
        """Return the code that the connection was closed with."""
        await self.until(lambda: self.close_code is not None)
        assert self.close_code is not None
        return self.close_code

    def picture(self) -> Any:
        """Return all that can be seen: each cell with its colours and attributes, and the cursor."""
        screen = self.screen
        cells = [
            [screen.buffer[row][column] for column in range(screen.columns)] for row in range(screen.lines)
        ]
        return screen.display, (screen.cursor.x, screen.cursor.y, screen.cursor.hidden), cells


async def until_even(*terminals: Terminal) -> None:
    """Return when all have been sent the same, to the last byte."""
    async with asyncio.timeout(SECONDS):
        while len({terminal.offset for terminal in terminals}) > 1:
            await asyncio.sleep(0.01)
