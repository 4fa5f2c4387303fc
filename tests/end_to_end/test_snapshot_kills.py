"""The daemon is killed once at every change that a snapshot, a restore or a delete makes at the engine."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.api import Api
from tests.support.engine_proxy import EngineProxy, engine_proxy
from tests.support.process import OF_A_WORKSPACE, Process, daemon_process, labelled
from tests.support.snapshots import images_of, list_tree, path_of, run_as_root, take

MOST_STEPS = 40
OF_A_SNAPSHOT = 1  # a volume, besides its image


@pytest.fixture
async def proxy(tmp_path: Path, engine_url: str) -> AsyncIterator[EngineProxy]:
    async with engine_proxy(tmp_path, engine_url) as made:
        yield made


@pytest.fixture
async def process(tmp_path: Path, proxy: EngineProxy) -> AsyncIterator[Process]:
    url = json.dumps(f"unix://{proxy.path}")
    async with daemon_process(tmp_path / "data", VMD_PROVIDERS__DOCKER__URL=url) as made:
        yield made


async def killed_at(process: Process, proxy: EngineProxy, api: Api, number: int, path: str, body: Any) -> Any:
    """Begin an operation and kill the daemon at its so many-th change; return it, and whether that came."""
    proxy.arm(number, process.kill)
    operation = (await api.post(path, body)).json if body is not None else (await api.delete(path)).json
    while process.is_running:
        with suppress(aiohttp.ClientError):  # it may be killed just now
            if (await api.get(f"/operations/{operation['id']}")).json["finished_at"]:
                break
        await asyncio.sleep(0.02)
    proxy.disarm()
    return operation, not process.is_running


def is_paused(workspace_id: str) -> bool:
    filters = ["--filter", f"label=vmd.workspace={workspace_id}", "--filter", "status=paused"]
    return bool(subprocess.run(["docker", "ps", "-q", *filters], capture_output=True, text=True).stdout)


async def test_a_snapshot_killed_at_every_step_is_taken_all_the_same(
    process: Process, proxy: EngineProxy
) -> None:
    api = await (await process.start()).__aenter__()
    workspace = await api.make()
    await run_as_root(api, workspace["id"], "sh", "-c", "echo file >/workspace/file; echo disk >/opt/disk")
    steps = []
    for number in range(1, MOST_STEPS):
        path = f"/workspaces/{workspace['id']}/snapshots"
        operation, was_killed = await killed_at(process, proxy, api, number, path, {})
        if was_killed:
            steps.append(proxy.struck)
            await api.session.close()
            api = await (await process.start()).__aenter__()
        done = await api.wait(operation)
        assert done["status"] == "succeeded", (steps, done)
        assert not is_paused(workspace["id"]), steps
        snapshot = (await api.get(f"{path}/{operation['snapshot_id']}")).json
        assert (snapshot["status"], snapshot["manifest"]["entries"]) == ("ready", 2), steps
        assert await run_as_root(api, workspace["id"], "cat", "/workspace/file") == "file"
        assert len(labelled(process.data_dir)) == OF_A_WORKSPACE + OF_A_SNAPSHOT, steps
        assert images_of(process.data_dir) == [f"vmd-snapshot:{snapshot['id']}"], steps
        await api.done(await api.delete(path_of(snapshot)))
        assert images_of(process.data_dir) == [], steps
        if not was_killed:
            break
    await api.session.close()
    told = " ".join(str(step).partition("?")[0] for step in steps)
    for part in ("/volumes/create", "/pause", "/containers/create", "/start", "/commit", "/unpause"):
        assert part in told, (part, told)


async def test_a_restore_killed_at_every_step_brings_the_snapshot_or_leaves_all_as_it_was(
    process: Process, proxy: EngineProxy
) -> None:
    api = await (await process.start()).__aenter__()
    workspace = await api.make()
    await run_as_root(api, workspace["id"], "sh", "-c", "echo kept >/workspace/file")
    tree = await list_tree(api, workspace["id"])
    snapshot = await take(api, workspace["id"])
    steps = []
    for number in range(1, MOST_STEPS):
        await run_as_root(api, workspace["id"], "sh", "-c", "echo changed >/workspace/file")
        path = f"{path_of(snapshot)}/restore"
        operation, was_killed = await killed_at(process, proxy, api, number, path, {})
        if was_killed:
            steps.append(proxy.struck)
            await api.session.close()
            api = await (await process.start()).__aenter__()
        done = await api.wait(operation)
        assert done["status"] == "succeeded", (steps, done)
        assert (await api.workspace(workspace["id"]))["status"] == "running"
        assert await list_tree(api, workspace["id"]) == tree, steps
        assert len(labelled(process.data_dir)) == OF_A_WORKSPACE + OF_A_SNAPSHOT, steps
        assert len(images_of(process.data_dir)) == 2, steps
        if not was_killed:
            break
    await api.done(await api.delete(f"/workspaces/{workspace['id']}"))
    assert labelled(process.data_dir) == []
    assert images_of(process.data_dir) == []
    await api.session.close()
    told = " ".join(str(step).partition("?")[0] for step in steps)
    for part in ("/volumes/create", "/containers/create", "/start", "/stop", "/tag", "DELETE /v1.41/volumes"):
        assert part in told, (part, told)
