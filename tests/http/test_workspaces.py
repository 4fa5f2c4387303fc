import asyncio
from pathlib import Path

import pytest

from tests.support.house import House, open_house
from vmd.providers.base import Power, ProviderError, ProviderUnavailable
from vmd.providers.fake import FakeHost, Fault

URL = "http://git.example/hello.git"


async def test_create_answers_with_the_recorded_operation_and_its_place(house: House) -> None:
    answer = await house.api.post("/workspaces", {"name": "one"})
    operation = answer.json
    assert answer.status == 202
    assert answer.headers["Location"] == f"/api/v1/operations/{operation['id']}"
    assert (operation["type"], operation["actor"]) == ("create", "admin")
    assert set(operation) == {
        *("id", "type", "status", "workspace_id", "snapshot_id", "command_id", "actor", "created_at"),
        *("started_at", "finished_at", "progress", "result", "error", "may_cancel", "attempt"),
    }
    ended = await house.api.wait(operation)
    assert (ended["status"], ended["result"], ended["may_cancel"]) == ("succeeded", {"changed": True}, False)


async def test_a_created_workspace_has_all_fields_of_the_contract(house: House) -> None:
    workspace = await house.api.make(name="one", env={"A": "1", "S": "hidden"}, secrets=["S"])
    assert set(workspace) == {
        *("id", "name", "description", "owner", "status", "health", "version", "template", "provider"),
        *("node", "repo", "resources", "env", "labels", "provisioning", "plugins", "ports", "pinned"),
        *("ttl_seconds", "expires_at", "idle_timeout_seconds", "last_activity_at", "created_at"),
        *("updated_at", "started_at", "current_operation", "last_error", "allowed_actions", "connection"),
        *("tunnels", "parameters"),
    }
    assert (workspace["status"], workspace["health"], workspace["owner"]) == ("running", "ok", "admin")
    assert workspace["env"] == {"A": "1"}
    assert workspace["created_at"].endswith("Z")
    assert workspace["connection"]["address"] == "192.0.2.1"
    assert workspace["allowed_actions"] == ["stop", "restart", "rebuild", "snapshot", "restore", "delete"]


async def test_a_repository_is_cloned_and_provisioned_with_secrets(house: House) -> None:
    house.fake.host.repos[URL] = "a" * 40
    workspace = await house.api.make(
        repo={"url": URL},
        provisioning=["echo $S", "touch built"],
        env={"S": "value"},
        secrets=["S"],
    )
    assert workspace["repo"] == {"url": URL, "branch": None, "commit": "a" * 40}
    operations = (await house.api.get("/operations", params={"workspace_id": workspace["id"]})).json["items"]
    lines = (await house.api.get(f"/operations/{operations[0]['id']}/logs")).text
    assert '"***"' in lines  # it was there to be echoed, and is not shown
    assert '"value"' not in lines
    assert sorted(house.fake.host.files[workspace["id"]]) == ["README.md", "built"]


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"repo": {"url": "http://git.example/none"}}, "repository 'http://git.example/none' not found"),
        ({"repo": {"url": URL, "branch": "nope"}}, "Remote branch nope not found"),
        ({"provisioning": ["true", "exit 3"]}, "command 2 of 2 failed with exit code 3: `exit 3`"),
        ({"provisioning": ["nonesuch"]}, "nonesuch: not found"),
    ],
)
async def test_a_create_that_fails_says_why_and_can_be_deleted(
    house: House, wanted: dict[str, object], reason: str
) -> None:
    house.fake.host.repos[URL] = "a" * 40
    answer = await house.api.post("/workspaces", wanted)
    operation = await house.api.wait(answer.json)
    assert operation["status"] == "failed"
    assert operation["error"]["code"] == "provider-error"
    assert reason in operation["error"]["detail"]
    workspace = await house.api.workspace(operation["workspace_id"])
    assert workspace["status"] == "failed"
    assert workspace["last_error"]["detail"] == operation["error"]["detail"]
    assert workspace["allowed_actions"] == ["start", "rebuild", "restore", "delete"]
    assert all(machine.power is Power.STOPPED for machine in house.fake.host.machines.values())
    await house.api.done(await house.api.delete(f"/workspaces/{workspace['id']}"))
    assert house.fake.host.machines == {}
    assert (await house.api.get(f"/workspaces/{workspace['id']}")).status == 404


