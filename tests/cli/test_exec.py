"""`vmd exec`, as somebody who types it sees it."""

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import Api
from tests.support.house import House, open_house
from tests.support.process import daemon_process
from tests.support.typed import Ended, finish, pipeline, run, start, typed
from vmd.providers.fake import FakeHost


def local(house: House) -> dict[str, str]:
    return {"VMD_DATA_DIR": str(house.data_dir)}


def remote(house: House) -> dict[str, str]:
    assert house.api.token is not None
    return {"VMD_URL": house.api.url, "VMD_TOKEN": house.api.token}


async def until_running(api: Api, workspace: Any) -> str:
    """Return the id of the workspace's command once there is one that runs."""
    async with asyncio.timeout(10):
        while True:
            found = (await api.get(f"/workspaces/{workspace['id']}/commands")).json["items"]
            for command in found:
                if command["status"] == "running":
                    return str(command["id"])
            await asyncio.sleep(0.01)


async def until_none_runs(api: Api, workspace: Any) -> None:
    async with asyncio.timeout(10):
        while True:
            found = (await api.get(f"/workspaces/{workspace['id']}/commands")).json["items"]
            if all(command["finished_at"] is not None for command in found):
                return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("where", [local, remote])
async def test_a_command_prints_here_and_ends_as_it_does_there(house: House, where: Any) -> None:
    workspace = await house.api.make(name="shop")
    for name in ("shop", workspace["id"]):
        assert await run(where(house), "exec", name, "--", "echo", "hi", "ä") == Ended(
            0, "hi ä\n".encode(), ""
        )
    assert await run(where(house), "exec", "shop", "--", "exit", "3") == Ended(3, b"", "")
    assert await run(where(house), "exec", "shop", "--", "nope") == Ended(
        127, b"", "sh: 1: nope: not found\n"
    )


async def test_arguments_stay_as_they_are(house: House) -> None:
    await house.api.make(name="shop")
    done = await run(local(house), "exec", "shop", "--", "echo", "a", "--", "-u", "--help", "b  c")
    assert done.out == b"a -- -u --help b  c\n"
    assert (await run(local(house), "exec", "shop", "echo", "-n")).out == b"-n\n"


async def test_input_that_is_no_terminal_is_given_to_the_command(house: House) -> None:
    await house.api.make(name="shop")
    data = bytes(range(256)) * 2048
    assert await run(local(house), "exec", "shop", "--", "cat", stdin=data) == Ended(0, data, "")
    assert await run(local(house), "exec", "shop", "--", "cat") == Ended(0, b"", "")
    async with typed(local(house), "exec", "shop", "--", "cat") as command:
        assert await command.ended() == 0


async def test_more_input_than_there_is_room_for_is_refused_before_anything_is_run(house: House) -> None:
    workspace = await house.api.make(name="shop")
    done = await run(local(house), "exec", "shop", "--", "cat", stdin=b"x" * 800_000)
    assert "in pieces" in done.line
    assert (await house.api.get(f"/workspaces/{workspace['id']}/commands")).json["items"] == []


async def test_options_reach_the_command(house: House) -> None:
    workspace = await house.api.make(name="shop")
    given = ("-u", "root", "-w", "/tmp", "-e", "A=1=2", "-e", "B=", "--timeout", "50")
    assert (await run(local(house), "exec", *given, "shop", "--", "echo", "$A")).out == b"1=2\n"
    (command,) = (await house.api.get(f"/workspaces/{workspace['id']}/commands")).json["items"]
    assert [command[name] for name in ("user", "cwd", "timeout_seconds")] == ["root", "/tmp", 50]
    assert "ann" in (await run(local(house), "exec", "-u", "ann", "shop", "true")).line


