"""The built-in plugins, in real workspaces: databases that answer by name, and whose data is kept."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import BASE_IMAGE
from tests.support.api import Api
from tests.support.engine import PrivateEngine, private_engine
from tests.support.machines import container_of, docker, in_container
from tests.support.process import OF_A_WORKSPACE, Process, daemon_process, labelled

IMAGE = "vmd-test-clients:1"  # counted up when the programs in it change
DOCKERFILE = f"""
FROM {BASE_IMAGE}
RUN apt-get -q update && apt-get -q install -y --no-install-recommends postgresql-client redis-tools \\
    && rm -rf /var/lib/apt/lists/*
"""
BOTH = ["postgresql", "redis"]
OF_A_SERVICE = 2  # a container, and a volume
BUILD_SECONDS = 600  # the first time; the images stay

RAW_PING = r'exec 3<>/dev/tcp/$REDIS_HOST/$REDIS_PORT; printf "PING\r\n" >&3; timeout 5 head -n 1 <&3'


@pytest.fixture(scope="session")
def image(engine_url: str) -> str:
    """The base image with the databases' clients, built once a machine."""
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True).returncode != 0:
        build = ["docker", "build", "--quiet", "--tag", IMAGE, "-"]
        subprocess.run(build, input=DOCKERFILE.encode(), check=True, capture_output=True)
    return IMAGE


@pytest.fixture
async def process(tmp_path: Path, image: str) -> AsyncIterator[Process]:
    templates = tmp_path / "data" / "templates"
    templates.mkdir(parents=True)
    (templates / "clients.toml").write_text(f'image = "{image}"\n')
    async with daemon_process(tmp_path / "data") as made:
        yield made


@pytest.fixture
async def api(process: Process) -> AsyncIterator[Api]:
    async with await process.start() as client:
        yield client


async def make(api: Api, **wanted: Any) -> Any:
    """Return a workspace with both plugins, once it runs."""
    accepted = await api.post("/workspaces", {"template": "clients", "plugins": BOTH, **wanted})
    assert accepted.status == 202, accepted.text
    operation = await api.wait(accepted.json, BUILD_SECONDS)
    assert operation["status"] == "succeeded", operation
    return await api.workspace(operation["workspace_id"])


def write_plugin(data_dir: Path, name: str, *lines: str) -> None:
    """Add a plugin with one service of its name, which keeps no data and does nothing."""
    (data_dir / "plugins" / name).mkdir(parents=True)
    service = ("[[services]]", f'name = "{name}"', f'image = "{BASE_IMAGE}"', 'command = ["sleep", "3600"]')
    (data_dir / "plugins" / name / "plugin.toml").write_text("\n".join([*service, *lines]))


def service_of(workspace_id: str, name: str) -> str:
    return f"vmd-{workspace_id}-service-{name}"


def state_of(container: str) -> str:
    return docker("inspect", "--format", "{{.State.Status}}", container)


async def until_state(container: str, state: str) -> None:
    async with asyncio.timeout(30):
        while state_of(container) != state:
            await asyncio.sleep(0.1)


def sql(workspace_id: str, query: str) -> str:
    return in_container(workspace_id, f'psql -v ON_ERROR_STOP=1 -qAtc "{query}"')


async def test_databases_answer_by_name_and_keep_their_data(api: Api, process: Process) -> None:
    workspace = await make(
        api,
        provisioning=[
            "psql -qc 'CREATE TABLE kept (what TEXT)'",  # they are ready before this is run
            'redis-cli -u "$REDIS_URL" SET made yes',
        ],
    )
    ws, path = workspace["id"], f"/workspaces/{workspace['id']}"
    assert workspace["env"]["DATABASE_URL"] == "postgresql://postgres@postgresql:5432/postgres"
    assert in_container(ws, 'psql "$DATABASE_URL" -Atc "SELECT current_user"') == "postgres"
    assert in_container(ws, 'redis-cli -u "$REDIS_URL" PING') == "PONG"
    assert in_container(ws, f"bash -c '{RAW_PING}'") == "+PONG"
    assert in_container(ws, "getent hosts postgresql redis | wc -l") == "2"
    assert sql(ws, "SHOW server_encoding") == "UTF8"
    sql(ws, "INSERT INTO kept VALUES ('first')")
    in_container(ws, 'redis-cli -u "$REDIS_URL" SET key value')

    await api.done(await api.post(f"{path}/actions/stop"))
    assert [state_of(service_of(ws, name)) for name in BOTH] == ["exited", "exited"]
    await api.done(await api.post(f"{path}/actions/start"))
    assert sql(ws, "SELECT what FROM kept") == "first"
    assert in_container(ws, 'redis-cli -u "$REDIS_URL" GET key') == "value"

    sql(ws, "DROP TABLE kept; CREATE TABLE kept_too (what TEXT); INSERT INTO kept_too VALUES ('second')")
    await api.done(await api.post(f"{path}/actions/rebuild"))  # provisioning makes the table anew
    assert sql(ws, "SELECT what FROM kept_too") == "second"
    assert in_container(ws, 'redis-cli -u "$REDIS_URL" GET key') == "value"

    assert (await api.workspace(ws))["health"] == "ok"
    assert len(labelled(process.data_dir)) == OF_A_WORKSPACE + OF_A_SERVICE * len(BOTH)
    await api.done(await api.delete(path))
    assert labelled(process.data_dir) == []


async def test_a_plain_machine_reaches_them_too_and_no_other_workspace_does(api: Api) -> None:
    own = await make(api, template="base")
    other = await api.make()
    network = f'{{{{(index .NetworkSettings.Networks "vmd-{own["id"]}").IPAddress}}}}'
    for name, port in (("postgresql", 5432), ("redis", 6379)):
        address = docker("inspect", "--format", network, service_of(own["id"], name))
        knock = f"timeout 3 bash -c '</dev/tcp/{address}/{port}' 2>/dev/null && echo open || echo closed"
        assert in_container(own["id"], knock) == "open"
        assert in_container(other["id"], knock) == "closed"
        assert in_container(other["id"], f"getent hosts {name} || echo unknown") == "unknown"


async def test_one_that_is_down_degrades_the_workspace_and_a_restart_brings_it_back(api: Api) -> None:
    workspace = await make(api)
    ws = workspace["id"]
    docker("kill", service_of(ws, "redis"))
    await api.until(ws, health="degraded", status="running")
    docker("start", service_of(ws, "redis"))
    await api.until(ws, health="ok", status="running")
    docker("rm", "-f", service_of(ws, "redis"))
    await api.until(ws, health="degraded", status="running")
    await api.done(await api.post(f"/workspaces/{ws}/actions/rebuild"))  # with the data that it left
    await api.until(ws, health="ok", status="running")
    assert in_container(ws, 'redis-cli -u "$REDIS_URL" PING') == "PONG"


async def test_one_that_crashes_is_started_again_with_its_data(api: Api) -> None:
    workspace = await make(api)
    ws = workspace["id"]
    sql(ws, "CREATE TABLE kept AS SELECT 'crash' AS what")
    container = service_of(ws, "postgresql")
    began = docker("inspect", "--format", "{{.State.StartedAt}}", container)
    # As somebody else's mistake would: the postmaster, which is the first of its kind.
    docker("exec", container, "sh", "-c", "kill -KILL $(pgrep -o -x postgres)")
    async with asyncio.timeout(30):
        while docker("inspect", "--format", "{{.State.StartedAt}}", container) == began:
            await asyncio.sleep(0.1)
    await until_state(container, "running")
    in_container(ws, "until pg_isready -q; do sleep 0.2; done")
    assert sql(ws, "SELECT what FROM kept") == "crash"
    await api.until(ws, health="ok", status="running")


async def test_they_rest_when_their_machine_ends_by_itself(api: Api) -> None:
    workspace = await make(api)
    ws = workspace["id"]
    docker("kill", container_of(ws))
    await api.until(ws, status="stopped", health="ok")
    for name in BOTH:
        await until_state(service_of(ws, name), "exited")
    await api.done(await api.post(f"/workspaces/{ws}/actions/start"))
    assert in_container(ws, 'redis-cli -u "$REDIS_URL" PING') == "PONG"


async def test_a_create_goes_on_after_a_kill_while_services_come_up(process: Process) -> None:
    write_plugin(process.data_dir, "gate", 'ready = "test -e /tmp/open"', "ready_seconds = 600")
    plugins = [*BOTH, "gate"]
    async with await process.start() as api:
        created = (await api.post("/workspaces", {"template": "clients", "plugins": plugins})).json
        gate = service_of(created["workspace_id"], "gate")
        async with asyncio.timeout(BUILD_SECONDS):
            while docker("ps", "-q", "--filter", f"name=^{gate}$") == "":
                await asyncio.sleep(0.05)
        process.kill()
    assert state_of(container_of(created["workspace_id"])) == "created"  # it waits for its services
    docker("exec", gate, "touch", "/tmp/open")
    async with await process.start() as api:
        operation = await api.wait(created, BUILD_SECONDS)
        assert (operation["status"], operation["attempt"]) == ("succeeded", 2), operation
        assert sql(created["workspace_id"], "SELECT 1") == "1"
        assert len(labelled(process.data_dir)) == OF_A_WORKSPACE + OF_A_SERVICE * len(BOTH) + 1
        await api.done(await api.delete(f"/workspaces/{created['workspace_id']}"))
        assert labelled(process.data_dir) == []


@pytest.fixture
async def engine(engine_url: str) -> AsyncIterator[PrivateEngine]:
    async with private_engine() as made:
        yield made


async def test_what_an_engine_starts_again_without_its_machine_is_stopped(
    tmp_path: Path, engine: PrivateEngine
) -> None:
    data_dir = tmp_path / "data"
    write_plugin(data_dir, "side")
    process = Process(data_dir, {"VMD_PROVIDERS__DOCKER__URL": engine.url})
    async with await process.start() as api:
        workspace = await api.make(plugins=["side"])
        service = service_of(workspace["id"], "side")
        engine.kill()
        await api.until(workspace["id"], health="unreachable")
        await engine.start()
        await api.until(workspace["id"], 60, status="stopped", health="ok")
        async with asyncio.timeout(30):
            while engine.docker("ps", "-q", "--filter", f"name=^{service}$").stdout.strip():
                await asyncio.sleep(0.1)
        await api.done(await api.post(f"/workspaces/{workspace['id']}/actions/start"))
        await api.until(workspace["id"], status="running", health="ok")
        await api.done(await api.delete(f"/workspaces/{workspace['id']}"))
        assert engine.docker("ps", "-aq").stdout == engine.docker("volume", "ls", "-q").stdout == ""
    process.terminate()
