"""`python -m tests.benchmarks [SUBJECT ...]`: measure, and print ours beside the yardsticks."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.benchmarks import commands, creating, detecting, fanout, idle, reading, snapshots, terminals
from tests.benchmarks.table import Row, text

SUBJECTS = {
    "creating": creating.measure,
    "reading": reading.measure,
    "fanout": fanout.measure,
    "idle": idle.measure,
    "commands": commands.measure,
    "terminals": terminals.measure,
    "snapshots": snapshots.measure,
    "detecting": detecting.measure,
}


def main() -> None:
    """Measure the subjects named, all by default; bounds that are missed are only printed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(SUBJECTS))
    chosen = parser.parse_args().subjects or list(SUBJECTS)
    if unknown := set(chosen) - set(SUBJECTS):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(SUBJECTS)}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="vmd-benchmarks-") as directory:
        for subject in chosen:
            sys.stderr.write(f"measuring {subject}; load {os.getloadavg()[0]:.1f}\n")
            rows += SUBJECTS[subject](Path(directory))
    sys.stdout.write(f"{text(rows)}\n")


if __name__ == "__main__":
    main()