async def test_a_command_that_takes_too_long_ends_as_with_timeout(house: House) -> None:
    await house.api.make(name="shop")
    done = await run(local(house), "exec", "--timeout", "0.2", "shop", "--", "sleep", "600")
    assert done == Ended(124, b"", "vmd: the command was stopped after 0.2 s\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signals_reach_the_command(house: House, number: signal.Signals) -> None:
    workspace = await house.api.make(name="shop")
    process = await start(remote(house), "exec", "shop", "--", "sleep", "600")
    assert process.stdin is not None
    process.stdin.close()
    await until_running(house.api, workspace)
    process.send_signal(number)
    assert await finish(process) == Ended(128 + number, b"", "")


async def test_a_command_is_followed_on_when_the_daemon_is_back(tmp_path: Path) -> None:
    host, where = FakeHost(), {"VMD_DATA_DIR": str(tmp_path / "data")}
    async with AsyncExitStack() as stack:
        async with open_house(tmp_path / "data", host=host) as house:
            workspace = await house.api.make(name="shop")
            command = await stack.enter_async_context(typed(where, "exec", "shop", "--", "sleep", "600"))
            command_id = await until_running(house.api, workspace)
        async with open_house(tmp_path / "data", host=host) as house:
            path = f"/workspaces/{workspace['id']}/commands/{command_id}/signal"
            await house.ready()
            assert (await house.api.post(path, {"signal": "TERM"})).status == 200
            assert await command.ended() == 128 + signal.SIGTERM
        assert command.shown == b""


async def test_a_signal_reaches_the_command_when_the_daemon_is_back(tmp_path: Path) -> None:
    host, where = FakeHost(), {"VMD_DATA_DIR": str(tmp_path / "data")}
    async with AsyncExitStack() as stack:
        async with open_house(tmp_path / "data", host=host) as house:
            workspace = await house.api.make(name="shop")
            command = await stack.enter_async_context(typed(where, "exec", "shop", "--", "sleep", "600"))
            await until_running(house.api, workspace)
        command.press(b"\x03")
        async with open_house(tmp_path / "data", host=host):
            assert await command.ended() == 128 + signal.SIGINT
        assert command.shown == b"^C"


async def test_a_second_interrupt_leaves_the_command_and_says_where_it_is(tmp_path: Path) -> None:
    where = {"VMD_DATA_DIR": str(tmp_path / "data")}
    async with AsyncExitStack() as stack:
        async with open_house(tmp_path / "data") as house:
            workspace = await house.api.make(name="shop")
            command = await stack.enter_async_context(typed(where, "exec", "shop", "--", "sleep", "600"))
            command_id = await until_running(house.api, workspace)
        while command.process.returncode is None:
            command.press(b"\x03")
            await asyncio.sleep(0.1)
        assert await command.ended() == 130
        path = f"/api/v1/workspaces/{workspace['id']}/commands/{command_id}/output?follow=true"
        assert f"the command goes on, and GET {path} has what it prints\r\n".encode() in command.shown


async def test_a_command_whose_machine_stops_is_lost_and_that_is_said(house: House) -> None:
    workspace = await house.api.make(name="shop")
    process = await start(local(house), "exec", "shop", "--", "sleep", "600")
    assert process.stdin is not None
    process.stdin.close()
    await until_running(house.api, workspace)
    (ref,) = house.fake.host.machines
    house.fake.kill_machine(ref)
    assert "the command is lost: The machine stopped" in (await finish(process)).line


async def test_what_is_refused_is_said_in_one_line(house: House) -> None:
    workspace = await house.api.make(name="shop")
    ann = await house.member("ann")
    hers = await ann.make(name="hers")
    assert ann.token is not None
    as_ann = {"VMD_URL": house.api.url, "VMD_TOKEN": ann.token}
    assert (await run(local(house), "exec", "hers", "echo", "x")).out == b"x\n"
    assert "no workspace 'shop'" in (await run(as_ann, "exec", "shop", "true")).line
    assert "no workspace" in (await run(as_ann, "exec", workspace["id"], "true")).line
    assert "/cwd" in (await run(as_ann, "exec", "-w", "x", hers["id"], "true")).line
    await house.api.done(await house.api.delete(f"/workspaces/{workspace['id']}"))
    await ann.make(name="shop")
    ben = await house.member("ben")
    await ben.make(name="shop")
    assert "several workspaces are called 'shop'" in (await run(local(house), "exec", "shop", "true")).line
    await ann.done(await ann.post(f"/workspaces/{hers['id']}/actions/stop"))
    assert "start" in (await run(as_ann, "exec", "hers", "true")).line


async def test_a_daemon_that_does_not_run_is_not_started(tmp_path: Path) -> None:
    assert "`vmd serve`" in (await run({"VMD_DATA_DIR": str(tmp_path / "data")}, "exec", "shop", "true")).line
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "arguments",
    [[], ["shop"], ["shop", "--"], ["shop", "-u", "root", "--", "true"]]
    + [[*wrong, "shop", "--", "true"] for wrong in (["-e", "A"], ["--timeout", "0"], ["--timeout", "nan"])],
)
async def test_wrong_usage_is_refused(arguments: list[str]) -> None:
    done = await run({}, "exec", *arguments)
    assert (done.status, done.out) == (2, b"")


async def test_a_real_command_behaves_as_if_it_ran_here(engine_url: str, tmp_path: Path) -> None:
    where = {"VMD_DATA_DIR": str(tmp_path / "data")}

    async def shell(line: str, stdin: bytes = b"") -> Ended:
        return await run(where, "exec", "shop", "--", "sh", "-c", line, stdin=stdin)

    async with daemon_process(tmp_path / "data") as process:
        async with await process.start() as api:
            workspace = await api.make(name="shop")
            data = bytes(range(256)) * 1024
            assert await shell("cat; printf 'no\\n' >&2; exit 9", data) == Ended(9, data, "no\n")
            assert await shell("kill -KILL $$") == Ended(137, b"", "")
            numbers = "".join(f"{number}\n" for number in range(1, 300_001)).encode()
            assert await shell("seq 300000") == Ended(0, numbers, "")

            trapped = "trap 'echo got' INT; echo ready; while :; do sleep 0.1; done"
            async with typed(where, "exec", "shop", "--", "sh", "-c", trapped) as command:
                await command.until(b"ready")
                command.press(b"\x03")
                await command.until(b"got")
            path = f"/workspaces/{workspace['id']}/commands/{await until_running(api, workspace)}/signal"
            await api.post(path, {"signal": "KILL"})
            await until_none_runs(api, workspace)

            assert await pipeline(where, "exec", "shop", "--", "yes", into="head -c 4") == b"y\ny\n"
            await until_none_runs(api, workspace)

            waiting = "echo one; echo two >&2; until [ -e go ]; do sleep 0.1; done; echo three; exit 4"
            followed = await start(where, "exec", "shop", "--", "sh", "-c", waiting)
            assert followed.stdin is not None
            assert followed.stderr is not None
            followed.stdin.close()
            assert await followed.stderr.readline() == b"two\n"
            process.kill()
        async with await process.start() as api:
            assert (await shell("touch go")).status == 0
            assert await finish(followed) == Ended(4, b"one\nthree\n", "")
