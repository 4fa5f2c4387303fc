"""What every supervisor promises: the fake one, the real one, and the plain execs that take its place."""

import asyncio
import signal
from collections.abc import AsyncIterator
from secrets import token_hex
from typing import Any

import pytest
import pytest_asyncio
from attrs import frozen

from tests.providers.test_provider import spec as machine_spec
from vmd.model.shell import Persistence
from vmd.providers.base import Execution, Provider, ProviderUnavailable
from vmd.providers.docker import DockerProvider, links
from vmd.providers.fake import FakeProvider
from vmd.providers.process import (
    Kept,
    ProcessReport,
    ProcessSpec,
    ProcessState,
    Stream,
    Supervisor,
    TerminalSize,
    UnknownUser,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1024 * 1024
SECONDS = 30
EVERY_BYTE = bytes(range(256))
PRINT_EVERY_BYTE = 'i=0; while [ $i -lt 256 ]; do printf "\\\\$(printf %03o $i)"; i=$((i+1)); done'

real = pytest.mark.parametrize("rig", ["docker", "plain"], indirect=True)
resident = pytest.mark.parametrize("rig", ["docker"], indirect=True)


@frozen(kw_only=True)
class Rig:
    """A machine that runs, and the way to its supervisor."""

    name: str
    provider: Provider
    ref: str

    async def connect(self) -> Supervisor:
        return await self.provider.supervise(self.ref)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["fake", "docker", "plain"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    provider: Provider = FakeProvider()
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain":
            patch.setattr(links, "find_executable", lambda program, machine: None)
        if request.param != "fake":
            url, instance = request.getfixturevalue("engine_url"), f"test-{token_hex(4)}"
            provider = DockerProvider(url=url, instance=instance, subnet_pool="10.214.0.0/16")
        ref = await provider.create(machine_spec())
        await provider.start(ref, {})
        yield Rig(name=request.param, provider=provider, ref=ref)
        for holding in await provider.holdings():
            await provider.destroy(holding.workspace_id)
        await provider.close()


@pytest_asyncio.fixture(loop_scope="module")
async def supervisor(rig: Rig) -> AsyncIterator[Supervisor]:
    made = await rig.connect()
    yield made
    await made.close()


def spec(line: str | None = None, **changes: Any) -> ProcessSpec:
    return ProcessSpec(**{"id": f"cmd-{token_hex(6)}", "line": line, "kept_bytes": MIB, **changes})


async def read(
    supervisor: Supervisor,
    process_id: str,
    stream: Stream = Stream.STDOUT,
    offset: int = 0,
    *,
    live: bool = True,
) -> bytes:
    """Return a stream from an offset on, nothing of which may be missing."""
    data = b""
    async with asyncio.timeout(SECONDS):
        async for chunk in supervisor.follow(process_id, stream, offset, live=live, window=MIB):
            assert chunk.offset == offset + len(data)
            data += chunk.data
    return data


async def ended(supervisor: Supervisor, process_id: str) -> ProcessReport:
    """Return how a process stands as soon as it does not run."""
    async with asyncio.timeout(SECONDS):
        while True:
            report = await supervisor.look(process_id)
            assert report is not None
            if report.state is not ProcessState.RUNNING:
                return report
            await asyncio.sleep(0.02)


async def until_printed(supervisor: Supervisor, process_id: str, wanted: bytes) -> None:
    async with asyncio.timeout(SECONDS):
        while wanted not in await read(supervisor, process_id, live=False):
            await asyncio.sleep(0.02)


async def run(supervisor: Supervisor, wanted: ProcessSpec) -> tuple[ProcessReport, bytes, bytes]:
    await supervisor.start(wanted)
    out, err = [await read(supervisor, wanted.id, stream) for stream in Stream]
    return await ended(supervisor, wanted.id), out, err


# What all of them do.


async def test_a_process_is_started_followed_and_found(supervisor: Supervisor) -> None:
    wanted = spec("echo hello")
    report, out, err = await run(supervisor, wanted)
    assert (out, err) == (b"hello\n", b"")
    assert report == ProcessReport(
        id=wanted.id, state=ProcessState.EXITED, exit_code=0, stdout=Kept(first=0, end=6)
    )
    assert report in await supervisor.list()


async def test_arguments_are_run_as_they_stand(supervisor: Supervisor) -> None:
    report, out, _ = await run(supervisor, spec(arguments=("echo", "a b", "$HOME")))
    assert (report.exit_code, out) == (0, b"a b $HOME\n")


@pytest.mark.parametrize("code", [0, 1, 126, 127, 255])
async def test_exit_codes_are_told(supervisor: Supervisor, code: int) -> None:
    report, _, _ = await run(supervisor, spec(f"exit {code}"))
    assert (report.state, report.exit_code, report.signal) == (ProcessState.EXITED, code, None)


async def test_an_unknown_program_exits_with_127_and_says_so(supervisor: Supervisor) -> None:
    report, out, err = await run(supervisor, spec(arguments=("nonesuch", "x")))
    assert (report.exit_code, out) == (127, b"")
    assert b"nonesuch" in err
    assert b"not found" in err


async def test_a_second_start_of_the_same_id_does_nothing(supervisor: Supervisor) -> None:
    wanted = spec("echo once")
    await supervisor.start(wanted)
    await ended(supervisor, wanted.id)
    _, out, _ = await run(supervisor, wanted)
    assert out == b"once\n"


async def test_a_listener_is_told_of_an_end_once(supervisor: Supervisor) -> None:
    reports: list[ProcessReport] = []
    supervisor.on_report = reports.append
    wanted = spec("exit 3")
    await supervisor.start(wanted)
    async with asyncio.timeout(SECONDS):
        while not [report for report in reports if report.exit_code is not None]:
            await asyncio.sleep(0.02)
    assert [(report.id, report.exit_code) for report in reports] == [(wanted.id, 3)]


@pytest.mark.parametrize("live", [True, False])
async def test_a_stream_is_read_from_any_offset(supervisor: Supervisor, live: bool) -> None:
    wanted = spec("echo 0123456789")
    await run(supervisor, wanted)
    for offset in (0, 4, 10, 11, 12, 1 << 62):
        rest = b"0123456789\n"[offset:]
        assert await read(supervisor, wanted.id, offset=offset, live=live) == rest


async def test_what_was_printed_so_far_is_read_while_more_may_come(supervisor: Supervisor) -> None:
    wanted = spec("cat", terminal=TerminalSize())
    await supervisor.start(wanted)
    assert await read(supervisor, wanted.id, live=False) == b""
    await supervisor.write(wanted.id, b"first\n")
    await until_printed(supervisor, wanted.id, b"first")
    supervisor.end(wanted.id, signal.SIGHUP)
    await ended(supervisor, wanted.id)


async def test_who_waits_beyond_the_end_gets_what_comes_there(supervisor: Supervisor) -> None:
    wanted = spec("cat", terminal=TerminalSize())
    await supervisor.start(wanted)
    coming = asyncio.create_task(read(supervisor, wanted.id, offset=40))
    await supervisor.write(wanted.id, b"one\n")
    await until_printed(supervisor, wanted.id, b"one")
    await supervisor.write(wanted.id, b"x" * 60 + b"\n")
    await until_printed(supervisor, wanted.id, b"x" * 60)
    supervisor.end(wanted.id, signal.SIGHUP)
    rest = await coming
    assert rest == (await read(supervisor, wanted.id))[40:]
    assert rest.startswith(b"x")


async def test_several_follow_the_same_terminal(supervisor: Supervisor) -> None:
    wanted = spec("cat", terminal=TerminalSize())
    await supervisor.start(wanted)
    followers = [asyncio.create_task(read(supervisor, wanted.id)) for _ in range(3)]
    for word in (b"one\n", b"two\n", b"three\n"):
        await supervisor.write(wanted.id, word)
        await until_printed(supervisor, wanted.id, word.strip())
    supervisor.end(wanted.id, signal.SIGHUP)
    first, *others = await asyncio.gather(*followers)
    assert others == [first, first]
    assert first.index(b"one") < first.index(b"two") < first.index(b"three")


async def test_a_follower_that_was_closed_ends(supervisor: Supervisor) -> None:
    wanted = spec("sleep 60")
    await supervisor.start(wanted)
    follower = supervisor.follow(wanted.id, Stream.STDOUT, 0, live=True, window=MIB)
    follower.close()
    async with asyncio.timeout(SECONDS):
        assert [chunk async for chunk in follower] == []
    supervisor.end(wanted.id, signal.SIGKILL)
    await ended(supervisor, wanted.id)


async def test_a_signal_ends_a_process(supervisor: Supervisor) -> None:
    wanted = spec("sleep 60")
    await supervisor.start(wanted)
    supervisor.signal(wanted.id, signal.SIGTERM)
    report = await ended(supervisor, wanted.id)
    assert (report.state, report.exit_code, report.signal) == (ProcessState.EXITED, 143, signal.SIGTERM)


async def test_a_timeout_ends_a_process(supervisor: Supervisor) -> None:
    report, _, _ = await run(supervisor, spec("sleep 60", timeout_seconds=0.1))
    assert (report.exit_code, report.is_timed_out) == (143, True)


async def test_an_unknown_user_is_told_of_and_leaves_nothing(supervisor: Supervisor) -> None:
    wanted = spec("echo hello", user="nobodyatall")
    with pytest.raises(UnknownUser, match="unknown in the machine"):
        await supervisor.start(wanted)
    assert await supervisor.look(wanted.id) is None


async def test_what_is_forgotten_is_not_known(supervisor: Supervisor) -> None:
    wanted = spec("echo hello")
    await run(supervisor, wanted)
    supervisor.forget(wanted.id)
    assert await supervisor.look(wanted.id) is None
    assert wanted.id not in [report.id for report in await supervisor.list()]
    assert await read(supervisor, wanted.id) == b""
    _, out, _ = await run(supervisor, wanted)
    assert out == b"hello\n"


async def test_what_runs_is_not_forgotten(supervisor: Supervisor) -> None:
    wanted = spec("sleep 60")
    await supervisor.start(wanted)
    supervisor.forget(wanted.id)
    report = await supervisor.look(wanted.id)
    assert report is not None
    assert report.state is ProcessState.RUNNING
    supervisor.end(wanted.id, signal.SIGTERM)
    await ended(supervisor, wanted.id)


async def test_nothing_happens_to_what_is_unknown_or_over(supervisor: Supervisor) -> None:
    over = spec("true")
    await run(supervisor, over)
    for process_id in (over.id, "cmd-neverwas"):
        supervisor.signal(process_id, signal.SIGKILL)
        supervisor.resize(process_id, TerminalSize(columns=1, rows=1))
        supervisor.end(process_id, signal.SIGKILL)
        async with asyncio.timeout(SECONDS):
            await supervisor.write(process_id, b"x" * 200_000)
    supervisor.forget("cmd-neverwas")
    assert await supervisor.look("cmd-neverwas") is None
    report = await supervisor.look(over.id)
    assert report is not None
    assert report.exit_code == 0


async def test_who_is_let_go_hears_of_it_and_finds_everything_again(rig: Rig) -> None:
    before = await rig.connect()
    done, going = spec("echo hello"), spec("cat", terminal=TerminalSize())
    await run(before, done)
    await before.start(going)
    await before.write(going.id, b"word\n")
    await until_printed(before, going.id, b"word")
    following = asyncio.create_task(read(before, going.id))
    await asyncio.sleep(0)
    await before.close()
    with pytest.raises(ProviderUnavailable):
        await following
    assert before.is_open is False

    after = await rig.connect()
    assert {done.id, going.id} <= {report.id for report in await after.list()}
    assert await read(after, done.id) == b"hello\n"
    assert b"word" in await read(after, going.id, live=False)
    await after.write(going.id, b"more\n")
    await until_printed(after, going.id, b"more")
    after.end(going.id, signal.SIGHUP)
    await ended(after, going.id)
    await after.close()


async def test_it_says_what_its_processes_outlive(rig: Rig, supervisor: Supervisor) -> None:
    expected = Persistence.DAEMON if rig.name == "plain" else Persistence.MACHINE
    assert supervisor.persistence is expected


# What only real machines show.


@real
async def test_all_bytes_pass_both_streams(supervisor: Supervisor) -> None:
    line = f"{PRINT_EVERY_BYTE}; {{ {PRINT_EVERY_BYTE}; }} >&2"
    _, out, err = await run(supervisor, spec(line))
    assert (out, err) == (EVERY_BYTE, EVERY_BYTE)


@real
async def test_all_bytes_pass_a_raw_terminal_both_ways(supervisor: Supervisor) -> None:
    wanted = spec("stty raw -echo; echo ready; exec cat", terminal=TerminalSize())
    await supervisor.start(wanted)
    await until_printed(supervisor, wanted.id, b"ready\n")
    sent = EVERY_BYTE * 1000
    writing = asyncio.create_task(supervisor.write(wanted.id, sent))
    await until_printed(supervisor, wanted.id, b"ready\n" + sent)
    await writing
    supervisor.end(wanted.id, signal.SIGHUP)
    await ended(supervisor, wanted.id)


@real
async def test_input_is_given_to_its_end(supervisor: Supervisor) -> None:
    given = EVERY_BYTE * 2000
    report, out, _ = await run(supervisor, spec("cat", stdin=given))
    assert (report.exit_code, out) == (0, given)


@resident
async def test_a_process_that_takes_no_input_ends_all_the_same(supervisor: Supervisor) -> None:
    report, _, _ = await run(supervisor, spec("exec <&-; echo done", stdin=b"x" * MIB))
    assert report.exit_code == 0


@real
async def test_the_last_bytes_of_a_process_are_there_when_it_has_ended(supervisor: Supervisor) -> None:
    wanted = spec("head -c 700000 /dev/zero; exit 5")
    await supervisor.start(wanted)
    report = await ended(supervisor, wanted.id)
    assert (report.exit_code, report.stdout) == (5, Kept(first=0, end=700_000))
    assert await read(supervisor, wanted.id, live=False) == bytes(700_000)


@real
async def test_user_directory_and_environment_are_as_asked_for(supervisor: Supervisor) -> None:
    wanted = spec('id -u; pwd; echo "$A"; echo "$HOME"', user="root", cwd="/tmp", env={"A": "b\nc ü"})
    _, out, _ = await run(supervisor, wanted)
    assert out.decode() == "0\n/tmp\nb\nc ü\n/root\n"


@real
async def test_what_may_not_be_run_exits_with_126(supervisor: Supervisor) -> None:
    report, _, err = await run(supervisor, spec(arguments=("/etc/passwd",)))
    assert report.exit_code == 126
    assert b"ermission denied" in err


@real
async def test_a_terminal_has_the_size_that_it_was_given_last(supervisor: Supervisor) -> None:
    line = "trap 'stty size' WINCH; stty size; while :; do sleep 0.05; done"
    wanted = spec(line, terminal=TerminalSize(columns=101, rows=31))
    await supervisor.start(wanted)
    await until_printed(supervisor, wanted.id, b"31 101\r\n")
    supervisor.resize(wanted.id, TerminalSize(columns=66, rows=22))
    await until_printed(supervisor, wanted.id, b"22 66\r\n")
    supervisor.end(wanted.id, signal.SIGHUP)
    await ended(supervisor, wanted.id)


@real
async def test_a_terminal_without_a_command_is_a_login_shell(supervisor: Supervisor) -> None:
    wanted = spec(terminal=TerminalSize())
    await supervisor.start(wanted)
    await supervisor.write(wanted.id, b"shopt -q login_shell && tty && echo $((6*7)) $TERM; exit 9\n")
    assert (await ended(supervisor, wanted.id)).exit_code == 9
    out = await read(supervisor, wanted.id)
    assert b"/dev/pts/" in out
    assert b"42 xterm-256color\r\n" in out


@real
async def test_a_signal_goes_to_the_whole_group(supervisor: Supervisor) -> None:
    wanted = spec("sleep 1000.25 & sleep 1000.25 & echo begun; wait")
    await supervisor.start(wanted)
    await until_printed(supervisor, wanted.id, b"begun")
    supervisor.signal(wanted.id, signal.SIGKILL)
    assert (await ended(supervisor, wanted.id)).exit_code == 137
    left = "ps -eo args= | grep -c '^sleep 1000[.]25'"
    assert (await run(supervisor, spec(left)))[1] == b"0\n"


@real
async def test_what_is_deaf_to_the_first_signal_is_killed(supervisor: Supervisor) -> None:
    wanted = spec("trap '' TERM; echo deaf; while :; do sleep 1; done", timeout_seconds=1.0)
    report, out, _ = await run(supervisor, wanted)
    assert (report.exit_code, report.signal, report.is_timed_out) == (137, signal.SIGKILL, True)
    assert out == b"deaf\n"


@real
@pytest.mark.parametrize("kept_bytes", [512 * 1024, MIB])
async def test_a_slow_reader_holds_up_a_process_that_prints_more_than_is_kept(
    supervisor: Supervisor, kept_bytes: int
) -> None:
    go = f"/tmp/{token_hex(6)}"
    wanted = spec(f"until [ -e {go} ]; do sleep 0.05; done; exec seq 1 900000", kept_bytes=kept_bytes)
    await supervisor.start(wanted)
    follower = supervisor.follow(wanted.id, Stream.STDOUT, 0, live=True, window=64 * 1024)
    await run(supervisor, spec(f"touch {go}"))
    expected = "".join(f"{number}\n" for number in range(1, 900_001)).encode()
    got = b""
    async with asyncio.timeout(SECONDS):
        async for chunk in follower:
            assert chunk.offset == len(got)
            assert chunk.data == expected[chunk.offset : chunk.end]
            got += chunk.data
            await asyncio.sleep(0.002)
    assert len(got) == len(expected)
    assert (await ended(supervisor, wanted.id)).exit_code == 0


# What only a supervisor inside the machine does.


@resident
async def test_the_oldest_bytes_are_dropped_and_the_rest_is_exact(supervisor: Supervisor) -> None:
    wanted = spec("seq 1 900000", kept_bytes=MIB)
    await supervisor.start(wanted)
    report = await ended(supervisor, wanted.id)
    expected = "".join(f"{number}\n" for number in range(1, 900_001)).encode()
    assert report.stdout.end == len(expected)
    assert MIB * 4 // 5 <= report.stdout.end - report.stdout.first <= MIB
    for live in (True, False):
        follower = supervisor.follow(wanted.id, Stream.STDOUT, 100, live=live, window=MIB)
        chunks = [chunk async for chunk in follower]
        assert chunks[0].offset == report.stdout.first
        assert b"".join(chunk.data for chunk in chunks) == expected[report.stdout.first :]


@resident
async def test_a_child_that_outlives_its_process_prints_on(supervisor: Supervisor) -> None:
    line = "(while [ ! -e /tmp/go ]; do sleep 0.05; done; echo later) & echo now"
    wanted = spec(line)
    report, out, _ = await run(supervisor, wanted)
    assert (report.exit_code, out) == (0, b"now\n")
    await run(supervisor, spec("touch /tmp/go"))
    await until_printed(supervisor, wanted.id, b"now\nlater\n")


@resident
async def test_the_latest_connection_is_the_one_that_is_served(rig: Rig) -> None:
    first = await rig.connect()
    second = await rig.connect()
    async with asyncio.timeout(SECONDS):
        await first.wait_closed()
    with pytest.raises(ProviderUnavailable):
        await first.look("cmd-any")
    assert (await run(second, spec("echo hello")))[1] == b"hello\n"
    await second.close()


@resident
async def test_what_ends_while_nobody_is_connected_is_found_so(rig: Rig) -> None:
    first = await rig.connect()
    wanted = spec("until [ -e /tmp/away ]; do sleep 0.05; done; seq 1 100000; exit 4")
    await first.start(wanted)
    await first.close()
    assert await rig.provider.execute(rig.ref, _touch("/tmp/away"), _ignore) == 0
    second = await rig.connect()
    assert (await ended(second, wanted.id)).exit_code == 4
    expected = "".join(f"{number}\n" for number in range(1, 100_001)).encode()
    assert await read(second, wanted.id) == expected
    await second.close()


def _touch(path: str) -> Execution:
    return Execution(argv=("touch", path))


async def _ignore(stream: str, data: bytes) -> None:
    """Want nothing of the output."""
