"""The load generator: keep-alive connections that each ask again as soon as they are answered.

A process of its own with uvloop and bare protocols, so that it can do several times what aiohttp answers; how
much of a processor it needed is part of its report. Input: one JSON object on stdin. Loopback only.
"""

import asyncio
import json
import re
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from typing import cast

import uvloop

HOST = "127.0.0.1"
LATE_SECONDS = 10.0  # that the last answers may take
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


class Load:
    """What all connections share: the requests to send, and when to stop."""

    def __init__(self, requests: Iterator[bytes], count: int, seconds: float) -> None:
        self.requests = requests
        self.left = count
        self.answered = 0
        self.failed = 0
        self.ends_at = time.perf_counter() + seconds

    def next(self) -> bytes | None:
        """Return the next request, None when it is enough."""
        if self.left == 0 or self.failed or time.perf_counter() >= self.ends_at:
            return None
        self.left -= 1
        return next(self.requests)


class Connection(asyncio.Protocol):
    """One connection; `done` is set when it was closed."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = bytearray()
        self._wanted = 0  # bytes of the answer that is being read; 0: its head is not complete
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, but no subclass
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._wanted:
            head_end = self._received.find(b"\r\n\r\n")
            if head_end < 0:
                return
            length = _LENGTH.search(self._received, 0, head_end)
            self._wanted = head_end + 4 + (0 if length is None else int(length[1]))
            self._load.failed += not self._received.startswith(b"HTTP/1.1 200 ")
        if len(self._received) >= self._wanted:
            self._load.answered += 1
            self._received.clear()
            self._wanted = 0
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.failed += exc is not None
        self.done.set_result(None)

    def _ask(self) -> None:
        request = self._load.next()
        if request is None:
            self._transport.close()
        else:
            self._transport.write(request)


async def run(port: int, paths: list[str], token: str, connections: int, count: int, seconds: float) -> None:
    """Ask for at most `count` answers in at most `seconds`; print how many came, and at what cost."""
    head = f" HTTP/1.1\r\nHost: {HOST}:{port}\r\nAuthorization: Bearer {token}\r\n\r\n"
    load = Load(cycle([f"GET {path}{head}".encode() for path in paths]), count, seconds)
    started, cpu = time.perf_counter(), time.process_time()
    loop = asyncio.get_running_loop()
    opened = [await loop.create_connection(lambda: Connection(load), HOST, port) for _ in range(connections)]
    async with asyncio.timeout(seconds + LATE_SECONDS):
        await asyncio.gather(*(protocol.done for _, protocol in opened))
    taken = time.perf_counter() - started
    busy = (time.process_time() - cpu) / taken
    sys.stdout.write(json.dumps({"rate": load.answered / taken, "busy": busy, "failed": load.failed}))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(**json.load(sys.stdin)))
