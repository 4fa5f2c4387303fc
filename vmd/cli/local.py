"""Requests to the daemon of a data directory, whether it runs or not.

A running one answers on its control socket. If none runs, one is opened for as long as the command takes,
which answers there and does nothing else; so every command has one way through.
"""

import asyncio
import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vmd import logs
from vmd.bootstrap import CONTROL_SOCKET, Daemon, DatabaseUnusable, DirectoryInUse
from vmd.cli.failure import Failure
from vmd.config import Settings
from vmd.http.middleware import ACT_AS_HEADER

TIMEOUT_SECONDS = 300.0
PATIENCE_SECONDS = 10.0


def call(
    settings: Settings, data_dir: Path, method: str, path: str, body: Any = None, *, user: str = "admin"
) -> Any:
    """Return the JSON answer to one request as this user; raise Failure with what went wrong."""
    return asyncio.run(_call(settings, data_dir, method, path, body, user))


async def _call(settings: Settings, data_dir: Path, method: str, path: str, body: Any, user: str) -> Any:
    logs.configure("warning", "auto")
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while True:
        daemon: Daemon | None = Daemon(settings, data_dir)
        try:
            await daemon.open()  # type: ignore[union-attr]
        except DirectoryInUse:
            daemon = None
        except (DatabaseUnusable, OSError) as error:
            raise Failure(str(error)) from None
        try:
            return await asyncio.to_thread(_request, data_dir, method, path, body, user)
        except (ConnectionRefusedError, FileNotFoundError) as error:
            # Another command has the directory and is about to open its socket, or has just closed it.
            if asyncio.get_running_loop().time() > deadline:
                raise _no_answer(data_dir, error) from None
        except (OSError, http.client.HTTPException) as error:
            raise _no_answer(data_dir, error) from None
        finally:
            if daemon is not None:
                await daemon.close()
        await asyncio.sleep(0.05)


def _no_answer(data_dir: Path, error: Exception) -> Failure:
    return Failure(f"the daemon of {data_dir} does not answer: {error}; is it stuck? Restart it")


def _request(data_dir: Path, method: str, path: str, body: Any, user: str) -> Any:
    connection = _ControlConnection(data_dir)
    try:
        headers = {ACT_AS_HEADER: quote(user), "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    answer = json.loads(text) if text else None
    if response.status >= 400:
        raise Failure("the daemon failed" if answer is None else answer["detail"])
    return answer


class _ControlConnection(http.client.HTTPConnection):
    """HTTP over the control socket of a data directory."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._data_dir = data_dir

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_SECONDS)
        directory = os.open(self._data_dir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.sock.connect(f"/proc/self/fd/{directory}/{CONTROL_SOCKET}")
        finally:
            os.close(directory)
