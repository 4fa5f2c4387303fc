"""The yardstick of making machines: the same calls straight to the engine, over aiodocker."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Network
from secrets import token_hex

import aiohttp
from aiodocker import Docker

from vmd.model.workspace import Resources
from vmd.providers.base import MachineSpec
from vmd.providers.docker.body import (
    LABEL_INSTANCE,
    LABEL_OPERATION,
    LABEL_WORKSPACE,
    ContainerOptions,
    container_body,
)

SOCKET = "/var/run/docker.sock"
IMAGE = "vmd-base:bookworm"
SUBNET_POOL = "10.225.0.0/16"
TIMEOUT_SECONDS = 120.0


class RawEngine:
    """Makes what the docker provider makes: two volumes, a network with its own subnet, a container."""

    def __init__(self, docker: Docker) -> None:
        self._docker = docker
        self._subnets: Iterator[IPv4Network] = IPv4Network(SUBNET_POOL).subnets(new_prefix=28)
        self._instance = f"benchmark-{token_hex(8)}"

    async def make(self) -> str:
        """Make a machine and return its name."""
        name = f"vmd-benchmark-{token_hex(8)}"
        labels = {LABEL_INSTANCE: self._instance, LABEL_WORKSPACE: name}
        network = {
            "Name": name,
            "Driver": "bridge",
            "CheckDuplicate": True,
            "Labels": {**labels, LABEL_OPERATION: ""},
            "IPAM": {"Config": [{"Subnet": str(next(self._subnets))}]},
        }
        spec = MachineSpec(
            workspace_id=name,
            operation_id="",
            hostname=name,
            node="local",
            image=IMAGE,
            resources=Resources(),
        )
        options = ContainerOptions()
        body = container_body(
            spec,
            {**labels, LABEL_OPERATION: name},
            volume=name,
            state_volume=f"{name}-state",
            network=name,
            options=options,
        )
        await asyncio.gather(
            self._create_volume(name, labels),
            self._create_volume(f"{name}-state", labels),
            self._docker.networks.create(network),
        )
        container = await self._docker.containers.create(body, name=name)
        await container.start()
        return name

    async def remove(self, name: str) -> None:
        """Remove a machine and all that belongs to it."""
        await self._docker.containers.container(name).delete(force=True, v=True)
        await (await self._docker.networks.get(name)).delete()
        await _remove_volume(self._docker, name)
        await _remove_volume(self._docker, f"{name}-state")

    async def remove_all(self) -> None:
        """Remove whatever is left of this run."""
        await remove_labelled(self._docker, f"{LABEL_INSTANCE}={self._instance}")

    async def _create_volume(self, name: str, labels: dict[str, str]) -> None:
        await self._docker._query_json("volumes/create", "POST", data={"Name": name, "Labels": labels})


async def remove_labelled(docker: Docker, label: str) -> None:
    """Remove containers, networks and volumes that bear a label."""
    filters = {"label": [label]}
    for container in await docker.containers.list(all=True, filters=filters):
        await container.delete(force=True, v=True)
    for network in await docker.networks.list(filters=filters):
        await (await docker.networks.get(network["Id"])).delete()
    listed = await docker._query_json("volumes", params={"filters": json.dumps(filters)})
    for volume in listed["Volumes"] or []:
        await _remove_volume(docker, volume["Name"])


async def _remove_volume(docker: Docker, name: str) -> None:
    async with docker._query(f"volumes/{name}", "DELETE"):
        pass


@asynccontextmanager
async def open_docker() -> AsyncIterator[Docker]:
    """Connect to the engine, without a limit of connections."""
    connector = aiohttp.UnixConnector(SOCKET, limit=0)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    try:
        async with Docker(url="unix://localhost", connector=connector, timeout=timeout) as docker:
            yield docker
    finally:
        await connector.close()


@asynccontextmanager
async def raw_engine() -> AsyncIterator[RawEngine]:
    """Connect to the engine; what was made is removed afterwards."""
    async with open_docker() as docker:
        engine = RawEngine(docker)
        try:
            yield engine
        finally:
            await engine.remove_all()
