"""The main job, on a real engine, from a real repository, by a daemon of its own process."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import Api
from tests.support.git_server import make_repository, serve_git
from tests.support.process import Process, daemon_process, labelled

pytestmark = pytest.mark.usefixtures("engine_url")


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    async with daemon_process(tmp_path / "data") as made:
        yield made


@pytest.fixture
async def api(process: Process) -> AsyncIterator[Api]:
    async with await process.start() as client:
        yield client


@pytest.fixture
async def repository(tmp_path: Path, gateway_address: str) -> AsyncIterator[tuple[str, str]]:
    commit = make_repository(tmp_path / "git")
    async with serve_git(tmp_path / "git", gateway_address) as base:
        yield f"{base}/hello.git", commit


def in_machine(workspace_id: str, *command: str) -> str:
    """Return what a command prints in the workspace's machine."""
    label = f"label=vmd.workspace={workspace_id}"
    found = subprocess.run(
        ["docker", "ps", "-q", "--filter", label], check=True, capture_output=True, text=True
    )
    done = subprocess.run(
        ["docker", "exec", "-u", "1000", "-w", "/workspace", found.stdout.strip(), *command],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


async def test_a_workspace_is_made_from_a_repository(api: Api, repository: tuple[str, str]) -> None:
    url, commit = repository
    workspace = await api.make(
        name="hello", repo={"url": url}, provisioning=["cat hello.txt >built", "test -w ."], env={"A": "1"}
    )
    assert workspace["repo"] == {"url": url, "branch": None, "commit": commit}
    assert workspace["connection"]["address"].startswith("10.213.")
    assert in_machine(workspace["id"], "cat", "built") == "two"
    assert in_machine(workspace["id"], "git", "rev-parse", "HEAD") == commit
    assert in_machine(workspace["id"], "hostname") == "hello"
    assert in_machine(workspace["id"], "printenv", "A") == "1"
    await api.done(await api.post(f"/workspaces/{workspace['id']}/actions/stop"))
    await api.done(await api.post(f"/workspaces/{workspace['id']}/actions/start"))
    await api.done(await api.post(f"/workspaces/{workspace['id']}/actions/rebuild"))
    assert in_machine(workspace["id"], "cat", "built") == "two"


async def test_branches_and_commits_are_checked_out(api: Api, repository: tuple[str, str]) -> None:
    url, commit = repository
    topic = await api.make(repo={"url": url, "branch": "topic"})
    assert in_machine(topic["id"], "ls").split() == ["hello.txt", "topic.txt"]
    assert in_machine(topic["id"], "git", "branch", "--show-current") == "topic"
    earlier = in_machine(topic["id"], "git", "rev-parse", "HEAD~1")
    detached = await api.make(repo={"url": url, "commit": earlier[:12]})
    assert in_machine(detached["id"], "cat", "hello.txt") == "one"
    assert detached["repo"]["commit"] == earlier
    back = await api.make(repo={"url": url, "branch": "main", "commit": earlier})
    assert in_machine(back["id"], "git", "branch", "--show-current") == "main"
    assert in_machine(back["id"], "cat", "hello.txt") == "one"
    assert commit != earlier


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"branch": "nope"}, "Remote branch nope not found in upstream origin"),
        ({"commit": "0" * 40}, "0000000"),
        ({"url": "http://172.17.0.1:9/none.git"}, "Failed to connect"),
    ],
)
async def test_a_clone_that_fails_gives_gits_reason(
    api: Api, process: Process, repository: tuple[str, str], part: dict[str, str], reason: str
) -> None:
    created = (await api.post("/workspaces", {"repo": {"url": repository[0], **part}})).json
    operation = await api.wait(created)
    assert (operation["status"], operation["error"]["code"]) == ("failed", "provider-error")
    assert reason in operation["error"]["detail"]
    workspace = await api.workspace(created["workspace_id"])
    assert workspace["status"] == "failed"
    await api.done(await api.delete(f"/workspaces/{workspace['id']}"))
    assert labelled(process.data_dir) == []


