"""The yardstick of reading: aiohttp, uvloop and one aiosqlite query that finds the answer's text.

`python -m tests.benchmarks.bare DATABASE PORT`: no credential, no checks, no model between books and wire.
`execute_fetchall` is aiosqlite's fastest way to ask: one trip to its thread instead of three.
"""

import asyncio
import sqlite3
import sys
from collections.abc import Mapping
from pathlib import Path

import aiosqlite
import uvloop
from aiohttp import web

KEEPALIVE_SECONDS = 15.0
_FIND = "SELECT body FROM answers WHERE path = ?"


def write_answers(database: Path, answers: Mapping[str, str]) -> None:
    """Store what the bare server answers, by path and query."""
    connection = sqlite3.connect(database)
    with connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE answers (path TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT")
        connection.executemany("INSERT INTO answers (path, body) VALUES (?, ?)", answers.items())
    connection.close()


async def serve(database: str, port: int) -> None:
    """Answer with what is stored, until the process is ended."""
    async with aiosqlite.connect(database) as connection:

        async def answer(request: web.Request) -> web.Response:
            rows = list(await connection.execute_fetchall(_FIND, (request.path_qs,)))
            return web.Response(text=rows[0][0], content_type="application/json")

        async def ready(request: web.Request) -> web.Response:
            return web.Response()

        app = web.Application()
        app.add_routes(
            [
                web.get("/ready", ready),
                web.get("/api/v1/workspaces", answer),
                web.get("/api/v1/workspaces/{id}", answer),
            ]
        )
        runner = web.AppRunner(app, access_log=None, keepalive_timeout=KEEPALIVE_SECONDS)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop_runner:
        loop_runner.run(serve(sys.argv[1], int(sys.argv[2])))
