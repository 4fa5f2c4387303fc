"""What runs beside a workspace's machine: one container a service, and a volume where it keeps data.

They are found by their labels, so that they need no record. They follow their machine: started before it and
stopped after it, by us. The engine restarts one that fails by itself, a few times; after that, and after an
engine's own restart, `rest` and the next start put things right.
"""

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from weakref import WeakValueDictionary

from aiodocker.exceptions import DockerError
from aiohttp import ClientTimeout
from attrs import frozen

from vmd.model.workspace import Service
from vmd.providers.base import MachineSpec, ProviderError, ServiceState
from vmd.providers.docker.body import (
    LABEL_INSTANCE,
    LABEL_READY,
    LABEL_READY_SECONDS,
    LABEL_SERVICE,
    LABEL_WORKSPACE,
    ContainerOptions,
    service_body,
)
from vmd.providers.docker.engine import ANSWER_SECONDS, CONFLICT, READ_SECONDS, Engine, do_all, require_ours

STOP_SECONDS = 10  # for a service to end by itself, however its machine is stopped: it has data to write
RETRY_SECONDS = 0.2
TAIL_LINES = 10
TAIL_CHARACTERS = 1000
_READY = 0
_FRAME = struct.Struct(">4xL")  # a byte of stream and three of nothing, then the size

# Asks a few times in one exec, which costs the engine far more than a look. Left alone, it ends by itself.
_ASK = """
left=20
until /bin/sh -c "$1" >/dev/null 2>&1; do
    left=$((left - 1)); [ $left -gt 0 ] || exit 1
    sleep 0.2
done
"""


@frozen(kw_only=True)
class _Found:
    """A service's container as the engine lists it."""

    ref: str
    name: str
    ready: str | None
    ready_seconds: int