async def test_an_image_that_is_not_there_fails_the_create_with_nothing_left(tmp_path: Path) -> None:
    async with open_house(tmp_path, providers__docker__base_image="none:1") as house:
        operation = await house.api.wait((await house.api.post("/workspaces", {})).json)
        assert "The image none:1 is not there" in operation["error"]["detail"]
        workspace = await house.api.workspace(operation["workspace_id"])
        assert workspace["allowed_actions"] == ["rebuild", "restore", "delete"]


async def test_dry_run_plans_and_makes_nothing(house: House) -> None:
    answer = await house.api.post("/workspaces?dry_run=true", {"name": "one", "resources": {"cpus": 2}})
    assert answer.status == 200
    assert (answer.json["template"], answer.json["provider"], answer.json["node"]) == (
        "base",
        "fake",
        "local",
    )
    assert answer.json["resources"] == {"cpus": 2.0, "memory_mb": 1024, "disk_mb": None, "pids": 512}
    assert answer.json["quota"]["use"]["workspaces"] == 0
    assert (await house.api.get("/workspaces")).json["items"] == []


async def test_actions_lead_through_the_states(house: House) -> None:
    workspace = await house.api.make()
    path = f"/workspaces/{workspace['id']}"
    await house.api.done(await house.api.post(f"{path}/actions/stop"))
    assert (await house.api.workspace(workspace["id"]))["status"] == "stopped"
    await house.api.done(await house.api.post(f"{path}/actions/start"))
    await house.api.done(await house.api.post(f"{path}/actions/restart"))
    running = await house.api.workspace(workspace["id"])
    assert running["status"] == "running"
    assert running["started_at"] > workspace["started_at"]
    before = set(house.fake.host.machines)
    await house.api.done(await house.api.post(f"{path}/actions/rebuild"))
    assert len(house.fake.host.machines) == 1
    assert not before & set(house.fake.host.machines)
    assert (await house.api.workspace(workspace["id"]))["status"] == "running"


async def test_a_rebuild_keeps_files_and_the_power_state(house: House) -> None:
    workspace = await house.api.make(provisioning=["touch built"])
    house.fake.host.files[workspace["id"]]["mine"] = ""
    await house.api.done(await house.api.post(f"/workspaces/{workspace['id']}/actions/stop"))
    await house.api.done(await house.api.post(f"/workspaces/{workspace['id']}/actions/rebuild"))
    assert (await house.api.workspace(workspace["id"]))["status"] == "stopped"
    assert set(house.fake.host.files[workspace["id"]]) == {"mine", "built"}


async def test_a_rebuild_that_fails_brings_the_old_machine_back(house: House) -> None:
    workspace = await house.api.make()
    before = set(house.fake.host.machines)
    house.fake.order("create", Fault(error=ProviderError("no space left")))
    operation = await house.api.wait(
        (await house.api.post(f"/workspaces/{workspace['id']}/actions/rebuild")).json
    )
    assert operation["status"] == "failed"
    after = await house.api.workspace(workspace["id"])
    assert after["status"] == "running"
    assert "no space left" in after["last_error"]["detail"]
    assert set(house.fake.host.machines) == before


async def test_a_satisfied_action_answers_200_and_changes_nothing(house: House) -> None:
    workspace = await house.api.make()
    answer = await house.api.post(f"/workspaces/{workspace['id']}/actions/start")
    assert answer.status == 200
    assert (answer.json["status"], answer.json["result"]) == ("succeeded", {"changed": False})
    assert (await house.api.get(f"/operations/{answer.json['id']}")).json == answer.json
    assert (await house.api.workspace(workspace["id"]))["version"] == workspace["version"]


