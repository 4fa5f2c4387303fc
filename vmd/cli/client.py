"""Requests to a daemon: over its control socket, or by URL with a token."""

import http.client
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from attrs import frozen

from vmd.bootstrap import CONTROL_SOCKET
from vmd.cli.failure import Failure
from vmd.http.middleware import ACT_AS_HEADER
from vmd.model.ids import ID_PATTERN

TIMEOUT_SECONDS = 300.0
KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # seconds, seconds, times


class Refusal(Failure):
    """A daemon refuses a request; the message is the detail of its problem document."""

    def __init__(self, detail: str, status: int, code: str | None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed in a moment."""
        return self.status in (429, 502, 503, 504)


@frozen(kw_only=True)
class Endpoint:
    """Where a daemon is, and what says who asks."""

    name: str
    headers: Mapping[str, str]
    data_dir: Path | None = None  # its control socket is here, or else
    url: str = ""

    def connect(self, timeout_seconds: float = TIMEOUT_SECONDS) -> http.client.HTTPConnection:
        """Return a connection that connects at its first request."""
        if self.data_dir is not None:
            return _ControlConnection(self.data_dir, timeout_seconds)
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Failure(f"VMD_URL must be like https://vmd.example, and not '{self.url}'")
        if parts.scheme == "https":
            return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout_seconds)
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_seconds)


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


def lines(
    endpoint: Endpoint, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> Iterator[Any]:
    """Yield the JSON objects of a stream, one a line, as they come; a body is posted.

    Raises ConnectionError or HTTPException where the stream is cut off.
    """
    connection = endpoint.connect()
    try:
        connection.connect()
        opened = connection.sock
        response = _send(connection, endpoint, "GET" if body is None else "POST", path, body, headers)
        wait_for_ever(opened)
        while line := response.readline():
            if not line.endswith(b"\n"):
                raise ConnectionError("the answer was cut off")
            yield json.loads(line)
    finally:
        connection.close()


def wait_for_ever(opened: socket.socket) -> None:
    """Let the other side be quiet for as long as it likes, and have it noticed when it is dead."""
    opened.settimeout(None)
    if opened.family == socket.AF_UNIX:
        return
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def find_workspace(endpoint: Endpoint, name: str) -> str:
    """Return the id of a workspace, given its id or name; raise Failure if it cannot be told."""
    if re.fullmatch(ID_PATTERN, name) is not None:
        try:
            return str(request(endpoint, "GET", f"/api/v1/workspaces/{name}")["id"])
        except Refusal as error:
            if error.status != 404:
                raise
    found = _named(endpoint, name, "")
    if not found and endpoint.data_dir is not None:  # an administrator, who may mean somebody else's
        found = _named(endpoint, name, "&owner=*")
    if not found:
        raise Failure(f"there is no workspace '{name}'; GET /api/v1/workspaces lists yours")
    if len(found) > 1:
        raise Failure(f"several workspaces are called '{name}'; give the id, one of {', '.join(found)}")
    return found[0]


def _named(endpoint: Endpoint, name: str, query: str) -> list[str]:
    page = request(endpoint, "GET", f"/api/v1/workspaces?name={quote(name, safe='')}{query}")
    return [workspace["id"] for workspace in page["items"]]


def _send(
    connection: http.client.HTTPConnection,
    endpoint: Endpoint,
    method: str,
    path: str,
    body: Any,
    headers: Mapping[str, str] | None = None,
) -> http.client.HTTPResponse:
    together = {**endpoint.headers, "Content-Type": "application/json", **(headers or {})}
    connection.request(method, path, None if body is None else json.dumps(body), together)
    response = connection.getresponse()
    if response.status >= 400:
        raise refusal(response.status, response.reason, response.read())
    return response


def refusal(status: int, reason: str, body: bytes) -> Refusal:
    """Return what an answer of 400 or more says."""
    try:
        problem = json.loads(body)
        return Refusal(str(problem["detail"]), status, problem.get("code"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Refusal(f"the answer was {status} {reason}, which is no answer of vmd's", status, None)


class _ControlConnection(http.client.HTTPConnection):
    """HTTP over the control socket of a data directory."""

    def __init__(self, data_dir: Path, timeout_seconds: float) -> None:
        super().__init__("localhost", timeout=timeout_seconds)
        self._data_dir = data_dir

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        directory = os.open(self._data_dir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.sock.connect(f"/proc/self/fd/{directory}/{CONTROL_SOCKET}")
        finally:
            os.close(directory)
