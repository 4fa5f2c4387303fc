"""What keeps a workspace from being idle, and what lifetime says of it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.house import House, open_house

BEFORE = "2026-01-01T00:00:00Z"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path, janitor__interval_seconds=0.05) as opened:
        await opened.ready()
        yield opened


async def _let_rest(house: House, workspace: Any) -> None:
    """Have a workspace look unused since long ago, but too young for its clock to fire."""
    moment = round(datetime.fromisoformat(BEFORE).timestamp() * 1000)
    sql = "UPDATE workspaces SET last_activity_at = :moment WHERE id = :id"
    values = {"moment": moment, "id": workspace["id"]}
    await house.daemon._database.write(lambda tx: tx.execute(sql, values))


async def _until_active(house: House, workspace: Any) -> None:
    async with asyncio.timeout(10):
        while (await house.api.workspace(workspace["id"]))["last_activity_at"] == BEFORE:
            await asyncio.sleep(0.01)


async def _sweeps(house: House, count: int = 3) -> None:
    """Let the janitor come by."""
    for _ in range(count):
        seen = house.fake.host.calls["cpu_seconds"]
        async with asyncio.timeout(10):
            while house.fake.host.calls["cpu_seconds"] == seen:
                await asyncio.sleep(0.01)


async def _now(house: House, workspace: Any) -> list[str]:
    activity = (await house.api.get(f"/workspaces/{workspace['id']}/lifetime")).json["activity"]
    now: list[str] = activity["now"]
    return now


async def _idle(house: House) -> Any:
    return await house.api.make(idle_timeout_seconds=10 * 365 * 24 * 3600)


async def test_a_workspace_that_is_left_alone_is_not_active(house: House) -> None:
    workspace = await _idle(house)
    await _sweeps(house)
    await _let_rest(house, workspace)
    await _sweeps(house)
    assert (await house.api.workspace(workspace["id"]))["last_activity_at"].startswith("2026-01-01T00:00:00")
    assert await _now(house, workspace) == []


async def test_a_running_command_is_activity(house: House) -> None:
    workspace = await _idle(house)
    await house.api.post(f"/workspaces/{workspace['id']}/commands", {"command": "sleep 60"})
    await _let_rest(house, workspace)
    await _until_active(house, workspace)
    assert await _now(house, workspace) == ["1 running command"]


async def test_input_and_output_of_a_shell_are_activity(house: House) -> None:
    workspace = await _idle(house)
    async with house.api.session.ws_connect(f"/ws/workspaces/{workspace['id']}/shell") as socket:
        await socket.receive()
        await _sweeps(house)
        await _let_rest(house, workspace)
        await _sweeps(house)
        resting = (await house.api.workspace(workspace["id"]))["last_activity_at"]
        assert resting.startswith("2026-01-01T00:00:00")  # to be attached alone is none
        await socket.send_bytes(b"x")
        await _until_active(house, workspace)


async def test_the_machines_processors_are_activity_above_the_threshold(house: House) -> None:
    workspace = await _idle(house)
    ref = next(iter(house.fake.host.machines))
    await _sweeps(house)
    await _let_rest(house, workspace)
    house.fake.host.cpu_seconds[ref] = 100.0
    await _until_active(house, workspace)
    await _let_rest(house, workspace)
    house.fake.host.cpu_seconds[ref] += 0.0001
    await _sweeps(house)
    resting = (await house.api.workspace(workspace["id"]))["last_activity_at"]
    assert resting.startswith("2026-01-01T00:00:00")
