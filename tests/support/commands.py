"""Commands as clients run and read them, and one that writes what a test can check byte by byte."""

import asyncio
import base64
import inspect
import json
from typing import Any

import aiohttp

from tests.support.api import Api

STREAMS = ("stdout", "stderr")
_NUMBERS = {"stdout": 1, "stderr": 2}


def block(stream: int, number: int) -> bytes:
    """Return 256 bytes of all values, that no other block has."""
    return number.to_bytes(8, "big") * 8 + bytes((number + stream + at) % 256 for at in range(192))


def blocks(stream: str, count: int) -> bytes:
    return b"".join(block(_NUMBERS[stream], number) for number in range(count))


def writer(count: int, *, pause_seconds: float = 0.0, exit_code: int = 0) -> list[str]:
    """Return a command that writes so many blocks to each stream."""
    program = f"""
import os, time
{inspect.getsource(block)}
for number in range({count}):
    for stream in (1, 2):
        data = block(stream, number)
        while data:
            data = data[os.write(stream, data):]
    if {pause_seconds}:
        time.sleep({pause_seconds})
raise SystemExit({exit_code})
"""
    return ["python3", "-c", program]


async def run(api: Api, path: str, command: Any, **wanted: Any) -> Any:
    """Begin a command and return it."""
    answer = await api.post(f"{path}/commands", {"command": command, **wanted})
    assert answer.status == 202, answer.text
    return await get(api, path, answer.json["command_id"])


async def get(api: Api, path: str, command_id: str) -> Any:
    answer = await api.get(f"{path}/commands/{command_id}")
    assert answer.status == 200, answer.text
    return answer.json


async def ended(api: Api, path: str, command: Any) -> tuple[Any, Any]:
    """Return the command and its operation, both final."""
    operation = await api.wait({"id": command["operation_id"]})
    final = await get(api, path, command["id"])
    assert final["finished_at"] is not None
    return final, operation


async def output(api: Api, path: str, command_id: str, stream: str, offset: int = 0) -> tuple[int, bytes]:
    """Return where the kept bytes begin, and these."""
    query = {"stream": stream, "offset": str(offset)}
    url = f"/api/v1{path}/commands/{command_id}/output"
    async with api.session.get(url, params=query) as response:
        assert response.status == 200, await response.text()
        return int(response.headers["Vmd-Offset"]), await response.read()


async def until_printed(api: Api, path: str, command_id: str, wanted: bytes, stream: str = "stdout") -> None:
    """Return as soon as a command has printed this."""
    async with asyncio.timeout(30):
        while wanted not in (await output(api, path, command_id, stream))[1]:
            await asyncio.sleep(0.02)


class Follower:
    """A client that follows a command, and comes back where it stood for as often as it is cut off."""

    def __init__(self) -> None:
        self.got = {stream: bytearray() for stream in STREAMS}
        self.first = dict.fromkeys(STREAMS, 0)  # of the bytes in `got`
        self.dropped: list[tuple[str, int, int]] = []
        self.exit: Any = None

    async def follow(self, api: Api, path: str, command_id: str) -> None:
        """Take what comes until the command's end, or the daemon's."""
        query = {f"{stream}_offset": self._end(stream) for stream in STREAMS}
        rest = b""
        try:
            async with api.session.get(
                f"/api/v1{path}/commands/{command_id}/stream",
                params=query,
                timeout=aiohttp.ClientTimeout(total=None),
            ) as response:
                assert response.status == 200, await response.text()
                async for data in response.content.iter_any():
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        self._take(json.loads(line))
        except aiohttp.ClientError:
            return

    def _end(self, stream: str) -> int:
        return self.first[stream] + len(self.got[stream])

    def _take(self, line: Any) -> None:
        assert self.exit is None
        kind = line["type"]
        if kind in STREAMS:
            is_binary = line.get("encoding") == "base64"
            data = base64.b64decode(line["data"]) if is_binary else line["data"].encode()
            assert line["offset"] == self._end(kind)
            self.got[kind] += data
        elif kind == "dropped":
            stream = line["stream"]
            assert line["offset"] == self._end(stream)
            self.dropped.append((stream, line["offset"], line["bytes"]))
            self.first[stream] = line["offset"] + line["bytes"]
            self.got[stream].clear()
        elif kind == "exit":
            self.exit = line
        else:
            assert kind == "start"
