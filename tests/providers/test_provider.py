"""What every provider promises, shown on the fake one and on the real ones alike."""

import asyncio
from collections.abc import AsyncIterator
from secrets import token_hex

import pytest

from vmd.model.workspace import Resources, Service
from vmd.providers.base import Execution, MachineSpec, Power, Provider, ProviderError, ProviderUnavailable
from vmd.providers.docker import DockerProvider
from vmd.providers.fake import FakeProvider

IMAGE = "vmd-base:bookworm"


@pytest.fixture(params=["fake", "docker"])
async def provider(request: pytest.FixtureRequest) -> AsyncIterator[Provider]:
    made: Provider
    if request.param == "fake":
        made = FakeProvider()
    else:
        url = request.getfixturevalue("engine_url")
        made = DockerProvider(url=url, instance=f"test-{token_hex(4)}", subnet_pool="10.214.0.0/16")
    yield made
    for holding in await made.holdings():
        await made.destroy(holding.workspace_id)
    for image in await made.built_images():
        await made.remove_image(image)
    await made.close()


def spec(number: int = 1, **changes: object) -> MachineSpec:
    values: dict[str, object] = {
        "workspace_id": f"ws-{number}{token_hex(6)}",
        "operation_id": f"op-{token_hex(6)}",
        "hostname": "box",
        "node": "local",
        "image": IMAGE,
        "resources": Resources(cpus=0.5, memory_mb=128, pids=64),
        **changes,
    }
    return MachineSpec(**values)  # type: ignore[arg-type]


async def run(provider: Provider, ref: str, line: str, **options: object) -> tuple[int, str, str]:
    """Return the exit code and what a shell line printed."""
    said = {"stdout": b"", "stderr": b""}

    async def output(stream: str, data: bytes) -> None:
        said[stream] += data

    execution = Execution(argv=("/bin/sh", "-c", line), **options)  # type: ignore[arg-type]
    code = await provider.execute(ref, execution, output)
    return code, said["stdout"].decode(), said["stderr"].decode()


async def test_a_machine_lives_through_its_whole_life(provider: Provider) -> None:
    wanted = spec()
    ref = await provider.create(wanted)
    made = await provider.inspect(ref)
    assert made is not None
    assert (made.power, made.workspace_id, made.operation_id) == (
        Power.STOPPED,
        wanted.workspace_id,
        wanted.operation_id,
    )
    started = await provider.start(ref, {})
    assert started.power is Power.RUNNING
    assert started.address is not None
    assert [machine.ref for machine in await provider.machines()] == [ref]
    await provider.stop(ref, 5)
    stopped = await provider.inspect(ref)
    assert stopped is not None
    assert (stopped.power, stopped.address, stopped.is_out_of_memory) == (Power.STOPPED, None, False)
    await provider.start(ref, {})
    await provider.destroy(wanted.workspace_id)
    assert await provider.inspect(ref) is None
    assert list(await provider.holdings()) == []


async def test_every_step_may_be_repeated(provider: Provider) -> None:
    wanted = spec()
    ref = await provider.create(wanted)
    assert await provider.create(wanted) == ref
    await provider.start(ref, {})
    await provider.start(ref, {})
    await provider.stop(ref, 1)
    await provider.stop(ref, 1)
    await provider.discard(ref)
    await provider.discard(ref)
    await provider.destroy(wanted.workspace_id)
    await provider.destroy(wanted.workspace_id)
    await provider.destroy("ws-neverwas0000")


async def test_files_outlive_the_machine(provider: Provider) -> None:
    first = spec()
    old = await provider.create(first)
    await provider.start(old, {})
    assert (await run(provider, old, "touch kept"))[0] == 0
    second = spec(workspace_id=first.workspace_id)
    new = await provider.create(second)
    assert new != old
    await provider.stop(old, 0)
    await provider.start(new, {})
    await provider.discard(old)
    assert (await run(provider, new, "ls"))[1].split() == ["kept"]


