"""Who is let in, and what they see."""

import asyncio
import base64
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest

from tests.support.api import BASE, Api
from tests.support.house import House
from vmd.http.app import make_specification
from vmd.model.errors import Refused
from vmd.orchestrator.accounts import Accounts


async def test_every_route_but_health_refuses_without_a_credential(house: House) -> None:
    stranger = await house.client(None)
    for path, methods in make_specification()["paths"].items():
        for method in methods:
            filled = path.replace("{id}", "ws-x")
            async with stranger.session.request(method, filled) as answer:
                if path in ("/health", "/health/ready"):
                    assert answer.status in (200, 503)
                    continue
                assert answer.status == 401, path
                assert "WWW-Authenticate" in answer.headers
                assert (await answer.json())["code"] == "unauthenticated"
    for path in ("/ws/events", "/ws/workspaces/ws-x/events", f"{BASE}/ws/events", "/docs", "/nothing"):
        async with stranger.session.get(path) as answer:
            assert answer.status == 401, path


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Bearer x", "Basic eDp5", "Token x", "bearer vmd_x", "Bearer \u00e9"],
)
async def test_a_bad_credential_is_refused(house: House, header: str) -> None:
    stranger = await house.client(None)
    answer = await stranger.get("/workspaces", headers={"Authorization": header})
    assert (answer.status, answer.json["code"]) == (401, "unauthenticated")


async def test_what_belongs_to_somebody_else_is_not_there(house: House) -> None:
    bob, eve = await house.member("bob"), await house.member("eve")
    operation = await bob.done(await bob.post("/workspaces", {"name": "mine"}))
    workspace = f"/workspaces/{operation['workspace_id']}"
    for method, path in [
        ("GET", workspace),
        ("PATCH", workspace),
        ("DELETE", workspace),
        ("POST", f"{workspace}/actions/stop"),
        ("GET", f"{workspace}/stats"),
        ("GET", f"{workspace}/lifetime"),
        ("GET", f"/operations/{operation['id']}"),
        ("GET", f"/operations/{operation['id']}/wait"),
        ("GET", f"/operations/{operation['id']}/logs"),
        ("DELETE", f"/operations/{operation['id']}"),
    ]:
        answer = await eve.call(method, path, json={} if method in ("PATCH", "POST") else None)
        assert (answer.status, answer.json["code"]) == (404, "not-found"), (method, path)
    assert (await eve.get("/workspaces")).json["items"] == []
    assert (await eve.get("/operations")).json["items"] == []
    assert (await eve.get("/workspaces?owner=bob")).status == 403
    everybody = (await house.api.get("/workspaces?owner=*")).json["items"]
    assert [found["owner"] for found in everybody] == ["bob"]
    assert len((await house.api.get("/workspaces?owner=bob")).json["items"]) == 1
    assert (await house.api.get("/workspaces?owner=nobody")).status == 404
    assert (await house.api.get(workspace)).status == 200


async def test_scopes_and_confinement_hold(house: House) -> None:
    bob = await house.member("bob")
    first = await bob.make()
    second = await bob.make()

    async def token(**wanted: object) -> Api:
        made = await bob.post("/tokens", {"name": "t", **wanted})
        assert made.status == 201, made.text
        return await house.client(made.json["secret"])

    reader = await token(scopes=["workspaces:read"])
    assert (await reader.get(f"/workspaces/{first['id']}")).status == 200
    assert (await reader.post(f"/workspaces/{first['id']}/actions/stop")).status == 403
    assert (await reader.post("/workspaces", {})).status == 403
    assert (await reader.post("/tokens", {"name": "more"})).status == 403
    confined = await token(scopes=["workspaces:write"], workspace_id=first["id"])
    assert [found["id"] for found in (await confined.get("/workspaces")).json["items"]] == [first["id"]]
    assert (await confined.get(f"/workspaces/{second['id']}")).status == 404
    assert (await confined.post("/workspaces", {})).status == 403
    seen = {found["workspace_id"] for found in (await confined.get("/operations")).json["items"]}
    assert seen == {first["id"]}
    elsewhere = await bob.post("/tokens", {"name": "t", "workspace_id": "ws-none"})
    assert (elsewhere.status, elsewhere.json["errors"][0]["pointer"]) == (422, "/workspace_id")