async def test_a_forbidden_action_lists_what_is_allowed(house: House) -> None:
    workspace = await house.api.make()
    answer = await house.api.post(f"/workspaces/{workspace['id']}/actions/undelete")
    assert answer.status == 409
    assert answer.json["code"] == "invalid-state"
    assert answer.json["allowed_actions"] == ["stop", "restart", "rebuild", "snapshot", "restore", "delete"]


async def test_an_action_during_another_names_the_operation(house: House) -> None:
    workspace = await house.api.make()
    house.fake.order("stop", Fault(delay_seconds=5))
    first = (await house.api.post(f"/workspaces/{workspace['id']}/actions/stop")).json
    answer = await house.api.post(f"/workspaces/{workspace['id']}/actions/restart")
    assert (answer.status, answer.json["code"]) == (409, "operation-in-progress")
    assert answer.json["operation_id"] == first["id"]
    again = await house.api.post(f"/workspaces/{workspace['id']}/actions/stop")
    assert "with force" in again.json["detail"]


async def test_stop_with_force_takes_over_from_a_stop_that_takes_long(house: House) -> None:
    workspace = await house.api.make()
    house.fake.order("stop", Fault(delay_seconds=60))
    first = (await house.api.post(f"/workspaces/{workspace['id']}/actions/stop")).json
    await house.api.until_phase(first["id"], "stop")
    await house.api.done(await house.api.post(f"/workspaces/{workspace['id']}/actions/stop", {"force": True}))
    assert (await house.api.workspace(workspace["id"]))["status"] == "stopped"
    assert (await house.api.wait(first))["status"] == "cancelled"


async def test_delete_works_in_every_status(house: House) -> None:
    slow = Fault(delay_seconds=60)
    house.fake.order("create", slow)
    creating = (await house.api.post("/workspaces", {})).json
    await house.api.until(creating["workspace_id"], status="creating")
    stopping = await house.api.make()
    house.fake.order("stop", slow)
    await house.api.post(f"/workspaces/{stopping['id']}/actions/stop")
    starting = await house.api.make()
    await house.api.done(await house.api.post(f"/workspaces/{starting['id']}/actions/stop"))
    house.fake.order("start", slow)
    await house.api.post(f"/workspaces/{starting['id']}/actions/start")
    stopped = await house.api.make()
    await house.api.done(await house.api.post(f"/workspaces/{stopped['id']}/actions/stop"))
    failed = await house.api.wait((await house.api.post("/workspaces", {"provisioning": ["exit 1"]})).json)
    running = await house.api.make()
    ids = [
        creating["workspace_id"],
        *(found["id"] for found in (stopping, starting, stopped, running)),
        failed["workspace_id"],
    ]
    for workspace_id in ids:
        await house.api.done(await house.api.delete(f"/workspaces/{workspace_id}"))
    assert house.fake.host.machines == {}
    assert house.fake.host.files == {}
    assert (await house.api.get("/workspaces")).json["items"] == []
    superseded = await house.api.wait(creating)
    assert superseded["status"] == "cancelled"


async def test_a_pending_create_can_be_deleted_before_it_is_begun(tmp_path: Path) -> None:
    async with open_house(tmp_path, operations__concurrency=1) as house:
        house.fake.order("create", Fault(delay_seconds=60))
        first = (await house.api.post("/workspaces", {})).json
        await house.api.until(first["workspace_id"], status="creating")
        second = (await house.api.post("/workspaces", {})).json
        deletion = await house.api.delete(f"/workspaces/{second['workspace_id']}")
        assert (await house.api.get(f"/operations/{second['id']}")).json["status"] == "cancelled"
        await house.api.delete(f"/workspaces/{first['workspace_id']}")
        await house.api.done(deletion)
        assert house.fake.host.calls["create"] == 1


