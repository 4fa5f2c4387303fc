"""Reading: one workspace, and a page of the list, with a credential, over keep-alive connections."""

import http.client
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tests.benchmarks.bare import write_answers
from tests.benchmarks.books import make_data_dir, stopped_ids
from tests.benchmarks.process import FAKE_ONLY, HOST, ROOT, Server, bare, daemon, token_of
from tests.benchmarks.table import Row, middle

ROUNDS = 5
CONNECTIONS = 32
WARM_UP_SECONDS = 1.0
ROUND_SECONDS = 3.0
MAX_REQUESTS = 100_000  # a round
LIST_PATH = "/api/v1/workspaces?limit=50"


def measure(directory: Path) -> list[Row]:
    """Ask the daemon and the bare server in turn."""
    data_dir = directory / "reading"
    ids = make_data_dir(data_dir, "fake")
    token = token_of(data_dir)
    paths = [f"/api/v1/workspaces/{found}" for found in ids]
    database = directory / "answers.db"
    with daemon(data_dir, FAKE_ONLY) as ours:
        write_answers(database, _answers(ours, [*paths, LIST_PATH], token))
        with bare(database) as yardstick:
            rows = [
                _compare("get a workspace", ours, yardstick, paths, token, 0.4),
                _compare("list 50 of 1,000", ours, yardstick, [LIST_PATH], token, 0.2),
            ]
    assert stopped_ids(data_dir) == ids, "the workspaces on record changed meanwhile"
    return rows


def _compare(
    subject: str, ours: Server, yardstick: Server, paths: Sequence[str], token: str, bound: float
) -> Row:
    servers = (ours, yardstick)
    for server in servers:
        _load(server, paths, token, WARM_UP_SECONDS)
    rates: list[list[float]] = []
    busiest = 0.0
    for _ in range(ROUNDS):
        reports = [_load(server, paths, token, ROUND_SECONDS) for server in servers]
        rates.append([report["rate"] for report in reports])
        busiest = max(busiest, *(report["busy"] for report in reports))
    mine, theirs = zip(*rates, strict=True)
    return Row(
        subject=f"{subject} (client {busiest:.0%} busy)",
        ours=middle(mine, "/s"),
        yardstick=middle(theirs, "/s"),
        compared=median(a / b for a, b in rates),
        bound=bound,
        is_upper=False,
    )


def _load(server: Server, paths: Sequence[str], token: str, seconds: float) -> dict[str, float]:
    wanted = {
        "port": server.port,
        "paths": list(paths),
        "token": token,
        "connections": CONNECTIONS,
        "count": MAX_REQUESTS,
        "seconds": seconds,
    }
    answer = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.load"],
        input=json.dumps(wanted).encode(),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        timeout=seconds + 30,
        check=True,
    ).stdout
    report: dict[str, float] = json.loads(answer)
    assert not report["failed"], f"{report['failed']} answers were wrong"
    return report


def _answers(ours: Server, paths: Sequence[str], token: str) -> dict[str, str]:
    """Return what the daemon answers, for the bare server to send the same."""
    connection = http.client.HTTPConnection(HOST, ours.port, timeout=10)
    answers = {}
    for path in paths:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        answers[path] = response.read().decode()
        assert response.status == 200, answers[path]
    connection.close()
    return answers
