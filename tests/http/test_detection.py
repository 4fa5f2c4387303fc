import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.orchestrator.test_doctor import examine
from tests.support.house import House, open_house
from vmd.model.workspace import Resources
from vmd.orchestrator.probing import AT_ONCE, OF_ONE_USER
from vmd.providers.base import MachineSpec, ProviderError
from vmd.providers.fake import FakeHost, Fault

URL = "https://example.test/shop.git"
WANTED = {"repo": {"url": URL}}
FILES = {
    "backend/requirements.txt": "django\n",
    "backend/a.py": "",
    "frontend/package.json": '{"dependencies": {"next": "15"}, "engines": {"node": ">=22"}}',
    "frontend/a.ts": "",
}


@pytest.fixture
def host() -> FakeHost:
    return FakeHost(repos={URL: "c" * 40}, trees={URL: FILES})


@pytest.fixture
async def house(tmp_path: Path, host: FakeHost) -> Any:
    async with open_house(tmp_path / "data", host=host) as opened:
        await opened.ready()
        yield opened


async def until_empty(host: FakeHost) -> None:
    """Return once nothing of a look is left."""
    async with asyncio.timeout(5):
        while host.machines or host.files:
            await asyncio.sleep(0.01)


async def test_presets_come_best_first_with_their_evidence(house: House) -> None:
    answer = await house.api.post("/templates/detect", WANTED)
    assert answer.status == 200, answer.text
    items = answer.json["items"]
    assert [item["id"] for item in items] == ["django+nextjs", "django", "nextjs"]
    best = items[0]
    assert best["kind"] == "preset"
    assert best["ports"] == [8000, 3000]
    assert best["parts"] == [
        {"ecosystem": "python", "directory": "backend", "frameworks": ["django"]},
        {"ecosystem": "node", "directory": "frontend", "frameworks": ["nextjs"]},
    ]
    assert {"path": "backend/requirements.txt", "detail": "depends on django"} in best["evidence"]
    assert best["versions"] == [{"of": "Node.js", "value": ">=22", "path": "frontend/package.json"}]
    assert best["recipe"].startswith("FROM vmd-base:bookworm")
    assert "the built-in image has 18.20.4" in best["notes"][0]
    await until_empty(house.fake.host)
    assert (await house.api.get("/workspaces")).json["items"] == []


async def test_a_repository_of_nothing_that_is_known_has_no_presets(house: House) -> None:
    house.fake.host.trees.clear()
    answer = await house.api.post("/templates/detect", WANTED)
    assert (answer.status, answer.json) == (200, {"items": []})


@pytest.mark.parametrize(
    ("repo", "reason"),
    [
        ({"url": "https://example.test/none.git"}, "repository 'https://example.test/none.git' not found"),
        ({"url": URL, "branch": "nope"}, "Remote branch nope not found"),
    ],
)
async def test_gits_own_reason_is_told(house: House, repo: dict[str, str], reason: str) -> None:
    answer = await house.api.post("/templates/detect", {"repo": repo})
    assert (answer.status, answer.json["code"]) == (502, "provider-error")
    assert reason in answer.json["detail"]
    await until_empty(house.fake.host)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/repo"),
        ({"repo": {}}, "/repo/url"),
        ({"repo": {"url": "file:///etc"}}, "/repo/url"),
        ({"repo": {"url": "--upload-pack=x"}}, "/repo/url"),
        ({"repo": {"url": URL, "branch": "-x"}}, "/repo/branch"),
        ({"repo": {"url": URL, "commit": "abcdefa"}}, "/repo/commit"),
    ],
)
async def test_wrong_requests_are_refused_with_the_place(house: House, body: Any, pointer: str) -> None:
    answer = await house.api.post("/templates/detect", body)
    assert answer.status == 422
    assert pointer in [error["pointer"] for error in answer.json["errors"]]
    assert house.fake.host.calls["create"] == 0


