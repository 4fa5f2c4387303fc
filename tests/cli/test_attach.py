"""`vmd attach`, as somebody who types it sees it."""

import asyncio
import re
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.house import House, open_house
from tests.support.process import daemon_process
from tests.support.typed import Typed, run, start, typed
from vmd.cli.escapes import Escape, Escapes
from vmd.cli.patience import PATIENCE_SECONDS, STEADY_SECONDS, Patience
from vmd.providers.fake import FakeHost
from vmd.providers.fake_processes import FakeProcess


def local(house: House) -> dict[str, str]:
    return {"VMD_DATA_DIR": str(house.data_dir)}


def remote(house: House) -> dict[str, str]:
    assert house.api.token is not None
    return {"VMD_URL": house.api.url, "VMD_TOKEN": house.api.token}


async def shells(house: House, workspace: Any) -> Any:
    return (await house.api.get(f"/workspaces/{workspace['id']}/shells")).json["items"]


async def begin_shell(house: House, workspace: Any) -> str:
    """Return a shell that nobody is attached to, which has shown `before`."""
    async with typed(local(house), "attach", workspace["name"]) as command:
        await command.type(b"before\r~.")
        await command.until(b"come back")
        assert await command.ended() == 0
    (shell,) = await shells(house, workspace)
    assert shell["status"] == "running"
    return str(shell["id"])


def process_of(host: FakeHost, shell_id: str) -> FakeProcess:
    (supervisor,) = host.supervisors.values()
    process = supervisor._processes[shell_id].spawned
    assert isinstance(process, FakeProcess)
    return process


async def until_size(process: FakeProcess, columns: int, rows: int) -> None:
    async with asyncio.timeout(10):
        while process.size is None or (process.size.columns, process.size.rows) != (columns, rows):
            await asyncio.sleep(0.01)


async def until_session(command: Typed) -> str:
    """Return the session that was left, as the command told it."""
    await command.until(b"come back")
    match = re.search(rb"vmd attach --session (sh-[0-9a-z]+) shop", command.shown)
    assert match is not None
    return match[1].decode()


@pytest.mark.parametrize("where", [local, remote])
async def test_keys_go_there_and_what_is_shown_comes_back_until_the_shell_ends(
    house: House, where: Any
) -> None:
    await house.api.make(name="shop")
    async with typed(where(house), "attach", "shop") as command:
        await command.until_raw()
        await command.type(b"hello \x03\xff\x00")
        await command.until(b"hello \x03\xff\x00")
        await command.type(b"exit")
        assert await command.ended() == 7
        assert command.shown == b"hello \x03\xff\x00exit"


async def test_a_command_is_run_instead_of_a_shell(house: House) -> None:
    workspace = await house.api.make(name="shop")
    async with typed(local(house), "attach", "--command", "echo a & b", workspace["id"]) as command:
        assert await command.ended() == 0
        assert command.shown == b"a & b\n"


async def test_the_size_is_told_at_the_start_and_when_it_changes(house: House) -> None:
    workspace = await house.api.make(name="shop")
    async with typed(local(house), "attach", "shop", size=(101, 31)) as command:
        await command.type(b"x")
        await command.until(b"x")
        (shell,) = await shells(house, workspace)
        process = process_of(house.fake.host, shell["id"])
        await until_size(process, 101, 31)
        command.resize(70, 20)
        await until_size(process, 70, 20)
        command.resize(0, 0)
        await until_size(process, 80, 24)


async def test_a_user_detaches_and_comes_back(house: House) -> None:
    await house.api.make(name="shop")
    async with typed(local(house), "attach", "shop") as command:
        await command.type(b"one~.\r~?")
        await command.until(b"this help")
        await command.type(b"~~two\r~")
        await command.until(b"one~.\r~two\r")
        await command.type(b".")
        session = await until_session(command)
        assert await command.ended() == 0
    async with typed(local(house), "attach", "--session", session, "shop") as command:
        await command.until(b"one~.\r~two\r")
        await command.type(b"exit")
        assert await command.ended() == 7


