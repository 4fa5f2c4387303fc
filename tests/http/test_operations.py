import asyncio
import json
import time

import pytest

from tests.support.house import House
from vmd.providers.fake import Fault


async def test_wait_answers_when_it_is_final_or_at_the_timeout(house: House) -> None:
    house.fake.order("create", Fault(delay_seconds=0.5))
    created = (await house.api.post("/workspaces", {})).json
    at_once = await house.api.get(f"/operations/{created['id']}/wait?timeout=0")
    assert (at_once.status, at_once.json["finished_at"]) == (200, None)
    soon = await house.api.get(f"/operations/{created['id']}/wait?timeout=0.1")
    assert (soon.status, soon.json["finished_at"]) == (200, None)
    final = await house.api.get(f"/operations/{created['id']}/wait?timeout=30")
    assert (final.status, final.json["status"]) == (200, "succeeded")
    assert (await house.api.get(f"/operations/{created['id']}/wait?timeout=601")).status == 400


async def test_logs_follow_until_the_end(house: House) -> None:
    created = (
        await house.api.post("/workspaces", {"provisioning": ["echo one", "sleep 0.3", "echo two"]})
    ).json
    answer = await house.api.get(f"/operations/{created['id']}/logs?follow=true")
    assert answer.headers["Content-Type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert [line["message"] for line in lines if line["stream"] == "stdout"] == ["one", "two"]
    assert (await house.api.get(f"/operations/{created['id']}")).json["status"] == "succeeded"
    rest = (await house.api.get(f"/operations/{created['id']}/logs?after={len(lines) - 1}")).text
    assert [json.loads(line) for line in rest.splitlines()] == lines[-1:]


async def test_lists_filter(house: House) -> None:
    workspace = await house.api.make()
    other = await house.api.make()
    await house.api.done(await house.api.post(f"/workspaces/{workspace['id']}/actions/stop"))

    async def types(query: str) -> list[str]:
        answer = await house.api.get(f"/operations?{query}")
        assert answer.status == 200, answer.text
        return [operation["type"] for operation in answer.json["items"]]

    assert await types(f"workspace_id={workspace['id']}") == ["stop", "create"]
    assert await types(f"workspace_id={workspace['id']}&workspace_id={other['id']}") == [
        "stop",
        "create",
        "create",
    ]
    assert await types("type=stop") == ["stop"]
    assert await types("status=succeeded&type=stop&type=create") == ["stop", "create", "create"]
    assert await types("status=failed") == []
    assert await types("actor=nobody") == []
    assert await types("actor=admin&limit=1") == ["stop"]


async def test_operations_outlive_their_workspace(house: House) -> None:
    workspace = await house.api.make()
    deletion = await house.api.done(await house.api.delete(f"/workspaces/{workspace['id']}"))
    assert (await house.api.get(f"/operations/{deletion['id']}")).json["workspace_id"] == workspace["id"]
    assert len((await house.api.get(f"/operations?workspace_id={workspace['id']}")).json["items"]) == 2


async def test_what_cannot_be_cancelled_says_so(house: House) -> None:
    workspace = await house.api.make()
    house.fake.order("stop", Fault(delay_seconds=1))
    stop = (await house.api.post(f"/workspaces/{workspace['id']}/actions/stop")).json
    answer = await house.api.delete(f"/operations/{stop['id']}")
    assert (answer.status, answer.json["code"]) == (409, "invalid-state")


@pytest.mark.parametrize("query", ["after=-1", "after=x", "follow=maybe", "tail=1"])
async def test_a_wrong_log_query_is_malformed(house: House, query: str) -> None:
    workspace = await house.api.make()
    created = (await house.api.get(f"/operations?workspace_id={workspace['id']}")).json["items"][0]
    assert (await house.api.get(f"/operations/{created['id']}/logs?{query}")).status == 400


async def test_those_who_wait_hold_nobody_up_at_the_end(house: House) -> None:
    house.fake.order("create", Fault(delay_seconds=60))
    created = (await house.api.post("/workspaces", {})).json
    waiting = asyncio.create_task(house.api.get(f"/operations/{created['id']}/wait?timeout=600"))
    following = asyncio.create_task(house.api.get(f"/operations/{created['id']}/logs?follow=true"))
    await house.api.until_phase(created["id"], "create")
    begun = time.monotonic()
    await house.daemon._runner.cleanup()
    await asyncio.gather(waiting, following, return_exceptions=True)
    assert time.monotonic() - begun < 30
