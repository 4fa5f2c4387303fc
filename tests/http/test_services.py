"""What runs beside machines, on the fake host: it follows its machine through everything."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from tests.support.house import House, open_house
from vmd.model.errors import ErrorCode
from vmd.providers.base import Power, ProviderError, ProviderUnavailable
from vmd.providers.fake import FakeHost, Fault

BOTH = ["postgresql", "redis"]


def running(host: FakeHost) -> list[str]:
    """Return the names of the services that run."""
    return sorted(found.service.name for found in host.services.values() if found.is_running)


async def until_running(host: FakeHost, *names: str) -> None:
    """Return as soon as these services run, and no others."""
    async with asyncio.timeout(5):
        while running(host) != sorted(names):
            await asyncio.sleep(0.01)


async def passed(host: FakeHost, step: str, count: int) -> None:
    """Return as soon as the host was asked for a step this many times."""
    async with asyncio.timeout(5):
        while host.calls[step] < count:
            await asyncio.sleep(0.005)


async def told_of_health(house: House, workspace_id: str) -> list[Any]:
    """Return what events told of the workspace's health so far."""
    told: list[Any] = []
    await house.api.patch(f"/workspaces/{workspace_id}", {"description": "until here"})
    async with house.api.session.ws_connect(f"/ws/workspaces/{workspace_id}/events?after=0") as socket:
        async with asyncio.timeout(5):
            while not told or "description" not in told[-1]:
                event = await socket.receive_json()
                if event["type"] == "workspace.updated":
                    told.append(event["data"])
    return [data for data in told if "health" in data]


async def test_services_are_made_and_started_before_the_machine(house: House) -> None:
    host = house.fake.host
    workspace = await house.api.make(plugins=BOTH)
    assert running(host) == BOTH
    assert workspace["env"]["PGHOST"] == "postgresql"
    assert workspace["env"]["REDIS_URL"] == "redis://redis:6379/0"
    assert {image.partition(":")[0] for image in host.builds} == {
        "vmd-service-postgresql",
        "vmd-service-redis",
    }
    second = await house.api.make(plugins=["redis"])
    assert (len(host.builds), host.calls["build"]) == (2, 2)  # each once
    assert {found.workspace_id for found in host.services.values()} == {workspace["id"], second["id"]}


async def test_services_follow_their_machine_and_keep_their_data(house: House) -> None:
    host = house.fake.host
    workspace = await house.api.make(plugins=BOTH)
    path = f"/workspaces/{workspace['id']}"
    host.services[f"{workspace['id']}/redis"].data["key"] = "value"
    await house.api.done(await house.api.post(f"{path}/actions/stop"))
    assert running(host) == []
    await house.api.done(await house.api.post(f"{path}/actions/start"))
    assert running(host) == BOTH
    await house.api.done(await house.api.post(f"{path}/actions/restart"))
    assert host.services[f"{workspace['id']}/redis"].starts == 3
    await house.api.done(await house.api.post(f"{path}/actions/rebuild"))
    assert running(host) == BOTH
    assert host.services[f"{workspace['id']}/redis"].data == {"key": "value"}
    await house.api.done(await house.api.post(f"{path}/actions/stop"))
    await house.api.done(await house.api.post(f"{path}/actions/rebuild"))
    assert (await house.api.workspace(workspace["id"]))["status"] == "stopped"
    assert running(host) == []
    await house.api.done(await house.api.delete(path))
    assert host.services == {}


async def test_a_service_that_dies_degrades_the_workspace_until_it_is_back(house: House) -> None:
    workspace = await house.api.make(plugins=BOTH)
    house.fake.kill_service(workspace["id"], "redis")
    degraded = await house.api.until(workspace["id"], health="degraded")
    assert degraded["status"] == "running"
    house.fake.revive_service(workspace["id"], "redis")
    await house.api.until(workspace["id"], health="ok")
    told = await told_of_health(house, workspace["id"])
    assert [data["health"] for data in told] == ["degraded", "ok"]
    assert "The service redis is not running; restart the workspace" in told[0]["reason"]
    assert told[1]["reason"] is None


