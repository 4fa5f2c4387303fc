"""The yardstick of fan-out: aiohttp, uvloop and a plain loop that sends one text frame to every socket.

`python -m tests.benchmarks.shouting PORT`: no credential, no books, no backlog for the slow.
"""

import asyncio
import sys

import uvloop
from aiohttp import web


async def serve(port: int) -> None:
    """Send what is posted to everybody who listens, until the process is ended."""
    sockets: list[web.WebSocketResponse] = []

    async def listen(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        sockets.append(socket)
        async for _ in socket:
            pass
        sockets.remove(socket)
        return socket

    async def shout(request: web.Request) -> web.Response:
        frame = await request.text()
        for socket in sockets:
            await socket.send_str(frame)
        return web.Response()

    async def ready(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/ready", ready), web.get("/ws", listen), web.post("/shout", shout)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop_runner:
        loop_runner.run(serve(int(sys.argv[1])))
