"""Repositories that say themselves what they want, on a real engine, from a real git server."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.test_real_machines import in_machine
from tests.support.api import Api
from tests.support.git_server import make_repository_of, serve_git
from tests.support.process import Process, daemon_process, labelled

pytestmark = pytest.mark.usefixtures("engine_url")

LOCK = {"name": "web", "lockfileVersion": 3, "requires": True, "packages": {"": {"name": "web"}}}
MONOREPO = {
    "backend/requirements.txt": 'flask; python_version < "3"\n',  # so that nothing is fetched
    "backend/app.py": "import flask\n",
    "frontend/package.json": '{"name": "web", "scripts": {"postinstall": "echo from-npm >installed"}}',
    "frontend/package-lock.json": json.dumps(LOCK),
    "frontend/index.js": "",
    "README.md": "# both\n",
}
DEVCONTAINER = {
    ".devcontainer/devcontainer.json": """{
        // what we work in
        "build": {
            "dockerfile": "Dockerfile", "context": "..", "target": "work",
            "args": {"WORD": "a \\"b\\" $c"},
        },
        "containerEnv": {"GREETING": "hello"},
        "forwardPorts": [8080],
        "postCreateCommand": ["sh", "-c", "greet >greeted; id -un >who"],
        "remoteUser": "root",
        "runArgs": ["--privileged", "-v", "/:/host"],
        "initializeCommand": "touch /tmp/vmd-was-here",
    }""",
    ".devcontainer/Dockerfile": """ARG BASE=vmd-base:bookworm
FROM ${BASE} AS work
ARG WORD
ENV WORD_WAS=$WORD
# the tool, \\
COPY tools/greet /usr/local/bin/greet
RUN chmod 0755 \\
    /usr/local/bin/greet