async def test_a_restart_brings_back_what_died(house: House) -> None:
    workspace = await house.api.make(plugins=BOTH)
    house.fake.kill_service(workspace["id"], "postgresql")
    house.fake.kill_service(workspace["id"], "redis")
    await house.api.until(workspace["id"], health="degraded")
    await house.api.done(await house.api.post(f"/workspaces/{workspace['id']}/actions/restart"))
    assert (await house.api.workspace(workspace["id"]))["health"] == "ok"
    assert [data["health"] for data in await told_of_health(house, workspace["id"])] == ["degraded", "ok"]
    assert running(house.fake.host) == BOTH


async def test_a_provider_that_is_reached_again_mends_no_service(house: House) -> None:
    await house.ready()
    workspace = await house.api.make(plugins=["redis"])
    house.fake.kill_service(workspace["id"], "redis")
    await house.api.until(workspace["id"], health="degraded")
    house.fake.cut_off()
    await house.api.until(workspace["id"], health="unreachable")
    house.fake.reconnect()
    await house.ready()
    assert (await house.api.workspace(workspace["id"]))["health"] == "degraded"


@pytest.mark.parametrize("how", ["kill_machine", "remove_machine"])
async def test_services_rest_when_their_machine_ends_by_itself(house: House, how: str) -> None:
    host = house.fake.host
    workspace = await house.api.make(plugins=BOTH)
    await house.api.make(plugins=["redis"])  # which nobody touches
    [ref] = [ref for ref, machine in host.machines.items() if machine.workspace_id == workspace["id"]]
    getattr(house.fake, how)(ref)
    await until_running(host, "redis")
    settled = await house.api.workspace(workspace["id"])
    assert (settled["status"], settled["health"]) == ("stopped" if how == "kill_machine" else "failed", "ok")
    action = "start" if how == "kill_machine" else "rebuild"
    await house.api.done(await house.api.post(f"/workspaces/{workspace['id']}/actions/{action}"))
    assert running(host) == [*BOTH, "redis"]


async def test_services_rest_when_their_machine_ended_while_the_daemon_was_down(tmp_path: Path) -> None:
    host = FakeHost()
    async with open_house(tmp_path, host=host) as house:
        await house.api.make(plugins=BOTH)
    [(ref, machine)] = host.machines.items()
    host.machines[ref] = evolve(machine, power=Power.STOPPED, exit_code=137, address=None)
    async with open_house(tmp_path, host=host):
        await until_running(host)


async def test_a_service_that_does_not_come_up_fails_the_create(house: House) -> None:
    host = house.fake.host
    refusal = ProviderError("The service redis is not ready after 60 s. It said: no memory.")
    house.fake.order("start_service", Fault(), Fault(error=refusal))
    operation = await house.api.wait((await house.api.post("/workspaces", {"plugins": BOTH})).json)
    assert (operation["status"], operation["error"]["code"]) == ("failed", ErrorCode.PROVIDER_ERROR)
    assert "The service redis is not ready after 60 s. It said: no memory." in operation["error"]["detail"]
    workspace = await house.api.workspace(operation["workspace_id"])
    assert workspace["allowed_actions"] == ["start", "rebuild", "restore", "delete"]
    assert running(host) == []
    await house.api.done(await house.api.post(f"/workspaces/{workspace['id']}/actions/start"))
    assert running(host) == BOTH
    await house.api.done(await house.api.delete(f"/workspaces/{workspace['id']}"))
    assert (host.services, host.machines, host.files) == ({}, {}, {})


async def test_an_image_that_cannot_be_built_fails_the_create_with_nothing_left(house: House) -> None:
    host = house.fake.host
    house.fake.order("build", Fault(error=ProviderError("The image cannot be built: no route.")))
    operation = await house.api.wait((await house.api.post("/workspaces", {"plugins": ["redis"]})).json)
    assert "no route" in operation["error"]["detail"]
    assert (host.services, host.machines) == ({}, {})


