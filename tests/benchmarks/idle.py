"""What the daemon costs when nobody asks, and how long it takes to be there."""

import time
from pathlib import Path
from statistics import median

from tests.benchmarks.books import make_data_dir, stopped_ids
from tests.benchmarks.process import FAKE_ONLY, daemon
from tests.benchmarks.table import Row, middle

STARTS = 5
SETTLE_SECONDS = 4.0
MAX_RSS_MB = 70.0
MAX_START_SECONDS = 1.0
PROVIDERS = {"fake": FAKE_ONLY, "docker": {"VMD_PROVIDERS__DOCKER__SUBNET_POOL": "10.224.0.0/16"}}


def measure(directory: Path) -> list[Row]:
    """Start the daemon several times with a thousand workspaces on record, and weigh it."""
    rows = []
    for provider, settings in PROVIDERS.items():
        data_dir = directory / f"idle-{provider}"
        ids = make_data_dir(data_dir, provider)
        starts, weights = [], []
        for _ in range(STARTS):
            with daemon(data_dir, settings) as server:
                starts.append(server.start_seconds)
                time.sleep(SETTLE_SECONDS)
                weights.append(server.rss_mb())
        assert stopped_ids(data_dir) == ids, "the workspaces on record changed meanwhile"
        rows += [
            Row(
                subject=f"memory idle, 1,000 on record, {provider}",
                ours=middle(weights, "MB", 1),
                yardstick=f"{MAX_RSS_MB:g} MB",
                compared=median(weights) / MAX_RSS_MB,
                bound=1.0,
                is_upper=True,
            ),
            Row(
                subject=f"start until ready, 1,000 on record, {provider}",
                ours=middle(starts, "s", 2),
                yardstick=f"{MAX_START_SECONDS:g} s",
                compared=median(starts) / MAX_START_SECONDS,
                bound=1.0,
                is_upper=True,
            ),
        ]
    return rows