async def test_a_failing_provisioning_command_is_named(api: Api) -> None:
    wanted = {"provisioning": ["echo fine", "echo broken >&2; exit 3"]}
    created = (await api.post("/workspaces", wanted)).json
    operation = await api.wait(created)
    assert "command 2 of 2 failed with exit code 3" in operation["error"]["detail"]
    assert "broken" in operation["error"]["detail"]
    lines = [
        json.loads(line) for line in (await api.get(f"/operations/{created['id']}/logs")).text.splitlines()
    ]
    assert ("stdout", "fine") in [(line["stream"], line["message"]) for line in lines]
    assert ("stderr", "broken") in [(line["stream"], line["message"]) for line in lines]
    await api.done(await api.post(f"/workspaces/{created['workspace_id']}/actions/start"))
    assert (await api.workspace(created["workspace_id"]))["status"] == "running"


async def test_what_the_engine_does_behind_its_back_shows_within_seconds(api: Api) -> None:
    killed, removed = await asyncio.gather(api.make(), api.make())

    def container(workspace: Any) -> str:
        label = f"label=vmd.workspace={workspace['id']}"
        command = ["docker", "ps", "-q", "--filter", label]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    subprocess.run(["docker", "kill", container(killed)], check=True, capture_output=True)
    subprocess.run(["docker", "rm", "-f", container(removed)], check=True, capture_output=True)
    stopped = await api.until(killed["id"], status="stopped")
    assert "exit code 137" in stopped["last_error"]["detail"]
    failed = await api.until(removed["id"], status="failed")
    assert "removed behind" in failed["last_error"]["detail"]
    await api.done(await api.post(f"/workspaces/{removed['id']}/actions/rebuild"))


async def test_stats_are_of_the_machine(api: Api) -> None:
    workspace = await api.make(resources={"cpus": 0.5, "memory_mb": 256, "pids": 100})
    stats = (await api.get(f"/workspaces/{workspace['id']}/stats")).json
    assert stats["memory"]["limit_bytes"] == 256 << 20
    assert stats["pids"]["limit"] == 100
    assert stats["cpu"]["limit_cpus"] == 0.5


async def test_a_disk_limit_that_cannot_be_kept_is_refused(api: Api) -> None:
    driver = subprocess.run(
        ["docker", "info", "-f", "{{.Driver}}"], check=True, capture_output=True, text=True
    ).stdout.strip()
    answer = await api.post("/workspaces", {"resources": {"disk_mb": 1000}})
    if driver == "overlay2":
        assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, "/resources/disk_mb")
        assert "storage driver is overlay2" in answer.json["detail"]
    else:
        await api.done(answer)


async def test_two_daemons_cannot_share_a_data_directory(process: Process, api: Api) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "vmd", "serve", "--data-dir", process.data_dir, "--listen", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert second.returncode == 1
    assert "Another vmd uses" in second.stderr
    assert (await api.get("/health")).status == 200


async def test_a_rebuild_after_a_failed_clone_keeps_what_is_there(api: Api) -> None:
    created = (await api.post("/workspaces", {"repo": {"url": "http://127.0.0.1:9/x.git"}})).json
    assert (await api.wait(created))["status"] == "failed"
    path = f"/workspaces/{created['workspace_id']}"
    await api.done(await api.post(f"{path}/actions/start"))
    in_machine(created["workspace_id"], "sh", "-c", "echo my work >precious.txt")
    rebuild = await api.wait((await api.post(f"{path}/actions/rebuild")).json)
    assert "the workspace has files already" in rebuild["error"]["detail"]
    assert in_machine(created["workspace_id"], "cat", "precious.txt") == "my work"


async def test_force_does_not_wait_for_the_stop_that_it_takes_over_from(api: Api) -> None:
    workspace = await api.make()
    deaf = "trap '' TERM HUP; sleep 300"
    command = ["docker", "exec", "-d", "-u", "1000", _container(workspace["id"]), "sh", "-c", deaf]
    subprocess.run(command, check=True)
    path = f"/workspaces/{workspace['id']}/actions/stop"
    await asyncio.sleep(0.5)
    gentle = (await api.post(path, {"timeout_seconds": 300})).json
    await api.until_phase(gentle["id"], "stop")
    await asyncio.sleep(0.5)
    forced = await api.post(path, {"force": True})
    async with asyncio.timeout(30):
        await api.done(forced)
    assert (await api.workspace(workspace["id"]))["status"] == "stopped"


def _container(workspace_id: str) -> str:
    label = f"label=vmd.workspace={workspace_id}"
    command = ["docker", "ps", "-q", "--filter", label]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
