"""Templates on a real engine: every built-in one builds and runs its language, and builds that end early."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from tests.support.api import Api
from tests.support.machines import in_container
from tests.support.process import Process, daemon_process, labelled

pytestmark = pytest.mark.usefixtures("engine_url")

BUILD_SECONDS = 600
# What a developer does first, in a login shell, as in a terminal.
HELLO = {
    "base": "git init -q . && echo hello",
    "python": """
        python -m venv .venv && .venv/bin/pip --version >/dev/null && cc --version >/dev/null
        .venv/bin/python -c 'import ssl, sqlite3; print("hello")'
    """,
    "node": """
        npm init -y >/dev/null && npm pkg set scripts.hello='node hello.js'
        echo 'console.log("hello")' >hello.js && npm run --silent hello
    """,
    "go": """
        echo 'package main; import ("fmt"; "net"); var _ = net.ParseIP' >a.go
        echo 'func main() { fmt.Println("hello") }' >>a.go
        go mod init example.org/hello 2>/dev/null && go vet . && go install . && hello
    """,
    "rust": """
        cargo init --quiet --name hello . && cargo fmt --check
        sed -i 's/Hello, world!/hello/' src/main.rs && cargo install --quiet --path . && hello
    """,
    "java": """
        echo 'class Hello { public static void main(String[] a) { System.out.println("hello"); }}' >Hello.java
        mvn --version >/dev/null && javac Hello.java && java Hello
    """,
}


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    async with daemon_process(tmp_path / "data") as made:
        yield made


@pytest.fixture
async def api(process: Process) -> AsyncIterator[Api]:
    async with await process.start() as client:
        yield client


def write(process: Process, name: str, text: str) -> None:
    directory = process.data_dir / "templates"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.toml").write_text(text)


def of_builds(image: str) -> list[str]:
    """Return the containers and images, intermediate ones too, that the builds of an image left."""
    found = []
    for kind in (["ps", "-aq"], ["images", "-aq"]):
        command = ["docker", *kind, "--filter", f"label=vmd.built={image}"]
        found += subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return found


def runs_on_host(text: str) -> bool:
    """Whether a process with this text in its command line runs, in whatever container."""
    return subprocess.run(["pgrep", "-f", text], capture_output=True).stdout != b""


async def until_logged(api: Api, operation: Any, text: str) -> None:
    """Return as soon as the operation's log has this line."""
    url = f"/api/v1/operations/{operation['id']}/logs?follow=true"
    async with asyncio.timeout(60), api.session.get(url) as response:
        async for line in response.content:
            if json.loads(line)["message"] == text:
                return
    raise AssertionError(f"the log ended without {text}")


@pytest.mark.parametrize("template", HELLO)
async def test_every_built_in_template_runs_its_language(api: Api, template: str) -> None:
    """The images stay at the engine, as the product keeps them, so that only the first run builds them."""
    created = await api.post(
        "/workspaces", {"template": template, "resources": {"cpus": 2, "memory_mb": 2048}}
    )
    operation = await api.wait(created.json, BUILD_SECONDS)
    assert operation["status"] == "succeeded", operation["error"]
    done = subprocess.run(
        ["docker", "exec", "-i", "-u", "1000", "-w", "/workspace", _container(operation), "bash", "-l", "-e"],
        input=HELLO[template],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr


async def test_a_recipe_that_fails_leaves_nothing(api: Api, process: Process) -> None:
    recipe = f"FROM {{{{base}}}}\\nRUN echo {token_hex(8)} >/made\\nRUN echo no such tool >&2; exit 4"
    write(process, "web", f'recipe = "{recipe}"\n')
    image = (await api.get("/templates/web")).json["image"]
    created = (await api.post("/workspaces", {"template": "web"})).json
    operation = await api.wait(created)
    assert (operation["status"], operation["error"]["code"]) == ("failed", "provider-error")
    assert "non-zero code: 4. It said: no such tool." in operation["error"]["detail"]
    workspace = await api.workspace(created["workspace_id"])
    assert (workspace["status"], workspace["last_error"]) == ("failed", operation["error"])
    assert of_builds(image) == []
    assert labelled(process.data_dir) == []


@pytest.mark.parametrize("way", ["cancel", "delete"])
async def test_a_create_that_ends_during_the_build_stops_the_build(
    api: Api, process: Process, way: str
) -> None:
    mark = f"sleep 3{int(token_hex(4), 16)}"
    write(process, "web", f'recipe = "FROM {{{{base}}}}\\nRUN echo made >/made\\nRUN echo begun && {mark}"\n')
    image = (await api.get("/templates/web")).json["image"]
    created = (await api.post("/workspaces", {"template": "web"})).json
    await until_logged(api, created, "begun")
    assert runs_on_host(mark)
    if way == "cancel":
        assert (await api.delete(f"/operations/{created['id']}")).status == 202
        assert (await api.wait(created))["status"] == "cancelled"
    else:
        await api.done(await api.delete(f"/workspaces/{created['workspace_id']}"))
    assert not runs_on_host(mark)
    assert of_builds(image) == []
    assert labelled(process.data_dir) == []


async def test_a_build_goes_on_after_a_kill(process: Process) -> None:
    mark = f"sleep 3.{int(token_hex(4), 16)}"
    write(process, "web", f'recipe = "FROM {{{{base}}}}\\nRUN echo made >/made\\nRUN echo begun && {mark}"\n')
    async with await process.start() as api:
        image = (await api.get("/templates/web")).json["image"]
        created = (await api.post("/workspaces", {"template": "web"})).json
        await until_logged(api, created, "begun")
        process.kill()
    try:
        async with await process.start() as api:
            operation = await api.wait(created)
            assert (operation["status"], operation["attempt"]) == ("succeeded", 2)
            assert in_container(created["workspace_id"], "cat /made") == "made"
            await api.done(await api.delete(f"/workspaces/{created['workspace_id']}"))
            assert labelled(process.data_dir) == []
    finally:
        subprocess.run(["docker", "rmi", image], capture_output=True)
    assert of_builds(image) == []


async def test_a_hostile_parameter_stays_a_text(api: Api, process: Process) -> None:
    hostile = '\'; touch owned; "$(touch owned)" `touch owned` \\ * $HOME\n{{who}} ä'
    lines = ["printf %s {{who}} >bare", 'printf %s \\"<{{who}}>\\" >quoted', "printenv GREETING >greeting"]
    listed = ", ".join(f'"{line}"' for line in lines)
    write(
        process,
        "greeter",
        f'env = {{ GREETING = "Hi {{{{who}}}}" }}\nprovisioning = [{listed}]\n[parameters.who]\n',
    )
    workspace = await api.make(template="greeter", parameters={"who": hostile})
    read = "cat bare; echo; cat quoted; echo; cat greeting; printenv VMD_PARAM_WHO; ls | tr '\\n' ' '"
    printed = in_container(workspace["id"], read)
    expected = [hostile, f"<{hostile}>", f"Hi {hostile}", hostile, "bare greeting quoted"]
    assert printed == "\n".join(expected)
    await api.done(await api.post(f"/workspaces/{workspace['id']}/actions/rebuild"))
    assert in_container(workspace["id"], read) == printed


def _container(operation: Any) -> str:
    command = ["docker", "ps", "-q", "--filter", f"label=vmd.workspace={operation['workspace_id']}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
