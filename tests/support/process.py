"""The daemon as its users run it: a process of its own, on the real engine, that can be killed."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.api import Api

START_SECONDS = 15
OF_A_WORKSPACE = 4  # what the engine holds for one: a container, two volumes, a network


class Process:
    """One `vmd serve` on a data directory; start it again after it was killed."""

    def __init__(self, data_dir: Path, environment: Mapping[str, str]) -> None:
        self.data_dir = data_dir
        self._environment = {**os.environ, **environment}
        self._log = data_dir.parent / f"{data_dir.name}.log"
        self._running: subprocess.Popen[bytes] | None = None

    async def start(self) -> Api:
        """Run the daemon until it answers, and return a client of its administrator."""
        self.data_dir.mkdir(exist_ok=True)
        with self._log.open("ab") as log:
            self._running = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "vmd",
                    "serve",
                    "--data-dir",
                    self.data_dir,
                    "--listen",
                    "127.0.0.1:0",
                ],
                stderr=log,
                env=self._environment,
            )
        seen = len(self.log())
        async with asyncio.timeout(START_SECONDS):
            while True:
                assert self._running.poll() is None, self._log.read_text()
                ready = [line for line in self.log()[seen:] if line["event"] == "vmd is ready"]
                if ready:
                    token = (self.data_dir / "admin-token").read_text().strip()
                    return Api(ready[0]["listen"][0], token)
                await asyncio.sleep(0.02)

    def log(self) -> list[Any]:
        """Return the lines of its log."""
        if not self._log.exists():
            return []
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]

    def kill(self) -> None:
        """Kill it without a warning, and wait until it is gone."""
        self.signal(signal.SIGKILL)

    def terminate(self) -> int:
        """Ask it to end, and return its exit status."""
        return self.signal(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end."""
        assert self._running is not None
        self._running.send_signal(number)
        return self._running.wait(timeout=20)

    def memory_bytes(self) -> int:
        """Return how much memory it has had at most since it began."""
        assert self._running is not None
        status = Path(f"/proc/{self._running.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    @property
    def is_running(self) -> bool:
        return self._running is not None and self._running.poll() is None


def instance_of(data_dir: Path) -> str:
    """Return what the daemon of this data directory labels its things with."""
    books = sqlite3.connect(data_dir / "vm.db")
    instance: str = books.execute("SELECT value FROM settings WHERE name = 'instance'").fetchone()[0]
    books.close()
    return instance


def labelled(data_dir: Path) -> list[str]:
    """Return every container, volume and network that the engine holds for this daemon."""
    instance = instance_of(data_dir)
    found = []
    for kind in (["ps", "-a"], ["volume", "ls"], ["network", "ls"]):
        command = ["docker", *kind, "-q", "--filter", f"label=vmd.instance={instance}"]
        found += subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return found


@asynccontextmanager
async def daemon_process(data_dir: Path, **environment: str) -> AsyncIterator[Process]:
    """Yield a daemon that is not started yet; at the end it is stopped, and its machines are gone."""
    process = Process(data_dir, environment)
    try:
        yield process
    finally:
        if process.is_running:
            process.kill()
        for name in labelled(data_dir):
            subprocess.run(["docker", "rm", "-fv", name], capture_output=True)
        for name in labelled(data_dir):
            subprocess.run(["docker", "network", "rm", name], capture_output=True)
            subprocess.run(["docker", "volume", "rm", "-f", name], capture_output=True)
        filters = [
            "--filter",
            f"label=vmd.instance={instance_of(data_dir)}",
            "--filter",
            "label=vmd.snapshot",
        ]
        images = subprocess.run(["docker", "images", "-aq", *filters], capture_output=True, text=True).stdout
        for image in images.split():
            subprocess.run(["docker", "rmi", "-f", image], capture_output=True)
