"""The look at work that would be lost, inside real machines."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from attrs import evolve

from tests.support.git_server import make_repository, serve_git
from tests.support.house import House, open_house
from tests.support.machines import container_of, docker, in_container
from tests.support.repositories import HOSTILE, SENTINEL
from vmd.model.workspace import GitState
from vmd.orchestrator import git_looks, git_script
from vmd.providers.docker.provider import DockerProvider
from vmd.store.workspaces import find_workspace

pytestmark = pytest.mark.usefixtures("engine_url")

COMMIT = "git -c user.name=x -c user.email=x@x.test commit -q"
CLEARED = ["env", "-u", "GIT_DIR", "-u", "GIT_PAGER", "sh"]
STASH = "git -c user.name=x -c user.email=x@x.test stash -qu"


@pytest.fixture
async def house(tmp_path: Path, engine_url: str) -> AsyncIterator[House]:
    """A daemon in this process on the real engine; what it makes is gone at the end."""
    instance = f"looks{abs(hash(tmp_path)):x}"[:16]
    provider = DockerProvider(url=engine_url, instance=instance, subnet_pool="10.214.64.0/20")
    async with open_house(
        tmp_path,
        providers=lambda fake: [provider],
        workspaces__provider="docker",
        janitor__interval_seconds=600,
        janitor__warning_seconds=0,
    ) as opened:
        await opened.ready()
        yield opened
        for workspace in (await opened.api.get("/workspaces")).json["items"]:
            await opened.api.wait((await opened.api.delete(f"/workspaces/{workspace['id']}")).json)
    label = f"label=vmd.instance={instance}"
    assert docker("ps", "-aq", "--filter", label) == docker("volume", "ls", "-q", "--filter", label) == ""


@pytest.fixture
async def url(tmp_path: Path, gateway_address: str) -> AsyncIterator[str]:
    make_repository(tmp_path / "git")
    async with serve_git(tmp_path / "git", gateway_address) as base:
        yield f"{base}/hello.git"


async def look(house: House, workspace: Any) -> GitState | None:
    found = await house.daemon._database.read(lambda tx: find_workspace(tx, workspace["id"]))
    assert found is not None
    return await house.daemon._looks.look(found)


def found(state: GitState | None) -> tuple[str | None, int, int, int, int, int, int]:
    assert state is not None
    return (
        state.branch,
        state.uncommitted,
        state.unpushed,
        state.stashes,
        state.repositories,
        state.loose,
        state.unreadable,
    )


async def test_work_that_no_remote_has_is_found_in_a_machine_and_named(house: House, url: str) -> None:
    workspace = await house.api.make(repo={"url": url}, ttl_seconds=3600)
    identifier = workspace["id"]
    assert found(await look(house, workspace)) == ("main", 0, 0, 0, 1, 0, 0)
    work = f"echo a >a; git add a; {COMMIT} -m a; echo b >b; {STASH}; echo c >c; echo d >>a"
    in_container(identifier, work)
    assert found(await look(house, workspace)) == ("main", 2, 1, 1, 1, 0, 0)
    apart = f"git clone -q {url} tools && cd tools && git checkout -q --detach && echo t >t"
    await asyncio.to_thread(in_container, identifier, apart)  # from a server in this loop
    in_container(identifier, f"cd tools && git add t && {COMMIT} -m t")
    assert found(await look(house, workspace)) == ("main", 2, 2, 1, 2, 0, 0)
    await house.daemon._database.write(
        lambda tx: tx.execute("UPDATE workspaces SET expires_at = expires_at - 3600000")
    )
    await house.daemon._lifetimes.sweep()
    await house.daemon._looks.wait()
    rows = await house.daemon._database.read(
        lambda tx: tx.execute("SELECT data FROM events WHERE type = 'workspace.expiring'").fetchall()
    )
    [warning] = [msgspec.json.decode(row["data"]) for row in rows]
    assert warning["is_looked_at"] is True
    assert "No remote has: 2 files changed or new, 2 commits not pushed, 1 stash." in warning["message"]
    shown = (await house.api.get(f"/workspaces/{identifier}/lifetime")).json
    assert shown["git"]["unpushed"] == 2
    await house.daemon._lifetimes.sweep()
    await house.api.until(identifier, seconds=30, status="trashed")


async def test_a_hostile_repository_runs_nothing_in_its_machine(house: House) -> None:
    workspace = await house.api.make(env={"GIT_DIR": "/nowhere", "GIT_PAGER": "touch /tmp/was-run-by-pager"})
    subprocess.run(
        ["docker", "exec", "-i", "-u", "1000", "-w", "/workspace", container_of(workspace["id"]), *CLEARED],
        input=HOSTILE.encode(),
        check=True,
    )
    branch, uncommitted, unpushed, *others = found(await look(house, workspace))
    assert (branch, unpushed, others) == ("main", 1, [0, 1, 1, 0])
    assert uncommitted >= 2
    assert in_container(workspace["id"], "ls -A /tmp") == ""
    in_container(workspace["id"], "unset GIT_DIR; cd repo; git status >/dev/null 2>&1 || true")
    assert SENTINEL.removeprefix("/tmp/") in in_container(workspace["id"], "ls -A /tmp")


async def test_a_look_that_hangs_is_ended_in_the_machine_too(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = await house.api.make()
    in_container(workspace["id"], "git init -q repo && rm repo/.git/HEAD && mkfifo repo/.git/HEAD")
    monkeypatch.setattr(git_looks, "LOOK", _shortened(1))
    assert await look(house, workspace) is None
    assert "git" not in in_container(workspace["id"], "cat /proc/[0-9]*/comm")


async def test_a_machine_that_is_frozen_or_has_no_git_cannot_be_looked_at(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = await house.api.make()
    container = container_of(workspace["id"])
    in_container(workspace["id"], "git init -q repo; echo x >repo/x")
    docker("exec", "-u", "0", container, "mv", "/usr/bin/git", "/usr/bin/no-git")
    assert found(await look(house, workspace)) == (None, 0, 0, 0, 0, 0, 1)
    docker("pause", container)
    try:
        monkeypatch.setattr(git_looks, "ANSWER_SECONDS", 3)
        assert await look(house, workspace) is None
    finally:
        docker("unpause", container)


def _shortened(seconds: int) -> Any:
    shell, option, run, *others = git_script.LOOK.argv
    run = run.replace(f"timeout -s KILL {git_script.LOOK_SECONDS}", f"timeout -s KILL {seconds}")
    return evolve(git_script.LOOK, argv=(shell, option, run, *others))