@pytest.mark.parametrize(
    ("step", "faults"),
    [
        ("create_service", [Fault(delay_seconds=60)]),
        ("create_service", [Fault(), Fault(delay_seconds=60)]),
        ("create_service", [Fault(error=ProviderUnavailable("cut"), has_effect=True)]),
        ("create_service", [Fault(), Fault(error=ProviderUnavailable("cut"), has_effect=True)]),
        ("start_service", [Fault(), Fault(delay_seconds=60)]),
        ("start", [Fault(delay_seconds=60)]),
    ],
)
async def test_a_create_goes_on_after_a_kill_between_services_and_machine(
    tmp_path: Path, step: str, faults: list[Fault]
) -> None:
    host = FakeHost()
    async with open_house(tmp_path, host=host) as house:
        house.daemon._queue._retry_seconds = (60,)
        house.fake.order(step, *faults)
        created = (await house.api.post("/workspaces", {"plugins": BOTH})).json
        await passed(host, step, len(faults))
    host.faults.clear()
    async with open_house(tmp_path, host=host) as house:
        if any(fault.error for fault in faults):
            house.daemon._queue._retry_seconds = (0.01,)
        operation = await house.api.wait(created)
        assert operation["status"] == "succeeded", operation["error"]
        assert (sorted(found.service.name for found in host.services.values()), running(host)) == (BOTH, BOTH)
        assert len(host.machines) == 1
        await house.api.done(await house.api.delete(f"/workspaces/{created['workspace_id']}"))
        assert (host.services, host.machines, host.files) == ({}, {}, {})


async def test_a_cancelled_create_takes_its_services_away(house: House) -> None:
    house.fake.order("start_service", Fault(), Fault(delay_seconds=60))
    created = (await house.api.post("/workspaces", {"plugins": BOTH})).json
    await passed(house.fake.host, "start_service", 2)
    await house.api.delete(f"/operations/{created['id']}")
    assert (await house.api.wait(created))["status"] == "cancelled"
    assert (house.fake.host.services, house.fake.host.machines) == ({}, {})


@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_a_start_that_comes_to_nothing_leaves_services_at_rest(tmp_path: Path, how: str) -> None:
    deadline = 0.3 if how == "deadline" else 60
    async with open_house(tmp_path, operations__deadlines__start=deadline) as house:
        workspace = await house.api.make(plugins=BOTH)
        path = f"/workspaces/{workspace['id']}/actions"
        await house.api.done(await house.api.post(f"{path}/stop"))
        house.fake.order("start", Fault(delay_seconds=60))
        before = house.fake.host.calls["start"]
        starting = (await house.api.post(f"{path}/start")).json
        await passed(house.fake.host, "start", before + 1)
        assert running(house.fake.host) == BOTH
        if how == "cancel":
            await house.api.delete(f"/operations/{starting['id']}")
        await house.api.wait(starting)
        assert (await house.api.workspace(workspace["id"]))["status"] == "stopped"
        assert running(house.fake.host) == []


async def test_a_rebuild_that_fails_brings_the_old_machine_back_with_its_services(house: House) -> None:
    host = house.fake.host
    workspace = await house.api.make(plugins=["redis"])
    host.services[f"{workspace['id']}/redis"].data["key"] = "value"
    old = set(host.machines)
    house.fake.order("create", Fault(error=ProviderError("no space")))
    path = f"/workspaces/{workspace['id']}/actions"
    failed = await house.api.wait((await house.api.post(f"{path}/rebuild")).json)
    assert failed["status"] == "failed"
    assert (set(host.machines), running(host)) == (old, ["redis"])
    await house.api.done(await house.api.post(f"{path}/stop"))
    house.fake.order("start", Fault(error=ProviderError("no memory")))
    failed = await house.api.wait((await house.api.post(f"{path}/rebuild")).json)
    assert failed["status"] == "failed"
    assert (await house.api.workspace(workspace["id"]))["status"] == "stopped"
    assert (set(host.machines), running(host)) == (old, [])
    assert host.services[f"{workspace['id']}/redis"].data == {"key": "value"}
