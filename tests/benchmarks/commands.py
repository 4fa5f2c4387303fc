"""Commands: the first byte, and much output, beside plain execs of the engine in the same container."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import median

import uvloop

from tests.benchmarks.machine import BEGIN, Machine, machine, until
from tests.benchmarks.table import Row, middle

WARM_UP = 3
RUNS = 40
ROUNDS = 3
OUTPUT_BYTES = 500 * 2**20
NDJSON = "application/x-ndjson"
ECHO = ["echo", "x"]
ZEROS = f"sleep 0.3; printf {BEGIN.decode()}; exec head -c {OUTPUT_BYTES} /dev/zero"
LINE = 'src/parser.c:118:9: warning: comparison of ‘naïve’ and "plain" is always true [-Wtype-limits]'
TEXT = f"sleep 0.3; printf {BEGIN.decode()}; yes '{LINE}' | head -c {OUTPUT_BYTES}"
CHUNKS_END = b"\r\n0\r\n\r\n"
EXIT_LINE = b'{"type":"exit"'

Seconds = Callable[[], Awaitable[float]]


def measure(directory: Path) -> list[Row]:
    """Run all comparisons against one daemon and one workspace."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(directory / "commands"))


async def _measure(data_dir: Path) -> list[Row]:
    async with machine(data_dir) as one:
        return [
            await _first_byte(one),
            await _output("output, zeros", lambda: _bytes(one, ZEROS), lambda: _raw(one, ZEROS)),
            await _output("output, text", lambda: _bytes(one, TEXT), lambda: _raw(one, TEXT)),
            await _output("output as NDJSON, text", lambda: _lines(one, TEXT), lambda: _raw(one, TEXT)),
        ]


async def _first_byte(one: Machine) -> Row:
    """Time from the request, or the call that creates the exec, until the first output."""
    ours: list[float] = []
    raw: list[float] = []
    body = json.dumps({"command": ECHO}).encode()
    for number in range(-WARM_UP, RUNS):
        started = time.perf_counter()
        wire = await one.ours.post("/commands", body, NDJSON)
        mine = await wire.until(b'"type":"stdout"') - started
        await wire.until(EXIT_LINE)
        wire.close()
        started = time.perf_counter()
        async with await one.raw.open(ECHO) as stream:
            theirs = await until(stream, b"x") - started
            while await stream.read_out() is not None:
                pass
        if number >= 0:
            ours.append(mine * 1000)
            raw.append(theirs * 1000)
    return Row(
        subject="first byte of a command",
        ours=middle(ours, "ms", 1),
        yardstick=middle(raw, "ms", 1),
        compared=median(ours) / median(raw),
        bound=0.25,
        is_upper=True,
    )


async def _output(subject: str, ours: Seconds, raw: Seconds) -> Row:
    mine: list[float] = []
    theirs: list[float] = []
    for _ in range(ROUNDS):
        mine.append(OUTPUT_BYTES / 2**20 / await ours())
        theirs.append(OUTPUT_BYTES / 2**20 / await raw())
    return rates(subject, mine, theirs, 0.4)


def rates(subject: str, ours: Sequence[float], raw: Sequence[float], bound: float) -> Row:
    """Return the row of a stream that was measured several times, in MiB/s."""
    return Row(
        subject=subject,
        ours=middle(ours, "MiB/s"),
        yardstick=middle(raw, "MiB/s"),
        compared=median(a / b for a, b in zip(ours, raw, strict=True)),
        bound=bound,
        is_upper=False,
    )


async def _bytes(one: Machine, line: str) -> float:
    """Follow the bytes of a command that was begun before."""
    command_id = await one.api.run(one.ours.workspace_id, line)
    wire = await one.ours.get(f"/commands/{command_id}/output?follow=true")
    started = await wire.until(BEGIN)
    ended = await wire.until(CHUNKS_END)
    wire.close()
    assert wire.count >= OUTPUT_BYTES, f"{wire.count} bytes came"
    return ended - started


async def _lines(one: Machine, line: str) -> float:
    """Take the live stream of a command."""
    wire = await one.ours.post("/commands", json.dumps({"command": line}).encode(), NDJSON)
    started = await wire.until(BEGIN)
    ended = await wire.until(EXIT_LINE)
    wire.close()
    assert wire.count >= OUTPUT_BYTES, f"{wire.count} bytes came"
    return ended - started


async def _raw(one: Machine, line: str) -> float:
    return await one.raw.seconds(["/bin/bash", "-c", line], OUTPUT_BYTES)
