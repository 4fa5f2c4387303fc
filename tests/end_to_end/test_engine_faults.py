"""An engine that hangs, dies or comes back: operations wait, reads answer, nothing is lost."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.providers.test_provider import spec as machine_spec
from tests.support.api import Api
from tests.support.engine import PrivateEngine, private_engine
from tests.support.process import Process
from tests.support.snapshots import run_as_root, take
from vmd.providers.base import ProviderUnavailable
from vmd.providers.docker import DockerProvider, links

pytestmark = pytest.mark.usefixtures("engine_url")


@pytest.fixture
async def engine() -> AsyncIterator[PrivateEngine]:
    async with private_engine() as made:
        yield made


@pytest.fixture
async def api(tmp_path: Path, engine: PrivateEngine) -> AsyncIterator[Api]:
    process = Process(tmp_path / "data", {"VMD_PROVIDERS__DOCKER__URL": engine.url})
    async with await process.start() as client:
        yield client
    process.terminate()


async def test_a_frozen_engine_delays_nobody_and_its_work_goes_on(api: Api, engine: PrivateEngine) -> None:
    workspace = await api.make()
    engine.freeze()
    created = (await api.post("/workspaces", {})).json
    slowest = 0.0
    async with asyncio.timeout(40):
        while (await api.workspace(workspace["id"]))["health"] != "unreachable":
            begun = time.monotonic()
            assert (await api.get("/workspaces")).status == 200
            slowest = max(slowest, time.monotonic() - begun)
            await asyncio.sleep(0.1)
    assert slowest < 10  # an answer, and not the engine's silence
    ready = await api.get("/health/ready")
    assert (ready.status, ready.json["providers"]) == (503, {"docker": "unreachable"})
    assert (await api.workspace(workspace["id"]))["status"] == "running"
    engine.thaw()
    assert (await api.wait(created, 120))["status"] == "succeeded"
    await api.until(workspace["id"], health="ok", status="running")


async def test_an_engine_that_dies_and_comes_back_is_looked_at_anew(api: Api, engine: PrivateEngine) -> None:
    workspace = await api.make()
    engine.kill()
    await api.until(workspace["id"], health="unreachable", status="running")
    stats = await api.get(f"/workspaces/{workspace['id']}/stats")
    assert (stats.status, stats.json["code"]) == (503, "provider-unavailable")
    accepted = await api.post(f"/workspaces/{workspace['id']}/actions/restart")
    assert accepted.status == 202
    await engine.start()
    assert (await api.wait(accepted.json))["status"] == "succeeded"
    await api.until(workspace["id"], health="ok", status="running")
    await api.done(await api.delete(f"/workspaces/{workspace['id']}"))
    assert engine.docker("ps", "-aq").stdout == ""
    assert engine.docker("volume", "ls", "-q").stdout == ""


async def test_a_hung_engine_keeps_nobody_waiting_for_a_supervisor(
    engine: PrivateEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "READ_SECONDS", 0.5)
    docker = DockerProvider(url=engine.url, instance="test-hung", subnet_pool="10.214.0.0/16")
    ref = await docker.create(machine_spec())
    await docker.start(ref, {})
    await (await docker.supervise(ref)).close()
    engine.freeze()
    try:
        async with asyncio.timeout(20):
            with pytest.raises(ProviderUnavailable, match="does not answer"):
                await docker.supervise(ref)
    finally:
        engine.thaw()
    again = await docker.supervise(ref)
    assert list(await again.list()) == []
    await again.close()
    await docker.close()


async def test_a_full_disk_fails_a_snapshot_and_leaves_the_workspace_as_it_was(tmp_path: Path) -> None:
    async with private_engine(disk_mb=600) as engine:
        process = Process(tmp_path / "data", {"VMD_PROVIDERS__DOCKER__URL": engine.url})
        async with await process.start() as api:
            workspace = await api.make()
            fill = "head -c 130M /dev/urandom >/workspace/big; head -c 110M /dev/urandom >/var/tmp/big"
            await run_as_root(api, workspace["id"], "sh", "-c", fill)
            begun = await api.post(f"/workspaces/{workspace['id']}/snapshots", {})
            operation = await api.wait(begun.json)
            assert operation["status"] == "failed"
            assert "no space left" in operation["error"]["detail"].lower()
            assert (await api.workspace(workspace["id"]))["status"] == "running"
            size = await run_as_root(api, workspace["id"], "stat", "-c", "%s", "/workspace/big")
            assert size == str(130 * 2**20)
            assert engine.docker("images", "-q", "--filter", "label=vmd.snapshot").stdout == ""
            assert engine.docker("volume", "ls", "-q", "--filter", "label=vmd.snapshot").stdout == ""
            await run_as_root(api, workspace["id"], "rm", "/workspace/big", "/var/tmp/big")
            await take(api, workspace["id"])
        process.terminate()
