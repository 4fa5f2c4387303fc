"""Whatever moment the daemon is killed at, what it acknowledged is done or failed, and nothing is leaked."""

import asyncio
import random
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.api import Api
from tests.support.git_server import make_repository, serve_git
from tests.support.process import OF_A_WORKSPACE, Process, daemon_process, labelled

pytestmark = pytest.mark.usefixtures("engine_url")


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    async with daemon_process(tmp_path / "data") as made:
        yield made


@pytest.mark.parametrize("phase", ["create", "start", "clone", "detect", "provision"])
async def test_a_create_goes_on_after_a_kill_in_any_phase(
    process: Process, tmp_path: Path, gateway_address: str, phase: str
) -> None:
    make_repository(tmp_path / "git")
    async with serve_git(tmp_path / "git", gateway_address) as base:
        wanted = {
            "repo": {"url": f"{base}/hello.git"},
            "provisioning": ["echo one >>steps", "sleep 1; echo two >>steps", "echo three >>steps"],
        }
        async with await process.start() as api:
            created = (await api.post("/workspaces", wanted)).json
            await _seen(api, created["id"], phase)
            process.kill()
        async with await process.start() as api:
            operation = await api.wait(created)
            assert operation["status"] == "succeeded", operation["error"]
            assert operation["attempt"] == 2
            workspace = await api.workspace(created["workspace_id"])
            assert workspace["status"] == "running"
            assert len(labelled(process.data_dir)) == OF_A_WORKSPACE
            await api.done(await api.delete(f"/workspaces/{workspace['id']}"))
            assert labelled(process.data_dir) == []


async def test_kills_at_random_moments_lose_and_leak_nothing(process: Process) -> None:
    chosen = random.Random(7)
    acknowledged = []
    for _ in range(6):
        async with await process.start() as api:
            answers = await asyncio.gather(*(api.post("/workspaces", {}) for _ in range(2)))
            acknowledged += [answer.json for answer in answers]
            await asyncio.sleep(chosen.uniform(0, 0.6))
            process.kill()
    async with await process.start() as api:
        for created in acknowledged:
            operation = await api.wait(created)
            assert operation["status"] == "succeeded", operation["error"]
        assert len(labelled(process.data_dir)) == OF_A_WORKSPACE * len(acknowledged)
        deletions = [await api.delete(f"/workspaces/{created['workspace_id']}") for created in acknowledged]
        await asyncio.sleep(0.3)
        process.kill()
    async with await process.start() as api:
        for deletion in deletions:
            assert (await api.wait(deletion.json))["status"] == "succeeded"
        assert labelled(process.data_dir) == []


@pytest.mark.parametrize("action", ["stop", "restart", "rebuild"])
async def test_actions_go_on_after_a_kill(process: Process, action: str) -> None:
    async with await process.start() as api:
        workspace = await api.make(provisioning=["sleep 0.3"])
        accepted = (await api.post(f"/workspaces/{workspace['id']}/actions/{action}")).json
        await asyncio.sleep(0.2)
        process.kill()
    async with await process.start() as api:
        assert (await api.wait(accepted))["status"] == "succeeded"
        status = (await api.workspace(workspace["id"]))["status"]
        assert status == ("stopped" if action == "stop" else "running")
        assert len(labelled(process.data_dir)) == OF_A_WORKSPACE


async def test_a_term_stops_soon_and_the_work_goes_on_at_the_next_start(process: Process) -> None:
    async with await process.start() as api:
        created = (await api.post("/workspaces", {"provisioning": ["sleep 2"]})).json
        await _seen(api, created["id"], "provision")
        assert process.terminate() == 0
    async with await process.start() as api:
        assert (await api.wait(created))["status"] == "succeeded"


async def test_the_books_see_what_happened_while_it_was_down(process: Process) -> None:
    async with await process.start() as api:
        one, two = await asyncio.gather(api.make(), api.make())
        await api.done(await api.post(f"/workspaces/{two['id']}/actions/stop"))
        process.signal(signal.SIGKILL)
    command = ["docker", "ps", "-aq", "--filter"]
    for verb, workspace in (("kill", one), ("start", two)):
        found = subprocess.run(
            [*command, f"label=vmd.workspace={workspace['id']}"], capture_output=True, text=True
        )
        subprocess.run(["docker", verb, found.stdout.strip()], check=True, capture_output=True)
    async with await process.start() as api:
        await api.until(one["id"], status="stopped")
        assert (await api.until(two["id"], status="running"))["connection"]["address"] is not None


async def _seen(api: Api, operation_id: str, phase: str) -> None:
    """Return once the operation is in this phase, or already past it."""
    order = ["queued", "create", "start", "clone", "detect", "provision", "done"]
    async with asyncio.timeout(20):
        while True:
            now = (await api.get(f"/operations/{operation_id}")).json["progress"]["phase"]
            if order.index(now) >= order.index(phase):
                return
            await asyncio.sleep(0.005)
