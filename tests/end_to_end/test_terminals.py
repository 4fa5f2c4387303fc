"""Terminals in real machines, with the programs that people run in them."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.conftest import BASE_IMAGE
from tests.support.machines import in_container
from tests.support.resident import Resident, resident
from tests.support.terminals import Terminal, until_even

pytestmark = pytest.mark.asyncio(loop_scope="module")

IMAGE = "vmd-test-terminals:1"  # counted up when the programs in it change
DOCKERFILE = f"""
FROM {BASE_IMAGE}
RUN apt-get -q update && apt-get -q install -y --no-install-recommends vim htop tmux \\
    && rm -rf /var/lib/apt/lists/*
"""
EVERY_BYTE = bytes(range(256))
MIB = 1024 * 1024
REPLAYED_BYTES = 512 * 1024


@pytest.fixture(scope="session")
def image(engine_url: str) -> str:
    """The base image with full-screen programs, built once a machine."""
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True).returncode != 0:
        build = ["docker", "build", "--quiet", "--tag", IMAGE, "-"]
        subprocess.run(build, input=DOCKERFILE.encode(), check=True, capture_output=True)
    return IMAGE


def prepare(data_dir: Path, image: str) -> dict[str, Any]:
    """Return what to ask for to get a workspace of this image."""
    templates = data_dir / "templates"
    templates.mkdir(parents=True)
    (templates / "terminals.toml").write_text(f'image = "{image}"\n')
    return {"template": "terminals"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory, image: str) -> AsyncIterator[Resident]:
    data_dir = tmp_path_factory.mktemp("vmd") / "data"
    wanted = prepare(data_dir, image)
    async with resident(data_dir, wanted, VMD_SHELL__OUTPUT_BYTES=str(REPLAYED_BYTES)) as made:
        yield made


async def vim(house: Resident, text: str) -> Terminal:
    """Return a terminal in which vim has opened a coloured file of its own."""
    path = f"/workspace/{text}.py"
    in_container(
        house.workspace_id,
        f"for i in $(seq 1 400); do echo \"def f$i(): return 'é$i — ü'  # {text} $i\"; done >{path}",
    )
    terminal = Terminal(house.path)
    command = f"vim --clean -c 'syntax on | set number ruler' {path}"
    await terminal.attach(house.api, command=command)
    await terminal.until_drawn(f"# {text} 5")
    return terminal


async def mark(terminal: Terminal, text: str, *all_of_them: Terminal) -> None:
    """Have vim say something, and return when everybody has seen everything up to that."""
    await terminal.send(f"\x1b:echo 'mark ' .. '{text}'\r")
    for one in (terminal, *all_of_them):
        await one.until_shown(f"mark {text}")
    await until_even(terminal, *all_of_them)


async def look_on(house: Resident, terminal: Terminal) -> Terminal:
    """Return a second attachment that has seen all from the first byte on."""
    watcher = Terminal(house.path)
    return await watcher.attach(house.api, session=terminal.session, offset=0, readonly=True)


# Full-screen programs.


async def test_vim_looks_as_if_the_connection_had_never_been_lost(house: Resident) -> None:
    typist = await vim(house, "lost")
    watcher = await look_on(house, typist)
    for step, keys in enumerate(
        ("50Gzt", "Osome words — typed äöü\x1b", "\x06\x06\x02", ":split\r\x17j100G", ":%s/return/yield/g\r")
    ):
        await typist.send(keys + ":for i in range(40) | exe 'normal! \\<C-E>' | redraw | endfor\r")
        await typist.until_more()
        typist.drop()
        await typist.attach(house.api)
        await mark(typist, f"step {step}", watcher)
        assert typist.picture() == watcher.picture()
        assert typist.shown == watcher.shown
    await typist.send("\x1b:wqa\r")
    assert (await typist.until_told("exit"))["exit_code"] == 0
    assert await typist.until_closed() == 1000
    written = in_container(house.workspace_id, "cat lost.py")
    assert "some words — typed äöü" in written
    assert written.count("yield") == 400


async def test_vim_looks_as_if_the_daemon_had_never_been_killed(house: Resident) -> None:
    typist = await vim(house, "killed")
    await typist.send(":split\r200G")
    await mark(typist, "before")
    for keys in ("iwritten while it dies\x1b", "\x06", "\x17j:set list\r"):
        await typist.send(keys)
        house.kill()
        await typist.until_closed()
        await house.start()
        await typist.attach(house.api)
        await mark(typist, f"after {keys[:1]!r}"[:9].replace("'", ""))
        watcher = await look_on(house, typist)
        await mark(typist, "both", watcher)
        assert typist.picture() == watcher.picture()
        await watcher.close()
    await typist.send("\x1b:qa!\r")
    assert (await typist.until_told("exit"))["exit_code"] == 0


async def test_who_comes_too_late_for_a_replay_gets_a_right_screen(house: Resident) -> None:
    typist = await vim(house, "late")
    watcher = await look_on(house, typist)
    await typist.send(
        "\x1b:for i in range(260) | exe 'normal! ' .. (i % 2 ? 'gg' : 'G') | redraw! | endfor\r"
    )
    await mark(typist, "scrolled", watcher)
    assert typist.offset > REPLAYED_BYTES
    await typist.send("gg20Gzt")
    await mark(typist, "there", watcher)
    typist.drop()
    late = Terminal(house.path)
    await late.attach(house.api, session=typist.session)
    assert late.offset > 0
    await mark(late, "again", watcher)
    assert late.picture() == watcher.picture()
    await late.send("\x1b:qa!\r")
    assert (await late.until_told("exit"))["exit_code"] == 0


async def test_htop_is_drawn_anew_for_a_terminal_of_another_size(house: Resident) -> None:
    small = Terminal(house.path, columns=80, rows=24)
    await small.attach(house.api, command="htop -d 2")
    await small.until_drawn("F10Quit")
    small.drop()
    large = Terminal(house.path, columns=110, rows=33)
    await large.attach(house.api, session=small.session, offset=small.offset)
    await large.until(
        lambda: large.screen.display[32].startswith("F1Help") and "Command" in str(large.screen.display)
    )
    header = next(line for line in large.screen.display if "PID" in line)
    assert "USER" in header
    assert any("htop -d 2" in line for line in large.screen.display)
    assert large.screen.buffer[32][109].bg == large.screen.buffer[32][80].bg != "default"
    await large.send("q")
    assert (await large.until_told("exit"))["exit_code"] == 0


async def test_tmux_is_drawn_anew_for_a_terminal_of_another_size(house: Resident) -> None:
    small = Terminal(house.path, columns=90, rows=20)
    await small.attach(house.api, command="tmux new -s work")
    await small.until_drawn("[work]")
    await small.send("PS1='ready> '; clear\r")
    await small.until_drawn("ready>")
    await small.send('\x02"')  # two panes
    await small.until_drawn("───")
    await small.send("stty size\r")
    await small.until_drawn(" 90")
    small.drop()
    large = Terminal(house.path, columns=120, rows=40)
    await large.attach(house.api, session=small.session)
    await large.until(lambda: large.screen.display[39].startswith("[work]"))
    # It tells its panes of the size when it has not changed for a while.
    await large.send("until stty size | grep ' 120'; do sleep 0.05; done\r")
    await large.until_drawn(" 120")
    assert any("─" * 120 in line for line in large.screen.display)
    assert large.screen.display[0].startswith("ready>")
    await large.send("tmux kill-server\r")
    await large.until_told("exit")


# Bytes.


async def test_all_bytes_pass_both_ways_and_characters_may_be_split(house: Resident) -> None:
    terminal = Terminal(house.path)
    await terminal.attach(house.api, command="stty raw -echo; echo ready; exec cat")
    await terminal.until_shown("ready\n")
    text = "ä€😀".encode()
    for at in range(len(text)):
        await terminal.send(text[at : at + 1])
    await terminal.until_shown(text)
    await terminal.until_drawn("ä€😀"[:2])
    sent = EVERY_BYTE * 4000
    for at in range(0, len(sent), 100_003):
        await terminal.send(sent[at : at + 100_003])
    await terminal.until(lambda: len(terminal.shown) >= len(b"ready\n") + len(text) + len(sent))
    assert terminal.shown == b"ready\n" + text + sent
    await terminal.close()


# A shell's life.


async def shells(house: Resident) -> dict[str, Any]:
    answer = await house.api.get(f"{house.path}/shells")
    assert answer.status == 200, answer.text
    return {shell["id"]: shell for shell in answer.json["items"]}


async def test_a_shell_is_shared_resized_signalled_taken_over_and_left(house: Resident) -> None:
    typist = Terminal(house.path)
    await typist.attach(house.api)
    await typist.send("PS1='> '; stty -echo\r")
    viewers = [await look_on(house, typist) for _ in range(3)]
    listed = (await shells(house))[str(typist.session)]
    assert (listed["status"], listed["attached"], listed["persistence"]) == ("running", 4, "machine")
    await typist.tell(type="resize", cols=91, rows=27)
    await typist.send("stty size\r")
    await typist.until_shown("27 91\r\n")
    await typist.send("sh -c 'trap \"echo caught; exit\" INT; echo begun; while :; do sleep 0.1; done'\r")
    await typist.until_shown("begun\r\n")
    await typist.tell(type="signal", signal="INT")
    await typist.until_shown("caught\r\n")
    await viewers[0].send("echo intruder\r")
    assert (await viewers[0].until_told("error"))["code"] == "forbidden"
    await until_even(typist, *viewers)
    assert {viewer.shown for viewer in viewers} == {typist.shown}
    taker = Terminal(house.path)
    await taker.attach(house.api, session=typist.session, offset=0, takeover=True)
    assert [await other.until_closed() for other in (typist, *viewers)] == [4001] * 4
    await taker.send("exit 42\r")
    assert (await taker.until_told("exit"))["exit_code"] == 42
    assert await taker.until_closed() == 1000
    assert b"intruder" not in taker.shown
    listed = (await shells(house))[str(typist.session)]
    assert (listed["status"], listed["exit_code"]) == ("exited", 42)
    after = Terminal(house.path)  # what a shell showed can be looked at when it has ended
    await after.attach(house.api, session=typist.session, offset=0)
    assert (await after.until_told("exit"))["exit_code"] == 42
    assert after.shown == taker.shown


async def test_a_shell_that_is_deleted_ends_with_all_that_ran_in_it(house: Resident) -> None:
    terminal = Terminal(house.path)
    await terminal.attach(house.api)
    await terminal.send("trap '' HUP; sleep 4321.5 & sleep 4321.5 & echo be''gun\r")
    await terminal.until_shown("begun\r\n")
    assert (await house.api.delete(f"{house.path}/shells/{terminal.session}")).status == 204
    assert (await terminal.until_told("exit"))["exit_code"] == 137
    assert "4321.5" not in in_container(house.workspace_id, "ps -eo args=")


async def test_a_shell_that_nobody_comes_back_to_ends(
    tmp_path_factory: pytest.TempPathFactory, engine_url: str
) -> None:
    data_dir = tmp_path_factory.mktemp("vmd") / "data"
    async with resident(
        data_dir, VMD_SHELL__DETACH_SECONDS="1", VMD_JANITOR__INTERVAL_SECONDS="0.1"
    ) as house:
        left, kept = Terminal(house.path), Terminal(house.path)
        for terminal in (left, kept):
            await terminal.attach(house.api)
            await terminal.send("sleep 4321.5 & echo be''gun\r")
            await terminal.until_shown("begun\r\n")
        left.drop()
        async with asyncio.timeout(20):
            while set(await shells(house)) != {kept.session}:
                await asyncio.sleep(0.05)
        assert in_container(house.workspace_id, "ps -eo args= | grep -c '^sleep 4321[.]5'") == "1"
        await kept.send("echo still he''re\r")
        await kept.until_shown("still here\r\n")


# Clients that do not behave.


async def answers(house: Resident, terminal: Terminal, count: int) -> None:
    """Return when a shell has answered so many times."""
    for number in range(count):
        await terminal.send(f"echo $(({number}+1000))x\r")
        await terminal.until_shown(f"{number + 1000}x\r\n")


@pytest.mark.parametrize(
    "command", ["stty raw -echo; echo ready; exec cat >/dev/null", "echo ready; exec sleep 300"]
)
async def test_a_flood_of_input_delays_nobody_and_fills_no_memory(house: Resident, command: str) -> None:
    flooded, other = Terminal(house.path), Terminal(house.path)
    await flooded.attach(house.api, command=command)
    await flooded.until_shown("ready")
    await other.attach(house.api)
    before = house.process.memory_bytes()
    piece = (b"x" * 79 + b"\n") * 2000

    async def flood() -> None:
        for _ in range(200 * 1_000_000 // len(piece)):
            await flooded.send(piece)

    flooding = asyncio.create_task(flood())
    await answers(house, other, 30)
    assert flooded.close_code is None
    if "cat" in command:
        await flooding
    assert flooding.done() is ("cat" in command)
    assert house.process.memory_bytes() - before < 32 * MIB
    flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)
    flooded.drop()
    await answers(house, other, 3)
    assert (await house.api.delete(f"{house.path}/shells/{flooded.session}")).status == 204
    await other.close()


async def test_a_client_that_never_reads_is_cut_off_and_its_shell_lives(house: Resident) -> None:
    stalled, other = Terminal(house.path), Terminal(house.path)
    await other.attach(house.api)
    await stalled.attach(house.api)
    before = house.process.memory_bytes()
    stalled.stop_reading()
    await stalled.send("yes\r")
    await answers(house, other, 30)
    async with asyncio.timeout(30):
        while (await shells(house))[str(stalled.session)]["attached"]:
            await answers(house, other, 1)
            await asyncio.sleep(0.1)
    assert house.process.memory_bytes() - before < 32 * MIB
    again = Terminal(house.path)
    await again.attach(house.api, session=stalled.session)
    await again.until_shown("y\r\ny\r\n")
    await again.tell(type="signal", signal="INT")
    await again.send("\recho al''ive; exit 3\r")
    await again.until_shown("alive\r\n")
    assert (await again.until_told("exit"))["exit_code"] == 3
    stalled.drop()
    await other.close()
