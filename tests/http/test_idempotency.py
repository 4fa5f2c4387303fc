import asyncio
from pathlib import Path

import pytest

from tests.support.house import House, open_house
from vmd.providers.fake import FakeHost

KEY = {"Idempotency-Key": "key-1"}


async def test_a_repeat_gets_the_first_answer_back(house: House) -> None:
    first = await house.api.post("/workspaces", {"name": "one"}, headers=KEY)
    await house.api.wait(first.json)
    second = await house.api.post("/workspaces", {"name": "one"}, headers=KEY)
    assert (second.status, second.json) == (202, first.json)
    assert len((await house.api.get("/workspaces")).json["items"]) == 1


async def test_many_at_once_make_one(house: House) -> None:
    answers = await asyncio.gather(*(house.api.post("/workspaces", {}, headers=KEY) for _ in range(50)))
    assert {answer.status for answer in answers} == {202}
    assert len({answer.text for answer in answers}) == 1
    assert len((await house.api.get("/workspaces")).json["items"]) == 1


async def test_the_same_key_for_another_request_is_refused(house: House) -> None:
    await house.api.post("/workspaces", {"name": "one"}, headers=KEY)
    answer = await house.api.post("/workspaces", {"name": "two"}, headers=KEY)
    assert (answer.status, answer.json["code"]) == (422, "idempotency-mismatch")


async def test_keys_belong_to_their_caller(house: House) -> None:
    bob = await house.member("bob")
    mine = await house.api.post("/workspaces", {"name": "one"}, headers=KEY)
    his = await bob.post("/workspaces", {"name": "one"}, headers=KEY)
    assert his.status == 202
    assert his.json["id"] != mine.json["id"]


async def test_a_refused_request_is_not_remembered(house: House) -> None:
    workspace = await house.api.make()
    path = f"/workspaces/{workspace['id']}/actions/undelete"
    assert (await house.api.post(path, headers=KEY)).status == 409
    assert (await house.api.post("/workspaces", {}, headers=KEY)).status == 202


async def test_actions_are_done_once_too(house: House) -> None:
    workspace = await house.api.make()
    path = f"/workspaces/{workspace['id']}/actions/restart"
    first = await house.api.post(path, headers=KEY)
    await house.api.wait(first.json)
    assert (await house.api.post(path, headers=KEY)).json == first.json
    assert house.fake.host.calls["stop"] == 1


async def test_answers_outlive_the_daemon(tmp_path: Path) -> None:
    host = FakeHost()
    async with open_house(tmp_path, host=host) as house:
        first = await house.api.post("/workspaces", {"name": "one"}, headers=KEY)
    async with open_house(tmp_path, host=host) as house:
        again = await house.api.post("/workspaces", {"name": "one"}, headers=KEY)
        assert (again.status, again.json) == (202, first.json)
        await house.api.wait(first.json)


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "\u00e9"])
async def test_a_wrong_key_is_malformed(house: House, key: str) -> None:
    answer = await house.api.post("/workspaces", {}, headers={"Idempotency-Key": key})
    assert (answer.status, answer.json["code"]) == (400, "malformed-request")