async def test_it_takes_a_credential_that_may_make_things(house: House) -> None:
    reader = await house.member("reader", scopes=("workspaces:read",))
    writer = await house.member("writer", scopes=("workspaces:write",))
    workspace = await house.api.make()
    token = {"name": "t", "scopes": ["workspaces:write"], "workspace_id": workspace["id"]}
    confined = await house.client((await house.api.post("/tokens", token)).json["secret"])
    for client, status in ((reader, 403), (confined, 403), (writer, 200)):
        assert (await client.post("/templates/detect", WANTED)).status == status


async def test_a_repeat_gets_the_first_answer_back(house: House) -> None:
    key = {"Idempotency-Key": "once"}
    first, same = await asyncio.gather(
        *(house.api.post("/templates/detect", WANTED, headers=key) for _ in range(2))
    )
    house.fake.host.trees.clear()
    again = await house.api.post("/templates/detect", WANTED, headers=key)
    assert first.json == same.json == again.json
    assert first.json["items"]
    other = await house.api.post("/templates/detect", {"repo": {"url": URL, "branch": "x"}}, headers=key)
    assert (other.status, other.json["code"]) == (422, "idempotency-mismatch")


async def test_few_are_looked_at_at_once_and_one_user_leaves_room(house: House) -> None:
    host = house.fake.host
    most = 0
    users = [house.api, await house.member("ann"), await house.member("bob")]

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, len(host.machines))
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    answers = await asyncio.gather(
        *(user.post("/templates/detect", WANTED) for user in users for _ in range(OF_ONE_USER * 2))
    )
    watching.cancel()
    assert {answer.status for answer in answers} == {200}
    assert 1 < most <= AT_ONCE
    await until_empty(host)


async def test_a_caller_who_leaves_ends_it(house: House) -> None:
    house.fake.order("execute", Fault(delay_seconds=3600))
    asking = asyncio.create_task(house.api.post("/templates/detect", WANTED))
    async with asyncio.timeout(5):
        while house.fake.host.calls["execute"] == 0:
            await asyncio.sleep(0.01)
    asking.cancel()
    await until_empty(house.fake.host)


async def test_one_that_takes_too_long_is_given_up(house: House) -> None:
    house.daemon._probes._deadline_seconds = 0.05
    house.fake.order("execute", Fault(delay_seconds=3600))
    answer = await house.api.post("/templates/detect", WANTED)
    assert (answer.status, answer.json["code"]) == (502, "provider-error")
    assert "could not be looked at within 0.05 s" in answer.json["detail"]
    await until_empty(house.fake.host)


async def test_a_host_that_cannot_be_reached_is_said(house: House) -> None:
    house.fake.cut_off()
    answer = await house.api.post("/templates/detect", WANTED)
    assert (answer.status, answer.json["code"]) == (503, "provider-unavailable")


async def test_the_doctor_leaves_a_look_alone(house: House) -> None:
    house.fake.order("execute", Fault(delay_seconds=3600))
    asking = asyncio.create_task(house.api.post("/templates/detect", WANTED))
    async with asyncio.timeout(5):
        while house.fake.host.calls["execute"] == 0:
            await asyncio.sleep(0.01)
    assert await examine(house, fix=True) == []
    assert len(house.fake.host.machines) == 1
    asking.cancel()
    await until_empty(house.fake.host)


async def test_what_a_crash_left_is_named_and_removed_at_the_next_start(
    tmp_path: Path, host: FakeHost
) -> None:
    async with open_house(tmp_path, host=host) as house:
        await house.ready()
        spec = MachineSpec(
            workspace_id="probe-0123456789abcdef",
            operation_id="look",
            hostname="probe",
            node="local",
            image="vmd-base:bookworm",
            resources=Resources(),
        )
        await house.fake.create(spec)
        assert await examine(house) == [("orphan", "probe-0123456789abcdef", False)]
    async with open_house(tmp_path, host=host) as house:
        await until_empty(host)


async def test_a_removal_that_fails_is_tried_again(tmp_path: Path, host: FakeHost) -> None:
    async with open_house(tmp_path, host=host, janitor__interval_seconds=0.05) as house:
        await house.ready()
        house.fake.order("destroy", Fault(error=ProviderError("busy")))
        assert (await house.api.post("/templates/detect", WANTED)).status == 200
        await until_empty(host)
        assert host.calls["destroy"] == 2
