"""A workspace that expires with work that no remote has leaves a snapshot that outlives it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.house import House, open_house
from tests.support.snapshots import path_of, restore
from vmd.providers.base import ProviderError, ProviderUnavailable
from vmd.providers.fake import Fault

URL = "http://git.test/r.git"
DIRTY = "repo 2 1 0 main\nend\n"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(
        tmp_path,
        janitor__interval_seconds=0.05,
        janitor__warning_seconds=0,
        janitor__trash_grace_seconds=1,
    ) as made:
        made.fake.host.repos[URL] = "c0ffee0"
        await made.ready()
        yield made


async def expire(house: House, workspace_id: str) -> None:
    """Let the workspace's time be over, and wait until it is gone from trash too."""
    await house.daemon._database.write(
        lambda tx: tx.execute(
            "UPDATE workspaces SET expires_at = created_at, version = version + 1 WHERE id = :id",
            {"id": workspace_id},
        )
    )
    async with asyncio.timeout(10):
        while (await house.api.get(f"/workspaces/{workspace_id}")).status != 404:
            await asyncio.sleep(0.02)


async def kept(house: House) -> list[Any]:
    return [item for item in (await house.api.get("/snapshots")).json["items"] if item["is_final"]]


async def test_unpushed_work_is_kept_beyond_trash(house: House) -> None:
    workspace = await house.api.make(repo={"url": URL}, template="base", ttl_seconds=60)
    house.fake.host.git[workspace["id"]] = DIRTY
    await expire(house, workspace["id"])
    (snapshot,) = await kept(house)
    assert (snapshot["status"], snapshot["workspace_id"]) == ("ready", workspace["id"])
    assert set(house.fake.host.snapshots) == {snapshot["id"]}
    made = await restore(house.api, snapshot, name="again")
    assert house.fake.host.files[made["id"]] == {"README.md": "A repository\n"}
    await house.api.done(await house.api.delete(path_of(snapshot)))


async def test_nothing_is_kept_of_what_a_remote_has(house: House) -> None:
    workspace = await house.api.make(repo={"url": URL}, template="base", ttl_seconds=60)
    await expire(house, workspace["id"])
    assert await kept(house) == []
    assert house.fake.host.snapshots == {}


@pytest.mark.parametrize("error", [ProviderUnavailable("away"), ProviderError("full")])
async def test_no_work_is_lost_when_it_cannot_be_kept_at_once(house: House, error: Exception) -> None:
    workspace = await house.api.make(repo={"url": URL}, template="base", ttl_seconds=60)
    house.fake.host.git[workspace["id"]] = DIRTY
    house.fake.order("take", Fault(error=error, has_effect=True))
    await expire(house, workspace["id"])
    (snapshot,) = await kept(house)
    assert snapshot["status"] == "ready"
    assert set(house.fake.host.snapshots) == {snapshot["id"]}
    assert house.fake.host.frozen == set()
