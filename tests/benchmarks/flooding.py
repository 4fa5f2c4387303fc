"""The reader of a shell that never stops printing, a process of its own.

Input: one JSON object, and a line when it is enough. Output: a line when the flood has begun, and how much of
it came a second. Loopback only.
"""

import asyncio
import json
import sys
import time

import uvloop

from tests.benchmarks.wires import Daemon

MAX_SECONDS = 60.0
COMMAND = "printf BEGIN; exec yes 'src/parser.py:118: warning: comparison of a and b [style]'"


async def run(port: int, token: str, workspace_id: str) -> None:
    """Read until there is a line on stdin."""
    wire = await Daemon(port, token, workspace_id).shell(COMMAND)
    started = await wire.until(b"BEGIN")
    sys.stdout.write("flooding\n")
    sys.stdout.flush()
    async with asyncio.timeout(MAX_SECONDS):
        await asyncio.to_thread(sys.stdin.readline)
    mib = wire.count / 2**20 / (time.perf_counter() - started)
    wire.type(b"\x03")
    wire.close()
    sys.stdout.write(json.dumps({"mib": mib}))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(**json.loads(sys.stdin.readline())))
