import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests.support.api import Api
from tests.support.house import House, open_house
from vmd.model.account import Scope
from vmd.providers.fake import FakeHost

# A terminal of the fake host shows what is typed, and ends with the code 7 at "exit".


class Terminal:
    """One WebSocket to a shell, and what it has shown so far."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.shown = b""
        self.told: list[Any] = []

    async def take(self) -> None:
        """Take one frame."""
        async with asyncio.timeout(10):
            message = await self.socket.receive()
        if message.type is aiohttp.WSMsgType.BINARY:
            self.shown += message.data
        elif message.type is aiohttp.WSMsgType.TEXT:
            self.told.append(json.loads(message.data))
        else:
            self.told.append({"type": "closed", "code": self.socket.close_code})

    async def until_told(self, kind: str) -> Any:
        """Return the first text frame of this type."""
        while not (found := [told for told in self.told if told["type"] == kind]):
            await self.take()
        return found[0]

    async def until_shown(self, text: bytes) -> None:
        """Return when this was shown."""
        while text not in self.shown:
            await self.take()

    @property
    def session(self) -> str:
        session: str = self.told[0]["session_id"]
        return session


@asynccontextmanager
async def terminal(api: Api, workspace: Any, query: str = "", **options: Any) -> AsyncIterator[Terminal]:
    path = f"/ws/workspaces/{workspace['id']}/shell?{query}"
    async with api.session.ws_connect(path, **options) as socket:
        opened = Terminal(socket)
        await opened.until_told("connected")
        yield opened


async def _shells(api: Api, workspace: Any) -> list[Any]:
    answer = await api.get(f"/workspaces/{workspace['id']}/shells")
    assert answer.status == 200, answer.text
    items: list[Any] = answer.json["items"]
    return items


async def _until_detached(api: Api, workspace: Any) -> Any:
    async with asyncio.timeout(10):
        while (shell := (await _shells(api, workspace))[0])["detached_at"] is None:
            await asyncio.sleep(0.01)
    return shell


async def test_a_shell_carries_bytes_and_ends_with_its_code(house: House) -> None:
    workspace = await house.api.make()
    assert workspace["connection"]["shell"] == f"/ws/workspaces/{workspace['id']}/shell"
    async with terminal(house.api, workspace) as opened:
        assert opened.told == [
            {
                "type": "connected",
                "session_id": opened.session,
                "offset": 0,
                "replayed_bytes": 0,
                "persistence": "machine",
            }
        ]
        everything = bytes(range(256))
        await opened.socket.send_bytes(everything)
        await opened.until_shown(everything)
        await opened.socket.send_bytes(b"exit")
        assert (await opened.until_told("exit")) == {"type": "exit", "exit_code": 7}
        assert (await opened.until_told("closed"))["code"] == 1000
    (shell,) = await _shells(house.api, workspace)
    assert (shell["status"], shell["exit_code"], shell["id"]) == ("exited", 7, opened.session)


async def test_who_comes_back_is_shown_exactly_what_was_missed(house: House) -> None:
    workspace = await house.api.make()
    async with terminal(house.api, workspace) as opened:
        await opened.socket.send_bytes(b"one ")
        await opened.until_shown(b"one ")
    shell = await _until_detached(house.api, workspace)
    assert (shell["status"], shell["attached"]) == ("running", 0)
    async with terminal(house.api, workspace, f"session={opened.session}") as again:
        assert (again.told[0]["offset"], again.told[0]["replayed_bytes"]) == (0, 4)
        await again.socket.send_bytes(b"two ")
        await again.until_shown(b"one two ")
    async with terminal(house.api, workspace, f"session={opened.session}&offset=4") as last:
        assert (last.told[0]["offset"], last.told[0]["replayed_bytes"]) == (4, 4)
        await last.until_shown(b"two ")
        assert last.shown == b"two "


async def test_a_shell_outlives_the_daemon(tmp_path: Any) -> None:
    host = FakeHost()
    async with open_house(tmp_path / "data", host=host) as first:
        workspace = await first.api.make()
        async with terminal(first.api, workspace) as opened:
            await opened.socket.send_bytes(b"before ")
            await opened.until_shown(b"before ")
            closing = asyncio.create_task(first.daemon._runner.cleanup())
            assert (await opened.until_told("closed"))["code"] == 4000
            await closing
    async with (
        open_house(tmp_path / "data", host=host) as second,
        terminal(second.api, workspace, f"session={opened.session}&offset=7") as again,
    ):
        await again.socket.send_bytes(b"after")
        await again.until_shown(b"after")
        assert again.shown == b"after"


async def test_several_see_the_same_and_takeover_closes_the_others(house: House) -> None:
    workspace = await house.api.make()
    async with (
        terminal(house.api, workspace) as typist,
        terminal(house.api, workspace, f"session={typist.session}&readonly=true") as watcher,
    ):
        await typist.socket.send_bytes(b"seen by both")
        await typist.until_shown(b"seen by both")
        await watcher.until_shown(b"seen by both")
        assert (await _shells(house.api, workspace))[0]["attached"] == 2
        async with terminal(house.api, workspace, f"session={typist.session}&takeover=true") as taker:
            assert (await typist.until_told("closed"))["code"] == 4001
            assert (await watcher.until_told("closed"))["code"] == 4001
            await taker.socket.send_bytes(b"!")
            await taker.until_shown(b"seen by both!")


async def test_who_only_looks_on_cannot_type(house: House) -> None:
    workspace = await house.api.make()
    async with (
        terminal(house.api, workspace) as typist,
        terminal(house.api, workspace, f"session={typist.session}&readonly=true") as watcher,
    ):
        await watcher.socket.send_bytes(b"x")
        assert (await watcher.until_told("error"))["code"] == "forbidden"
        await typist.socket.send_bytes(b"y")
        await watcher.until_shown(b"y")
        assert watcher.shown == b"y"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("no json", "malformed-request"),
        ("[]", "malformed-request"),
        ('{"type":"dance"}', "malformed-request"),
        ('{"type":"resize","cols":0,"rows":24}', "validation-failed"),
        ('{"type":"resize","cols":80}', "validation-failed"),
        ('{"type":"signal","signal":"SIGINT"}', "validation-failed"),
        (json.dumps({"type": "resize", "cols": 80, "rows": 24, "x": "x" * 5000}), "too-large"),
    ],
)
async def test_a_wrong_control_frame_is_told_of_and_the_session_lives(
    house: House, frame: str, code: str
) -> None:
    workspace = await house.api.make()
    async with terminal(house.api, workspace) as opened:
        await opened.socket.send_str(frame)
        assert (await opened.until_told("error"))["code"] == code
        await opened.socket.send_bytes(b"alive")
        await opened.until_shown(b"alive")


async def test_a_terminal_is_resized_and_signalled(house: House) -> None:
    workspace = await house.api.make()
    async with terminal(house.api, workspace, "cols=100&rows=30") as opened:
        process = next(iter(next(iter(house.fake.host.supervisors.values()))._processes.values()))
        fake: Any = process.spawned
        assert (fake.size.columns, fake.size.rows) == (100, 30)
        await opened.socket.send_str('{"type":"resize","cols":120,"rows":40}')
        async with asyncio.timeout(5):
            while (fake.size.columns, fake.size.rows) != (120, 40):
                await asyncio.sleep(0.01)
        await opened.socket.send_str('{"type":"signal","signal":"HUP"}')
        assert (await opened.until_told("exit"))["exit_code"] == 129


async def test_a_command_runs_in_place_of_the_login_shell(house: House) -> None:
    workspace = await house.api.make()
    async with terminal(house.api, workspace, "command=exit 3") as opened:
        assert (await opened.until_told("exit"))["exit_code"] == 3
    assert (await _shells(house.api, workspace))[0]["command"] == "exit 3"


async def test_a_shell_is_ended(house: House) -> None:
    workspace = await house.api.make()
    async with terminal(house.api, workspace) as opened:
        answer = await house.api.delete(f"/workspaces/{workspace['id']}/shells/{opened.session}")
        assert answer.status == 204
        assert (await opened.until_told("exit"))["exit_code"] == 129
    async with terminal(house.api, workspace, f"session={opened.session}") as after:
        assert (await after.until_told("exit"))["exit_code"] == 129


async def test_one_that_nobody_comes_back_to_is_ended_and_forgotten(tmp_path: Any) -> None:
    async with open_house(
        tmp_path / "data", janitor__interval_seconds=0.05, shell__detach_seconds=0
    ) as house:
        workspace = await house.api.make()
        async with terminal(house.api, workspace) as opened:
            await opened.socket.send_bytes(b"kept while somebody is there")
            await opened.until_shown(b"kept while somebody is there")
        async with asyncio.timeout(10):
            while await _shells(house.api, workspace):
                await asyncio.sleep(0.01)
            supervisor = next(iter(house.fake.host.supervisors.values()))
            while await supervisor.list():
                await asyncio.sleep(0.01)
        answer = await house.api.get(f"/ws/workspaces/{workspace['id']}/shell?session={opened.session}")
        assert (answer.status, answer.json["code"]) == (404, "not-found")


async def test_a_machine_that_stops_ends_its_terminals(house: House) -> None:
    workspace = await house.api.make()
    async with terminal(house.api, workspace) as opened:
        await house.api.done(await house.api.post(f"/workspaces/{workspace['id']}/actions/stop"))
        assert (await opened.until_told("exit"))["exit_code"] is None
        assert (await opened.until_told("closed"))["code"] == 4004


async def test_shells_tell_their_story_in_events(house: House) -> None:
    workspace = await house.api.make()
    async with house.api.session.ws_connect(f"/ws/workspaces/{workspace['id']}/events") as socket:
        async with terminal(house.api, workspace) as opened:
            pass
        await _until_detached(house.api, workspace)
        async with terminal(house.api, workspace, f"session={opened.session}") as again:
            await again.socket.send_bytes(b"exit")
            await again.until_told("exit")
        events = [json.loads(await socket.receive_str()) for _ in range(4)]
    assert [event["type"] for event in events] == [
        "shell.started",
        "shell.detached",
        "shell.attached",
        "shell.finished",
    ]
    assert {event["data"]["session_id"] for event in events} == {opened.session}


@pytest.mark.parametrize("path", ["shell", "shell?session=sh-000000000000"])
async def test_a_stopped_workspace_is_refused_before_the_upgrade(house: House, path: str) -> None:
    workspace = await house.api.make()
    await house.api.done(await house.api.post(f"/workspaces/{workspace['id']}/actions/stop"))
    for connect in (house.api.get, _upgrade(house.api)):
        answer = await connect(f"/ws/workspaces/{workspace['id']}/{path}")
        assert (answer.status, answer.json["code"]) == (409, "invalid-state")
        assert answer.json["allowed_actions"] == ["start", "rebuild", "snapshot", "restore", "delete"]
    assert (await house.api.workspace(workspace["id"]))["connection"]["shell"] is None


def _upgrade(api: Api) -> Any:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dm1kLXRlc3QtdGVzdC0hIQ==",
    }
    return lambda path: api.get(path, headers=headers)


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("session=sh-000000000000", 404, "not-found"),
        ("cols=0", 400, "malformed-request"),
        ("rows=many", 400, "malformed-request"),
        ("colour=true", 400, "malformed-request"),
        ("", 400, "malformed-request"),  # no upgrade is asked for
    ],
)
async def test_what_is_wrong_is_told_before_the_upgrade(
    house: House, query: str, status: int, code: str
) -> None:
    workspace = await house.api.make()
    answer = await house.api.get(f"/ws/workspaces/{workspace['id']}/shell?{query}")
    assert (answer.status, answer.json["code"]) == (status, code)
    assert await _shells(house.api, workspace) == []


async def test_a_page_of_another_site_gets_no_shell(house: House) -> None:
    workspace = await house.api.make()
    path = f"/ws/workspaces/{workspace['id']}/shell"
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await house.api.session.ws_connect(path, origin="http://evil.example")
    assert caught.value.status == 403
    assert await _shells(house.api, workspace) == []


async def test_a_ticket_opens_one_shell(house: House) -> None:
    workspace = await house.api.make()
    path = f"/ws/workspaces/{workspace['id']}/shell"
    ticket = (await house.api.post("/ws-tickets", {"path": path})).json["ticket"]
    anonymous = await house.client(None)
    async with terminal(anonymous, workspace, f"ticket={ticket}") as opened:
        await opened.socket.send_bytes(b"in")
        await opened.until_shown(b"in")
    again = await anonymous.get(f"{path}?ticket={ticket}")
    assert (again.status, again.json["code"]) == (401, "unauthenticated")


async def test_others_shells_are_not_there(house: House) -> None:
    workspace = await house.api.make()
    bob = await house.member("bob")
    reader = await house.member("reader", scopes=(Scope.READ, Scope.WRITE))
    async with terminal(house.api, workspace) as opened:
        for answer in (
            await bob.get(f"/workspaces/{workspace['id']}/shells"),
            await bob.delete(f"/workspaces/{workspace['id']}/shells/{opened.session}"),
            await bob.get(f"/ws/workspaces/{workspace['id']}/shell?session={opened.session}"),
            await bob.get(f"/ws/workspaces/{workspace['id']}/shell"),
        ):
            assert (answer.status, answer.json["code"]) == (404, "not-found")
    made = await reader.make()
    answer = await reader.get(f"/ws/workspaces/{made['id']}/shell")
    assert (answer.status, answer.json["code"]) == (403, "forbidden")


async def test_a_stalled_reader_is_cut_off_and_others_go_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmd.http.sockets.SEND_SECONDS", 0.3)
    workspace = await house.api.make()
    async with terminal(house.api, workspace) as typist:
        timeout = aiohttp.ClientWSTimeout(ws_close=0.1)
        query = f"session={typist.session}"
        async with terminal(house.api, workspace, query, timeout=timeout) as stalled:
            stalled.socket._reader._protocol.pause_reading()
            shown = 0
            async with asyncio.timeout(20):
                while (await _shells(house.api, workspace))[0]["attached"] == 2:
                    await typist.socket.send_bytes(b"x" * 500_000)
                    shown += 500_000
                    while len(typist.shown) < shown:
                        await typist.take()
        await typist.socket.send_bytes(b"still here")
        await typist.until_shown(b"still here")


async def test_a_client_that_is_not_listened_to_is_not_taken_for_dead(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmd.http.shells.HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr("vmd.http.shells.MAX_PENDING_INPUT_BYTES", 0)
    workspace = await house.api.make()
    async with terminal(house.api, workspace) as opened:
        process = next(iter(next(iter(house.fake.host.supervisors.values()))._processes.values()))
        fake: Any = process.spawned
        taking = asyncio.Event()
        give = fake.write

        async def write(data: bytes) -> None:
            await taking.wait()
            await give(data)

        fake.write = write
        await opened.socket.send_bytes(b"taken in the end")
        await asyncio.sleep(0.3)  # many beats, none of which may end it
        taking.set()
        await opened.until_shown(b"taken in the end")


async def test_a_client_that_gives_no_sign_of_life_is_detached(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmd.http.shells.HEARTBEAT_SECONDS", 0.02)
    workspace = await house.api.make()
    async with terminal(house.api, workspace, autoping=False) as opened:
        await _until_detached(house.api, workspace)
        assert opened.socket.exception() is None


async def test_one_that_missed_what_is_no_longer_kept_is_told_to_come_back(house: House) -> None:
    workspace = await house.api.make()
    async with terminal(house.api, workspace) as opened:
        process = next(iter(next(iter(house.fake.host.supervisors.values()))._processes.values()))
        stream: Any = next(iter(process.streams.values()))
        stream._first += 5  # as if others had been faster
        await opened.socket.send_bytes(b"x")
        assert (await opened.until_told("closed"))["code"] == 4002
