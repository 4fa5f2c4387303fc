"""What only real containers can show: limits in the kernel, users, isolation, strangers."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from secrets import token_hex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.providers.test_provider import run, spec
from vmd.model.workspace import Resources
from vmd.providers.base import MachineSpec, Power, ProviderError
from vmd.providers.docker import DockerProvider
from vmd.providers.docker.body import ContainerOptions, container_body

POOL = "10.214.0.0/16"


@pytest.fixture
async def docker(engine_url: str) -> AsyncIterator[DockerProvider]:
    made = DockerProvider(url=engine_url, instance=f"test-{token_hex(4)}", subnet_pool=POOL)
    yield made
    for holding in await made.holdings():
        await made.destroy(holding.workspace_id)
    await made.close()


def inspect(kind: str, name: str) -> Any:
    done = subprocess.run(["docker", kind, "inspect", name], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)[0]


async def test_commands_run_as_a_user_without_rights(docker: DockerProvider) -> None:
    ref = await docker.create(spec())
    await docker.start(ref, {})
    code, out, _ = await run(
        docker,
        ref,
        "id -un; id -u; pwd; echo $HOME; touch here; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status",
    )
    assert code == 0
    assert out.split() == [
        *("dev", "1000", "/workspace", "/home/dev", "CapEff:", "0000000000000000"),
        *("NoNewPrivs:", "1", "Seccomp:", "2"),
    ]
    assert (await run(docker, ref, "sudo -n true 2>&1"))[0] != 0
    assert (await run(docker, ref, "ls /var/run/docker.sock"))[0] != 0


async def test_limits_hold_in_the_kernel(docker: DockerProvider) -> None:
    ref = await docker.create(spec(resources=Resources(cpus=0.5, memory_mb=64, pids=40)))
    await docker.start(ref, {})
    _, out, _ = await run(
        docker,
        ref,
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max"
        " /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us"
        " || cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max && tr ' ' '\\n' </sys/fs/cgroup/cpu.max",
    )
    memory, pids, quota, period = out.split()[:4]
    assert (int(memory), int(pids), int(quota) / int(period)) == (64 << 20, 40, 0.5)
    _, _, err = await run(docker, ref, "for i in $(seq 60); do sleep 5 & done; wait")
    assert "fork" in err.lower() or "resource" in err.lower()
    await run(docker, ref, "head -c 200m /dev/zero | tail -c 150m | wc -c")
    machine = await docker.inspect(ref)
    assert machine is not None
    assert machine.power is Power.RUNNING


async def test_secrets_are_in_no_place_that_others_see(docker: DockerProvider) -> None:
    secret = f"canary-{token_hex(8)}"
    ref = await docker.create(spec(env={"PLAIN": "seen"}))
    await docker.start(ref, {"SECRET": secret})
    assert secret not in json.dumps(inspect("container", ref))
    _, out, _ = await run(docker, ref, "cat /proc/*/cmdline | tr '\\0' ' '; echo; printenv SECRET")
    commands, _, value = out.strip().rpartition("\n")
    assert value == secret
    assert secret not in commands
    host = subprocess.run("cat /proc/[0-9]*/cmdline", shell=True, capture_output=True).stdout
    assert secret.encode() not in host
    assert (await run(docker, ref, "mount | grep /run/vmd"))[1].startswith("tmpfs")


async def test_an_image_without_our_user_gets_one(docker: DockerProvider, tmp_path: Any) -> None:
    tag = f"vmd-test-bare:{token_hex(4)}"
    command = ["docker", "run", "--name", tag.replace(":", "-"), "vmd-base:bookworm", "sh", "-c"]
    script = "userdel -r dev 2>/dev/null; rm -rf /workspace"
    subprocess.run([*command, script], check=True, capture_output=True)
    try:
        subprocess.run(["docker", "commit", tag.replace(":", "-"), tag], check=True, capture_output=True)
        ref = await docker.create(spec(image=tag))
        await docker.start(ref, {})
        _, out, err = await run(docker, ref, "id -un; echo $HOME; cd; touch a; cd /workspace; touch b; ls")
        assert (out.split(), err) == (["dev", "/home/dev", "b"], "")
    finally:
        subprocess.run(["docker", "rm", "-f", tag.replace(":", "-")], check=True, capture_output=True)
        for holding in await docker.holdings():
            await docker.destroy(holding.workspace_id)
        subprocess.run(["docker", "rmi", "-f", tag], check=True, capture_output=True)


async def test_a_stop_asks_every_process_first(docker: DockerProvider) -> None:
    ref = await docker.create(spec())
    await docker.start(ref, {})
    await run(
        docker,
        ref,
        "(trap 'echo bye >/workspace/said; exit' TERM; while :; do sleep 0.1; done) >/dev/null 2>&1 &",
    )
    await docker.stop(ref, 10)
    stopped = await docker.inspect(ref)
    assert stopped is not None
    assert stopped.exit_code == 0
    await docker.start(ref, {})
    assert (await run(docker, ref, "cat said"))[1] == "bye\n"


async def test_nothing_of_a_stranger_is_adopted(docker: DockerProvider) -> None:
    wanted = spec()
    name = f"vmd-{wanted.workspace_id}"
    subprocess.run(["docker", "volume", "create", name], check=True, capture_output=True)
    try:
        with pytest.raises(ProviderError, match="not this daemon's"):
            await docker.create(wanted)
        await docker.destroy(wanted.workspace_id)
        assert inspect("volume", name)["Name"] == name
    finally:
        subprocess.run(["docker", "volume", "rm", name], check=True, capture_output=True)


async def test_a_machine_that_runs_out_of_memory_says_so(docker: DockerProvider) -> None:
    ref = await docker.create(spec(resources=Resources(cpus=1, memory_mb=32, pids=64)))
    await docker.start(ref, {})
    # As root, who may make the main process the one that the kernel prefers to kill.
    hog = "echo 1000 >/proc/1/oom_score_adj; for _ in 1 2 3 4; do tail /dev/zero & done; wait"
    subprocess.run(["docker", "exec", "-u", "0", ref, "sh", "-c", hog], capture_output=True)
    async with asyncio.timeout(10):
        while (found := await docker.inspect(ref)) is not None and found.power is Power.RUNNING:
            await asyncio.sleep(0.05)
    assert found is not None
    assert found.is_out_of_memory


async def test_a_create_that_is_cancelled_at_any_moment_leaves_nothing_behind(docker: DockerProvider) -> None:
    for number in range(12):
        wanted = spec(number)
        creating = asyncio.create_task(docker.create(wanted))
        await asyncio.sleep(number / 60)
        creating.cancel()
        await asyncio.gather(creating, return_exceptions=True)
        await docker.destroy(wanted.workspace_id)
    await asyncio.sleep(0.5)
    assert list(await docker.holdings()) == []


async def test_many_networks_at_once_do_not_collide(docker: DockerProvider) -> None:
    specs = [spec(number) for number in range(6)]
    await asyncio.gather(*(docker.create(wanted) for wanted in specs))
    subnets = {
        inspect("network", f"vmd-{wanted.workspace_id}")["IPAM"]["Config"][0]["Subnet"] for wanted in specs
    }
    assert len(subnets) == 6


texts = st.text(max_size=30)


@given(
    texts,
    texts,
    st.dictionaries(texts, texts, max_size=4),
    st.floats(0.05, 64),
    st.integers(16, 1 << 20),
)
def test_no_request_can_widen_what_a_container_may(
    hostname: str, image: str, env: dict[str, str], cpus: float, memory_mb: int
) -> None:
    wanted = MachineSpec(
        workspace_id="ws-1",
        operation_id="op-1",
        hostname=hostname,
        node="local",
        image=image,
        resources=Resources(cpus=cpus, memory_mb=memory_mb),
        env=env,
    )
    body = container_body(wanted, {}, volume="v", state_volume="s", network="n", options=ContainerOptions())
    host = body["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert "SYS_ADMIN" not in host["CapAdd"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert [(mount["Type"], mount["Source"]) for mount in host["Mounts"]] == [
        ("volume", "v"),
        ("volume", "s"),
    ]
    assert not {"Privileged", "Binds", "Devices", "PidMode", "IpcMode", "UsernsMode", "VolumesFrom"} & set(
        host
    )
    assert host["NetworkMode"] == "n"
    assert host["PidsLimit"] > 0
    assert host["Memory"] == host["MemorySwap"] == memory_mb << 20
