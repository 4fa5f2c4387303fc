"""The ways in which a daemon may be told to listen."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.support.api import Api

FAKE = {
    "VMD_PROVIDERS__DOCKER__ENABLED": "false",
    "VMD_PROVIDERS__FAKE__ENABLED": "true",
    "VMD_WORKSPACES__PROVIDER": "fake",
    "PATH": "/usr/bin:/bin",
}


@contextmanager
def running(command: list[str], **options: object) -> Iterator[None]:
    """Run a daemon until the end of the block, from when it says that it is ready."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=FAKE, **options) as daemon:  # type: ignore[call-overload]
        try:
            assert any("vmd is ready" in line for line in daemon.stderr)
            yield
        finally:
            daemon.terminate()
            daemon.communicate(timeout=20)
        assert daemon.returncode == 0


async def test_it_listens_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "vmd.sock"
    serve = [sys.executable, "-m", "vmd", "serve", "--data-dir", str(tmp_path / "data")]
    with running([*serve, "--listen", f"unix:{path}"]):
        async with Api("http://localhost", None, aiohttp.UnixConnector(str(path))) as api:
            assert (await api.get("/health")).json["status"] == "ok"
            assert (await api.get("/me")).status == 401  # it is not the control socket


async def test_a_socket_that_was_handed_over_wins(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port, number = listening.getsockname()[1], listening.fileno()
        # As systemd does: the socket is descriptor 3, and LISTEN_PID says for whom.
        script = f'exec 3<&{number}; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'
        serve = [sys.executable, "-m", "vmd", "serve", "--data-dir", str(tmp_path / "data")]
        command = ["bash", "-c", script, "bash", *serve, "--listen", "127.0.0.1:1"]
        with running(command, pass_fds=[number]):
            async with Api(f"http://127.0.0.1:{port}", None) as api:
                assert (await api.get("/health/ready")).status == 200


@pytest.mark.parametrize("style", ["json", "text"])
def test_the_log_is_as_asked_for(tmp_path: Path, style: str) -> None:
    command = [sys.executable, "-m", "vmd", "serve", "--data-dir", str(tmp_path / "data")]
    with subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**FAKE, "VMD_LOG__FORMAT": style},
    ) as daemon:
        assert daemon.stderr is not None
        line = next(line for line in daemon.stderr if "vmd is ready" in line)
        daemon.terminate()
        daemon.communicate(timeout=20)
    assert line.startswith("{") is (style == "json")
