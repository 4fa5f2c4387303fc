"""`vmd logs`, as somebody who types it sees it."""

import asyncio
import os
import sys
from pathlib import Path

from tests.support.house import House
from vmd.providers.fake import Fault


async def logs(house: House, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Return the exit status, and what the command printed."""
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vmd", "logs", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin", **environment},
    )
    out, err = await command.communicate()
    assert command.returncode is not None
    return command.returncode, out.decode(), err.decode()


async def test_a_log_is_followed_to_its_end(house: House) -> None:
    house.fake.order("create", Fault(delay_seconds=0.5))
    created = (await house.api.post("/workspaces", {"provisioning": ["echo hello"]})).json
    assert house.api.token is not None
    remote = {"VMD_URL": house.api.url, "VMD_TOKEN": house.api.token}
    status, out, err = await logs(house, "-f", created["id"], **remote)
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "Making the machine."
    assert out.splitlines()[-1] == "hello"
    assert await logs(house, created["id"], "--data-dir", str(house.data_dir)) == (0, out, "")


async def test_an_operation_that_fails_fails_the_command(house: House) -> None:
    created = (await house.api.post("/workspaces", {"provisioning": ["exit 3"]})).json
    await house.api.wait(created)
    local = ("--data-dir", str(house.data_dir))
    assert (await logs(house, created["id"], *local))[0] == 0
    status, _, err = await logs(house, "--follow", created["id"], *local)
    assert status == 1
    assert err.startswith("vmd: Provisioning command 1 of 1 failed with exit code 3")
    assert len(err.splitlines()) == 1


async def test_what_is_wrong_is_said_in_one_line(house: House, tmp_path: Path) -> None:
    local = ("--data-dir", str(house.data_dir))
    url = house.api.url
    for arguments, environment, reason in (
        (("op-none", *local), {}, "There is no operation 'op-none'"),
        (("op-none",), {"VMD_URL": url, "VMD_TOKEN": "wrong"}, "unknown or was revoked"),
        (("op-none",), {"VMD_URL": url}, "VMD_TOKEN is not"),
        (("op-none",), {"VMD_URL": "ftp://x", "VMD_TOKEN": "x"}, "VMD_URL must be like"),
        (("op-none",), {"VMD_URL": "http://127.0.0.1:9", "VMD_TOKEN": "x"}, "does not answer"),
    ):
        status, out, err = await logs(house, *arguments, **environment)
        assert (status, out) == (1, "")
        assert reason in err
        assert len(err.splitlines()) == 1
    assert (await logs(house))[0] == 2


async def test_a_reader_that_leaves_ends_it_quietly(house: House) -> None:
    created = (await house.api.post("/workspaces", {"provisioning": ["echo hello"]})).json
    await house.api.wait(created)
    assert house.api.token is not None
    reading, writing = os.pipe()
    os.close(reading)
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vmd", "logs", created["id"]),
        stdout=writing,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin", "VMD_URL": house.api.url, "VMD_TOKEN": house.api.token},
    )
    os.close(writing)
    _, err = await command.communicate()
    assert (command.returncode, err) == (1, b"")
