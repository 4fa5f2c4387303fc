"""Quotas and hosts: what is reserved, refused, and given back, and who may look at it and set it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import Answer, Api
from tests.support.house import House, open_house
from vmd.providers.base import ProviderError, ProviderUnavailable
from vmd.providers.fake import FakeHost, FakeProvider, Fault
from vmd.store.database import Transaction

SMALL = {"resources": {"cpus": 0.1, "memory_mb": 16}}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path, janitor__interval_seconds=0.05) as opened:
        await opened.ready()
        yield opened


async def use(api: Api) -> dict[str, Any]:
    answer = await api.get("/quota")
    assert answer.status == 200
    used: dict[str, Any] = answer.json["use"]
    return used


async def act(api: Api, workspace_id: str, action: str) -> Answer:
    return await api.post(f"/workspaces/{workspace_id}/actions/{action}")


async def set_quota(house: House, name: str, **own: Any) -> Any:
    answer = await house.api.call("PUT", "/quota", params={"owner": name}, json=own)
    assert answer.status == 200, answer.text
    return answer.json


def counted(answers: list[Answer]) -> Counter[int]:
    return Counter(answer.status for answer in answers)


# Races.


async def test_two_hundred_creates_at_a_quota_of_one_make_one_workspace(tmp_path: Path) -> None:
    async with open_house(tmp_path, quota__workspaces=1) as house:
        answers = await asyncio.gather(*(house.api.post("/workspaces", SMALL) for _ in range(200)))
        assert counted(answers) == {202: 1, 403: 199}
        assert {answer.json["code"] for answer in answers if answer.status == 403} == {"quota-exceeded"}
        [accepted] = [answer for answer in answers if answer.status == 202]
        await house.api.done(accepted)
        assert len((await house.api.get("/workspaces")).json["items"]) == 1
        assert len(house.fake.host.machines) == 1


async def test_creates_of_many_users_stay_within_what_the_host_has(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"workspaces__memory_overcommit": 0.5, "workspaces__cpu_overcommit": 0.05}
    async with open_house(tmp_path, quota__running=100, **settings) as house:
        await house.ready()
        ann = await house.member("ann")
        wanted = {"resources": {"cpus": 1.0}}  # of 3.2 that may be promised
        answers = await asyncio.gather(
            *(api.post("/workspaces", wanted) for _ in range(25) for api in (house.api, ann))
        )
        assert counted(answers) == {202: 3, 403: 47}
        detail = next(answer.json["detail"] for answer in answers if answer.status == 403)
        assert "may promise 3.2 CPUs" in detail
        assert "3 are promised and this would take 1 more" in detail
        assert "workspaces.cpu_overcommit" in detail
        hosts = (await house.api.get("/quota")).json["hosts"]
        assert hosts == [
            {
                "provider": "fake",
                "node": "local",
                "limits": {"cpus": 3.2, "memory_mb": 128 * 1024},
                "use": {"cpus": 3.0, "memory_mb": 3 * 1024},
            }
        ]
        assert (await ann.get("/quota")).json["hosts"] is None


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"quota__running": 1}, "quota 'running' is 1"),
        ({"workspaces__memory_overcommit": 0.005}, "may promise 1310 MiB of memory"),
    ],
    ids=["quota", "host"],
)
async def test_fifty_starts_where_there_is_room_for_one_start_one(
    tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    async with open_house(tmp_path, **settings) as house:
        await house.ready()
        made = []
        for _ in range(50):
            workspace = await house.api.make()
            await house.api.done(await act(house.api, workspace["id"], "stop"))
            made.append(workspace["id"])
        answers = await asyncio.gather(*(act(house.api, workspace_id, "start") for workspace_id in made))
        assert counted(answers) == {202: 1, 403: 49}
        assert all(named in answer.json["detail"] for answer in answers if answer.status == 403)
        assert (await use(house.api))["running"] == 1


async def test_a_host_that_was_never_reached_refuses_nothing(tmp_path: Path) -> None:
    host = FakeHost(is_reachable=False)
    async with open_house(tmp_path, host=host, workspaces__memory_overcommit=0.001) as house:
        assert (await house.api.post("/workspaces", {})).status == 202
        assert (await house.api.get("/quota")).json["hosts"][0]["limits"] is None


# What is given back, and when.


async def test_a_stopped_workspace_gives_back_its_power_and_a_deleted_one_everything(house: House) -> None:
    workspace = await house.api.make(resources={"cpus": 2, "memory_mb": 512})
    on = {"workspaces": 1, "running": 1, "cpus": 2.0, "memory_mb": 512, "disk_mb": 0, "snapshots": 0}
    assert await use(house.api) == on
    await house.api.done(await act(house.api, workspace["id"], "stop"))
    assert await use(house.api) == {**on, "running": 0, "cpus": 0.0, "memory_mb": 0}
    await house.api.done(await act(house.api, workspace["id"], "start"))
    assert await use(house.api) == on
    await house.api.done(await house.api.delete(f"/workspaces/{workspace['id']}"))
    assert set((await use(house.api)).values()) == {0}


async def test_a_create_that_fails_gives_back_its_power(house: House) -> None:
    house.fake.order("create", Fault(error=ProviderError("no room")))
    failed = await house.api.wait((await house.api.post("/workspaces", {})).json)
    assert failed["status"] == "failed"
    used = await use(house.api)
    assert (used["workspaces"], used["running"], used["memory_mb"]) == (1, 0, 0)
    await house.api.done(await house.api.delete(f"/workspaces/{failed['workspace_id']}"))
    assert (await use(house.api))["workspaces"] == 0


async def test_a_create_that_is_cancelled_gives_back_its_power(house: House) -> None:
    created = (await house.api.post("/workspaces", {"provisioning": ["sleep 60"]})).json
    await house.api.until_phase(created["id"], "provision")
    assert (await use(house.api))["running"] == 1
    assert (await house.api.delete(f"/operations/{created['id']}")).status == 202
    await house.api.wait(created)
    used = await use(house.api)
    assert (used["workspaces"], used["running"]) == (1, 0)


async def test_a_start_that_fails_gives_back_its_power(house: House) -> None:
    workspace = await house.api.make()
    await house.api.done(await act(house.api, workspace["id"], "stop"))
    house.fake.order("start", Fault(error=ProviderError("no")))
    await house.api.wait((await act(house.api, workspace["id"], "start")).json)
    assert (await house.api.workspace(workspace["id"]))["status"] == "stopped"
    assert (await use(house.api))["running"] == 0


async def test_a_machine_that_dies_by_itself_gives_back_its_power(house: House) -> None:
    workspace = await house.api.make()
    house.fake.kill_machine(next(iter(house.fake.host.machines)))
    await house.api.until(workspace["id"], status="stopped")
    assert (await use(house.api))["running"] == 0


async def test_a_create_that_a_daemon_left_half_way_counts_once(tmp_path: Path) -> None:
    host = FakeHost()
    async with open_house(tmp_path, host=host, quota__workspaces=1) as house:
        house.fake.order("start", *[Fault(error=ProviderUnavailable("away"))] * 3)
        created = (await house.api.post("/workspaces", {})).json
        await house.api.until_phase(created["id"], "wait")
    async with open_house(tmp_path, host=host, quota__workspaces=1) as house:
        used = await use(house.api)
        assert (used["workspaces"], used["running"]) == (1, 1)
        assert (await house.api.post("/workspaces", {})).status == 403
        host.faults.clear()
        await house.ready()
        await house.api.until(created["workspace_id"], seconds=30, status="running")
        used = await use(house.api)
        assert (used["workspaces"], used["running"]) == (1, 1)


async def test_a_dry_run_takes_nothing_and_is_refused_as_the_create_would_be(tmp_path: Path) -> None:
    async with open_house(tmp_path, quota__workspaces=1) as house:
        for _ in range(3):
            assert (await house.api.post("/workspaces?dry_run=true", {})).status == 200
        assert (await use(house.api))["workspaces"] == 0
        await house.api.make()
        assert (await house.api.post("/workspaces?dry_run=true", {})).status == 403


async def test_a_rebuild_of_what_is_off_needs_room_and_of_what_is_on_none(tmp_path: Path) -> None:
    async with open_house(tmp_path, quota__running=1) as house:
        first = await house.api.make()
        await house.api.done(await act(house.api, first["id"], "rebuild"))
        await house.api.done(await act(house.api, first["id"], "restart"))
        await house.api.done(await act(house.api, first["id"], "stop"))
        await house.api.make()
        refused = await act(house.api, first["id"], "rebuild")
        assert (refused.status, refused.json["code"]) == (403, "quota-exceeded")


async def test_a_workspace_in_trash_counts_and_comes_back_within_the_limits(house: House) -> None:
    workspace = await house.api.make(ttl_seconds=1800)
    await _trash(house, workspace["id"])
    used = await use(house.api)
    assert (used["workspaces"], used["running"]) == (1, 0)
    await set_quota(house, "admin", workspaces=0, max_ttl_seconds=600)
    refused = await act(house.api, workspace["id"], "undelete")
    assert (refused.status, refused.json["code"]) == (403, "quota-exceeded")
    assert "those in trash count too" in refused.json["detail"]
    await set_quota(house, "admin", workspaces=1, max_ttl_seconds=600)
    assert (await act(house.api, workspace["id"], "undelete")).status == 202
    back = await house.api.workspace(workspace["id"])
    assert (back["status"], back["ttl_seconds"]) == ("stopped", 600)


async def _trash(house: House, workspace_id: str) -> None:
    def unit(tx: Transaction) -> None:
        values = {"id": workspace_id}
        tx.execute(
            "UPDATE workspaces SET status = 'trashed', trashed_at = expires_at, version = version + 1"
            " WHERE id = :id",
            values,
        )

    await house.api.done(await act(house.api, workspace_id, "stop"))
    await house.daemon._database.write(unit)


# Single users.


async def test_a_users_own_limits_replace_single_ones(tmp_path: Path) -> None:
    async with open_house(tmp_path, quota__workspaces=1, quota__max_ttl_seconds=3600) as house:
        ann = await house.member("ann")
        report = await set_quota(house, "ann", workspaces=2, max_ttl_seconds=None)
        assert report["own"] == {"workspaces": 2, "max_ttl_seconds": None}
        assert (report["limits"]["workspaces"], report["limits"]["running"]) == (2, 20)
        assert (await ann.get("/quota")).json["limits"] == report["limits"]
        made = await ann.make(ttl_seconds=None)
        assert made["ttl_seconds"] is None
        await ann.make(ttl_seconds=7200)
        assert (await ann.post("/workspaces", {})).status == 403
        assert (await house.api.make())["ttl_seconds"] == 3600
        await set_quota(house, "ann")
        refused = await ann.patch(f"/workspaces/{made['id']}", {"ttl_seconds": 7200})
        assert (refused.status, refused.json["errors"][0]["pointer"]) == (422, "/ttl_seconds")
        assert (await house.api.get("/quota?owner=ann")).json["use"]["workspaces"] == 2


async def test_an_administrator_acts_on_the_owners_quota(house: House) -> None:
    ann = await house.member("ann")
    workspace = await ann.make()
    await house.api.done(await act(house.api, workspace["id"], "stop"))
    await set_quota(house, "ann", running=0)
    refused = await act(house.api, workspace["id"], "start")
    assert (refused.status, refused.json["code"]) == (403, "quota-exceeded")


async def test_limits_of_cpus_memory_and_disk_are_kept(house: House) -> None:
    for own, wanted, named in (
        ({"cpus": 1.5}, {"cpus": 2}, "cpus"),
        ({"memory_mb": 100}, {"memory_mb": 101}, "memory_mb"),
    ):
        await set_quota(house, "admin", **own)
        refused = await house.api.post("/workspaces", {"resources": wanted})
        assert (refused.status, refused.json["code"]) == (403, "quota-exceeded")
        assert f"The quota '{named}' is" in refused.json["detail"]


async def test_shares_of_processors_that_fill_a_limit_exactly_are_let_in(house: House) -> None:
    await set_quota(house, "admin", cpus=3.3)
    await house.api.make(resources={"cpus": 1.1})
    await house.api.make(resources={"cpus": 2.2})  # as floats, a little more than 3.3 together
    assert (await use(house.api))["cpus"] == 3.3
    assert (await house.api.post("/workspaces", {"resources": {"cpus": 0.05}})).status == 403


async def test_who_may_see_and_set_a_quota(house: House) -> None:
    ann = await house.member("ann")
    confined = await house.member("bob", scopes=("workspaces:read",))
    assert (await ann.get("/quota?owner=ann")).status == 200
    assert (await ann.get("/quota?owner=admin")).status == 403
    assert (await house.api.get("/quota?owner=nobody")).status == 404
    assert (await confined.get("/quota")).status == 200
    for api in (ann, confined):
        answer = await api.call("PUT", "/quota?owner=ann", json={"workspaces": 1000})
        assert (answer.status, answer.json["code"]) == (403, "forbidden")
    unknown = await house.api.call("PUT", "/quota?owner=nobody", json={})
    assert unknown.status == 404
    assert (await house.api.call("PUT", "/quota", json={})).status == 400


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"workspaces": -1}, "/workspaces"),
        ({"running": 1.5}, "/running"),
        ({"cpus": "many"}, "/cpus"),
        ({"max_ttl_seconds": 1}, "/max_ttl_seconds"),
        ({"coffee": 1}, "/coffee"),
    ],
)
async def test_wrong_limits_are_refused_with_their_place(
    house: House, body: dict[str, Any], pointer: str
) -> None:
    answer = await house.api.call("PUT", "/quota?owner=admin", json=body)
    assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, pointer)
    assert (await house.api.get("/quota")).json["own"] == {}


async def test_each_host_is_counted_for_itself(tmp_path: Path) -> None:
    other = FakeProvider()
    other.name = "other"
    async with open_house(
        tmp_path, providers=lambda fake: [fake, other], workspaces__memory_overcommit=0.005
    ) as house:
        await house.ready()
        await house.api.make()
        assert (await house.api.post("/workspaces", {})).status == 403
        await house.api.make(provider="other")
