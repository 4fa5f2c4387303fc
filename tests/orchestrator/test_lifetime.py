"""Clocks: what stops, trashes and purges a workspace, and what holds them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.house import House, open_house
from vmd.store.database import Transaction

HOUR_MS = 3_600_000


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path, janitor__interval_seconds=0.05, janitor__warning_seconds=0) as opened:
        await opened.ready()
        yield opened


async def age(house: House, workspace_id: str, column: str, milliseconds: int = HOUR_MS) -> None:
    """Put one of a workspace's times back."""
    sql = {
        "last_activity_at": "UPDATE workspaces SET last_activity_at = last_activity_at - :ms WHERE id = :id",
        "expires_at": "UPDATE workspaces SET expires_at = expires_at - :ms WHERE id = :id",
        "trashed_at": "UPDATE workspaces SET trashed_at = trashed_at - :ms WHERE id = :id",
    }[column]

    def unit(tx: Transaction) -> Any:
        return tx.execute(sql, {"ms": milliseconds, "id": workspace_id})

    await house.daemon._database.write(unit)


async def events(house: House, workspace_id: str) -> list[tuple[str, Any]]:
    def unit(tx: Transaction) -> list[tuple[str, Any]]:
        rows = tx.execute(
            "SELECT type, json_extract(data, '$.clock') AS clock FROM events"
            " WHERE workspace_id = :id ORDER BY seq",
            {"id": workspace_id},
        )
        return [(row["type"], row["clock"]) for row in rows if row["clock"] is not None]

    return await house.daemon._database.read(unit)


async def test_an_idle_workspace_is_stopped_and_kept(house: House) -> None:
    workspace = await house.api.make(idle_timeout_seconds=1800)
    await age(house, workspace["id"], "last_activity_at")
    stopped = await house.api.until(workspace["id"], status="stopped")
    assert stopped["last_error"] is None
    operation = (await house.api.get("/operations?type=stop")).json["items"][0]
    assert operation["actor"] == "system"
    assert ("workspace.expired", "idle") in await events(house, workspace["id"])
    lifetime = (await house.api.get(f"/workspaces/{workspace['id']}/lifetime")).json
    assert lifetime["last_fired"]["clock"] == "idle"
    await house.api.done(await house.api.post(f"/workspaces/{workspace['id']}/actions/start"))


async def test_an_expired_workspace_goes_to_trash_and_comes_back(house: House) -> None:
    workspace = await house.api.make(ttl_seconds=1800)
    await age(house, workspace["id"], "expires_at")
    trashed = await house.api.until(workspace["id"], status="trashed")
    assert trashed["allowed_actions"] == ["undelete", "delete"]
    assert ("workspace.expired", "ttl") in await events(house, workspace["id"])
    answer = await house.api.post(f"/workspaces/{workspace['id']}/actions/undelete")
    assert (answer.status, answer.json["result"]) == (202, {"changed": True})
    back = await house.api.until(workspace["id"], status="stopped")
    assert back["expires_at"] > trashed["expires_at"]
    again = await house.api.post(f"/workspaces/{workspace['id']}/actions/undelete")
    assert (again.status, again.json["result"]) == (200, {"changed": False})
    await house.api.done(await house.api.post(f"/workspaces/{workspace['id']}/actions/start"))


async def test_trash_is_purged_after_its_grace(house: House) -> None:
    workspace = await house.api.make(ttl_seconds=1800)
    await age(house, workspace["id"], "expires_at")
    await house.api.until(workspace["id"], status="trashed")
    lifetime = (await house.api.get(f"/workspaces/{workspace['id']}/lifetime")).json
    assert (lifetime["next"]["clock"], lifetime["next"]["leads_to"]) == ("trash", "delete")
    await age(house, workspace["id"], "trashed_at", 8 * 24 * HOUR_MS)
    async with asyncio.timeout(10):
        while (await house.api.get(f"/workspaces/{workspace['id']}")).status != 404:
            pass
    assert house.fake.host.machines == {}


async def test_a_pinned_or_unreachable_workspace_is_held(house: House) -> None:
    pinned = await house.api.make(ttl_seconds=1800, pinned=True)
    away = await house.api.make(ttl_seconds=1800)
    house.fake.cut_off()
    await house.api.until(away["id"], health="unreachable")
    for workspace in (pinned, away):
        await age(house, workspace["id"], "expires_at")
    await house.daemon._lifetimes.sweep()
    for workspace, held in ((pinned, ["pinned", "unreachable"]), (away, ["unreachable"])):
        assert (await house.api.workspace(workspace["id"]))["status"] == "running"
        lifetime = (await house.api.get(f"/workspaces/{workspace['id']}/lifetime")).json
        assert (lifetime["next"], lifetime["held_by"]) == (None, held)
    house.fake.reconnect()
    await house.api.until(away["id"], status="trashed")
    assert (await house.api.workspace(pinned["id"]))["status"] == "running"


async def test_a_warning_comes_once_and_before(tmp_path: Path) -> None:
    async with open_house(tmp_path, janitor__warning_seconds=600) as house:
        workspace = await house.api.make(ttl_seconds=3600, idle_timeout_seconds=7200)
        await age(house, workspace["id"], "expires_at", HOUR_MS - 300_000)
        for _ in range(3):
            await house.daemon._lifetimes.sweep()
        assert await events(house, workspace["id"]) == [("workspace.expiring", "ttl")]
        lifetime = (await house.api.get(f"/workspaces/{workspace['id']}/lifetime")).json
        assert (lifetime["next"]["clock"], lifetime["next"]["leads_to"]) == ("ttl", "trash")


async def test_what_was_held_when_it_was_due_is_warned_of_and_not_fired_at_once(tmp_path: Path) -> None:
    async with open_house(tmp_path, janitor__warning_seconds=600) as house:
        workspace = await house.api.make(ttl_seconds=1800, pinned=True)
        await age(house, workspace["id"], "expires_at")
        await house.api.patch(f"/workspaces/{workspace['id']}", {"pinned": False})
        for _ in range(3):
            await house.daemon._lifetimes.sweep()
        assert await events(house, workspace["id"]) == [("workspace.expiring", "ttl")]
        assert (await house.api.workspace(workspace["id"]))["status"] == "running"


async def test_activity_puts_the_idle_clock_off(house: House) -> None:
    workspace = await house.api.make(idle_timeout_seconds=1800)
    before = (await house.api.get(f"/workspaces/{workspace['id']}/lifetime")).json["next"]["at"]
    await house.api.patch(f"/workspaces/{workspace['id']}", {"description": "still here"})
    after = (await house.api.get(f"/workspaces/{workspace['id']}/lifetime")).json
    assert after["next"]["at"] > before
    assert after["activity"]["counts"]


async def test_a_failed_workspace_expires_too(house: House) -> None:
    created = (await house.api.post("/workspaces", {"ttl_seconds": 1800, "provisioning": ["exit 1"]})).json
    await house.api.wait(created)
    await age(house, created["workspace_id"], "expires_at")
    await house.api.until(created["workspace_id"], status="trashed")
    await house.api.done(await house.api.delete(f"/workspaces/{created['workspace_id']}"))
