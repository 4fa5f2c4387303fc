"""Snapshots and restores, beside what the engine and tar take for the same disk and files."""

import asyncio
import subprocess
import time
from collections.abc import Awaitable
from pathlib import Path
from statistics import median
from typing import IO

import uvloop

from tests.benchmarks.api import Api, connect
from tests.benchmarks.engine import RawEngine, raw_engine
from tests.benchmarks.process import daemon, token_of
from tests.benchmarks.table import Row, middle

ROUNDS = 5
DISK_BYTES = 200_000_000
FILES = 5000
FILE_BYTES = 10_000
WANTED = {"resources": {"cpus": 2, "memory_mb": 2048}}
FILL = f"""
import os
with open("/var/tmp/changed", "wb") as disk:
    for _ in range({DISK_BYTES // 1_000_000}):
        disk.write(os.urandom(1_000_000))
for number in range({FILES}):
    directory = f"/workspace/{{number // 100}}"
    os.makedirs(directory, exist_ok=True)
    with open(f"{{directory}}/{{number}}", "wb") as file:
        file.write(os.urandom({FILE_BYTES}))
"""
PACK = ["tar", "-C", "/workspace", "-cf", "/var/tmp/packed.tar", "."]
ARCHIVE = "/tmp/vmd-benchmark-files.tar"


def measure(directory: Path) -> list[Row]:
    """Run both comparisons against one daemon with fresh books."""
    data_dir = directory / "snapshots"
    settings = {"VMD_PROVIDERS__DOCKER__SUBNET_POOL": "10.226.0.0/16"}
    with daemon(data_dir, settings) as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(server.port, token_of(data_dir)))


async def _measure(port: int, token: str) -> list[Row]:
    async with connect(port, token) as api, raw_engine() as engine:
        workspace_id = await api.make(WANTED)
        container = _container_of(workspace_id)
        await _docker("exec", "-u", "0", container, "python3", "-c", FILL)
        return [
            *await _snapshot(api, workspace_id, container),
            await _restore(api, engine, workspace_id, container),
        ]


async def _snapshot(api: Api, workspace_id: str, container: str) -> list[Row]:
    """Take snapshots by turns with a commit and a tar inside, each alone; the longer of those counts."""
    ours: list[float] = []
    raw: list[float] = []
    paused: list[float] = []
    for number in range(-1, ROUNDS):
        began = time.perf_counter()
        snapshot_id, result = await api.snapshot(workspace_id)
        mine = time.perf_counter() - began
        await api.remove_snapshot(workspace_id, snapshot_id)
        commit = await _seconds(_docker("commit", container, "vmd-benchmark:commit"))
        await _docker("rmi", "vmd-benchmark:commit")
        tar = await _seconds(_docker("exec", "-u", "0", container, *PACK))
        await _docker("exec", "-u", "0", container, "rm", PACK[4])
        if number >= 0:  # the first warms up
            ours.append(mine * 1000)
            raw.append(max(commit, tar) * 1000)
            paused.append(result["paused_seconds"] * 1000)
    return [
        Row(
            subject="snapshot of 200 MB and 5,000 files (the longer of commit and tar)",
            ours=middle(ours, "ms"),
            yardstick=middle(raw, "ms"),
            compared=median(a / b for a, b in zip(ours, raw, strict=True)),
            bound=1.1,
            is_upper=True,
        ),
        Row(
            subject="the machine stands still meanwhile",
            ours=middle(paused, "ms"),
            yardstick="",
            compared=median(paused) / 1000,
            bound=1.0,
            is_upper=True,
        ),
    ]


async def _restore(api: Api, engine: RawEngine, workspace_id: str, container: str) -> Row:
    """Restore to a new workspace until it runs, by turns with making a machine and unpacking a tar in it."""
    ours: list[float] = []
    raw: list[float] = []
    snapshot_id, _ = await api.snapshot(workspace_id)
    await _docker("exec", "-u", "0", container, *PACK)
    await _docker("cp", f"{container}:{PACK[4]}", ARCHIVE)
    for number in range(-1, ROUNDS):
        began = time.perf_counter()
        made = await api.restore(workspace_id, snapshot_id)
        mine = time.perf_counter() - began
        await api.remove(made)
        began = time.perf_counter()
        name = await engine.make()
        with _open_archive() as packed:
            await _docker("exec", "-i", "-u", "0", name, "tar", "-C", "/workspace", "-xf", "-", stdin=packed)
        theirs = time.perf_counter() - began
        await engine.remove(name)
        if number >= 0:
            ours.append(mine * 1000)
            raw.append(theirs * 1000)
    _remove_archive()
    return Row(
        subject="restore to a new workspace until it runs (create and untar)",
        ours=middle(ours, "ms"),
        yardstick=middle(raw, "ms"),
        compared=median(a / b for a, b in zip(ours, raw, strict=True)),
        bound=1.3,
        is_upper=True,
    )


def _open_archive() -> IO[bytes]:
    return Path(ARCHIVE).open("rb")


def _remove_archive() -> None:
    Path(ARCHIVE).unlink()


async def _seconds(work: Awaitable[None]) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


def _container_of(workspace_id: str) -> str:
    label = f"label=vmd.workspace={workspace_id}"
    found = subprocess.run(
        ["docker", "ps", "-q", "--filter", label], check=True, capture_output=True, text=True
    )
    return found.stdout.strip()


async def _docker(*argv: str, stdin: IO[bytes] | None = None) -> None:
    process = await asyncio.create_subprocess_exec(
        "docker",
        *argv,
        stdin=stdin,
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0, argv
