"""Commands on real machines: what they print, and how they end, outlives the daemon and the machine."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.commands import (
    STREAMS,
    Follower,
    blocks,
    ended,
    get,
    output,
    run,
    until_printed,
    writer,
)
from tests.support.machines import container_of, docker, in_container
from tests.support.resident import Resident, resident

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("engine_url")]

SEED = random.randrange(1 << 30)
KEPT_BYTES = 1024 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory, engine_url: str) -> AsyncIterator[Resident]:
    async with resident(tmp_path_factory.mktemp("vmd") / "data", {"resources": {"memory_mb": 512}}) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def house(shared: Resident) -> Resident:
    await shared.running()
    return shared


async def require_all(house: Resident, command_id: str, count: int) -> None:
    """Check all that a writer of so many blocks wrote, by every way it can be read."""
    follower = Follower()
    follower.got = {stream: bytearray(blocks(stream, count)[:1000]) for stream in STREAMS}
    await follower.follow(house.api, house.path, command_id)
    for stream in STREAMS:
        expected = blocks(stream, count)
        for offset in (0, 1, 777, len(expected) // 2, len(expected) - 1, len(expected)):
            begin, data = await output(house.api, house.path, command_id, stream, offset)
            assert (begin, len(data)) == (offset, len(expected) - offset)
            assert data == expected[offset:]
        assert follower.got[stream] == expected


async def test_every_byte_comes_once_over_kills_at_random_moments(house: Resident) -> None:
    chance = random.Random(SEED)
    counts = {"fast": 30_000, "slow": 120}
    commands = {
        "fast": await run(house.api, house.path, writer(counts["fast"], exit_code=3)),
        "slow": await run(house.api, house.path, writer(counts["slow"], pause_seconds=0.04, exit_code=4)),
    }
    followers = {name: Follower() for name in commands}
    for _ in range(4):
        following = [
            asyncio.create_task(followers[name].follow(house.api, house.path, command["id"]))
            for name, command in commands.items()
            if followers[name].exit is None
        ]
        await asyncio.sleep(chance.uniform(0.0, 0.7))
        house.kill()
        await asyncio.gather(*following)
        await house.start()
    for name, code in (("fast", 3), ("slow", 4)):
        if followers[name].exit is None:
            await followers[name].follow(house.api, house.path, commands[name]["id"])
        assert followers[name].exit == {"type": "exit", "exit_code": code, "signal": None}, f"seed {SEED}"
        command, operation = await ended(house.api, house.path, commands[name])
        assert (command["status"], command["exit_code"]) == ("exited", code)
        assert operation["status"] == "succeeded"
        assert operation["result"] == {"status": "exited", "exit_code": code, "signal": None}
        for stream in STREAMS:
            assert followers[name].got[stream] == blocks(stream, counts[name]), f"seed {SEED}"
            assert command[f"{stream}_bytes"] == len(followers[name].got[stream])
            assert command[f"{stream}_dropped_bytes"] == 0
        await require_all(house, command["id"], counts[name])


async def test_a_command_that_ends_while_the_daemon_is_dead_is_found_so(house: Resident) -> None:
    wait = "until [ -e go ]; do sleep 0.02; done; rm go"
    command = await run(house.api, house.path, f"{wait}; seq 1 50000; seq 1 300 >&2; exit 9")
    house.kill()
    in_container(house.workspace_id, "touch go; while [ -e go ]; do sleep 0.02; done")
    await _until_written(house, command["id"], "end")
    await house.start()
    final, operation = await ended(house.api, house.path, command)
    assert (final["status"], final["exit_code"], operation["status"]) == ("exited", 9, "succeeded")
    for stream, last in (("stdout", 50_000), ("stderr", 300)):
        expected = "".join(f"{number}\n" for number in range(1, last + 1)).encode()
        assert await output(house.api, house.path, command["id"], stream) == (0, expected)
        assert final[f"{stream}_bytes"] == len(expected)


async def test_its_end_is_known_even_if_its_machine_stops_before_the_daemon_is_back(house: Resident) -> None:
    wait = "until [ -e go ]; do sleep 0.02; done; rm go"
    command = await run(house.api, house.path, f"{wait}; seq 1 20000; exit 11")
    house.kill()
    in_container(house.workspace_id, "touch go")
    await _until_written(house, command["id"], "end")
    docker("stop", container_of(house.workspace_id))
    await house.start()
    final, operation = await ended(house.api, house.path, command)
    assert (final["status"], final["exit_code"], operation["status"]) == ("exited", 11, "succeeded")
    expected = "".join(f"{number}\n" for number in range(1, 20_001)).encode()
    assert await output(house.api, house.path, command["id"], "stdout") == (0, expected)
    await house.running()
    assert await output(house.api, house.path, command["id"], "stdout") == (0, expected)


@pytest.mark.parametrize("how", ["stop", "kill", "out of memory", "kill while the daemon is dead", "action"])
async def test_a_command_whose_machine_ends_is_lost_and_what_it_printed_is_kept(
    house: Resident, how: str
) -> None:
    command = await run(house.api, house.path, "seq 1 30000; echo oops >&2; exec sleep 300")
    expected = "".join(f"{number}\n" for number in range(1, 30_001)).encode()
    await until_printed(house.api, house.path, command["id"], b"oops\n", "stderr")
    container = container_of(house.workspace_id)
    if how == "action":
        await house.api.done(await house.api.post(f"{house.path}/actions/stop"))
    elif how == "out of memory":
        # As root, who may make the main process the one that the kernel prefers to kill.
        hog = "echo 1000 >/proc/1/oom_score_adj; for _ in 1 2 3 4; do tail /dev/zero & done; wait"
        docker("exec", "-d", "-u", "0", container, "sh", "-c", hog)
    elif how == "kill while the daemon is dead":
        house.kill()
        docker("kill", container)
        await house.start()
    else:
        docker(how, container)
    await house.api.until(house.workspace_id, seconds=30, status="stopped")
    final, operation = await ended(house.api, house.path, command)
    assert (final["status"], final["exit_code"], operation["status"]) == ("lost", None, "failed")
    assert "The machine stopped" in operation["error"]["detail"]
    assert (final["stdout_bytes"], final["stderr_bytes"]) == (len(expected), 5)
    for state in ("stopped", "running"):
        assert (await house.api.workspace(house.workspace_id))["status"] == state
        assert await output(house.api, house.path, command["id"], "stdout") == (0, expected)
        assert await output(house.api, house.path, command["id"], "stdout", 99) == (99, expected[99:])
        assert await output(house.api, house.path, command["id"], "stderr") == (0, b"oops\n")
        follower = Follower()
        await follower.follow(house.api, house.path, command["id"])
        assert follower.got == {"stdout": expected, "stderr": b"oops\n"}
        assert follower.exit == {"type": "exit", "exit_code": None, "signal": None}
        await house.running()
    assert (await get(house.api, house.path, command["id"])) == final


async def test_a_command_that_takes_too_much_memory_is_killed_and_its_machine_lives(house: Resident) -> None:
    command = await run(house.api, house.path, "echo begun; exec tail /dev/zero")
    final, operation = await ended(house.api, house.path, command)
    assert (final["status"], final["exit_code"], final["signal"]) == ("killed", 137, "KILL")
    assert operation["status"] == "succeeded"
    assert (await house.api.workspace(house.workspace_id))["status"] == "running"
    assert await output(house.api, house.path, command["id"], "stdout") == (0, b"begun\n")


async def test_a_timeout_holds_while_the_daemon_is_dead_and_kills_what_is_deaf(house: Resident) -> None:
    deaf = "trap 'echo asked' TERM; echo begun; while :; do sleep 0.1; done"
    command = await run(house.api, house.path, deaf, timeout_seconds=1.5)
    await until_printed(house.api, house.path, command["id"], b"begun")
    await house.kill_and_start()
    final, operation = await ended(house.api, house.path, command)
    assert (final["status"], final["exit_code"], final["signal"]) == ("timed_out", 137, "KILL")
    assert operation["status"] == "failed"
    assert "timeout of 1.5 s" in operation["error"]["detail"]
    assert await output(house.api, house.path, command["id"], "stdout") == (0, b"begun\nasked\n")


async def test_signals_reach_a_command_that_an_earlier_daemon_began(house: Resident) -> None:
    line = "trap 'echo int' INT; trap 'echo usr; exit 5' USR1; echo begun; while :; do sleep 0.05; done"
    command = await run(house.api, house.path, line)
    await until_printed(house.api, house.path, command["id"], b"begun\n")
    await house.kill_and_start()
    for name, said in (("INT", b"int\n"), ("USR1", b"usr\n")):
        answer = await house.api.post(f"{house.path}/commands/{command['id']}/signal", {"signal": name})
        assert answer.status == 200, answer.text
        await until_printed(house.api, house.path, command["id"], said)
    final, _ = await ended(house.api, house.path, command)
    assert (final["status"], final["exit_code"], final["signal"]) == ("exited", 5, None)
    killed = await run(house.api, house.path, ["sleep", "300"])
    await house.api.post(f"{house.path}/commands/{killed['id']}/signal", {"signal": "HUP"})
    final, operation = await ended(house.api, house.path, killed)
    assert (final["status"], final["exit_code"], final["signal"]) == ("killed", 129, "HUP")
    assert operation["status"] == "succeeded"


async def test_a_child_that_outlives_its_command_prints_on(house: Resident) -> None:
    child = "(until [ -e later ]; do sleep 0.02; done; rm later; echo child) & echo parent"
    command = await run(house.api, house.path, child)
    final, _ = await ended(house.api, house.path, command)
    assert (final["status"], final["exit_code"], final["stdout_bytes"]) == ("exited", 0, len("parent\n"))
    await house.kill_and_start()
    in_container(house.workspace_id, "touch later")
    await until_printed(house.api, house.path, command["id"], b"parent\nchild\n")


async def test_closing_the_live_stream_leaves_the_command_running(house: Resident) -> None:
    body = {"command": "echo begun; until [ -e go ]; do sleep 0.02; done; rm go; echo done; exit 2"}
    async with house.api.session.post(
        f"/api/v1{house.path}/commands", json=body, headers={"Accept": "application/x-ndjson"}
    ) as response:
        start = json.loads(await response.content.readline())
        begun = json.loads(await response.content.readline())
        assert begun == {"type": "stdout", "data": "begun\n", "offset": 0}
        response.close()
    command = await get(house.api, house.path, start["command_id"])
    assert command["status"] == "running"
    in_container(house.workspace_id, "touch go")
    final, _ = await ended(house.api, house.path, command)
    assert (final["status"], final["exit_code"]) == ("exited", 2)
    assert await output(house.api, house.path, command["id"], "stdout") == (0, b"begun\ndone\n")


@pytest.mark.parametrize("is_killed", [False, True])
async def test_cancelling_the_operation_ends_the_command(house: Resident, is_killed: bool) -> None:
    line = "trap 'sleep 1; echo bye; exit 6' TERM; echo begun; while :; do sleep 0.05; done"
    command = await run(house.api, house.path, line)
    await until_printed(house.api, house.path, command["id"], b"begun")
    answer = await house.api.delete(f"/operations/{command['operation_id']}")
    assert answer.status == 202, answer.text
    if is_killed:
        await house.kill_and_start()
    final, operation = await ended(house.api, house.path, command)
    assert (final["status"], final["exit_code"]) == ("exited", 6)
    assert operation["status"] == "cancelled"
    assert await output(house.api, house.path, command["id"], "stdout") == (0, b"begun\nbye\n")


# Daemons that keep less.


async def test_the_oldest_output_is_dropped_and_every_answer_says_so(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data_dir = tmp_path_factory.mktemp("vmd") / "data"
    async with resident(data_dir, VMD_COMMANDS__OUTPUT_BYTES=str(KEPT_BYTES)) as house:
        last = 12_500_000
        command = await run(house.api, house.path, f"seq 1 {last}; echo done >&2")
        final, _ = await ended(house.api, house.path, command)
        expected = "".join(f"{number}\n" for number in range(1, last + 1)).encode()
        total, dropped = final["stdout_bytes"], final["stdout_dropped_bytes"]
        assert total == len(expected) > 100_000_000
        assert KEPT_BYTES * 4 // 5 <= total - dropped <= KEPT_BYTES
        assert (final["stderr_bytes"], final["stderr_dropped_bytes"]) == (5, 0)
        used = in_container(house.workspace_id, f"du -sb /var/lib/vmd/p/{command['id']}", user="0")
        assert int(used.split()[0]) < KEPT_BYTES + 65536

        async def check() -> None:
            for offset in (0, 1000, dropped):
                begin, data = await output(house.api, house.path, command["id"], "stdout", offset)
                assert (begin, data) == (dropped, expected[dropped:])
            assert await output(house.api, house.path, command["id"], "stdout", total - 8) == (
                total - 8,
                expected[-8:],
            )
            follower = Follower()
            await follower.follow(house.api, house.path, command["id"])
            assert follower.dropped == [("stdout", 0, dropped)]
            assert follower.first["stdout"] == dropped
            assert follower.got["stdout"] == expected[dropped:]
            assert follower.got["stderr"] == b"done\n"

        await check()
        await house.kill_and_start()
        await check()
        docker("kill", container_of(house.workspace_id))
        await house.api.until(house.workspace_id, status="stopped")
        await check()


async def test_old_commands_are_removed_from_the_books_and_from_the_machine(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data_dir = tmp_path_factory.mktemp("vmd") / "data"
    async with resident(
        data_dir, VMD_COMMANDS__RETENTION_SECONDS="0", VMD_JANITOR__INTERVAL_SECONDS="0.2"
    ) as house:
        running = await run(house.api, house.path, ["sleep", "300"])
        over = await run(house.api, house.path, "seq 1 100000; echo x >&2")
        await _until_kept(house, {running["id"]})
        assert (await house.api.get(f"{house.path}/commands/{over['id']}")).status == 404
        listed = (await house.api.get(f"{house.path}/commands")).json["items"]
        assert [command["id"] for command in listed] == [running["id"]]
        # One that the daemon no longer knows of when it meets the machine again is removed then.
        in_container(house.workspace_id, f"cp -r {_DIRECTORY}/{running['id']} {_DIRECTORY}/cmd-gone", "0")
        house.kill()
        docker("kill", container_of(house.workspace_id))
        await house.start()
        await house.api.until(house.workspace_id, status="stopped")
        await house.running()
        await _until_kept(house, set())


_DIRECTORY = "/var/lib/vmd/p"


async def _until_written(house: Resident, command_id: str, name: str) -> None:
    """Return as soon as the machine's supervisor has written this file about a command."""
    path = f"{_DIRECTORY}/{command_id}/{name}"
    async with asyncio.timeout(20):
        await asyncio.to_thread(
            in_container, house.workspace_id, f"until [ -s {path} ]; do sleep 0.02; done", "0"
        )


async def _until_kept(house: Resident, wanted: set[str]) -> None:
    """Return as soon as the machine keeps these commands and no others."""
    found: Any = None
    async with asyncio.timeout(20):
        while found != wanted:
            found = set(in_container(house.workspace_id, f"ls {_DIRECTORY}", "0").split())
            await asyncio.sleep(0.05)
