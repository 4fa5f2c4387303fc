"""Bad input gets a problem document that says where and what to do, and changes nothing."""

import io
from typing import Any

import pytest

from tests.support.house import House

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"nmae": "x"}, "/nmae"),
        ({"name": 7}, "/name"),
        ({"name": "Not_A_Label"}, "/name"),
        ({"name": "-dash"}, "/name"),
        ({"name": "a" * 41}, "/name"),
        ({"name": "a\n"}, "/name"),
        ({"resources": {"cpus": -1}}, "/resources/cpus"),
        ({"resources": {"cpus": 1e9}}, "/resources/cpus"),
        ({"resources": {"cpus": 65}}, "/resources/cpus"),
        ({"resources": {"memory_mb": 0}}, "/resources/memory_mb"),
        ({"resources": {"memory_mb": 300 * 1024}}, "/resources/memory_mb"),
        ({"resources": {"memory_mb": 1.5}}, "/resources/memory_mb"),
        ({"resources": {"memory_mb": True}}, "/resources/memory_mb"),
        ({"resources": {"pids": "many"}}, "/resources/pids"),
        ({"resources": {"disk_mb": 1000}}, "/resources/disk_mb"),
        ({"resources": {"gpus": 1}}, "/resources/gpus"),
        ({"template": "none"}, "/template"),
        ({"provider": "none"}, "/provider"),
        ({"node": "none"}, "/node"),
        ({"plugins": ["none"]}, "/plugins/0"),
        ({"repo": {}}, "/repo/url"),
        ({"repo": {"url": "ext::sh -c touch% /tmp/x"}}, "/repo/url"),
        ({"repo": {"url": "file:///etc"}}, "/repo/url"),
        ({"repo": {"url": "/etc"}}, "/repo/url"),
        ({"repo": {"url": "--upload-pack=x"}}, "/repo/url"),
        ({"repo": {"url": "ssh://-oProxyCommand=x/y"}}, "/repo/url"),
        ({"repo": {"url": "https://user:secret@host/x"}}, "/repo/url"),
        ({"repo": {"url": "https://host/x", "branch": "--orphan"}}, "/repo/branch"),
        ({"repo": {"url": "https://host/x", "commit": "HEAD"}}, "/repo/commit"),
        ({"ttl_seconds": -5}, "/ttl_seconds"),
        ({"env": {"1A": "x"}}, "/env/1A"),
        ({"env": {"A/B~C": "x"}}, "/env/A~1B~0C"),
        ({"env": {"A": 5}}, "/env/A"),
        ({"env": {"A": "x\x00y"}}, "/env/A"),
        ({"secrets": ["MISSING"]}, "/secrets/0"),
        ({"ports": [0]}, "/ports/0"),
        ({"ports": ["http"]}, "/ports/0"),
        ({"labels": {"-x": "y"}}, "/labels/-x"),
        ({"provisioning": "make"}, "/provisioning"),
        ({"provisioning": [""]}, "/provisioning/0"),
        ({"pinned": "yes"}, "/pinned"),
        ([], ""),
        ("text", ""),
    ],
)
async def test_wrong_values_are_named_by_their_place(house: House, body: Any, pointer: str) -> None:
    await house.ready()
    answer = await house.api.post("/workspaces", body)
    assert answer.status == 422, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json["code"] == "validation-failed"
    assert [error["pointer"] for error in answer.json["errors"]] == [pointer]
    assert answer.json["request_id"] == answer.headers["X-Request-Id"]
    assert (await house.api.get("/workspaces")).json["items"] == []


async def test_every_wrong_value_is_named(house: House) -> None:
    body = {"name": 1, "resources": {"cpus": "x"}, "env": {"A": 1, "B": 2}}
    answer = await house.api.post("/workspaces", body)
    pointers = {error["pointer"] for error in answer.json["errors"]}
    assert pointers == {"/name", "/resources/cpus", "/env/A", "/env/B"}


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (b"{", JSON),
        (b'{"name": NaN}', JSON),
        (b"\xff\xfe", JSON),
        (b"[" * 100_000, JSON),
        (b"name=one", {"Content-Type": "application/x-www-form-urlencoded"}),
        (b"{}", {"Content-Type": "text/plain"}),
        (b"{}", {**JSON, "Content-Encoding": "gzip"}),
    ],
)
async def test_a_body_that_is_not_json_is_malformed(
    house: House, data: bytes, headers: dict[str, str]
) -> None:
    answer = await house.api.call("POST", "/workspaces", data=data, headers=headers)
    assert (answer.status, answer.json["code"]) == (400, "malformed-request")


async def test_a_body_over_one_mebibyte_is_too_large(house: House) -> None:
    answer = await house.api.call(
        "POST", "/workspaces", data=io.BytesIO(b'{"description":"' + b"x" * (1 << 20) + b'"}'), headers=JSON
    )
    assert (answer.status, answer.json["code"]) == (413, "too-large")


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "limit=ten",
        "limit=1&limit=2",
        "status=sleeping",
        "unknown=1",
        "cursor=!!!",
        "cursor=b3AtMG13dGVhYmNkZWZnaGlqa2xt",
        "label=%3Dx",
    ],
)
async def test_a_wrong_query_is_malformed(house: House, query: str) -> None:
    answer = await house.api.get(f"/workspaces?{query}")
    assert (answer.status, answer.json["code"]) == (400, "malformed-request")


async def test_a_cursor_of_another_list_is_refused(house: House) -> None:
    for _ in range(2):
        await house.api.make()
    cursor = (await house.api.get("/operations?limit=1")).json["next_cursor"]
    assert cursor is not None
    answer = await house.api.get("/workspaces", params={"cursor": cursor})
    assert (answer.status, answer.json["code"]) == (400, "malformed-request")


@pytest.mark.parametrize("path", ["/workspaces/ws-none", "/operations/op-none", "/nothing"])
async def test_what_is_not_there_is_not_found(house: House, path: str) -> None:
    answer = await house.api.get(path)
    assert (answer.status, answer.json["code"]) == (404, "not-found")


async def test_a_wrong_method_says_which_are_right(house: House) -> None:
    answer = await house.api.call("PUT", "/workspaces")
    assert (answer.status, answer.json["code"]) == (405, "method-not-allowed")
    assert answer.headers["Allow"] == "GET, POST"


@pytest.mark.parametrize("etag", ["7", "W/7", '"seven"', '"7", "8"'])
async def test_a_wrong_if_match_is_malformed(house: House, etag: str) -> None:
    workspace = await house.api.make()
    answer = await house.api.patch(f"/workspaces/{workspace['id']}", {}, headers={"If-Match": etag})
    assert (answer.status, answer.json["code"]) == (400, "malformed-request")


async def test_a_fault_inside_shows_nothing_of_itself(house: House) -> None:
    await house.daemon._database.write(lambda tx: tx.execute("ALTER TABLE workspaces RENAME TO gone"))
    answer = await house.api.get("/workspaces")
    assert (answer.status, answer.json["code"]) == (500, "internal")
    assert "gone" not in answer.text
    assert "SELECT" not in answer.text


async def test_a_body_full_of_errors_gets_a_short_answer(house: House) -> None:
    for body in (
        {"provisioning": [1] * 300_000},
        {"ports": ["x"] * 200_000},
        {"env": {f"{number}": 1 for number in range(50_000)}},
        {f"unknown{number}": 1 for number in range(50_000)},
    ):
        answer = await house.api.post("/workspaces", body)
        assert answer.status == 422
        assert len(answer.json["errors"]) <= 20
        assert len(answer.text) < 20_000
