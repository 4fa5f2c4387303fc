"""Terminals: opening, typing, much output and many idle ones, beside tty execs in the same container."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles

import uvloop

from tests.benchmarks.commands import rates
from tests.benchmarks.machine import BEGIN, PROMPT, Machine, machine, until
from tests.benchmarks.process import ROOT
from tests.benchmarks.table import Row, middle

WARM_UP = 3
OPENINGS = 25
KEYS = 1000
WARM_UP_KEYS = 50
ROUNDS = 3
OUTPUT_BYTES = 100 * 2**20
IDLE_SHELLS = 200
MAX_IDLE_MB = 20.0
SETTLE_SECONDS = 2.0
FLOOD_SECONDS = 8.0
ASK_PAUSE_SECONDS = 0.003
MAX_ANSWER_MS = 50.0
ECHO = "stty raw -echo; printf BEGIN; exec cat"
LOGIN = ["/bin/bash", "-l"]
LINE = "src/parser.py:118: warning: comparison of a and b [style] - see the manual, p. 7"
FLOOD = f"sleep 0.3; printf {BEGIN.decode()}; yes '{LINE}' | head -c {OUTPUT_BYTES}"


def measure(directory: Path) -> list[Row]:
    """Run all comparisons against one daemon and one workspace."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(directory / "terminals"))


async def _measure(data_dir: Path) -> list[Row]:
    async with machine(data_dir) as one:
        return [
            await _opening(one),
            *await _typing(one),
            await _output(one),
            await _idle(one),
            await _flood(one),
        ]


async def _opening(one: Machine) -> Row:
    """Time from connecting, or the call that creates the exec, until the prompt."""
    ours: list[float] = []
    raw: list[float] = []
    for number in range(-WARM_UP, OPENINGS):
        started = time.perf_counter()
        wire = await one.ours.shell()
        mine = await wire.until(PROMPT) - started
        wire.type(b"exit\r")
        await wire.until(b'"exit_code"')
        wire.close()
        started = time.perf_counter()
        async with await one.raw.open(LOGIN, tty=True) as stream:
            theirs = await until(stream, PROMPT) - started
            await stream.write_in(b"exit\r")
            while await stream.read_out() is not None:
                pass
        if number >= 0:
            ours.append(mine * 1000)
            raw.append(theirs * 1000)
    return Row(
        subject="shell open until its prompt",
        ours=middle(ours, "ms", 1),
        yardstick=middle(raw, "ms", 1),
        compared=median(ours) / median(raw),
        bound=1.0,
        is_upper=True,
    )


async def _typing(one: Machine) -> list[Row]:
    """Type keys one by one, ours and the engine's in turn, and wait for each to come back."""
    ours: list[float] = []
    raw: list[float] = []
    wire = await one.ours.shell(ECHO)
    await wire.until(BEGIN)
    async with await one.raw.open(["/bin/bash", "-c", ECHO], tty=True) as stream:
        await until(stream, BEGIN)
        for number in range(-WARM_UP_KEYS, KEYS):
            key = b"abcdefghij"[number % 10 : number % 10 + 1]
            started = time.perf_counter()
            wire.type(key)
            mine = await wire.until(b"\x82\x01" + key) - started
            started = time.perf_counter()
            await stream.write_in(key)
            theirs = await until(stream, key) - started
            if number >= 0:
                ours.append(mine * 1000)
                raw.append(theirs * 1000)
    wire.close()
    rows = []
    for name, index, bound in (("median", 49, 0.5), ("p99", 98, 2.0)):
        mine, theirs = (quantiles(times, n=100)[index] for times in (ours, raw))
        rows.append(
            Row(
                subject=f"a key and its echo, {name} of {KEYS:,}",
                ours=f"{mine:.2f} ms",
                yardstick=f"{theirs:.2f} ms",
                compared=mine - theirs,
                unit="ms",
                bound=bound,
                is_upper=True,
            )
        )
    return rows


async def _output(one: Machine) -> Row:
    ours: list[float] = []
    raw: list[float] = []
    for _ in range(ROUNDS):
        wire = await one.ours.shell(FLOOD)
        started = await wire.until(BEGIN)
        ended = await wire.until(b'"exit_code"')
        wire.close()
        assert wire.count >= OUTPUT_BYTES, f"{wire.count} bytes came"
        ours.append(OUTPUT_BYTES / 2**20 / (ended - started))
        seconds = await one.raw.seconds(["/bin/bash", "-lc", FLOOD], OUTPUT_BYTES, tty=True)
        raw.append(OUTPUT_BYTES / 2**20 / seconds)
    return rates("output of a terminal", ours, raw, 0.8)


async def _idle(one: Machine) -> Row:
    """Weigh the daemon before and after many shells that wait at their prompts."""
    before = one.server.rss_mb()
    wires = []
    for _ in range(IDLE_SHELLS):
        wire = await one.ours.shell()
        await wire.until(PROMPT)
        wires.append(wire)
    await asyncio.sleep(SETTLE_SECONDS)
    more = one.server.rss_mb() - before
    for wire in wires:
        wire.type(b"exit\r")
        await wire.until(b'"exit_code"')
        wire.close()
    return Row(
        subject=f"memory of {IDLE_SHELLS} idle shells",
        ours=f"{more:.1f} MB on {before:.1f} MB",
        yardstick=f"{MAX_IDLE_MB:g} MB",
        compared=more / MAX_IDLE_MB,
        bound=1.0,
        is_upper=True,
    )


async def _flood(one: Machine) -> Row:
    """Ask for the workspace all the time while one shell prints as fast as its client reads."""
    with _flooding(one) as flooding:
        times = await _ask(one)
        flooded = flooding.communicate(b"\n", timeout=30)[0]
    p99 = quantiles(times, n=100)[98]
    return Row(
        subject=f"get a workspace beside a flooding shell ({json.loads(flooded)['mib']:.0f} MiB/s), p99",
        ours=f"{p99:.1f} ms (median {median(times):.1f})",
        yardstick=f"{MAX_ANSWER_MS:g} ms",
        compared=p99 / MAX_ANSWER_MS,
        bound=1.0,
        is_upper=True,
    )


async def _ask(one: Machine) -> list[float]:
    times = []
    ends_at = time.perf_counter() + FLOOD_SECONDS
    wire = await one.ours.get()
    await wire.until(b'"id"')
    while (started := time.perf_counter()) < ends_at:
        wire.again()
        times.append((await wire.until(b'"created_at"') - started) * 1000)
        await asyncio.sleep(ASK_PAUSE_SECONDS)
    wire.close()
    return times


@contextmanager
def _flooding(one: Machine) -> Iterator["subprocess.Popen[bytes]"]:
    """Have a process of its own read a shell that never stops, until the block ends."""
    wanted = json.dumps(one.ours.address()).encode() + b"\n"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.flooding"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(wanted)
        process.stdin.flush()
        assert process.stdout.readline() == b"flooding\n"
        yield process
    finally:
        process.kill()
        process.wait()