async def test_a_shell_goes_on_where_it_was_when_the_daemon_is_back(tmp_path: Path) -> None:
    host, where = FakeHost(), {"VMD_DATA_DIR": str(tmp_path / "data")}
    async with AsyncExitStack() as stack:
        async with open_house(tmp_path / "data", host=host) as first:
            workspace = await first.api.make(name="shop")
            command = await stack.enter_async_context(typed(where, "attach", "shop", size=(90, 25)))
            await command.type(b"one ")
            await command.until(b"one ")
            (shell,) = await shells(first, workspace)
        process = process_of(host, shell["id"])
        await process.write(b"two ")
        command.resize(91, 26)
        await command.type(b"three ")
        await command.until(b"connecting again")
        async with open_house(tmp_path / "data", host=host):
            await command.until(b"three ")
            await until_size(process, 91, 26)
            await command.type(b"exit")
            assert await command.ended() == 7
    assert re.sub(rb"\r\nvmd: [^\r]*\r\n", b"", command.shown) == b"one two three exit"
    assert command.shown.count(b"connecting again") == 1
    assert command.shown.count(b"connected again") == 1


async def test_a_user_can_leave_while_there_is_no_connection(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        async with open_house(tmp_path / "data") as house:
            await house.api.make(name="shop")
            command = await stack.enter_async_context(typed(local(house), "attach", "shop"))
            await command.until_raw()
        await command.until(b"connecting again")
        await command.type(b"~.")
        assert await command.ended() == 0


async def test_who_is_taken_over_hears_of_it(house: House) -> None:
    workspace = await house.api.make(name="shop")
    session = await begin_shell(house, workspace)
    async with typed(local(house), "attach", "--session", session, "shop") as first:
        await first.until(b"before")
        async with typed(local(house), "attach", "--session", session, "--takeover", "shop") as second:
            assert await first.ended() == 1
            assert f"`vmd attach --session {session} --takeover shop`".encode() in first.shown
            await second.type(b"mine")
            await second.until(b"before\rmine")


async def test_who_looks_on_sees_all_and_types_nothing(house: House) -> None:
    workspace = await house.api.make(name="shop")
    session = await begin_shell(house, workspace)
    attach = ("attach", "--session", session)
    async with (
        typed(local(house), *attach, "shop", size=(60, 20)) as actor,
        typed(local(house), *attach, "--readonly", "shop") as onlooker,
    ):
        await onlooker.until(b"before")
        await onlooker.type(b"not this")
        onlooker.resize(50, 10)
        await actor.type(b"but this")
        await onlooker.until(b"but this")
        assert b"not" not in onlooker.shown
        await until_size(process_of(house.fake.host, session), 60, 20)
        await onlooker.type(b"\x03")
        await onlooker.until(b"come back")
        assert await onlooker.ended() == 0
        await actor.type(b"exit")
        assert await actor.ended() == 7


async def test_input_from_a_pipe_is_typed_and_waited_for(house: House) -> None:
    await house.api.make(name="shop")
    data = bytes(range(256)) * 4096  # more than is held for a shell at once
    ended = await run(remote(house), "attach", "shop", stdin=data + b"exit")
    assert (ended.status, ended.err) == (7, "")
    assert ended.out == data + b"exit"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
async def test_a_signal_ends_the_command_and_not_the_shell(house: House, number: signal.Signals) -> None:
    workspace = await house.api.make(name="shop")
    async with typed(local(house), "attach", "shop") as command:
        await command.until_raw()
        await command.type(b"x")
        await command.until(b"x")
        command.process.send_signal(number)
        await until_session(command)
        assert await command.ended() == 128 + number
    (shell,) = await shells(house, workspace)
    assert shell["status"] == "running"


async def test_a_window_that_is_closed_ends_the_command_and_not_the_shell(house: House) -> None:
    workspace = await house.api.make(name="shop")
    async with typed(local(house), "attach", "shop") as command:
        await command.type(b"x")
        await command.until(b"x")
        command.hang_up()
        async with asyncio.timeout(10):
            assert await command.process.wait() == 128 + signal.SIGHUP
    (shell,) = await shells(house, workspace)
    assert shell["status"] == "running"


async def test_a_shell_whose_machine_stops_ends_with_a_line_that_says_so(house: House) -> None:
    workspace = await house.api.make(name="shop")
    async with typed(local(house), "attach", "shop") as command:
        await command.until_raw()
        await house.api.done(await house.api.post(f"/workspaces/{workspace['id']}/actions/stop"))
        assert await command.ended() == 1
        assert b"ended with its machine" in command.shown


async def test_what_is_refused_is_said_in_one_line(house: House) -> None:
    workspace = await house.api.make(name="shop")
    reader = await house.member("ann", scopes=("workspaces:read",))
    hers = {"VMD_URL": house.api.url, "VMD_TOKEN": reader.token or ""}
    assert "no shell 'sh-none'" in (await run(local(house), "attach", "--session", "sh-none", "shop")).line
    assert "no workspace 'none'" in (await run(remote(house), "attach", "none")).line
    assert "no workspace" in (await run(hers, "attach", workspace["id"])).line
    await house.api.done(await house.api.post(f"/workspaces/{workspace['id']}/actions/stop"))
    assert "start" in (await run(remote(house), "attach", "shop")).line
    nowhere = {"VMD_URL": "http://127.0.0.1:9", "VMD_TOKEN": "x"}
    assert "does not answer" in (await run(nowhere, "attach", "shop")).line


async def test_a_daemon_that_does_not_run_is_not_started(tmp_path: Path) -> None:
    assert "`vmd serve`" in (await run({"VMD_DATA_DIR": str(tmp_path / "data")}, "attach", "shop")).line
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "arguments",
    [[], ["--readonly", "shop"], ["--takeover", "shop"], ["--session", "x", "--command", "y", "shop"]],
)
async def test_wrong_usage_is_refused(arguments: list[str]) -> None:
    ended = await run({}, "attach", *arguments)
    assert (ended.status, ended.out) == (2, b"")