async def test_a_delete_that_keeps_failing_stays_until_force_forgets_it(tmp_path: Path) -> None:
    host = FakeHost()
    async with open_house(tmp_path, host=host) as house:
        house.daemon._queue._retry_seconds = (0.01,)
        workspace = await house.api.make()
        refusal = Fault(error=ProviderError("device busy"))
        house.fake.order("destroy", refusal)
        operation = await house.api.wait((await house.api.delete(f"/workspaces/{workspace['id']}")).json)
        assert operation["status"] == "failed"
        stuck = await house.api.workspace(workspace["id"])
        assert (stuck["status"], stuck["allowed_actions"]) == ("deleting", ["delete"])
        assert "device busy" in stuck["last_error"]["detail"]
        house.fake.order("destroy", refusal, refusal, refusal)
        forced = await house.api.done(await house.api.delete(f"/workspaces/{workspace['id']}?force=true"))
        assert "device busy" in forced["result"]["leftover"]
        assert (await house.api.get(f"/workspaces/{workspace['id']}")).status == 404


async def test_an_operation_waits_while_its_provider_is_away(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        house.daemon._queue._retry_seconds = (0.05,)
        await house.ready()
        house.fake.cut_off()
        created = (await house.api.post("/workspaces", {})).json
        workspace = await house.api.until(created["workspace_id"], status="creating", health="unreachable")
        await house.api.until_phase(created["id"], "wait")
        waiting = (await house.api.get(f"/operations/{created['id']}")).json
        assert waiting["status"] == "pending"
        assert "cut off" in waiting["progress"]["message"]
        assert (await house.api.get("/health/ready")).status == 503
        house.fake.reconnect()
        assert (await house.api.wait(created))["status"] == "succeeded"
        await house.api.until(workspace["id"], status="running", health="ok")


async def test_cancel_takes_everything_away_and_leaves_a_failed_workspace(house: House) -> None:
    house.fake.order("start", Fault(delay_seconds=60))
    created = (await house.api.post("/workspaces", {})).json
    await house.api.until_phase(created["id"], "start")
    answer = await house.api.delete(f"/operations/{created['id']}")
    assert answer.status == 202
    assert (await house.api.wait(created))["status"] == "cancelled"
    workspace = await house.api.workspace(created["workspace_id"])
    assert (workspace["status"], workspace["allowed_actions"]) == ("failed", ["rebuild", "restore", "delete"])
    assert house.fake.host.machines == {}
    again = await house.api.delete(f"/operations/{created['id']}")
    assert (again.status, again.json["code"]) == (409, "invalid-state")


async def test_a_cancelled_rebuild_brings_the_old_machine_back(house: House) -> None:
    workspace = await house.api.make()
    before = set(house.fake.host.machines)
    house.fake.order("start", Fault(delay_seconds=60))
    rebuild = (await house.api.post(f"/workspaces/{workspace['id']}/actions/rebuild")).json
    await house.api.until_phase(rebuild["id"], "start")
    await house.api.delete(f"/operations/{rebuild['id']}")
    assert (await house.api.wait(rebuild))["status"] == "cancelled"
    assert (await house.api.workspace(workspace["id"]))["status"] == "running"
    assert set(house.fake.host.machines) == before


async def test_what_happens_behind_its_back_shows_soon(house: House) -> None:
    await house.ready()
    killed, starved, removed = [await house.api.make() for _ in range(3)]
    refs = {machine.workspace_id: ref for ref, machine in house.fake.host.machines.items()}
    house.fake.kill_machine(refs[killed["id"]], exit_code=9)
    house.fake.kill_machine(refs[starved["id"]], is_out_of_memory=True)
    house.fake.remove_machine(refs[removed["id"]])
    stopped = await house.api.until(killed["id"], status="stopped")
    assert "exit code 9" in stopped["last_error"]["detail"]
    stopped = await house.api.until(starved["id"], status="stopped")
    assert "1024 MiB of memory" in stopped["last_error"]["detail"]
    failed = await house.api.until(removed["id"], status="failed")
    assert "removed behind vmd's back" in failed["last_error"]["detail"]
    await house.api.done(await house.api.post(f"/workspaces/{removed['id']}/actions/rebuild"))


async def test_lists_page_newest_first_while_rows_come_and_go(house: House) -> None:
    made = [await house.api.make(name=f"ws-{number}") for number in range(5)]
    first = (await house.api.get("/workspaces", params={"limit": 2})).json
    assert [found["name"] for found in first["items"]] == ["ws-4", "ws-3"]
    await house.api.make(name="newer")
    await house.api.done(await house.api.delete(f"/workspaces/{made[2]['id']}"))
    second = (await house.api.get("/workspaces", params={"limit": 2, "cursor": first["next_cursor"]})).json
    assert [found["name"] for found in second["items"]] == ["ws-1", "ws-0"]
    assert second["next_cursor"] is None


async def test_lists_filter(house: House) -> None:
    one = await house.api.make(name="one", labels={"team": "red", "x": "1"})
    two = await house.api.make(name="two", labels={"team": "blue"})
    await house.api.done(await house.api.post(f"/workspaces/{two['id']}/actions/stop"))

    async def names(query: str) -> list[str]:
        answer = await house.api.get(f"/workspaces?{query}")
        assert answer.status == 200, answer.text
        return [found["name"] for found in answer.json["items"]]

    assert await names("label=team") == ["two", "one"]
    assert await names("label=team%3Dred") == ["one"]
    assert await names("label=team&label=x%3D1") == ["one"]
    assert await names("status=stopped&status=failed") == ["two"]
    assert await names("name=one") == ["one"]
    assert await names("template=base&provider=fake") == ["two", "one"]
    assert await names("template=other") == []
    assert one["labels"] == {"team": "red", "x": "1"}


async def test_patch_is_a_merge_patch_guarded_by_the_version(house: House) -> None:
    workspace = await house.api.make(name="one", labels={"a": "1", "b": "2"})
    path = f"/workspaces/{workspace['id']}"
    etag = (await house.api.get(path)).headers["ETag"]
    assert etag == f'"{workspace["version"]}"'
    body = {"labels": {"a": None, "c": "3"}, "ttl_seconds": 3600, "pinned": True, "description": "d"}
    answer = await house.api.patch(path, body, headers={"If-Match": etag})
    assert answer.status == 200
    assert answer.json["labels"] == {"b": "2", "c": "3"}
    assert (answer.json["ttl_seconds"], answer.json["pinned"]) == (3600, True)
    assert answer.json["expires_at"] is not None
    stale = await house.api.patch(path, {"pinned": False}, headers={"If-Match": etag})
    assert (stale.status, stale.json["code"]) == (412, "version-mismatch")
    gone = await house.api.delete(path, headers={"If-Match": etag})
    assert gone.status == 412
    cleared = await house.api.patch(path, {"ttl_seconds": None, "labels": None})
    assert (cleared.json["expires_at"], cleared.json["labels"]) == (None, {})


async def test_an_unchanged_workspace_is_not_sent_again(house: House) -> None:
    workspace = await house.api.make()
    path = f"/workspaces/{workspace['id']}"
    etag = (await house.api.get(path)).headers["ETag"]
    assert (await house.api.get(path, headers={"If-None-Match": etag})).status == 304
    await house.api.patch(path, {"description": "new"})
    assert (await house.api.get(path, headers={"If-None-Match": etag})).status == 200


async def test_names_are_unique_among_an_owners_workspaces(house: House) -> None:
    one = await house.api.make(name="one")
    taken = await house.api.post("/workspaces", {"name": "one"})
    assert (taken.status, taken.json["code"]) == (409, "name-taken")
    two = await house.api.make(name="two")
    assert (await house.api.patch(f"/workspaces/{two['id']}", {"name": "one"})).status == 409
    bob = await house.member("bob")
    await bob.done(await bob.post("/workspaces", {"name": "one"}))
    await house.api.done(await house.api.delete(f"/workspaces/{one['id']}"))
    await house.api.make(name="one")


async def test_stats_tell_what_a_running_machine_uses(house: House) -> None:
    workspace = await house.api.make()
    stats = (await house.api.get(f"/workspaces/{workspace['id']}/stats")).json
    assert set(stats) == {"time", "cpu", "memory", "pids", "network", "disk"}
    house.fake.order("stats", Fault(error=ProviderUnavailable("away")))
    assert (await house.api.get(f"/workspaces/{workspace['id']}/stats")).status == 503
    await house.api.done(await house.api.post(f"/workspaces/{workspace['id']}/actions/stop"))
    answer = await house.api.get(f"/workspaces/{workspace['id']}/stats")
    assert (answer.status, answer.json["allowed_actions"]) == (
        409,
        ["start", "rebuild", "snapshot", "restore", "delete"],
    )


async def test_quota_is_reserved_with_the_workspace(tmp_path: Path) -> None:
    async with open_house(tmp_path, quota__workspaces=1) as house:
        answers = await asyncio.gather(*(house.api.post("/workspaces", {}) for _ in range(50)))
        assert sorted(answer.status for answer in answers) == [202] + [403] * 49
        refused = next(answer for answer in answers if answer.status == 403)
        assert refused.json["code"] == "quota-exceeded"
        assert "The quota 'workspaces' is 1; 1 are in use" in refused.json["detail"]
        quota = (await house.api.get("/quota")).json
        assert (quota["limits"]["workspaces"], quota["use"]["workspaces"]) == (1, 1)


async def test_power_quota_is_checked_at_start(tmp_path: Path) -> None:
    async with open_house(tmp_path, quota__running=1) as house:
        first = await house.api.make()
        assert (await house.api.post("/workspaces", {})).status == 403
        await house.api.done(await house.api.post(f"/workspaces/{first['id']}/actions/stop"))
        await house.api.make()
        refused = await house.api.post(f"/workspaces/{first['id']}/actions/start")
        assert (refused.status, refused.json["code"]) == (403, "quota-exceeded")


async def test_a_secret_is_hidden_in_the_reason_of_a_failure_too(house: House) -> None:
    wanted = {"env": {"PW": "hunter22"}, "secrets": ["PW"], "provisioning": ["echo $PW", "nonesuch hunter22"]}
    operation = await house.api.wait((await house.api.post("/workspaces", wanted)).json)
    assert operation["status"] == "failed"
    told = (await house.api.get(f"/operations/{operation['id']}/logs")).text + str(operation)
    kept = await house.daemon._database.read(
        lambda tx: [str(tuple(row)) for row in tx.execute("SELECT data FROM events")]
    )
    assert "hunter22" not in told.replace("nonesuch hunter22", "")
    assert "hunter22" not in "".join(kept).replace("nonesuch hunter22", "")


async def test_a_machine_that_dies_while_an_operation_holds_it_is_looked_at_afterwards(house: House) -> None:
    await house.ready()
    created = (await house.api.post("/workspaces", {"provisioning": ["sleep 0.3"]})).json
    await house.api.until_phase(created["id"], "provision")
    [ref] = house.fake.host.machines
    house.fake.kill_machine(ref)
    await house.api.wait(created)
    await house.api.until(created["workspace_id"], status="stopped")


async def test_labels_do_not_grow_without_end(house: House) -> None:
    workspace = await house.api.make(labels={f"a{number}": "x" for number in range(60)})
    more = {f"b{number}": "x" for number in range(5)}
    answer = await house.api.patch(f"/workspaces/{workspace['id']}", {"labels": more})
    assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, "/labels")


async def test_a_longest_lifetime_is_given_to_those_who_ask_for_none(tmp_path: Path) -> None:
    async with open_house(tmp_path, quota__max_ttl_seconds=3600) as house:
        assert (await house.api.make())["ttl_seconds"] == 3600
        assert (await house.api.post("/workspaces", {"ttl_seconds": None})).status == 422
        assert (await house.api.post("/workspaces", {"ttl_seconds": 7200})).status == 422


async def test_one_owners_long_work_leaves_workers_to_others(tmp_path: Path) -> None:
    async with open_house(tmp_path, operations__concurrency=4) as house:
        bob = await house.member("bob")
        for _ in range(6):
            await house.api.post("/workspaces", {"provisioning": ["sleep 30"]})
        await bob.make()