async def test_a_revoked_token_is_refused_at_once(house: House) -> None:
    made = (await house.api.post("/tokens", {"name": "t"})).json
    client = await house.client(made["secret"])
    assert (await client.get("/me")).json["name"] == "admin"
    listed = (await house.api.get("/tokens")).json["items"]
    assert made["id"] in [token["id"] for token in listed]
    assert all("secret" not in token for token in listed)
    assert (await house.api.delete(f"/tokens/{made['id']}")).status == 204
    assert (await client.get("/me")).status == 401
    assert (await house.api.delete(f"/tokens/{made['id']}")).status == 404


async def test_an_expired_token_is_refused(house: House) -> None:
    made = (await house.api.post("/tokens", {"name": "t", "expires_in_seconds": 60})).json
    client = await house.client(made["secret"])
    assert (await client.get("/me")).status == 200
    accounts = Accounts(house.daemon._database)
    with pytest.raises(Refused, match="expired"):
        await accounts.authenticate(made["secret"], datetime.now(UTC) + timedelta(seconds=61))


async def test_no_secret_is_kept(house: House) -> None:
    made = (await house.api.post("/tokens", {"name": "t"})).json
    kept = b"".join(path.read_bytes() for path in house.data_dir.glob("vm.db*"))
    assert made["secret"].encode() not in kept
    assert house.api.token is not None
    assert house.api.token.encode() not in kept


async def test_members_are_no_administrators(house: House) -> None:
    bob = await house.member("bob")
    assert (await bob.get("/users")).status == 403
    assert (await bob.post("/users", {"name": "eve"})).status == 403
    assert (await house.api.post("/users", {"name": "eve"})).status == 201
    assert (await house.api.post("/users", {"name": "eve"})).status == 409
    names = {user["name"] for user in (await house.api.get("/users")).json["items"]}
    assert names == {"admin", "bob", "eve"}


async def test_foreign_hosts_are_refused(house: House) -> None:
    for host in ("evil.example", "evil.example:80", "", "a b"):
        answer = await house.api.get("/workspaces", headers={"Host": host})
        assert (answer.status, answer.json["code"]) == (403, "forbidden")
    for host in ("localhost", "127.0.0.1:80", "[::1]:80", "10.1.2.3"):
        assert (await house.api.get("/workspaces", headers={"Host": host})).status == 200


async def test_a_browser_may_read_the_documentation_with_the_token_as_password(house: House) -> None:
    stranger = await house.client(None)
    challenge = await stranger.get("/docs")
    assert challenge.headers["WWW-Authenticate"].startswith("Basic")
    basic = base64.b64encode(f"x:{house.api.token}".encode()).decode()
    headers = {"Authorization": f"Basic {basic}"}
    page = await stranger.get("/docs", headers=headers)
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "SwaggerUIBundle" in (await stranger.get("/docs/page.js", headers=headers)).text
    assert (await stranger.get("/docs/swagger-ui.css", headers=headers)).status == 200
    assert (await stranger.get("/docs/nothing", headers=headers)).status == 404
    assert (await stranger.get("/openapi.json", headers=headers)).json["openapi"] == "3.1.0"
    assert (await stranger.get("/workspaces", headers=headers)).status == 401


async def test_control_routes_are_nowhere_else(house: House) -> None:
    assert (await house.api.post("/control/doctor")).status == 404


async def test_the_control_socket_acts_as_any_user(house: House) -> None:
    await house.member("bob")
    connector = aiohttp.UnixConnector(str(house.data_dir / "control.sock"))
    async with Api("http://localhost", None, connector) as local:
        assert (await local.get("/me")).json["name"] == "admin"
        assert (await local.get("/me", headers={"Vmd-Act-As": "bob"})).json["name"] == "bob"
        assert (await local.get("/me", headers={"Vmd-Act-As": "nobody"})).status == 404
        assert (await local.post("/control/doctor")).json == {"findings": []}
    assert (house.data_dir / "control.sock").stat().st_mode & 0o777 == 0o600


async def test_bytes_that_are_no_text_are_no_credential(house: House) -> None:
    host, port = house.api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /api/v1/me HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n")
    writer.write(b"Authorization: Bearer \xff\xfe\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
    writer.close()
    await writer.wait_closed()