async def test_a_real_shell_is_typed_into_from_a_pipe(engine_url: str, tmp_path: Path) -> None:
    async with daemon_process(tmp_path / "data") as process, await process.start() as api:
        await api.make(name="shop")
        where = {"VMD_DATA_DIR": str(tmp_path / "data")}
        line = "stty raw -echo; printf ready; head -c 512 | od -An -v -tx1 | tr -d ' \\n'; stty size; exit 5"
        piped = await start(where, "attach", "--command", line, "shop")
        assert piped.stdin is not None
        assert piped.stdout is not None
        shown = await piped.stdout.readexactly(5)
        data = bytes(range(256)) * 2
        out, err = await piped.communicate(data)
        assert (shown, out, err) == (b"ready", data.hex().encode() + b"24 80\n", b"")
        assert piped.returncode == 5
        async with typed(where, "attach", "shop", size=(93, 27)) as command:
            await command.type(b"stty size\r")
            await command.until(b"27 93")
            command.resize(94, 28)
            await command.type(b"stty size\r")
            await command.until(b"28 94")
            process.kill()
            async with await process.start():
                await command.type(b"echo $((40 + 2))x\r")
                await command.until(b"42x")
                await command.type(b"exit 6\r")
                assert await command.ended() == 6


# What is meant for this end.


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("typed_keys", "expected"),
    [
        (b"a~.", [b"a~."]),
        (b"~.", [Escape.DETACH]),
        (b"a\r~.", [b"a\r", Escape.DETACH]),
        (b"a\n~?b", [b"a\n", Escape.HELP, b"b"]),
        (b"~~.", [b"~."]),
        (b"~a~.", [b"~a~."]),
        (b"~\r~.", [b"~\r", Escape.DETACH]),
        (b"~?~.", [Escape.HELP, Escape.DETACH]),
        (b"\r~", [b"\r"]),
    ],
)
def test_escapes_are_seen_after_a_new_line(
    typed_keys: bytes, expected: list[bytes | Escape], size: int
) -> None:
    escapes = Escapes()
    pieces = [typed_keys[at : at + size] for at in range(0, len(typed_keys), size)]
    seen: list[bytes | Escape] = []
    for item in (item for piece in pieces for item in escapes.feed(piece)):
        if isinstance(item, bytes) and seen and isinstance(seen[-1], bytes):
            seen[-1] += item
        else:
            seen.append(item)
    assert seen == expected


def test_patience_ends_and_a_good_connection_renews_it() -> None:
    now = 0.0
    patience = Patience(lambda: now)

    def wait_until_over() -> float:
        nonlocal now
        begun = now
        patience.broken(had_news=False)
        while (pause := patience.next_pause()) is not None:
            now += pause
            patience.connected()  # to be broken at once
            patience.broken(had_news=False)
        return now - begun

    assert PATIENCE_SECONDS < wait_until_over() < PATIENCE_SECONDS + 5
    assert patience.next_pause() is None
    patience.broken(had_news=True)
    assert patience.next_pause() is not None
    assert PATIENCE_SECONDS < wait_until_over() < PATIENCE_SECONDS + 5
    patience.connected()
    now += 2 * STEADY_SECONDS
    patience.broken(had_news=False)
    assert patience.next_pause() is not None