FROM work AS later
RUN exit 1
""",
    "tools/greet": '#!/bin/sh\necho "$GREETING $WORD_WAS"\n',
    "pyproject.toml": '[project]\nname = "x"\n',
}


@pytest.fixture(scope="module", autouse=True)
def images() -> Iterator[None]:
    """Take away the images that were built."""
    before = _images()
    yield
    for image in _images() - before:
        subprocess.run(["docker", "rmi", "-f", image], capture_output=True)


def _images() -> set[str]:
    command = ["docker", "images", "--format", "{{.Repository}}:{{.Tag}}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {line for line in done.stdout.split() if line.startswith(("vmd-preset:", "vmd-devcontainer:"))}


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    async with daemon_process(tmp_path / "data") as made:
        yield made


@pytest.fixture
async def server(tmp_path: Path, gateway_address: str) -> AsyncIterator[str]:
    (tmp_path / "git").mkdir()
    make_repository_of(tmp_path / "git", "both", MONOREPO)
    make_repository_of(tmp_path / "git", "whole", MONOREPO, is_partial=False)
    make_repository_of(tmp_path / "git", "dev", DEVCONTAINER)
    make_repository_of(tmp_path / "git", "plain", {"README.md": "# nothing\n"})
    async with serve_git(tmp_path / "git", gateway_address) as base:
        yield base


async def log_of(api: Api, operation: Mapping[str, Any]) -> list[str]:
    answer = await api.get(f"/operations/{operation['id']}/logs")
    return [json.loads(line)["message"] for line in answer.text.splitlines()]


async def until_nothing_is_held(process: Process) -> None:
    async with asyncio.timeout(20):
        while labelled(process.data_dir):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("name", ["both", "whole"])
async def test_presets_are_detected_without_a_workspace(process: Process, server: str, name: str) -> None:
    async with await process.start() as api:
        answer = await api.post("/templates/detect", {"repo": {"url": f"{server}/{name}.git"}})
        assert answer.status == 200, answer.text
        items = answer.json["items"]
        assert [item["id"] for item in items] == ["flask+node-project", "flask", "node-project"]
        assert {"path": "backend/requirements.txt", "detail": "depends on flask"} in items[0]["evidence"]
        of_a_branch = {"repo": {"url": f"{server}/{name}.git", "branch": "nope"}}
        refused = await api.post("/templates/detect", of_a_branch)
        assert (refused.status, refused.json["code"]) == (502, "provider-error")
        assert "Remote branch nope not found" in refused.json["detail"]
        nothing = await api.post("/templates/detect", {"repo": {"url": f"{server}/plain.git"}})
        assert (nothing.status, nothing.json["items"]) == (200, [])
        await until_nothing_is_held(process)


async def test_what_a_kill_leaves_of_a_look_is_gone_after_the_next_start(
    process: Process, tmp_path: Path, gateway_address: str
) -> None:
    async def stall(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await stop.wait()
        writer.close()

    asked, stop = asyncio.Event(), asyncio.Event()
    silent = await asyncio.start_server(stall, gateway_address, 0)
    port = silent.sockets[0].getsockname()[1]
    async with await process.start() as api:
        url = f"http://{gateway_address}:{port}/x.git"
        asking = asyncio.create_task(api.post("/templates/detect", {"repo": {"url": url}}))
        async with asyncio.timeout(20):
            await asked.wait()
        assert labelled(process.data_dir)
        process.kill()
        asking.cancel()
    stop.set()
    silent.close()
    async with await process.start():
        await until_nothing_is_held(process)


async def test_a_monorepo_gets_a_machine_for_all_of_it(process: Process, server: str) -> None:
    async with await process.start() as api:
        created = await api.post("/workspaces", {"repo": {"url": f"{server}/both.git"}})
        operation = await api.wait(created.json, 600)
        assert operation["status"] == "succeeded", operation
        workspace = await api.workspace(operation["workspace_id"])
        assert (workspace["template"], workspace["ports"]) == ("flask+node-project", [5000])
        log = await log_of(api, operation)
        assert "Detected flask+node-project: Found Flask in backend, Node.js in frontend." in log
        assert in_machine(workspace["id"], "cat", "frontend/installed") == "from-npm"
        assert in_machine(workspace["id"], "backend/.venv/bin/python", "-c", "print(1)") == "1"
        assert in_machine(workspace["id"], "git", "status", "--porcelain") == "?? frontend/installed"
        assert in_machine(workspace["id"], "node", "-p", "1+1") == "2"
        await api.done(await api.delete(f"/workspaces/{workspace['id']}"))
        assert labelled(process.data_dir) == []


async def test_a_devcontainer_is_built_from_the_repository_and_nothing_of_it_runs_on_the_host(
    process: Process, server: str
) -> None:
    async with await process.start() as api:
        created = await api.post("/workspaces", {"repo": {"url": f"{server}/dev.git"}, "env": {"MINE": "1"}})
        operation = await api.wait(created.json, 300)
        assert operation["status"] == "succeeded", operation
        workspace = await api.workspace(operation["workspace_id"])
        assert (workspace["template"], workspace["ports"]) == ("devcontainer", [8080])
        assert workspace["env"] == {"GREETING": "hello", "MINE": "1"}
        assert in_machine(workspace["id"], "cat", "greeted") == 'hello a "b" $c'
        assert in_machine(workspace["id"], "cat", "who") == "root"
        log = await log_of(api, operation)
        for key in ("runArgs", "initializeCommand"):
            assert any(f"{key} is not honoured: " in line for line in log), log
        assert not os.path.exists("/tmp/vmd-was-here")  # noqa: ASYNC240
        assert any(workspace["id"] in image for image in _images())
        await api.done(await api.post(f"/workspaces/{workspace['id']}/actions/rebuild"))
        assert in_machine(workspace["id"], "greet") == 'hello a "b" $c'
        await api.done(await api.delete(f"/workspaces/{workspace['id']}"))
        assert labelled(process.data_dir) == []
        assert not any(workspace["id"] in image for image in _images())


async def test_a_create_goes_on_after_a_kill_while_it_detects(process: Process, server: str) -> None:
    async with await process.start() as api:
        created = (await api.post("/workspaces", {"repo": {"url": f"{server}/dev.git"}})).json
        await api.until_phase(created["id"], "detect", 30)
        process.kill()
    async with await process.start() as api:
        operation = await api.wait(created, 300)
        assert operation["status"] == "succeeded", operation
        assert operation["attempt"] == 2
        assert in_machine(operation["workspace_id"], "cat", "who") == "root"
        await api.done(await api.delete(f"/workspaces/{operation['workspace_id']}"))
        assert labelled(process.data_dir) == []
