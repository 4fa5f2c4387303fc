"""The listeners of fan-out: a thousand sockets at each of two servers, and how long a frame takes to all.

A process of its own with uvloop and bare protocols that only look for a mark, so that both servers are
measured alike; how much of a processor it needed is part of its report. Input: one JSON object on stdin.
Loopback only.
"""

import asyncio
import json
import sys
import time
from typing import cast

import uvloop

HOST = "127.0.0.1"
EVENT_SECONDS = 10.0  # that one frame may take to the last
PAUSE_SECONDS = 0.01  # for a server to be at rest again
FRAME_HEADER_BYTES = 4  # of one between 126 and 65535 bytes, unmasked
PING, PONG = b"\x89\x00", b"\x8a\x80\x00\x00\x00\x00"
UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {token}\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
REQUEST = (
    "{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {token}\r\n"
    "Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
)


class Round:
    """What all listeners wait for at present: a mark, and when each of them has seen it."""

    def __init__(self, mark: bytes, count: int) -> None:
        self.mark = mark
        self.arrivals: list[float] = []
        self.frame = b""
        self.is_over = asyncio.get_running_loop().create_future()
        self._count = count

    def arrive(self, frame: bytes) -> None:
        """Note that one more listener has the frame."""
        self.arrivals.append(time.perf_counter())
        if len(self.arrivals) == self._count:
            self.frame = frame
            self.is_over.set_result(None)


class Side:
    """One server's listeners, and the request that makes it send."""

    def __init__(self, port: int, token: str, method: str, path: str) -> None:
        self._head = {"host": HOST, "port": port, "token": token}
        self._cause = {"method": method, "path": path}
        self._port = port
        self._listeners = 0
        self.round: Round | None = None
        self.p99: list[float] = []
        self.last: list[float] = []

    async def open(self, path: str, count: int) -> None:
        """Connect the listeners, and one connection for the requests."""
        loop = asyncio.get_running_loop()
        upgrade = UPGRADE.format(path=path, **self._head).encode()
        for _ in range(count):
            _, listener = await loop.create_connection(lambda: Listener(self, upgrade), HOST, self._port)
            await listener.is_open
        self._listeners = count
        self._asking, _ = await loop.create_connection(asyncio.Protocol, HOST, self._port)

    async def send(self, mark: bytes, body: bytes) -> bytes:
        """Have the server send a frame with this mark; return it when everybody has it."""
        self.round = Round(mark, self._listeners)
        head = REQUEST.format(length=len(body), **self._head, **self._cause)
        started = time.perf_counter()
        self._asking.write(head.encode() + body)
        async with asyncio.timeout(EVENT_SECONDS):
            await self.round.is_over
        taken = [(arrival - started) * 1000 for arrival in self.round.arrivals]
        self.p99.append(taken[len(taken) * 99 // 100 - 1])
        self.last.append(taken[-1])
        return self.round.frame


class Listener(asyncio.Protocol):
    """One socket; `is_open` is set when the server has taken the upgrade."""

    def __init__(self, side: Side, upgrade: bytes) -> None:
        self._side = side
        self._upgrade = upgrade
        self._received = b""
        self.is_open = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, but no subclass
        self._transport.write(self._upgrade)

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data
        if received == PING:
            self._transport.write(PONG)
            self._received = b""
        elif self._side.round is None:
            if received.endswith(b"\r\n\r\n"):
                assert received.startswith(b"HTTP/1.1 101 "), received
                self._received = b""
                self.is_open.set_result(None)
        elif self._side.round.mark in received:
            self._received = b""
            self._side.round.arrive(received)


async def run(ours: dict[str, str], bare: dict[str, str], listeners: int, events: int) -> None:
    """Send each event of ours and then, from the bare server, the very same frame; print the times."""
    sides = [
        Side(int(given["port"]), given["token"], given["method"], given["path"]) for given in (ours, bare)
    ]
    for side, given in zip(sides, (ours, bare), strict=True):
        await side.open(given["socket_path"], listeners)
    started, cpu = time.perf_counter(), time.process_time()
    for number in range(events):
        mark = f"mark-{number:06d}."
        frame = await sides[0].send(mark.encode(), json.dumps({"description": mark}).encode())
        await asyncio.sleep(PAUSE_SECONDS)
        await sides[1].send(mark.encode(), frame[FRAME_HEADER_BYTES:])
        await asyncio.sleep(PAUSE_SECONDS)
    busy = (time.process_time() - cpu) / (time.perf_counter() - started)
    times = [{"p99": side.p99, "last": side.last} for side in sides]
    sys.stdout.write(json.dumps({"ours": times[0], "bare": times[1], "busy": busy, "frame": len(frame)}))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(**json.load(sys.stdin)))
