"""Snapshots over HTTP, on the fake provider: what is refused, what fails, and what is left then."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import Answer, Api
from tests.support.house import House, open_house
from tests.support.snapshots import path_of, restore, take
from vmd.providers.base import ProviderError, ProviderUnavailable
from vmd.providers.fake import Fault


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path, janitor__interval_seconds=0.05) as made:
        yield made


@pytest.fixture
def api(house: House) -> Api:
    return house.api


def refused(answer: Answer, status: int, code: str) -> Any:
    assert (answer.status, answer.json["code"]) == (status, code), answer.text
    return answer.json


async def test_a_snapshot_has_the_fields_of_the_contract(api: Api) -> None:
    workspace = await api.make(name="one")
    answer = await api.post(f"/workspaces/{workspace['id']}/snapshots", {"name": "first", "description": "d"})
    assert answer.json["type"] == "snapshot"
    assert answer.headers["Location"] == f"/api/v1/operations/{answer.json['id']}"
    operation = await api.done(answer)
    snapshot = (await api.get(f"/workspaces/{workspace['id']}/snapshots/{operation['snapshot_id']}")).json
    assert {
        **{name: snapshot[name] for name in ("workspace_id", "name", "description", "status", "actor")},
        **{name: snapshot[name] for name in ("provider", "template", "repo")},
    } == {
        "workspace_id": workspace["id"],
        "name": "first",
        "description": "d",
        "status": "ready",
        "actor": "admin",
        "provider": "fake",
        "template": "base",
        "repo": None,
    }
    assert operation["result"]["snapshot_id"] == snapshot["id"]
    assert (await api.workspace(workspace["id"]))["current_operation"] is None


async def test_lists_are_pages_newest_first_and_names_are_made_up(api: Api) -> None:
    workspace = await api.make()
    taken = [await take(api, workspace["id"]) for _ in range(3)]
    assert len({snapshot["name"] for snapshot in taken}) == 3
    for path in (f"/workspaces/{workspace['id']}/snapshots", "/snapshots"):
        first = (await api.get(path, params={"limit": 2})).json
        rest = (await api.get(path, params={"limit": 2, "cursor": first["next_cursor"]})).json
        assert [item["id"] for item in first["items"] + rest["items"]] == [s["id"] for s in reversed(taken)]
        assert rest["next_cursor"] is None


async def test_what_cannot_be_taken_is_refused(api: Api, house: House) -> None:
    workspace = await api.make()
    path = f"/workspaces/{workspace['id']}/snapshots"
    await take(api, workspace["id"], name="taken")
    refused(await api.post(path, {"name": "taken"}), 409, "name-taken")
    for name in ("", "x" * 101, "new\nline", 5):
        problem = refused(await api.post(path, {"name": name}), 422, "validation-failed")
        assert problem["errors"][0]["pointer"] == "/name"
    refused(await api.post("/workspaces/ws-0000000000000/snapshots", {}), 404, "not-found")
    house.fake.order("take", Fault(delay_seconds=0.3))
    busy = await api.post(path, {})
    problem = refused(await api.post(path, {}), 409, "operation-in-progress")
    assert problem["operation_id"] == busy.json["id"]
    await api.done(busy)
    await api.done(await api.delete(f"/workspaces/{workspace['id']}"))
    refused(await api.get(path), 404, "not-found")


async def test_a_quota_of_snapshots_is_kept(tmp_path: Path) -> None:
    async with open_house(tmp_path, quota__snapshots=1) as house:
        workspace = await house.api.make()
        first = await take(house.api, workspace["id"])
        problem = refused(
            await house.api.post(f"/workspaces/{workspace['id']}/snapshots", {}), 403, "quota-exceeded"
        )
        assert "'snapshots' is 1" in problem["detail"]
        await house.api.done(await house.api.delete(path_of(first)))
        await take(house.api, workspace["id"])


async def test_others_see_nothing_of_it(api: Api, house: House) -> None:
    workspace = await api.make()
    snapshot = await take(api, workspace["id"])
    other = await house.member("eve")
    for answer in (
        await other.get(path_of(snapshot)),
        await other.get(f"/workspaces/{workspace['id']}/snapshots"),
        await other.delete(path_of(snapshot)),
        await other.post(f"{path_of(snapshot)}/restore", {}),
        await other.post(f"{path_of(snapshot)}/restore", {"new_workspace": {}}),
        await other.get(f"{path_of(snapshot)}/export"),
    ):
        refused(answer, 404, "not-found")
    assert (await other.get("/snapshots")).json["items"] == []
    # Nor is it reached by way of a workspace of one's own.
    own = await other.make()
    wrong = f"/workspaces/{own['id']}/snapshots/{snapshot['id']}"
    refused(await other.post(f"{wrong}/restore", {}), 404, "not-found")


async def test_a_failure_leaves_no_half_snapshot_and_the_machine_goes_on(api: Api, house: House) -> None:
    workspace = await api.make()
    path = f"/workspaces/{workspace['id']}/snapshots"
    house.fake.order("take", Fault(error=ProviderError("no space left on device"), has_effect=True))
    operation = await api.wait((await api.post(path, {"name": "full"})).json)
    assert operation["status"] == "failed"
    assert "no space left" in operation["error"]["detail"]
    snapshot = (await api.get(f"{path}/{operation['snapshot_id']}")).json
    assert (snapshot["status"], snapshot["error"]["code"]) == ("failed", "provider-error")
    assert house.fake.host.snapshots == {}
    assert house.fake.host.frozen == set()
    after = await api.workspace(workspace["id"])
    assert (after["status"], after["last_error"]["code"]) == ("running", "provider-error")
    refused(await api.post(f"{path}/{snapshot['id']}/restore", {}), 409, "invalid-state")
    refused(await api.get(f"{path}/{snapshot['id']}/export"), 409, "invalid-state")
    await api.done(await api.delete(path_of(snapshot)))
    await take(api, workspace["id"], name="full")


async def test_a_snapshot_waits_for_a_provider_that_is_away(api: Api, house: House) -> None:
    workspace = await api.make()
    house.fake.order("take", Fault(error=ProviderUnavailable("away")))
    snapshot = await take(api, workspace["id"])
    assert snapshot["status"] == "ready"
    assert house.fake.host.frozen == set()


async def test_a_cancelled_snapshot_leaves_nothing(api: Api, house: House) -> None:
    workspace = await api.make()
    house.fake.order("take", Fault(delay_seconds=30))
    begun = await api.post(f"/workspaces/{workspace['id']}/snapshots", {})
    await api.until_phase(begun.json["id"], "snapshot")
    assert (await api.delete(f"/operations/{begun.json['id']}")).status == 202
    operation = await api.wait(begun.json)
    assert operation["status"] == "cancelled"
    assert house.fake.host.snapshots == {}
    assert house.fake.host.frozen == set()
    assert (await api.workspace(workspace["id"]))["status"] == "running"


async def test_a_workspace_is_deleted_in_the_middle_of_its_snapshot(api: Api, house: House) -> None:
    workspace = await api.make()
    house.fake.order("take", Fault(delay_seconds=30))
    begun = await api.post(f"/workspaces/{workspace['id']}/snapshots", {})
    await api.until_phase(begun.json["id"], "snapshot")
    await api.done(await api.delete(f"/workspaces/{workspace['id']}"))
    assert (await api.wait(begun.json))["status"] == "cancelled"
    assert house.fake.host.snapshots == {}
    assert (await api.get("/snapshots")).json["items"] == []


async def test_snapshots_go_with_their_workspace_unless_they_are_kept(api: Api, house: House) -> None:
    first, second = await api.make(), await api.make()
    gone, kept = await take(api, first["id"]), await take(api, second["id"])
    await api.done(await api.delete(f"/workspaces/{first['id']}"))
    await api.done(await api.delete(f"/workspaces/{second['id']}", params={"keep_snapshots": "true"}))
    assert set(house.fake.host.snapshots) == {kept["id"]}
    assert (await api.get(path_of(gone))).status == 404
    refused(await api.post(f"{path_of(kept)}/restore", {}), 404, "not-found")
    third = await restore(api, kept, name="third")
    assert third["status"] == "running"
    await api.done(await api.delete(path_of(kept)))
    assert house.fake.host.snapshots == {}


async def test_a_deletion_that_is_tried_again_still_keeps_the_snapshots(api: Api, house: House) -> None:
    workspace = await api.make()
    kept = await take(api, workspace["id"])
    house.fake.order("destroy", *(Fault(error=ProviderUnavailable("away")) for _ in range(2)))
    await api.done(await api.delete(f"/workspaces/{workspace['id']}", params={"keep_snapshots": "true"}))
    assert set(house.fake.host.snapshots) == {kept["id"]}


async def test_a_new_workspace_takes_from_the_snapshot_what_its_request_leaves_out(
    api: Api, house: House
) -> None:
    house.fake.host.repos["http://git.test/r.git"] = "c0ffee0"
    workspace = await api.make(
        repo={"url": "http://git.test/r.git"},
        template="base",
        env={"A": "1", "B": "2", "S": "hidden"},
        secrets=["S"],
        ports=[8000],
        resources={"memory_mb": 300},
        provisioning=["touch made"],
    )
    snapshot = await take(api, workspace["id"])
    assert "hidden" not in str(snapshot)
    made = await restore(
        api, snapshot, name="other", env={"B": "3", "S": "new"}, secrets=["S"], provisioning=["touch extra"]
    )
    assert made["env"] == {"A": "1", "B": "3"}
    assert (made["ports"], made["resources"]["memory_mb"]) == ([8000], 300)
    assert made["repo"] == workspace["repo"]
    assert made["provisioning"] == ["touch made", "touch extra"]
    assert set(house.fake.host.files[made["id"]]) == {"README.md", "made", "extra"}


@pytest.mark.parametrize(
    ("field", "value"),
    [("provider", "docker"), ("node", "moon"), ("repo", {"url": "http://git.test/r.git"}), ("name", "UPPER")],
)
async def test_a_new_workspace_that_cannot_be_is_refused_with_the_place(
    api: Api, field: str, value: Any
) -> None:
    snapshot = await take(api, (await api.make())["id"])
    answer = await api.post(f"{path_of(snapshot)}/restore", {"new_workspace": {field: value}})
    problem = refused(answer, 422, "validation-failed")
    assert problem["errors"][0]["pointer"].startswith(f"/new_workspace/{field}")
    assert len((await api.get("/workspaces")).json["items"]) == 1


async def test_a_name_that_is_taken_is_refused(api: Api) -> None:
    workspace = await api.make(name="one")
    snapshot = await take(api, workspace["id"])
    answer = await api.post(f"{path_of(snapshot)}/restore", {"new_workspace": {"name": "one"}})
    refused(answer, 409, "name-taken")


@pytest.mark.parametrize("method", ["unpack", "create", "start", "stop"])
async def test_a_restore_in_place_that_fails_leaves_the_old(api: Api, house: House, method: str) -> None:
    workspace = await api.make(provisioning=["touch first"])
    snapshot = await take(api, workspace["id"])
    host = house.fake.host
    host.files[workspace["id"]]["second"] = ""
    house.fake.order(method, Fault(error=ProviderError("broken"), has_effect=method != "stop"))
    operation = await api.wait((await api.post(f"{path_of(snapshot)}/restore", {})).json)
    assert operation["status"] == "failed"
    after = await api.workspace(workspace["id"])
    assert after["status"] == "running"
    assert after["last_error"]["detail"].startswith("broken")
    assert set(host.files) == {workspace["id"]}
    assert set(host.files[workspace["id"]]) == {"first", "second"}
    assert len(host.machines) == 1
    await restore(api, snapshot)
    (files,) = host.files.values()
    assert set(files) == {"first"}


@pytest.mark.parametrize("status", ["stopped", "failed"])
async def test_a_restore_brings_back_a_workspace_that_is_off(api: Api, house: House, status: str) -> None:
    workspace = await api.make(provisioning=["touch kept"])
    snapshot = await take(api, workspace["id"])
    if status == "stopped":
        await api.done(await api.post(f"/workspaces/{workspace['id']}/actions/stop"))
    else:
        (ref,) = house.fake.host.machines
        house.fake.remove_machine(ref)
        await api.until(workspace["id"], status="failed")
    after = await restore(api, snapshot)
    assert after["status"] == ("stopped" if status == "stopped" else "running")
    assert len(house.fake.host.files) == 1


async def test_a_snapshot_that_is_being_restored_is_not_deleted(api: Api, house: House) -> None:
    workspace = await api.make()
    snapshot = await take(api, workspace["id"])
    house.fake.order("unpack", Fault(delay_seconds=0.3))
    begun = await api.post(f"{path_of(snapshot)}/restore", {})
    problem = refused(await api.delete(path_of(snapshot)), 409, "operation-in-progress")
    assert problem["operation_id"] == begun.json["id"]
    await api.done(begun)
    await api.done(await api.delete(path_of(snapshot)))


async def test_the_same_request_with_a_key_is_done_once(api: Api) -> None:
    workspace = await api.make()
    path = f"/workspaces/{workspace['id']}/snapshots"
    headers = {"Idempotency-Key": "k"}
    answers = await asyncio.gather(*(api.post(path, {"name": "n"}, headers=headers) for _ in range(5)))
    assert len({answer.json["id"] for answer in answers}) == 1
    await api.done(answers[0])
    assert len((await api.get(path)).json["items"]) == 1


async def test_events_tell_the_life_of_a_snapshot(api: Api) -> None:
    workspace = await api.make()
    snapshot = await take(api, workspace["id"])
    await restore(api, snapshot)
    await api.done(await api.delete(path_of(snapshot)))
    async with api.session.ws_connect("/ws/events?after=0") as socket:
        seen: list[Any] = []
        while not seen or seen[-1]["type"] != "snapshot.deleted":
            seen.append(await socket.receive_json(timeout=5))
    told = [event["type"] for event in seen if event["type"].startswith("snapshot.")]
    assert told == ["snapshot.created", "snapshot.ready", "snapshot.restored", "snapshot.deleted"]
    assert {event["data"]["snapshot_id"] for event in seen if event["type"].startswith("snapshot.")} == {
        snapshot["id"]
    }


async def test_what_is_exported_is_imported(api: Api, house: House) -> None:
    workspace = await api.make(provisioning=["touch kept"], env={"A": "1"})
    snapshot = await take(api, workspace["id"], name="carried")
    async with api.session.get(f"/api/v1{path_of(snapshot)}/export") as response:
        content = await response.read()
        assert response.headers["Content-Type"] == "application/x-tar"
    headers = {"Idempotency-Key": "import"}
    first = await api.call("POST", "/snapshots/import?name=mine", data=content, headers=headers)
    assert first.status == 201, first.text
    again = await api.call("POST", "/snapshots/import?name=mine", data=content, headers=headers)
    assert again.json == first.json
    assert first.json["name"] == "mine"
    assert first.json["workspace_id"] != workspace["id"]
    made = await restore(api, first.json, name="made")
    assert house.fake.host.files[made["id"]] == {"kept": ""}
    refused(await api.post(f"{path_of(first.json)}/restore", {}), 404, "not-found")
    for wrong in (content[:-3000], content[:700], b"", b"{}", content.replace(b"kept", b"kapt", 1)):
        refused(await api.call("POST", "/snapshots/import", data=wrong), 422, "validation-failed")
    assert set(house.fake.host.snapshots) == {snapshot["id"], first.json["id"]}
    zipped = {"Content-Encoding": "gzip"}
    answer = await api.call("POST", "/snapshots/import", data=b"x", headers=zipped)
    refused(answer, 400, "malformed-request")
