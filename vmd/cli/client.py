"""Requests to a daemon: over its control socket, or by URL with a token."""

import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from attrs import frozen

from vmd.bootstrap import CONTROL_SOCKET
from vmd.cli.failure import Failure
from vmd.http.middleware import ACT_AS_HEADER

TIMEOUT_SECONDS = 300.0


@frozen(kw_only=True)
class Endpoint:
    """Where a daemon is, and what says who asks."""

    name: str
    headers: Mapping[str, str]
    data_dir: Path | None = None  # its control socket is here, or else
    url: str = ""

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection that connects at its first request."""
        if self.data_dir is not None:
            return _ControlConnection(self.data_dir)
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Failure(f"VMD_URL must be like https://vmd.example, and not '{self.url}'")
        if parts.scheme == "https":
            return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=TIMEOUT_SECONDS)
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT_SECONDS)


def local_endpoint(data_dir: Path, user: str) -> Endpoint:
    """Return the daemon of a data directory, acting as a user of it."""
    return Endpoint(name=f"the daemon of {data_dir}", headers={ACT_AS_HEADER: quote(user)}, data_dir=data_dir)


def remote_endpoint(environment: Mapping[str, str]) -> Endpoint | None:
    """Return the daemon that VMD_URL names, if it is set."""
    url = environment.get("VMD_URL")
    if not url:
        return None
    token = environment.get("VMD_TOKEN")
    if not token:
        raise Failure("VMD_URL is set but VMD_TOKEN is not; set it to a token of that daemon")
    return Endpoint(name=url, headers={"Authorization": f"Bearer {token}"}, url=url.rstrip("/"))


def request(endpoint: Endpoint, method: str, path: str, body: Any = None) -> Any:
    """Return the JSON answer to one request; raise Failure with what the daemon has against it."""
    connection = endpoint.connect()
    try:
        response = _send(connection, endpoint, method, path, body)
        text = response.read()
        return json.loads(text) if text else None
    finally:
        connection.close()


def lines(endpoint: Endpoint, path: str) -> Iterator[Any]:
    """Yield the JSON objects of a stream, one a line, as they come."""
    connection = endpoint.connect()
    try:
        response = _send(connection, endpoint, "GET", path, None)
        if connection.sock is not None:
            connection.sock.settimeout(None)  # it may be quiet for as long as it likes
        while line := response.readline():
            yield json.loads(line)
    finally:
        connection.close()


def _send(
    connection: http.client.HTTPConnection, endpoint: Endpoint, method: str, path: str, body: Any
) -> http.client.HTTPResponse:
    headers = {**endpoint.headers, "Content-Type": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    if response.status >= 400:
        raise Failure(_detail(response))
    return response


def _detail(response: http.client.HTTPResponse) -> str:
    try:
        return str(json.loads(response.read())["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the answer was {response.status} {response.reason}, which is no answer of vmd's"


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
