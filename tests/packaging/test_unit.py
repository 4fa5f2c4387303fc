"""The unit of systemd: nothing in it that systemd does not know, and little that the daemon could harm."""

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "systemd" / "vmd.service"
MAX_EXPOSURE = 3.0  # of 10

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze on this machine"
)


def test_systemd_understands_every_line() -> None:
    done = _analyze("verify", "--man=no")

    assert (done.stderr, done.returncode) == ("", 0)  # unknown keys are told on stderr alone


def test_the_exposure_is_low() -> None:
    done = _analyze("security", "--offline=true", "--no-pager", f"--threshold={MAX_EXPOSURE * 10:.0f}")

    assert done.returncode == 0, done.stdout


def _analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *arguments, str(UNIT)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
