"""Servers as processes of their own: the daemon as a user runs it, and the bare ones."""

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1"
READY_SECONDS = 30.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.004
FAKE_ONLY = {
    "VMD_PROVIDERS__DOCKER__ENABLED": "false",
    "VMD_PROVIDERS__FAKE__ENABLED": "true",
    "VMD_WORKSPACES__PROVIDER": "fake",
}


@frozen(kw_only=True)
class Server:
    """A server that answers, and how long it took to."""

    pid: int
    port: int
    start_seconds: float

    def rss_mb(self) -> float:
        """Return the memory that the process has resident, in 10^6 bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise AssertionError("a process without VmRSS")


@contextmanager
def daemon(data_dir: Path, settings: Mapping[str, str]) -> Iterator[Server]:
    """Run `vmd serve` on a data directory until the block ends."""
    port = free_port()
    data_dir.mkdir(mode=0o700, exist_ok=True)
    arguments = ["vmd", "serve", "--data-dir", str(data_dir), "--listen", f"{HOST}:{port}"]
    with _server(arguments, port, "/health/ready", settings, data_dir / "serve.log") as server:
        yield server


@contextmanager
def bare(database: Path) -> Iterator[Server]:
    """Run the bare server on a file of stored answers until the block ends."""
    port = free_port()
    arguments = ["tests.benchmarks.bare", str(database), str(port)]
    with _server(arguments, port, "/ready", {}, database.with_suffix(".log")) as server:
        yield server


@contextmanager
def shouting(directory: Path) -> Iterator[Server]:
    """Run the bare server that sends what is posted to everybody, until the block ends."""
    port = free_port()
    arguments = ["tests.benchmarks.shouting", str(port)]
    with _server(arguments, port, "/ready", {}, directory / "shouting.log") as server:
        yield server


def token_of(data_dir: Path) -> str:
    """Return the secret that the first start wrote."""
    return (data_dir / "admin-token").read_text().strip()


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def _server(
    arguments: Sequence[str], port: int, ready_path: str, settings: Mapping[str, str], log: Path
) -> Iterator[Server]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VMD_")}
    with log.open("ab") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env={**environment, **settings},
            stdout=output,
            stderr=output,
        )
    try:
        while not _is_ready(port, ready_path):
            if process.poll() is not None or time.perf_counter() - started > READY_SECONDS:
                raise RuntimeError(f"{arguments[0]} does not come up: {log.read_text()[-2000:]}")
            time.sleep(POLL_SECONDS)
        yield Server(pid=process.pid, port=port, start_seconds=time.perf_counter() - started)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_ready(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