async def test_services_follow_their_machine(provider: Provider) -> None:
    service = Service(name="side", image=IMAGE, command=("sleep", "600"), memory_mb=32, cpus=0.2)
    first = spec(services=(service,))
    ref = await provider.create(first)
    assert await provider.create(first) == ref
    assert {holding.kind for holding in await provider.holdings()} >= {"machine", "service", "files"}

    async def look(ref: str) -> tuple[Power, list[tuple[str, bool]]]:
        machine = await provider.inspect(ref)
        assert machine is not None
        async with asyncio.timeout(5):  # an engine's list is a little late
            while not any(
                (listed.ref, listed.power, listed.services) == (ref, machine.power, machine.services)
                for listed in await provider.machines()
            ):
                await asyncio.sleep(0.01)
        return machine.power, [(state.name, state.is_running) for state in machine.services]

    assert await look(ref) == (Power.STOPPED, [("side", False)])
    started = await provider.start(ref, {})
    assert [(state.name, state.is_running) for state in started.services] == [("side", True)]
    await provider.rest(first.workspace_id)  # not while the machine runs
    assert await look(ref) == (Power.RUNNING, [("side", True)])
    await provider.stop(ref, 1)
    assert await look(ref) == (Power.STOPPED, [("side", False)])
    second = await provider.create(spec(workspace_id=first.workspace_id, services=(service,)))
    await provider.start(second, {})
    await provider.discard(ref)
    assert await look(second) == (Power.RUNNING, [("side", True)])
    await provider.discard(second)
    await provider.rest(first.workspace_id)
    await provider.rest(first.workspace_id)
    await provider.destroy(first.workspace_id)
    await provider.rest(first.workspace_id)
    assert list(await provider.holdings()) == []


async def test_commands_tell_their_output_and_exit_code(provider: Provider) -> None:
    ref = await provider.create(spec())
    await provider.start(ref, {})
    assert await run(provider, ref, "echo hello") == (0, "hello\n", "")
    assert (await run(provider, ref, "exit 7"))[0] == 7
    code, _, stderr = await run(provider, ref, "nonesuch")
    assert code == 127
    assert "not found" in stderr


async def test_env_and_secrets_are_seen_by_commands(provider: Provider) -> None:
    ref = await provider.create(spec(env={"PLAIN": "one two"}))
    hostile = "a'b\"c\\ $(id) `id` \n end"
    await provider.start(ref, {"SECRET": hostile})
    assert (await run(provider, ref, "echo $PLAIN"))[1] == "one two\n"
    assert (await run(provider, ref, "echo $EXTRA", env={"EXTRA": "more"}))[1] == "more\n"
    if provider.name == "docker":
        assert (await run(provider, ref, 'printf %s "$SECRET"'))[1] == hostile
    await provider.stop(ref, 1)
    await provider.start(ref, {"SECRET": "changed"})
    assert (await run(provider, ref, "echo $SECRET"))[1] == "changed\n"


async def test_stats_speak_of_the_limits(provider: Provider) -> None:
    ref = await provider.create(spec())
    await provider.start(ref, {})
    stats = await provider.stats(ref)
    assert (stats.cpu.limit_cpus, stats.pids.limit) == (0.5, 64)
    assert stats.memory.limit_bytes == 128 * 1024 * 1024
    assert 0 < stats.memory.usage_bytes < stats.memory.limit_bytes
    assert stats.pids.current >= 1
    await provider.stop(ref, 1)
    with pytest.raises(ProviderError):
        await provider.stats(ref)


async def test_machines_of_one_workspace_alone_are_destroyed(provider: Provider) -> None:
    one, two = spec(1), spec(2)
    await asyncio.gather(provider.create(one), provider.create(two))
    await provider.destroy(one.workspace_id)
    assert {holding.workspace_id for holding in await provider.holdings()} == {two.workspace_id}


async def test_what_is_not_there_is_said(provider: Provider) -> None:
    assert await provider.inspect("vmd-none") is None
    for attempt in (provider.start("vmd-none", {}), provider.stop("vmd-none", 0), provider.stats("vmd-none")):
        with pytest.raises(ProviderError):
            await attempt
    with pytest.raises(ProviderError):
        await run(provider, "vmd-none", "true")


