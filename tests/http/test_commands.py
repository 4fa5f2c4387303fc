import asyncio
import base64
import json
from typing import Any

import pytest

from tests.support.api import Api
from tests.support.house import House, open_house
from vmd.http.commands import Pieces
from vmd.model.account import Scope
from vmd.providers.base import ProviderError, ProviderUnavailable
from vmd.providers.fake import FakeHost, Fault
from vmd.providers.process import Chunk, Stream

NDJSON = {"Accept": "application/x-ndjson"}


async def _run(api: Api, workspace: Any, command: Any, **body: Any) -> list[Any]:
    """Return the lines of the live stream."""
    path = f"/workspaces/{workspace['id']}/commands"
    answer = await api.post(path, {"command": command, **body}, headers=NDJSON)
    assert answer.status == 200, answer.text
    assert answer.headers["Content-Type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in answer.text.splitlines()]


async def _begin(api: Api, workspace: Any, command: Any, **body: Any) -> Any:
    """Return the operation of a command that was begun."""
    answer = await api.post(f"/workspaces/{workspace['id']}/commands", {"command": command, **body})
    assert answer.status == 202, answer.text
    assert answer.headers["Location"] == f"/api/v1/operations/{answer.json['id']}"
    return answer.json


async def _command(api: Api, operation: Any) -> Any:
    path = f"/workspaces/{operation['workspace_id']}/commands/{operation['command_id']}"
    answer = await api.get(path)
    assert answer.status == 200, answer.text
    return answer.json


async def _until(api: Api, operation: Any, status: str) -> Any:
    async with asyncio.timeout(10):
        while (command := await _command(api, operation))["status"] != status:
            await asyncio.sleep(0.01)
    return command


async def test_a_live_stream_starts_prints_and_exits(house: House) -> None:
    workspace = await house.api.make()
    start, printed, end = await _run(house.api, workspace, "echo hello")
    assert set(start) == {"type", "command_id", "operation_id"}
    assert printed == {"type": "stdout", "data": "hello\n", "offset": 0}
    assert end == {"type": "exit", "exit_code": 0, "signal": None}
    operation = (await house.api.get(f"/operations/{start['operation_id']}")).json
    assert (operation["type"], operation["status"], operation["command_id"]) == (
        "command",
        "succeeded",
        start["command_id"],
    )
    assert operation["result"] == {"status": "exited", "exit_code": 0, "signal": None}


async def test_an_operation_names_its_command_which_can_be_found_again(house: House) -> None:
    workspace = await house.api.make()
    operation = await _begin(house.api, workspace, ["exit", "5"])
    await house.api.done(await house.api.post(f"/workspaces/{workspace['id']}/commands", {"command": "true"}))
    final = await house.api.wait(operation)
    assert (final["status"], final["result"]["exit_code"]) == ("succeeded", 5)
    command = await _command(house.api, operation)
    assert (command["command"], command["status"], command["exit_code"], command["cwd"]) == (
        ["exit", "5"],
        "exited",
        5,
        "/workspace",
    )
    listed = (await house.api.get(f"/workspaces/{workspace['id']}/commands?limit=1")).json
    assert [item["command"] for item in listed["items"]] == ["true"]
    rest = await house.api.get(f"/workspaces/{workspace['id']}/commands?cursor={listed['next_cursor']}")
    assert [item["id"] for item in rest.json["items"]] == [command["id"]]


async def test_a_command_that_does_not_exist_exits_with_127_and_its_message(house: House) -> None:
    workspace = await house.api.make()
    _, printed, end = await _run(house.api, workspace, ["nonsense"])
    assert (printed["type"], printed["data"]) == ("stderr", "sh: 1: nonsense: not found\n")
    assert end["exit_code"] == 127


async def test_input_reaches_the_command_as_text_and_as_bytes(house: House) -> None:
    workspace = await house.api.make()
    _, printed, _ = await _run(house.api, workspace, "cat", stdin="über")
    assert printed["data"] == "über"
    given = bytes(range(256))
    _, printed, _ = await _run(
        house.api, workspace, "cat", stdin=base64.b64encode(given).decode(), stdin_encoding="base64"
    )
    assert (printed["encoding"], base64.b64decode(printed["data"])) == ("base64", given)


async def test_a_commands_environment_has_the_secrets_and_its_own(house: House) -> None:
    workspace = await house.api.make(env={"KEY": "hidden"}, secrets=["KEY"])
    assert (await _run(house.api, workspace, "echo $KEY"))[1]["data"] == "hidden\n"
    assert (await _run(house.api, workspace, "echo $OWN", env={"OWN": "mine"}))[1]["data"] == "mine\n"


async def test_output_has_exact_bytes_from_any_offset(house: House) -> None:
    workspace = await house.api.make()
    start, *_ = await _run(house.api, workspace, "echo 0123456789")
    path = f"/workspaces/{workspace['id']}/commands/{start['command_id']}/output"
    whole = await house.api.get(path)
    assert (whole.text, whole.headers["Content-Type"], whole.headers["Vmd-Offset"]) == (
        "0123456789\n",
        "application/octet-stream",
        "0",
    )
    part = await house.api.get(f"{path}?offset=7")
    assert (part.text, part.headers["Vmd-Offset"]) == ("789\n", "7")
    assert (await house.api.get(f"{path}?offset=99")).text == ""
    assert (await house.api.get(f"{path}?stream=stderr&follow=true")).text == ""


async def test_following_sees_the_end(house: House) -> None:
    workspace = await house.api.make()
    operation = await _begin(house.api, workspace, "cat", stdin="all")
    path = f"/workspaces/{workspace['id']}/commands/{operation['command_id']}"
    assert (await house.api.get(f"{path}/output?follow=true")).text == "all"
    lines = [
        json.loads(line) for line in (await house.api.get(f"{path}/stream?stdout_offset=1")).text.splitlines()
    ]
    assert [line["type"] for line in lines] == ["start", "stdout", "exit"]
    assert (lines[1]["data"], lines[1]["offset"]) == ("ll", 1)


async def test_a_running_command_is_signalled_and_its_operation_cancelled(house: House) -> None:
    workspace = await house.api.make()
    operation = await _begin(house.api, workspace, "sleep 60")
    path = f"/workspaces/{workspace['id']}/commands/{operation['command_id']}/signal"
    assert (await house.api.post(path, {"signal": "INT"})).status == 200
    command = await _until(house.api, operation, "killed")
    assert (command["exit_code"], command["signal"]) == (130, "INT")
    late = await house.api.post(path, {"signal": "INT"})
    assert (late.status, late.json["code"]) == (409, "invalid-state")
    other = await _begin(house.api, workspace, "sleep 60")
    cancelled = await house.api.delete(f"/operations/{other['id']}")
    assert (cancelled.status, cancelled.json["status"]) == (202, "cancelling")
    assert (await house.api.wait(other))["status"] == "cancelled"
    assert (await _command(house.api, other))["signal"] == "TERM"


async def test_the_same_key_signals_once(house: House) -> None:
    workspace = await house.api.make()
    operation = await _begin(house.api, workspace, "sleep 60")
    path = f"/workspaces/{workspace['id']}/commands/{operation['command_id']}/signal"
    headers = {"Idempotency-Key": "signal"}
    first = await house.api.post(path, {"signal": "WINCH"}, headers=headers)
    again = await house.api.post(path, {"signal": "WINCH"}, headers=headers)
    assert (first.status, again.text) == (200, first.text)
    other = await house.api.post(path, {"signal": "KILL"}, headers=headers)
    assert (other.status, other.json["code"]) == (422, "idempotency-mismatch")


async def test_a_timeout_ends_a_command(house: House) -> None:
    workspace = await house.api.make()
    operation = await _begin(house.api, workspace, "sleep 60", timeout_seconds=0.05)
    final = await house.api.wait(operation)
    assert (final["status"], final["result"]["status"]) == ("failed", "timed_out")
    assert "0.05 s" in final["error"]["detail"]


async def test_closing_the_stream_leaves_the_command_running(house: House) -> None:
    workspace = await house.api.make()
    response = await house.api.session.post(
        f"/api/v1/workspaces/{workspace['id']}/commands", json={"command": "sleep 60"}, headers=NDJSON
    )
    start = json.loads(await response.content.readline())
    response.close()
    operation = {"workspace_id": workspace["id"], **start}
    assert (await _command(house.api, operation))["status"] == "running"


async def test_a_stream_is_let_go_of_when_its_reader_leaves(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmd.http.streams.LOOK_SECONDS", 0.05)
    workspace = await house.api.make()
    response = await house.api.session.post(
        f"/api/v1/workspaces/{workspace['id']}/commands", json={"command": "sleep 60"}, headers=NDJSON
    )
    await response.content.readline()
    response.close()
    async with asyncio.timeout(5):
        while any(task.get_coro().__name__ == "_pass_on" for task in asyncio.all_tasks()):  # type: ignore[union-attr]
            await asyncio.sleep(0.01)


async def test_the_same_key_runs_a_command_once(house: House) -> None:
    workspace = await house.api.make()
    path, headers = f"/workspaces/{workspace['id']}/commands", {"Idempotency-Key": "once"}
    first, again = await asyncio.gather(
        *(house.api.post(path, {"command": "true"}, headers=headers) for _ in range(2))
    )
    assert first.json["command_id"] == again.json["command_id"]
    assert len((await house.api.get(path)).json["items"]) == 1
    other = await house.api.post(path, {"command": "false"}, headers=headers)
    assert (other.status, other.json["code"]) == (422, "idempotency-mismatch")


async def test_a_command_outlives_the_daemon(tmp_path: Any) -> None:
    host = FakeHost()
    async with open_house(tmp_path / "data", host=host) as first:
        workspace = await first.api.make()
        running = await _begin(first.api, workspace, "sleep 1")
        waiting = await _begin(first.api, workspace, "sleep 60")
    async with open_house(tmp_path / "data", host=host) as second:
        assert (await _until(second.api, running, "exited"))["exit_code"] == 0
        assert (await _command(second.api, waiting))["status"] == "running"


async def test_one_that_ended_while_the_daemon_was_away_is_found_so(tmp_path: Any) -> None:
    host = FakeHost()
    async with open_house(tmp_path / "data", host=host) as first:
        workspace = await first.api.make()
        operation = await _begin(first.api, workspace, "sleep 60")
    supervisor = next(iter(host.supervisors.values()))
    supervisor.signal(operation["command_id"], 9)
    async with asyncio.timeout(5):
        while (await supervisor.list())[0].exit_code is None:
            await asyncio.sleep(0.01)
    async with open_house(tmp_path / "data", host=host) as second:
        command = await _until(second.api, operation, "killed")
        assert (command["signal"], command["exit_code"]) == ("KILL", 137)
        assert (await second.api.wait(operation))["status"] == "succeeded"


@pytest.mark.parametrize("how", ["stop", "die"])
async def test_a_machine_that_stops_loses_its_command_and_keeps_what_it_printed(
    house: House, how: str
) -> None:
    workspace = await house.api.make()
    operation = await _begin(house.api, workspace, "echo before")
    await house.api.wait(operation)
    lost = await _begin(house.api, workspace, "sleep 60")
    if how == "stop":
        await house.api.done(await house.api.post(f"/workspaces/{workspace['id']}/actions/stop"))
    else:
        house.fake.kill_machine(next(iter(house.fake.host.machines)))
    command = await _until(house.api, lost, "lost")
    assert (command["exit_code"], command["signal"]) == (None, None)
    final = await house.api.wait(lost)
    assert (final["status"], final["error"]["code"]) == ("failed", "provider-error")
    path = f"/workspaces/{workspace['id']}/commands/{operation['command_id']}/output"
    assert (await house.api.get(path)).text == "before\n"


async def test_a_stream_over_the_machines_end_tells_of_it(house: House) -> None:
    workspace = await house.api.make()
    running = asyncio.create_task(_run(house.api, workspace, "sleep 60"))
    async with asyncio.timeout(5):
        while not (await house.api.get(f"/workspaces/{workspace['id']}/commands")).json["items"]:
            await asyncio.sleep(0.01)
    await house.api.done(await house.api.post(f"/workspaces/{workspace['id']}/actions/stop"))
    lines = await running
    assert lines[-1] == {"type": "exit", "exit_code": None, "signal": None}


async def test_commands_tell_their_story_in_events(house: House) -> None:
    workspace = await house.api.make()
    async with house.api.session.ws_connect(f"/ws/workspaces/{workspace['id']}/events") as socket:
        operation = await _begin(house.api, workspace, "exit 3")
        events = [json.loads(await socket.receive_str()) for _ in range(4)]
    assert [event["type"] for event in events] == [
        "operation.created",
        "command.started",
        "command.finished",
        "operation.finished",
    ]
    assert {event["operation_id"] for event in events} == {operation["id"]}
    assert events[2]["data"] == {
        "command_id": operation["command_id"],
        "status": "exited",
        "exit_code": 3,
        "signal": None,
    }


async def test_an_event_shows_no_secret_of_a_command_line(house: House) -> None:
    workspace = await house.api.make(env={"KEY": "hidden-value"}, secrets=["KEY"])
    async with house.api.session.ws_connect(f"/ws/workspaces/{workspace['id']}/events") as socket:
        await _begin(house.api, workspace, ["echo", "hidden-value"])
        events = [json.loads(await socket.receive_str()) for _ in range(2)]
    assert events[1]["data"]["command"] == "echo ***"


async def test_a_workspace_keeps_the_newest_of_its_output(tmp_path: Any) -> None:
    async with open_house(tmp_path / "data", commands__workspace_bytes=2_500_000) as house:
        workspace = await house.api.make()
        for _ in range(3):
            await house.api.wait(await _begin(house.api, workspace, "cat", stdin="x" * 1_040_000))
        async with asyncio.timeout(5):
            while len((await house.api.get(f"/workspaces/{workspace['id']}/commands")).json["items"]) != 2:
                await asyncio.sleep(0.01)


async def test_a_stopped_workspace_says_what_is_allowed(house: House) -> None:
    workspace = await house.api.make()
    await house.api.done(await house.api.post(f"/workspaces/{workspace['id']}/actions/stop"))
    answer = await house.api.post(f"/workspaces/{workspace['id']}/commands", {"command": "true"})
    assert (answer.status, answer.json["code"]) == (409, "invalid-state")
    assert answer.json["allowed_actions"] == ["start", "rebuild", "snapshot", "restore", "delete"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/command"),
        ({"command": []}, "/command"),
        ({"command": ""}, "/command"),
        ({"command": 7}, "/command"),
        ({"command": ["a", 7]}, "/command/1"),
        ({"command": "a\0b"}, "/command"),
        ({"command": "true", "cwd": "relative"}, "/cwd"),
        ({"command": "true", "env": {"1X": ""}}, "/env/1X"),
        ({"command": "true", "user": "-oProxyCommand=x"}, "/user"),
        ({"command": "true", "timeout_seconds": 0}, "/timeout_seconds"),
        ({"command": "true", "stdin": "no base64!", "stdin_encoding": "base64"}, "/stdin"),
        ({"command": "true", "user": "nobody-known"}, "/user"),
        ({"command": "true", "tty": True}, "/tty"),
    ],
)
async def test_wrong_values_are_pointed_at(house: House, body: Any, pointer: str) -> None:
    workspace = await house.api.make()
    answer = await house.api.post(f"/workspaces/{workspace['id']}/commands", body)
    assert (answer.status, answer.json["code"]) == (422, "validation-failed"), answer.text
    assert pointer in [error["pointer"] for error in answer.json["errors"]]


async def test_a_command_that_could_not_be_begun_is_no_success(house: House) -> None:
    workspace = await house.api.make()
    await house.api.post(
        f"/workspaces/{workspace['id']}/commands", {"command": "true", "user": "nobody-known"}
    )
    (command,) = (await house.api.get(f"/workspaces/{workspace['id']}/commands")).json["items"]
    assert command["status"] == "lost"
    operation = (await house.api.get(f"/operations/{command['operation_id']}")).json
    assert (operation["status"], operation["error"]["code"]) == ("failed", "validation-failed")


@pytest.mark.parametrize(
    ("error", "status"), [(ProviderError("broken"), 502), (ProviderUnavailable("away"), 503)]
)
async def test_a_machine_that_cannot_be_reached_is_told_of(
    house: House, error: Exception, status: int
) -> None:
    workspace = await house.api.make()
    async with asyncio.timeout(5):
        while not house.fake.host.supervisors:
            await asyncio.sleep(0.01)
    next(iter(house.fake.host.supervisors.values())).lose_all()
    house.fake.order("supervise", *[Fault(error=error)] * 20)
    answer = await house.api.post(f"/workspaces/{workspace['id']}/commands", {"command": "true"})
    assert answer.status == status
    (command,) = (await house.api.get(f"/workspaces/{workspace['id']}/commands")).json["items"]
    assert command["status"] == "lost"


async def test_others_commands_are_not_there(house: House) -> None:
    workspace = await house.api.make()
    operation = await _begin(house.api, workspace, "true")
    bob = await house.member("bob")
    base = f"/workspaces/{workspace['id']}/commands"
    one = f"{base}/{operation['command_id']}"
    for answer in (
        await bob.get(base),
        await bob.get(one),
        await bob.get(f"{one}/output"),
        await bob.get(f"{one}/stream"),
        await bob.post(f"{one}/signal", {"signal": "INT"}),
        await bob.post(base, {"command": "true"}),
    ):
        assert (answer.status, answer.json["code"]) == (404, "not-found")
    mine = await bob.make()
    foreign = await bob.get(f"/workspaces/{mine['id']}/commands/{operation['command_id']}")
    assert foreign.status == 404


async def test_running_takes_the_scope_exec(house: House) -> None:
    agent = await house.member("agent", scopes=(Scope.EXEC,))
    reader = await house.member("reader", scopes=(Scope.READ, Scope.WRITE))
    made = await reader.make()
    answer = await reader.post(f"/workspaces/{made['id']}/commands", {"command": "true"})
    assert (answer.status, answer.json["code"]) == (403, "forbidden")
    answer = await agent.post("/workspaces/ws-00000000000/commands", {"command": "true"})
    assert answer.status == 404


async def test_old_commands_are_forgotten_with_what_they_printed(tmp_path: Any) -> None:
    async with open_house(
        tmp_path / "data", janitor__interval_seconds=0.05, commands__retention_seconds=0
    ) as house:
        workspace = await house.api.make()
        await house.api.wait(await _begin(house.api, workspace, "true"))
        supervisor = next(iter(house.fake.host.supervisors.values()))
        async with asyncio.timeout(10):
            while (await house.api.get(f"/workspaces/{workspace['id']}/commands")).json["items"]:
                await asyncio.sleep(0.01)
            while await supervisor.list():
                await asyncio.sleep(0.01)


def _texts(lines: bytes) -> list[Any]:
    return [json.loads(line) for line in lines.splitlines()]


def test_a_character_in_two_chunks_is_shown_in_one_piece() -> None:
    pieces = Pieces(Stream.STDOUT, 0)
    euro = "€".encode()
    assert pieces.feed(Chunk(offset=0, data=b"a" + euro[:2])) == b'{"type":"stdout","data":"a","offset":0}\n'
    assert _texts(pieces.feed(Chunk(offset=3, data=euro[2:] + b"b"))) == [
        {"type": "stdout", "data": "€b", "offset": 1}
    ]


def test_what_is_no_character_after_all_is_shown_as_bytes() -> None:
    pieces = Pieces(Stream.STDERR, 5)
    assert pieces.feed(Chunk(offset=5, data=b"\xf0\x9f")) == b""
    assert _texts(pieces.finish()) == [
        {"type": "stderr", "data": base64.b64encode(b"\xf0\x9f").decode(), "offset": 5, "encoding": "base64"}
    ]


def test_bytes_that_were_dropped_are_told_of() -> None:
    pieces = Pieces(Stream.STDOUT, 2)
    assert _texts(pieces.feed(Chunk(offset=10, data=b"on"))) == [
        {"type": "dropped", "stream": "stdout", "offset": 2, "bytes": 8},
        {"type": "stdout", "data": "on", "offset": 10},
    ]


def test_a_line_is_never_longer_than_clients_read() -> None:
    pieces = Pieces(Stream.STDOUT, 0)
    zeros = bytes(65_536)
    (line,) = _texts(pieces.feed(Chunk(offset=0, data=zeros)))
    assert (line["encoding"], base64.b64decode(line["data"])) == ("base64", zeros)
