"""The user's commands: what a workspace's operations say."""

import argparse
import http.client
import os
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import quote

from vmd.cli.client import Endpoint, lines, remote_endpoint, request
from vmd.cli.failure import Failure
from vmd.cli.local import no_answer, with_local_daemon
from vmd.cli.settings import add_arguments, data_dir_of, load_settings
from vmd.cli.standard import STDERR, STDOUT, OutputGone, write_all

T = TypeVar("T")


def add_commands(commands: Any) -> None:
    """Add logs."""
    logs = commands.add_parser(
        "logs",
        help="print an operation's log",
        description="Print an operation's log. The daemon is that of VMD_URL, asked with VMD_TOKEN, or else "
        "that of the data directory. With -f, the exit status is 1 unless the operation succeeds.",
    )
    add_arguments(logs)
    logs.add_argument("operation", metavar="OPERATION")
    logs.add_argument("-f", "--follow", action="store_true", help="until the operation is final")
    logs.set_defaults(run=_logs)


def with_daemon(given: argparse.Namespace, action: Callable[[Endpoint], T]) -> T:
    """Return what `action` returns, given the daemon that the user means."""
    endpoint = remote_endpoint(os.environ)
    if endpoint is None:
        return with_local_daemon(load_settings(given).settings, data_dir_of(given), "admin", action)
    try:
        return action(endpoint)
    except (OSError, http.client.HTTPException) as error:
        raise no_answer(endpoint, error) from None


def _logs(given: argparse.Namespace) -> int:
    path = f"/api/v1/operations/{quote(given.operation, safe='')}"
    follow = "true" if given.follow else "false"

    def show(endpoint: Endpoint) -> Any:
        for line in lines(endpoint, f"{path}/logs?follow={follow}"):
            descriptor = STDERR if line["stream"] == "stderr" else STDOUT
            write_all(descriptor, f"{line['message']}\n".encode())
        return request(endpoint, "GET", path)

    try:
        operation = with_daemon(given, show)
    except OutputGone:
        raise BrokenPipeError from None
    if not given.follow or operation["status"] == "succeeded":
        return 0
    error = operation["error"]
    raise Failure(f"the operation {operation['status']}" if error is None else error["detail"])