async def test_images_are_known_or_not(provider: Provider) -> None:
    said: list[bytes] = []

    async def output(_: str, data: bytes) -> None:
        said.append(data)

    assert await provider.has_image(IMAGE)
    assert not await provider.has_image("vmd-none:1")
    with pytest.raises(ProviderError, match="The image vmd-none:1 is not there and cannot be pulled"):
        await provider.pull("vmd-none:1", output)


class Said:
    """What a build printed, by stream."""

    def __init__(self) -> None:
        self.text = {"stdout": "", "stderr": ""}
        self._news = asyncio.Event()

    async def __call__(self, stream: str, data: bytes) -> None:
        self.text[stream] += data.decode()
        self._news.set()

    async def until(self, text: str) -> None:
        async with asyncio.timeout(60):
            while text not in self.text["stdout"]:
                self._news.clear()
                await self._news.wait()


async def test_an_image_is_built_from_a_recipe_and_removed(provider: Provider) -> None:
    image, said = f"vmd-test-built:{token_hex(6)}", Said()
    await provider.build(image, f"FROM {IMAGE}\nRUN echo hello\nENV GREETING=hi\n", said)
    steps = [line for line in said.text["stdout"].splitlines() if line.startswith("Step ")]
    assert steps[0].endswith(f" : FROM {IMAGE}")
    assert steps[-1].endswith(" : ENV GREETING=hi")
    assert "hello\n" in said.text["stdout"]
    assert await provider.has_image(image)
    assert await provider.built_images() == [image]
    assert list(await provider.holdings()) == []
    wanted = spec(image=image)
    ref = await provider.create(wanted)
    assert {holding.kind for holding in await provider.holdings()}.isdisjoint({"image"})
    with pytest.raises(ProviderError):
        await provider.remove_image(image)
    await provider.discard(ref)
    await provider.destroy(wanted.workspace_id)
    assert await provider.has_image(image)
    await provider.remove_image(image)
    await provider.remove_image(image)
    assert not await provider.has_image(image)
    assert list(await provider.built_images()) == []


async def test_a_build_that_fails_names_its_step_and_leaves_nothing(provider: Provider) -> None:
    image = f"vmd-test-built:{token_hex(6)}"
    recipe = f"FROM {IMAGE}\nRUN echo made\nRUN exit 3\nRUN echo never\n"
    with pytest.raises(ProviderError, match=r"at step \d of \d, `RUN exit 3`: .* non-zero code: 3\."):
        await provider.build(image, recipe, Said())
    assert not await provider.has_image(image)
    assert list(await provider.built_images()) == []


async def test_a_build_whose_caller_leaves_leaves_nothing(provider: Provider) -> None:
    image, said = f"vmd-test-built:{token_hex(6)}", Said()
    recipe = f"FROM {IMAGE}\nRUN echo made\nRUN sleep 300\n"
    building = asyncio.create_task(provider.build(image, recipe, said))
    await said.until("RUN sleep 300")
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert not await provider.has_image(image)
    assert list(await provider.built_images()) == []


async def test_capacity_is_told(provider: Provider) -> None:
    capacity = await provider.capacity()
    assert capacity.cpus >= 1
    assert capacity.memory_mb > 256


async def test_changes_begin_with_none_and_name_the_workspace(provider: Provider) -> None:
    wanted = spec()
    ref = await provider.create(wanted)
    await provider.start(ref, {})
    changes = provider.changes()
    async with asyncio.timeout(10):
        assert await anext(changes) is None
        if isinstance(provider, FakeProvider):
            provider.kill_machine(ref)
        else:
            await provider.stop(ref, 0)
        assert await anext(changes) == wanted.workspace_id
    await changes.aclose()  # type: ignore[attr-defined]


