"""What a daemon that is killed had reserved: still held once, and given back once, by the next one."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.process import Process, daemon_process, labelled

pytestmark = pytest.mark.usefixtures("engine_url")
LIMITS = {"VMD_QUOTA__WORKSPACES": "1", "VMD_PROVIDERS__DOCKER__SUBNET_POOL": "10.214.80.0/20"}


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    async with daemon_process(tmp_path / "data", **LIMITS) as made:
        yield made


async def test_a_create_that_is_killed_half_way_holds_its_quota_once(process: Process) -> None:
    wanted = {"provisioning": ["sleep 1"]}
    async with await process.start() as api:
        answers = await asyncio.gather(*(api.post("/workspaces", wanted) for _ in range(200)))
        assert sorted(answer.status for answer in answers) == [202] + [403] * 199
        [created] = [answer.json for answer in answers if answer.status == 202]
        await api.until_phase(created["id"], "provision", seconds=30)
        process.kill()
    async with await process.start() as api:
        use = (await api.get("/quota")).json["use"]
        assert (use["workspaces"], use["running"], use["memory_mb"]) == (1, 1, 1024)
        assert (await api.post("/workspaces", {})).status == 403
        await api.wait(created)
        use = (await api.get("/quota")).json["use"]
        assert (use["workspaces"], use["running"], use["memory_mb"]) == (1, 1, 1024)
        await api.delete(f"/workspaces/{created['workspace_id']}")
        process.kill()
    async with await process.start() as api:
        async with asyncio.timeout(30):
            while (await api.get(f"/workspaces/{created['workspace_id']}")).status != 404:
                await asyncio.sleep(0.05)
        assert set((await api.get("/quota")).json["use"].values()) == {0}
        assert labelled(process.data_dir) == []
        assert (await api.post("/workspaces", {})).status == 202
