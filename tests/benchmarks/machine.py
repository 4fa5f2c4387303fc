"""One running workspace of a daemon of its own, and plain execs in the same container beside it."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiodocker import Docker
from attrs import frozen

from tests.benchmarks.api import Api, connect
from tests.benchmarks.engine import open_docker, remove_labelled
from tests.benchmarks.process import Server, daemon, token_of
from tests.benchmarks.wires import Daemon
from vmd.providers.docker.body import LABEL_WORKSPACE
from vmd.providers.process import MACHINE_USER

SETTINGS = {"VMD_PROVIDERS__DOCKER__SUBNET_POOL": "10.224.0.0/16"}
RESOURCES = {"cpus": 2, "memory_mb": 1024, "pids": 2048}
PROMPT = b"$ "
BEGIN = b"BEGIN"  # printed before what is measured


@frozen(kw_only=True)
class Machine:
    """A workspace that runs, seen by its daemon's clients and by its engine."""

    server: Server
    api: Api
    ours: Daemon
    raw: "RawExec"


class RawExec:
    """The yardstick: execs straight from the engine, as aiodocker gives them."""

    def __init__(self, container: Any) -> None:
        self._container = container

    async def open(self, argv: Sequence[str], *, tty: bool = False) -> Any:
        """Create and start an exec; return its stream."""
        run = await self._container.exec(
            list(argv),
            stdin=tty,
            tty=tty,
            user=MACHINE_USER,
            workdir="/workspace",
            environment={"TERM": "xterm-256color"},
        )
        stream = run.start()
        await stream._init()
        return stream

    async def seconds(self, argv: Sequence[str], size: int, *, tty: bool = False) -> float:
        """Return how long a command takes from its first word to the end of at least `size` bytes."""
        stream = await self.open(argv, tty=tty)
        async with stream:
            await until(stream, BEGIN)
            started, count = time.perf_counter(), 0
            while (message := await stream.read_out()) is not None:
                count += len(message.data)
            taken = time.perf_counter() - started
        assert count >= size - 2**20, f"{count} bytes came"  # some came with the first word
        return taken


async def until(stream: Any, mark: bytes) -> float:
    """Return when an exec has printed a mark, by `time.perf_counter`."""
    seen = b""
    while mark not in seen:
        message = await stream.read_out()
        assert message is not None, seen
        seen += message.data
    return time.perf_counter()


@asynccontextmanager
async def machine(data_dir: Path) -> AsyncIterator[Machine]:
    """Run a daemon and a workspace until the block ends; nothing is left at the engine, even if it fails."""
    async with open_docker() as docker:
        with daemon(data_dir, SETTINGS) as server:
            token = token_of(data_dir)
            async with connect(server.port, token) as api, _leftovers(docker) as made:
                made.append(await api.make({"resources": RESOURCES}))
                (container,) = await docker.containers.list(filters={"label": [_label(made[0])]})
                yield Machine(
                    server=server,
                    api=api,
                    ours=Daemon(server.port, token, made[0]),
                    raw=RawExec(container),
                )


@asynccontextmanager
async def _leftovers(docker: Docker) -> AsyncIterator[list[str]]:
    """Remove the machines of these workspaces at the engine, if the block fails."""
    made: list[str] = []
    try:
        yield made
    except BaseException:
        for workspace_id in made:
            await remove_labelled(docker, _label(workspace_id))
        raise


def _label(workspace_id: str) -> str:
    return f"{LABEL_WORKSPACE}={workspace_id}"
