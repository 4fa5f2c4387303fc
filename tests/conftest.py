"""What all tests share: a daemon on a fake host, and the engine that real machines run on."""

import json
import subprocess
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.support.house import House, open_house

BASE_IMAGE = "vmd-base:bookworm"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path / "data") as opened:
        yield opened


@pytest.fixture(scope="session")
def engine_url() -> str:
    """The engine that machines of tests are made on; without it, the tests that need one fail."""
    subprocess.run(["docker", "image", "inspect", BASE_IMAGE], check=True, capture_output=True)
    return "unix:///var/run/docker.sock"


@pytest.fixture(scope="session")
def gateway_address() -> str:
    """The host's address on the engine's default bridge, which machines can reach."""
    command = ["docker", "network", "inspect", "bridge", "-f", "{{json (index .IPAM.Config 0)}}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    settings = json.loads(done.stdout)
    # An engine does not name the gateway before its second start.
    return str(settings.get("Gateway") or ip_network(settings["Subnet"])[1])
