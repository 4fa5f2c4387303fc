"""A way to the engine that kills whoever uses it at a chosen call, once the engine has answered that."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

_CHANGE = re.compile(rb"^(POST|PUT|DELETE) (\S+) HTTP/1\.1\r\n")
_IGNORED = re.compile(rb"/exec/|/exec\b")


class EngineProxy:
    """Counts the calls that change something while it is armed."""

    def __init__(self, path: Path, engine: str) -> None:
        self.path = path
        self._engine = engine
        self._left: int | None = None
        self._strike: Callable[[], None] = lambda: None
        self.struck: str | None = None  # the call at which it struck
        self._pumps: set[asyncio.Task[None]] = set()

    def arm(self, number: int, strike: Callable[[], None]) -> None:
        """Strike at the so many-th change from now on; the caller never hears the engine's answer to it."""
        self._left, self._strike, self.struck = number, strike, None

    def disarm(self) -> None:
        self._left = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine_reader, engine_writer = await asyncio.open_unix_connection(self._engine)
        is_doomed = asyncio.Event()
        pumps = {
            asyncio.create_task(self._ask(reader, engine_writer, is_doomed)),
            asyncio.create_task(self._answer(engine_reader, writer, is_doomed)),
        }
        self._pumps |= pumps
        await asyncio.wait(pumps)
        self._pumps -= pumps
        writer.close()
        engine_writer.close()

    async def _ask(
        self, reader: asyncio.StreamReader, engine: asyncio.StreamWriter, is_doomed: asyncio.Event
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                change = _CHANGE.match(data)
                if change and self._left is not None and not _IGNORED.search(change[2]):
                    self._left -= 1
                    if self._left == 0:
                        self.struck = f"{change[1].decode()} {change[2].decode()}"
                        is_doomed.set()
                engine.write(data)
                await engine.drain()
            engine.write_eof()

    async def _answer(
        self, engine: asyncio.StreamReader, writer: asyncio.StreamWriter, is_doomed: asyncio.Event
    ) -> None:
        with suppress(ConnectionError):
            while data := await engine.read(65536):
                if is_doomed.is_set():
                    self._left = None
                    self._strike()
                    return
                writer.write(data)
                await writer.drain()
            writer.write_eof()

    async def close(self) -> None:
        """Cut every connection."""
        pumps = tuple(self._pumps)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


@asynccontextmanager
async def engine_proxy(directory: Path, engine_url: str) -> AsyncIterator[EngineProxy]:
    """Run a proxy in front of an engine's socket."""
    proxy = EngineProxy(directory / "engine.sock", engine_url.removeprefix("unix://"))
    server = await asyncio.start_unix_server(proxy.serve, proxy.path)
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
