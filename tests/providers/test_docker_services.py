"""What only real containers can show of services: names, readiness, confinement, restarts."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from secrets import token_hex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.providers.test_docker import POOL, inspect
from tests.providers.test_provider import IMAGE, run, spec
from vmd.model.workspace import Service
from vmd.providers.base import Power, ProviderError
from vmd.providers.docker import DockerProvider
from vmd.providers.docker.body import ContainerOptions, service_body

SLOW = ("/bin/sh", "-c", "sleep 0.5; echo >/kept/up; exec sleep 600")


@pytest.fixture
async def docker(engine_url: str) -> AsyncIterator[DockerProvider]:
    made = DockerProvider(url=engine_url, instance=f"test-{token_hex(4)}", subnet_pool=POOL)
    yield made
    for holding in await made.holdings():
        await made.destroy(holding.workspace_id)
    await made.close()


def service(name: str = "side", *command: str, **changes: Any) -> Service:
    return Service(
        name=name,
        image=IMAGE,
        command=command or ("sleep", "600"),
        memory_mb=32,
        cpus=0.5,
        **{"data": "/kept", **changes},
    )


def inside(container: str, line: str) -> str:
    command = ["docker", "exec", "-u", "0", container, "sh", "-c", line]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


async def states(docker: DockerProvider, ref: str) -> dict[str, bool]:
    machine = await docker.inspect(ref)
    assert machine is not None
    return {state.name: state.is_running for state in machine.services}


async def until(docker: DockerProvider, ref: str, **wanted: bool) -> None:
    async with asyncio.timeout(20):
        while await states(docker, ref) != wanted:
            await asyncio.sleep(0.05)


async def test_a_machine_starts_once_its_services_are_ready_and_knows_them_by_name(
    docker: DockerProvider,
) -> None:
    wanted = spec(
        hostname="side", services=(service("side", *SLOW, ready="test -e /kept/up"), service("plain"))
    )
    ref = await docker.create(wanted)
    await docker.start(ref, {})
    name = f"vmd-{wanted.workspace_id}-service-side"
    assert inside(name, "ls /kept") == "up"
    address = inspect("container", name)["NetworkSettings"]["Networks"][f"vmd-{wanted.workspace_id}"]
    _, out, _ = await run(docker, ref, "getent hosts side | cut -d' ' -f1; getent hosts plain | wc -l")
    assert out.split() == [address["IPAddress"], "1"]
    assert await docker.inspect(name) is None  # it is no machine
    assert [machine.ref for machine in await docker.machines()] == [ref]


async def test_data_outlives_machines_and_goes_with_the_workspace(docker: DockerProvider) -> None:
    wanted = spec(services=(service(), service("bare", data=None)))
    name = f"vmd-{wanted.workspace_id}-service-side"
    ref = await docker.create(wanted)
    await docker.start(ref, {})
    inside(name, "echo data >/kept/file")
    await docker.stop(ref, 1)
    second = await docker.create(spec(workspace_id=wanted.workspace_id, services=wanted.services))
    await docker.start(second, {})
    await docker.discard(ref)
    assert inside(name, "cat /kept/file") == "data"
    volumes = [holding.name for holding in await docker.holdings() if holding.kind == "files"]
    assert sorted(volumes) == sorted([f"vmd-{wanted.workspace_id}", f"vmd-{wanted.workspace_id}-state", name])
    await docker.destroy(wanted.workspace_id)
    assert list(await docker.holdings()) == []
    assert subprocess.run(["docker", "volume", "inspect", name], capture_output=True).returncode != 0


async def test_a_service_is_confined(docker: DockerProvider) -> None:
    wanted = spec(services=(service(),))
    await docker.start(await docker.create(wanted), {})
    name = f"vmd-{wanted.workspace_id}-service-side"
    limits = inside(
        name,
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max 2>/dev/null"
        " || cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max",
    )
    assert limits.split() == [str(32 << 20), "512"]
    status = inside(name, "grep -E 'CapBnd|NoNewPrivs|Seccomp:' /proc/self/status")
    assert status.split() == ["CapBnd:", "00000000000004eb", "NoNewPrivs:", "1", "Seccomp:", "2"]
    assert inspect("container", name)["HostConfig"]["PortBindings"] in (None, {})


@pytest.mark.parametrize(
    ("command", "options", "why"),
    [
        ("echo cannot >&2; exec sleep 600", {"ready": "false"}, "is not ready after 1 s. It said: cannot."),
        (
            "echo broken; exit 0",
            {"ready": "true; sleep 2; false"},
            "ended with exit code 0. It said: broken.",
        ),
        (r"printf 'a/b\n\033[31mred \377\0\n'; exit 0", {"ready": "false"}, "It said: a/b / [31mred \ufffd."),
        ("exit 0", {"ready": "false"}, "ended with exit code 0. It said: nothing."),
        ("echo broken; exit 3", {"ready": "false"}, "is not ready after 1 s. It said: broken"),
    ],
)
async def test_one_that_does_not_come_up_says_why_and_rests(
    docker: DockerProvider, command: str, options: dict[str, Any], why: str
) -> None:
    bad = service("bad", "/bin/sh", "-c", command, **{"ready_seconds": 1, **options})
    ref = await docker.create(spec(services=(service("good"), bad)))
    with pytest.raises(ProviderError, match="The service bad") as failed:
        await docker.start(ref, {})
    assert why in str(failed.value)
    assert await states(docker, ref) == {"good": False, "bad": False}
    machine = await docker.inspect(ref)
    assert machine is not None
    assert machine.power is Power.STOPPED


async def test_one_that_fails_is_started_again_and_both_are_told(docker: DockerProvider) -> None:
    wanted = spec(services=(service(),))
    name = f"vmd-{wanted.workspace_id}-service-side"
    ref = await docker.create(wanted)
    await docker.start(ref, {})
    changes = docker.changes()
    assert await anext(changes) is None
    began = inspect("container", name)["State"]["StartedAt"]
    inside(name, "kill -KILL $(pidof sleep)")
    async with asyncio.timeout(20):
        for _ in ("die", "start"):
            assert await anext(changes) == wanted.workspace_id
    await until(docker, ref, side=True)
    assert inspect("container", name)["State"]["StartedAt"] > began
    subprocess.run(["docker", "kill", name], check=True, capture_output=True)  # this one stays down
    await until(docker, ref, side=False)
    await docker.start(ref, {})
    assert await states(docker, ref) == {"side": True}
    await changes.aclose()  # type: ignore[attr-defined]


async def test_a_machine_that_ends_by_itself_lets_its_services_rest(docker: DockerProvider) -> None:
    wanted = spec(services=(service(),))
    ref = await docker.create(wanted)
    await docker.start(ref, {})
    subprocess.run(["docker", "kill", ref], check=True, capture_output=True)
    await asyncio.gather(docker.rest(wanted.workspace_id), docker.start(ref, {}))  # in either order
    assert await states(docker, ref) == {"side": True}
    subprocess.run(["docker", "kill", ref], check=True, capture_output=True)
    await docker.rest(wanted.workspace_id)
    assert await states(docker, ref) == {"side": False}


async def test_no_service_of_a_stranger_is_adopted(docker: DockerProvider) -> None:
    wanted = spec(services=(service(data=None),))
    name = f"vmd-{wanted.workspace_id}-service-side"
    subprocess.run(["docker", "create", "--name", name, IMAGE], check=True, capture_output=True)
    try:
        with pytest.raises(ProviderError, match="not this daemon's"):
            await docker.create(wanted)
        await docker.destroy(wanted.workspace_id)
        assert inspect("container", name)["Name"] == f"/{name}"
    finally:
        subprocess.run(["docker", "rm", name], check=True, capture_output=True)


async def test_an_image_that_is_not_there_is_named(docker: DockerProvider) -> None:
    missing = Service(name="side", image="vmd-none:1")
    with pytest.raises(ProviderError, match=r"cannot make the service side: .*vmd-none:1"):
        await docker.create(spec(services=(missing,)))


texts = st.text(max_size=30)


@given(
    texts, texts, st.lists(texts, max_size=3), st.dictionaries(texts, texts, max_size=4), st.none() | texts
)
def test_no_plugin_can_widen_what_a_service_may(
    name: str, image: str, command: list[str], env: dict[str, str], data: str | None
) -> None:
    wanted = Service(name=name, image=image, command=tuple(command), env=env, data=data, ready=name)
    body = service_body(wanted, {"l": "1"}, volume="v", network="n", options=ContainerOptions())
    host = body["HostConfig"]
    assert (host["CapDrop"], host["SecurityOpt"]) == (["ALL"], ["no-new-privileges"])
    assert not set(host["CapAdd"]) & {"SYS_ADMIN", "NET_ADMIN", "NET_RAW", "SYS_PTRACE"}
    assert [(mount["Type"], mount["Source"]) for mount in host["Mounts"]] == [("volume", "v")] * (
        data is not None
    )
    assert not {"Privileged", "Binds", "Devices", "PortBindings", "PidMode", "IpcMode", "VolumesFrom"} & set(
        host
    )
    assert host["NetworkMode"] == "n"
    assert host["PidsLimit"] > 0
    assert host["Memory"] == host["MemorySwap"] > 0
    assert body["Labels"]["l"] == "1"
