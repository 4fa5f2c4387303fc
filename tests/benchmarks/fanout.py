"""An event on its way to a thousand sockets, beside a bare server that sends them the same frame."""

import http.client
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.process import FAKE_ONLY, HOST, ROOT, Server, daemon, shouting, token_of
from tests.benchmarks.table import Row, middle

LISTENERS = 1000
EVENTS = 120
WARM_UP = 20  # events that are not counted
MAX_SECONDS = 60.0


def measure(directory: Path) -> list[Row]:
    """Time events from the request that causes them until they have arrived, each side in turn."""
    data_dir = directory / "fanout"
    with daemon(data_dir, FAKE_ONLY) as ours, shouting(directory) as bare:
        report = _listen(ours, bare, token_of(data_dir))
    return [
        _row(
            f"an event to 99% of {LISTENERS:,} sockets (client {report['busy']:.0%} busy)", report, "p99", 2.0
        ),
        _row(f"an event to the last of {LISTENERS:,} sockets", report, "last", None),
    ]


def _row(subject: str, report: dict[str, Any], what: str, bound: float | None) -> Row:
    ours, bare = (report[side][what][WARM_UP:] for side in ("ours", "bare"))
    return Row(
        subject=subject,
        ours=middle(ours, "ms", 1),
        yardstick=middle(bare, "ms", 1),
        compared=median(a / b for a, b in zip(ours, bare, strict=True)),
        bound=bound,
        is_upper=True,
    )


def _listen(ours: Server, bare: Server, token: str) -> dict[str, Any]:
    workspace_id = _make_workspace(ours, token)
    wanted = {
        "ours": {
            "port": ours.port,
            "token": token,
            "socket_path": "/ws/events",
            "method": "PATCH",
            "path": f"/api/v1/workspaces/{workspace_id}",
        },
        "bare": {"port": bare.port, "token": "", "socket_path": "/ws", "method": "POST", "path": "/shout"},
        "listeners": LISTENERS,
        "events": WARM_UP + EVENTS,
    }
    answer = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.listeners"],
        input=json.dumps(wanted).encode(),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        timeout=MAX_SECONDS,
        check=True,
    ).stdout
    report: dict[str, Any] = json.loads(answer)
    return report


def _make_workspace(server: Server, token: str) -> str:
    """Return the id of a workspace that runs."""
    connection = http.client.HTTPConnection(HOST, server.port, timeout=10)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    connection.request("POST", "/api/v1/workspaces", "{}", headers)
    operation = json.load(connection.getresponse())
    connection.request("GET", f"/api/v1/operations/{operation['id']}/wait", headers=headers)
    ended = json.load(connection.getresponse())
    connection.close()
    assert ended["status"] == "succeeded", ended
    return str(ended["workspace_id"])
