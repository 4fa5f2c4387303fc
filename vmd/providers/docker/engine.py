"""The connection to one engine: its own connection pools, deadlines for all calls, and errors as ours."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiohttp
from aiodocker import Docker
from aiodocker.exceptions import DockerError
from aiohttp import ClientTimeout
from multidict import MultiDict

from vmd.providers.base import ProviderError, ProviderUnavailable
from vmd.providers.docker.body import LABEL_INSTANCE

CONTROL_CONNECTIONS = 32
CONNECT_SECONDS = 5.0
READ_SECONDS = 15.0  # the longest a look at something may take
ANSWER_SECONDS = 60.0  # and a change, waiting for a machine to stop not counted
PING_SECONDS = 5.0
QUIET_SECONDS = 10.0  # of silence on the event stream before the engine is asked whether it lives
REMOVAL_TRIES = 150
REMOVAL_PAUSE_SECONDS = 0.2
_NO_CONNECTION = 900  # the status that aiodocker makes up
NOT_FOUND = 404
CONFLICT = 409


class Engine:
    """Two clients of one engine: control calls, of which a few go at once, and streams, which are many.

    aiodocker's own connector stops at 100 connections and its calls have no deadline.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._clients: list[Docker] = []
        self._connectors: list[aiohttp.BaseConnector] = []
        self._control: Docker | None = None
        self._streams: Docker | None = None

    @property
    def control(self) -> Docker:
        """The client for calls that answer soon."""
        if self._control is None:
            self._control = self._client(
                CONTROL_CONNECTIONS, ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS)
            )
        return self._control

    @property
    def streams(self) -> Docker:
        """The client for calls that stay open."""
        if self._streams is None:
            self._streams = self._client(0, ClientTimeout(total=None, sock_connect=CONNECT_SECONDS))
        return self._streams

    def _client(self, limit: int, timeout: ClientTimeout) -> Docker:
        connector: aiohttp.BaseConnector
        if self.url.startswith("unix://"):
            connector = aiohttp.UnixConnector(self.url.removeprefix("unix://"), limit=limit)
            client = Docker(url="unix://localhost", connector=connector, timeout=timeout)
        else:
            connector = aiohttp.TCPConnector(limit=limit)
            client = Docker(url=self.url, connector=connector, timeout=timeout)
        self._clients.append(client)
        self._connectors.append(connector)
        return client

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn every way in which a call can fail into a provider's error, or let a 404 or 409 through."""
        try:
            yield
        except DockerError as error:
            if error.status == _NO_CONNECTION:
                raise self._unavailable(str(error.message)) from None
            if error.status in (NOT_FOUND, CONFLICT):
                raise
            raise ProviderError(f"The engine refused: {error.message}") from None
        except TimeoutError:
            raise self._unavailable("it does not answer") from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._unavailable(str(error) or type(error).__name__) from None

    def _unavailable(self, why: str) -> ProviderUnavailable:
        return ProviderUnavailable(f"The Docker Engine at {self.url} cannot be reached: {why}.")

    async def call(
        self,
        path: str,
        method: str = "GET",
        *,
        data: Any = None,
        params: Mapping[str, Any] | None = None,
        timeout_seconds: float | None = None,
        may_be_left: bool = False,
    ) -> Any:
        """Return the JSON answer to one call; raise DockerError for 404 and 409 alone."""
        usual_seconds = READ_SECONDS if method == "GET" else ANSWER_SECONDS
        limits = ClientTimeout(total=timeout_seconds or usual_seconds, sock_connect=CONNECT_SECONDS)
        with self.translated():
            calling = asyncio.ensure_future(self._call(path, method, data, params, limits))
            try:
                body = await asyncio.shield(calling)
            except asyncio.CancelledError:
                if method == "GET" or may_be_left:
                    calling.cancel()
                # The engine goes on with a change whose caller left. What follows must not overtake it.
                await asyncio.wait({calling})
                raise
        return json.loads(body) if body else None

    async def _call(
        self, path: str, method: str, data: Any, params: Mapping[str, Any] | None, limits: ClientTimeout
    ) -> bytes:
        async with self.control._query(
            path,
            method,
            data=None if data is None else json.dumps(data),
            params=None if params is None else dict(params),
            timeout=limits,
        ) as response:
            return await response.read()

    async def find(self, path: str) -> Any:
        """Return what the engine says of something, or None if it is not there."""
        try:
            return await self.call(path)
        except DockerError as error:
            if error.status == NOT_FOUND:
                return None
            raise ProviderError(f"The engine refused: {error.message}.") from None

    async def remove(self, path: str, params: Mapping[str, Any] | None = None) -> None:
        """Delete something at the engine until it is gone; "not there" is success."""
        for _ in range(REMOVAL_TRIES):
            try:
                await self.call(path, "DELETE", params=params)
                return
            except DockerError as error:
                if error.status == NOT_FOUND:
                    return
                if "in progress" not in str(error.message):
                    raise ProviderError(f"The engine cannot remove {path}: {error.message}.") from None
            await asyncio.sleep(REMOVAL_PAUSE_SECONDS)
        raise ProviderError(f"The engine does not come to an end removing {path}.")

    async def send(
        self,
        path: str,
        data: bytes | AsyncIterator[bytes],
        params: Mapping[str, Any] | Sequence[tuple[str, Any]],
        method: str = "POST",
    ) -> None:
        """Send a tar archive, whole or as it comes; the answer of the engine may be an error in a stream."""
        sent = _Sent()
        with sent.explained(), self.translated():
            try:
                async with self.streams._query(
                    path,
                    method,
                    data=data if isinstance(data, bytes) else sent.chunks(data),
                    params=MultiDict(params),
                    headers={"Content-Type": "application/x-tar"},
                    timeout=ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                ) as response:
                    lines = (await response.read()).splitlines()
            except DockerError as error:
                if error.status == _NO_CONNECTION:
                    raise
                raise ProviderError(f"The engine refused: {error.message}.") from None
        for line in lines:
            if "error" in (said := json.loads(line)):
                raise ProviderError(f"The engine refused: {said['error']}.")

    @asynccontextmanager
    async def receive(
        self, path: str, params: Mapping[str, Any] | None = None
    ) -> AsyncIterator[aiohttp.StreamReader]:
        """Read an answer as it comes, until the end of the block; raises DockerError for 404 and 409."""
        with self.translated():
            async with self.streams._query(
                path,
                params=None if params is None else dict(params),
                timeout=ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            ) as response:
                try:
                    yield response.content
                finally:
                    response.close()

    async def ping(self) -> None:
        """Raise ProviderUnavailable unless the engine answers soon."""
        await self.call("version", timeout_seconds=PING_SECONDS)

    async def events(self, filters: Mapping[str, Any]) -> AsyncIterator[dict[str, Any] | None]:
        """Yield None when the stream stands, then each event; end by raising ProviderUnavailable.

        aiodocker's own event stream does not come back after an engine's restart.
        """
        with self.translated():
            await self.ping()
            async with self.streams._query(
                "events",
                params={"filters": json.dumps(filters)},
                timeout=ClientTimeout(sock_connect=CONNECT_SECONDS),
            ) as response:
                try:
                    yield None
                    while line := await self._read_line(response):
                        yield json.loads(line)
                finally:
                    response.close()
        raise self._unavailable("its event stream ended")

    async def _read_line(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the next line; while there is none, make sure that the engine lives."""
        reading = asyncio.ensure_future(response.content.readline())
        try:
            while not reading.done():
                await asyncio.wait({reading}, timeout=QUIET_SECONDS)
                if not reading.done():
                    await self.ping()
            return reading.result()
        finally:
            reading.cancel()

    async def close(self) -> None:
        """Close both clients and their connections."""
        for client in self._clients:
            await client.close()
        for connector in self._connectors:
            await connector.close()


class _Sent:
    """What is sent as it comes: an error of its source is told as that, not as one of the connection."""

    def __init__(self) -> None:
        self._error: Exception | None = None

    async def chunks(self, source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for chunk in source:
                yield chunk
        except Exception as error:
            self._error = error
            raise

    @contextmanager
    def explained(self) -> Iterator[None]:
        try:
            yield
        except (ProviderError, ProviderUnavailable):
            if self._error is not None:
                raise self._error from None
            raise


def half_close(stream: Any) -> None:
    """End an exec's input; aiodocker has no public way to."""
    stream._resp.connection.transport.write_eof()


def require_ours(instance: str, found: Any, what: str, name: str, inside: tuple[str, ...] = ()) -> None:
    """Refuse to adopt a thing of our name that does not bear our label."""
    for step in inside:
        found = (found or {}).get(step)
    if ((found or {}).get("Labels") or {}).get(LABEL_INSTANCE) != instance:
        raise ProviderError(
            f"There is a {what} {name} at the engine that is not this daemon's; remove or rename it."
        )


async def do_all(*parts: Coroutine[Any, Any, None]) -> None:
    """Do all to the end before the first error of any is raised, so that none goes on unseen."""
    for result in await asyncio.gather(*parts, return_exceptions=True):
        if result is not None:
            raise result