async def test_a_provider_out_of_reach_says_so(provider: Provider) -> None:
    away: Provider
    if isinstance(provider, FakeProvider):
        away = FakeProvider()
        away.cut_off()
    else:
        away = DockerProvider(url="unix:///nowhere.sock", instance="x", subnet_pool="10.214.0.0/16")
    for attempt in (
        away.capacity(),
        away.has_image(IMAGE),
        away.build("vmd-test-built:1", f"FROM {IMAGE}", Said()),
        away.built_images(),
        away.remove_image("vmd-test-built:1"),
        away.create(spec()),
        away.start("x", {}),
        away.stop("x", 0),
        away.rest("x"),
        away.inspect("x"),
        away.discard("x"),
        away.destroy("x"),
        away.stats("x"),
        away.machines(),
        away.holdings(),
        run(away, "x", "true"),
        anext(away.changes()),
    ):
        with pytest.raises(ProviderUnavailable):
            await attempt
    await away.close()


def snapshot_id() -> str:
    return f"snap-{token_hex(6)}"


async def test_a_snapshot_keeps_the_files_of_one_moment(provider: Provider) -> None:
    snapshot, wanted = snapshot_id(), spec()
    ref = await provider.create(wanted)
    await provider.start(ref, {})
    await run(provider, ref, "touch kept")
    first = await provider.snapshots.take(snapshot, ref)
    await run(provider, ref, "touch later")
    taken = await provider.snapshots.take(snapshot, ref)  # anew, in place of the first
    assert taken.manifest.entries == first.manifest.entries + 1
    assert taken.manifest.digest != first.manifest.digest
    await provider.stop(ref, 0)
    again = await provider.snapshots.take(snapshot, ref)
    assert again.manifest.describes(taken.manifest)
    assert again.paused_seconds == 0
    assert {held for held, _, _ in await provider.snapshots.held()} == {snapshot}
    await provider.destroy(wanted.workspace_id)
    other = spec(2, snapshot_id=snapshot)
    unpacked = await provider.snapshots.unpack(snapshot, other.workspace_id, None)
    assert unpacked.describes(taken.manifest)
    made = await provider.create(other)
    await provider.snapshots.destroy(snapshot)
    await provider.snapshots.destroy(snapshot)
    assert list(await provider.snapshots.held()) == []
    await provider.start(made, {})
    assert (await run(provider, made, "ls"))[1].split() == ["kept", "later"]


async def test_other_files_of_a_workspace_are_beside_the_first_ones(provider: Provider) -> None:
    snapshot, first = snapshot_id(), spec()
    old = await provider.create(first)
    await provider.start(old, {})
    await run(provider, old, "touch kept")
    await provider.snapshots.take(snapshot, old)
    await run(provider, old, "touch later")
    await provider.snapshots.unpack(snapshot, first.workspace_id, "op-files")
    new = await provider.create(spec(workspace_id=first.workspace_id, files="op-files", snapshot_id=snapshot))
    await provider.start(new, {})
    assert (await run(provider, new, "ls"))[1].split() == ["kept"]
    assert (await run(provider, old, "ls"))[1].split() == ["kept", "later"]
    await provider.discard(new)
    await provider.snapshots.discard_files(first.workspace_id, "op-files")
    await provider.snapshots.discard_files(first.workspace_id, "op-files")
    assert (await run(provider, old, "ls"))[1].split() == ["kept", "later"]
    with pytest.raises(ProviderError, match="not empty"):
        await provider.snapshots.unpack(snapshot, first.workspace_id, None)
    await provider.snapshots.destroy(snapshot)


async def test_snapshots_of_what_is_not_there_are_refused(provider: Provider) -> None:
    with pytest.raises(ProviderError, match="no machine"):
        await provider.snapshots.take(snapshot_id(), "vmd-none")
    with pytest.raises(ProviderError, match="not there any more"):
        await provider.create(spec(snapshot_id=snapshot_id()))
    gone = spec()
    with pytest.raises(ProviderError, match="not there any more"):
        await provider.snapshots.unpack(snapshot_id(), gone.workspace_id, None)
    await provider.snapshots.thaw("vmd-none")
    await provider.destroy(gone.workspace_id)