class Services:
    """Makes, starts and stops the services of workspaces."""

    def __init__(self, engine: Engine, instance: str, options: ContainerOptions) -> None:
        self._engine = engine
        self._instance = instance
        self._options = options
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def create(self, spec: MachineSpec, network: str) -> None:
        """Make the containers and volumes of a machine's services, or find those that are there."""
        await do_all(*(self._create(spec.workspace_id, service, network) for service in spec.services))

    async def _create(self, workspace_id: str, service: Service, network: str) -> None:
        name = f"vmd-{workspace_id}-service-{service.name}"
        labels = {
            LABEL_INSTANCE: self._instance,
            LABEL_WORKSPACE: workspace_id,
            LABEL_SERVICE: service.name,
        }
        if service.data is not None:
            data = {"Name": name, "Labels": labels}
            require_ours(
                self._instance, await self._engine.call("volumes/create", "POST", data=data), "volume", name
            )
        body = service_body(service, labels, volume=name, network=network, options=self._options)
        try:
            await self._engine.call("containers/create", "POST", data=body, params={"name": name})
        except DockerError as error:
            if error.status != CONFLICT:
                raise ProviderError(
                    f"The engine cannot make the service {service.name}: {error.message}."
                ) from None
            found = await self._engine.find(f"containers/{name}/json")
            require_ours(self._instance, found, "container", name, ("Config",))

    @asynccontextmanager
    async def awake(self, workspace_id: str) -> AsyncIterator[None]:
        """Have a workspace's services ready while its machine is started in the block.

        When that fails, and no machine runs, they are stopped again.
        """
        async with self._alone(workspace_id):
            try:
                await do_all(*(self._start(found) for found in await self._list(workspace_id)))
                yield
            except ProviderError:
                with suppress(ProviderError):
                    await self._rest(workspace_id)
                raise

    async def stop(self, workspace_id: str) -> None:
        """Stop a workspace's services."""
        async with self._alone(workspace_id):
            await self._stop(await self._list(workspace_id))

    async def rest(self, workspace_id: str) -> None:
        """Stop a workspace's services unless a machine of it runs."""
        async with self._alone(workspace_id):
            await self._rest(workspace_id)

    async def states(self, workspace_id: str) -> tuple[ServiceState, ...]:
        """Return how a workspace's services are."""
        services = await self._list(workspace_id)
        running = await asyncio.gather(*(self._is_running(service.ref) for service in services))
        return tuple(
            ServiceState(name=service.name, is_running=is_running)
            for service, is_running in zip(services, running, strict=True)
        )

    async def _is_running(self, ref: str) -> bool:
        """Whether a container runs. The engine's list is late to know, later than its events."""
        found = await self._engine.find(f"containers/{ref}/json")
        return found is not None and found["State"]["Running"] and not found["State"]["Restarting"]

    @asynccontextmanager
    async def _alone(self, workspace_id: str) -> AsyncIterator[None]:
        """Keep a rest and a start of the same services apart."""
        lock = self._locks.setdefault(workspace_id, asyncio.Lock())
        async with lock:
            yield

    async def _list(self, workspace_id: str) -> list[_Found]:
        containers = await self._containers(workspace_id)
        return _services_in(containers)

    async def _containers(self, workspace_id: str) -> list[dict[str, Any]]:
        labels = [f"{LABEL_INSTANCE}={self._instance}", f"{LABEL_WORKSPACE}={workspace_id}"]
        params = {"all": 1, "filters": json.dumps({"label": labels})}
        listed: list[dict[str, Any]] = await self._engine.call("containers/json", params=params)
        return listed

    async def _start(self, service: _Found) -> None:
        name = service.name
        try:
            await self._engine.call(f"containers/{service.ref}/start", "POST")
        except (DockerError, ProviderError) as error:
            text = error.message if isinstance(error, DockerError) else error
            raise ProviderError(f"The engine cannot start the service {name}: {text}.") from None
        try:
            async with asyncio.timeout(service.ready_seconds):
                while not await self._is_ready(service):
                    await self._require_alive(service)
                    await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            said = await self._tail(service.ref)
            raise ProviderError(
                f"The service {name} is not ready after {service.ready_seconds} s. It said: {said}"
            ) from None

    async def _is_ready(self, service: _Found) -> bool:
        """Whether the service says that it takes connections, given a few seconds to come to it."""
        if service.ready is None:
            await self._require_alive(service)
            return True
        container = self._engine.streams.containers.container(service.ref)
        try:
            with self._engine.translated():
                run = await container.exec(["/bin/sh", "-c", _ASK, "vmd", service.ready], workdir="/")
                async with run.start() as stream:
                    while await stream.read_out() is not None:
                        pass
        except (DockerError, ProviderError):
            return False  # it does not run just now
        found = await self._engine.find(f"exec/{run.id}/json")
        return found is not None and found["ExitCode"] == _READY

    async def _require_alive(self, service: _Found) -> None:
        """Raise ProviderError for a service that ended, and that the engine does not start again."""
        name = service.name
        found = await self._engine.find(f"containers/{service.ref}/json")
        if found is None:
            raise ProviderError(f"The service {name} is gone; rebuild the workspace.")
        state = found["State"]
        if not (state["Running"] or state["Restarting"]):
            why = (
                "ran out of memory" if state.get("OOMKilled") else f"ended with exit code {state['ExitCode']}"
            )
            raise ProviderError(f"The service {name} {why}. It said: {await self._tail(service.ref)}")

    async def _tail(self, ref: str) -> str:
        """Return the end of what a service printed, as a sentence."""
        params = {"stdout": 1, "stderr": 1, "tail": TAIL_LINES}
        try:
            with self._engine.translated():
                async with self._engine.streams._query(
                    f"containers/{ref}/logs", params=params, timeout=ClientTimeout(total=READ_SECONDS)
                ) as response:
                    content = await response.read()
        except (DockerError, ProviderError):
            return "nothing that can be read."
        lines = (_printable(line) for line in _unframed(content).decode("utf-8", "replace").splitlines())
        text = " / ".join(filter(None, lines))
        return (text or "nothing")[-TAIL_CHARACTERS:].rstrip(".") + "."

    async def _rest(self, workspace_id: str) -> None:
        containers = await self._containers(workspace_id)
        machines = [found["Id"] for found in containers if LABEL_SERVICE not in found["Labels"]]
        if not any(await asyncio.gather(*(self._is_running(machine) for machine in machines))):
            await self._stop(_services_in(containers))

    async def _stop(self, services: Sequence[_Found]) -> None:
        await do_all(*(self._stop_one(service) for service in services))

    async def _stop_one(self, service: _Found) -> None:
        try:
            await self._engine.call(
                f"containers/{service.ref}/stop",
                "POST",
                params={"t": STOP_SECONDS},
                timeout_seconds=STOP_SECONDS + ANSWER_SECONDS,
                may_be_left=True,
            )
        except DockerError as error:
            text = f"The engine cannot stop the service {service.name}: {error.message}."
            raise ProviderError(text) from None


def states_in(containers: Sequence[Mapping[str, Any]]) -> dict[str, list[ServiceState]]:
    """Return the services among listed containers by their workspace."""
    states: dict[str, list[ServiceState]] = {}
    for container in containers:
        name = container["Labels"].get(LABEL_SERVICE)
        if name is not None:
            state = ServiceState(name=name, is_running=container["State"] == "running")
            states.setdefault(container["Labels"][LABEL_WORKSPACE], []).append(state)
    return states


def _services_in(containers: Sequence[Mapping[str, Any]]) -> list[_Found]:
    """Return the services among listed containers."""
    return [
        _Found(
            ref=container["Id"],
            name=container["Labels"][LABEL_SERVICE],
            ready=container["Labels"].get(LABEL_READY),
            ready_seconds=int(container["Labels"][LABEL_READY_SECONDS]),
        )
        for container in containers
        if LABEL_SERVICE in container["Labels"]
    ]


def _unframed(content: bytes) -> bytes:
    """Return what a container printed without the engine's own frames."""
    said, at = bytearray(), 0
    while at + _FRAME.size <= len(content):
        (length,) = _FRAME.unpack_from(content, at)
        at += _FRAME.size
        said += content[at : at + length]
        at += length
    return bytes(said)


def _printable(line: str) -> str:
    """Return a line without what would move a terminal's cursor, or colour it."""
    return " ".join("".join(each if each.isprintable() else " " for each in line).split())
