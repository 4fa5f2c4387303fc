"""The Docker provider: every promise of `Provider` kept with engine calls that may be repeated."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from typing import Any

import structlog
from aiodocker.exceptions import DockerError
from attrs import evolve

from vmd.providers.base import (
    Capacity,
    Execution,
    Holding,
    Machine,
    MachineSpec,
    Output,
    Power,
    ProviderError,
    Stats,
)
from vmd.providers.docker.body import (
    LABEL_INSTANCE,
    LABEL_OPERATION,
    LABEL_SERVICE,
    LABEL_WORKSPACE,
    WRITE_SECRETS,
    ContainerOptions,
    container_body,
    secrets_file,
    with_secrets,
)
from vmd.providers.docker.builds import Builds
from vmd.providers.docker.engine import ANSWER_SECONDS, CONFLICT, Engine, do_all, half_close, require_ours
from vmd.providers.docker.execs import ExecSpawner
from vmd.providers.docker.kept import KeptOutput
from vmd.providers.docker.links import CannotSupervise, Links
from vmd.providers.docker.networks import Networks
from vmd.providers.docker.services import Services, states_in
from vmd.providers.docker.snapshots import DockerSnapshots, files_volume
from vmd.providers.docker.stats import read_cpu_seconds, read_stats
from vmd.providers.docker.stillness import Stillness
from vmd.providers.docker.subnets import SubnetPool
from vmd.providers.process import MACHINE_USER, Chunk, ProcessReport, Stream, Supervisor
from vmd.providers.supervisor.local import LocalSupervisor

_DISK_DRIVERS = frozenset({"btrfs", "zfs", "devicemapper", "windowsfilter"})
_MIB = 1024 * 1024

log = structlog.get_logger()


class DockerProvider:
    """A container, a volume and a network a workspace, found again by their names and labels."""

    name = "docker"
    nodes: tuple[str, ...] = ("local",)

    def __init__(
        self,
        *,
        url: str,
        instance: str,
        subnet_pool: str,
        options: ContainerOptions | None = None,
    ) -> None:
        self._engine = Engine(url)
        self._instance = instance
        self._options = options or ContainerOptions()
        self._stillness = Stillness(self._engine)
        self._links = Links(self._engine, self._stillness)
        self._kept = KeptOutput(self._engine)
        self._plain: dict[str, LocalSupervisor] = {}  # of machines that run no supervisor, by ref
        self.snapshots = DockerSnapshots(self._engine, instance, self._stillness)
        self._builds = Builds(self._engine, instance)
        self._services = Services(self._engine, instance, self._options)
        self._networks = Networks(self._engine, instance, SubnetPool(subnet_pool))

    # What the host has.

    async def capacity(self) -> Capacity:
        """Return the engine's processors and memory, and whether its storage driver can limit disks."""
        info = await self._engine.call("info")
        driver = info["Driver"]
        backing = dict(info.get("DriverStatus") or []).get("Backing Filesystem", "")
        return Capacity(
            cpus=float(info["NCPU"]),
            memory_mb=info["MemTotal"] // _MIB,
            can_limit_disk=driver in _DISK_DRIVERS or (driver == "overlay2" and backing == "xfs"),
            disk_hint=f"the engine's storage driver is {driver} on {backing or 'an unknown file system'}",
        )

    async def has_image(self, image: str) -> bool:
        """Whether the engine has the image."""
        return await self._engine.find(f"images/{image}/json") is not None

    async def pull(self, image: str, output: Output) -> None:
        """Have the engine fetch the image from its registry."""
        try:
            with self._engine.translated():
                async for item in self._engine.streams.images.pull(image, stream=True):
                    if not item.get("progressDetail"):
                        line = " ".join(filter(None, [item.get("id"), item.get("status")]))
                        await output("stdout", f"{line}\n".encode())
        except (DockerError, ProviderError) as error:
            raise ProviderError(
                f"The image {image} is not there and cannot be pulled: {_message(error)}. "
                "Build or import it at the engine, or name another one in the template."
            ) from None

    async def build(
        self, image: str, recipe: str, output: Output, context: AsyncIterable[bytes] | None = None
    ) -> None:
        """Have the engine build an image."""
        await self._builds.build(image, recipe, output, context)

    async def built_images(self) -> Sequence[str]:
        """Return the images that bear our label and no workspace's."""
        return await self._builds.list()

    async def remove_image(self, image: str) -> None:
        """Remove an image from the engine, unless something is made from it."""
        await self._engine.remove(f"images/{image}")

    # The life of a machine.

    async def create(self, spec: MachineSpec) -> str:
        """Make volumes, network, services and container, or find those that an earlier try made."""
        base = f"vmd-{spec.workspace_id}"
        ref = f"{base}-{spec.operation_id}"
        labels = {
            LABEL_INSTANCE: self._instance,
            LABEL_WORKSPACE: spec.workspace_id,
            LABEL_OPERATION: spec.operation_id,
        }
        state, files = f"{base}-state", files_volume(spec.workspace_id, spec.files)
        await do_all(
            self._create_volume(files, labels),
            self._create_volume(state, labels),
            self._networks.create(base, labels),
        )
        if spec.snapshot_id is not None:
            spec = evolve(spec, image=await self.snapshots.image_for(spec.snapshot_id, ref))
        await self._services.create(spec, network=base)
        body = container_body(
            spec, labels, volume=files, state_volume=state, network=base, options=self._options
        )
        try:
            await self._engine.call("containers/create", "POST", data=body, params={"name": ref})
        except DockerError as error:
            if error.status != CONFLICT:
                raise ProviderError(f"The engine cannot make the machine: {error.message}.") from None
            require_ours(
                self._instance,
                await self._engine.find(f"containers/{ref}/json"),
                "container",
                ref,
                ("Config",),
            )
        return ref

    async def _create_volume(self, name: str, labels: Mapping[str, str]) -> None:
        volume = await self._engine.call("volumes/create", "POST", data={"Name": name, "Labels": labels})
        require_ours(self._instance, volume, "volume", name)

    async def start(self, ref: str, secrets: Mapping[str, str]) -> Machine:
        """Start the services, then the container, and hand it its secrets through memory."""
        found = await self._find(ref)
        if found is None:
            raise ProviderError(f"The engine cannot start the machine: there is no {ref}.")
        async with self._services.awake(found["Config"]["Labels"][LABEL_WORKSPACE]):
            try:
                await self._engine.call(f"containers/{ref}/start", "POST")
            except DockerError as error:
                raise ProviderError(f"The engine cannot start the machine: {error.message}.") from None
            if secrets:
                await self._write_secrets(ref, secrets)
            machine = await self.inspect(ref)
            if machine is None or machine.power is not Power.RUNNING:
                code = None if machine is None else machine.exit_code
                raise ProviderError(
                    f"The machine ended at once (exit code {code}); does its image have a shell?"
                )
        return machine

    async def _write_secrets(self, ref: str, secrets: Mapping[str, str]) -> None:
        said = bytearray()

        async def output(_: str, data: bytes) -> None:
            said.extend(data)

        argv = ["/bin/sh", "-c", WRITE_SECRETS]
        code = await self._run(ref, argv, Execution(argv=(), cwd="/"), output, stdin=secrets_file(secrets))
        if code != 0:
            raise ProviderError(f"The secrets could not be written: {said.decode('utf-8', 'replace')}")

    async def stop(self, ref: str, timeout_seconds: int) -> None:
        """Stop the container, then its services; what is not running is fine."""
        self._lose_plain(ref)
        await self._stillness.thaw(ref)
        try:
            await self._engine.call(
                f"containers/{ref}/stop",
                "POST",
                params={"t": timeout_seconds},
                timeout_seconds=timeout_seconds + ANSWER_SECONDS,
                may_be_left=True,  # whatever follows, a kill or a removal, may overtake it
            )
        except DockerError as error:
            raise ProviderError(f"The engine cannot stop the machine: {error.message}.") from None
        found = await self._find(ref)
        if found is not None:
            await self._services.stop(found["Config"]["Labels"][LABEL_WORKSPACE])

    async def rest(self, workspace_id: str) -> None:
        """Stop a workspace's services unless its container runs."""
        await self._services.rest(workspace_id)

    async def _find(self, ref: str) -> Any:
        """Return what the engine says of a machine; what is not labelled as ours, or a service, is none."""
        found = await self._engine.find(f"containers/{ref}/json")
        labels = {} if found is None else found["Config"]["Labels"]
        return None if labels.get(LABEL_INSTANCE) != self._instance or LABEL_SERVICE in labels else found

    async def inspect(self, ref: str) -> Machine | None:
        """Return the container as a machine, with its services."""
        found = await self._find(ref)
        if found is None:
            return None
        state, labels = found["State"], found["Config"]["Labels"]
        is_running = bool(state["Running"])
        networks = found["NetworkSettings"]["Networks"] or {}
        address = next((network["IPAddress"] for network in networks.values()), "")
        return Machine(
            ref=found["Name"].removeprefix("/"),
            workspace_id=labels[LABEL_WORKSPACE],
            operation_id=labels.get(LABEL_OPERATION, ""),
            power=Power.RUNNING if is_running else Power.STOPPED,
            exit_code=None if is_running else state["ExitCode"],
            is_out_of_memory=bool(state.get("OOMKilled")),
            address=address or None,
            services=await self._services.states(labels[LABEL_WORKSPACE]),
        )

    async def execute(self, ref: str, execution: Execution, output: Output) -> int:
        """Run a command through the engine's exec."""
        return await self._run(ref, with_secrets(execution.argv), execution, output)

    async def _run(
        self, ref: str, argv: list[str], execution: Execution, output: Output, *, stdin: bytes | None = None
    ) -> int:
        try:
            with self._engine.translated():
                streams = self._engine.streams
                async with self._stillness.exec_begins(ref):
                    run = await streams.containers.container(ref).exec(
                        argv,
                        stdin=stdin is not None,
                        user=execution.user or MACHINE_USER,
                        environment=execution.env,
                        workdir=execution.cwd,
                    )
                    stream = run.start()
                    await stream._init()
                async with stream:
                    if stdin is not None:
                        await stream.write_in(stdin)
                        half_close(stream)
                    while (message := await stream.read_out()) is not None:
                        await output("stderr" if message.stream == 2 else "stdout", message.data)
                found = await self._engine.call(f"exec/{run.id}/json")
        except DockerError as error:
            raise ProviderError(f"The engine cannot run a command in the machine: {error.message}.") from None
        if found["ExitCode"] is None:
            raise ProviderError("The machine ended while a command ran in it.")
        return int(found["ExitCode"])

    async def supervise(self, ref: str) -> Supervisor:
        """Connect to the container's supervisor, which is started if it was not."""
        try:
            return await self._links.connect(ref)
        except CannotSupervise as error:
            await self._links.require_well(ref)
            log.warning(
                "a machine runs no supervisor; plain execs take its place", machine=ref, why=str(error)
            )
            if ref not in self._plain:
                self._plain[ref] = LocalSupervisor(ExecSpawner(self._engine, self._stillness, ref))
            return self._plain[ref].reopen()

    def _lose_plain(self, ref: str) -> None:
        plain = self._plain.pop(ref, None)
        if plain is not None:
            plain.lose_all()

    async def find_kept(self, ref: str, process_id: str) -> ProcessReport | None:
        """Look among what the container's supervisor wrote."""
        return await self._kept.find(ref, process_id)

    def read_kept(
        self, ref: str, process_id: str, stream: Stream, offset: int
    ) -> AsyncGenerator[Chunk, None]:
        """Read what the container's supervisor wrote."""
        return self._kept.read(ref, process_id, stream, offset)

    async def discard(self, ref: str) -> None:
        """Remove one container, running or not."""
        self._lose_plain(ref)
        await self._stillness.thaw(ref)
        await self._engine.remove(f"containers/{ref}", {"force": 1, "v": 1})
        await self.snapshots.discard_images(ref)

    async def destroy(self, workspace_id: str) -> None:
        """Remove everything that bears the workspace's label."""
        label = f"{LABEL_WORKSPACE}={workspace_id}"
        for container in await self._list_containers(label):
            await self.discard(container["Names"][0].removeprefix("/"))
        await self.snapshots.discard_images(f"vmd-{workspace_id}-")
        await self.snapshots.clear()  # an archiver of an earlier daemon may have its files still
        networks, volumes = await asyncio.gather(self._list_networks(label), self._list_volumes(label))
        await asyncio.gather(
            *(self._networks.remove(network) for network in networks),
            *(self._engine.remove(f"volumes/{volume['Name']}", {"force": 1}) for volume in volumes),
        )
        for image in await self._engine.call("images/json", params=self._filters(label)):
            await self._engine.remove(f"images/{image['Id']}", {"force": 1})

    # What is there.

    async def stats(self, ref: str) -> Stats:
        """Return one reading of the container's cgroups."""
        try:
            found = await self._engine.call(f"containers/{ref}/json", params={"size": 1})
            reading = await self._engine.call(f"containers/{ref}/stats", params={"stream": 0, "one-shot": 1})
        except DockerError as error:
            raise ProviderError(f"The engine has no figures of the machine: {error.message}.") from None
        return read_stats(found, reading)

    async def cpu_seconds(self, ref: str) -> float:
        """Return what the container's cgroup counted."""
        try:
            reading = await self._engine.call(f"containers/{ref}/stats", params={"stream": 0, "one-shot": 1})
        except DockerError as error:
            raise ProviderError(f"The engine has no figures of the machine: {error.message}.") from None
        return read_cpu_seconds(reading)

    async def machines(self) -> Sequence[Machine]:
        """Return every container of this daemon that is no service, without exit codes and addresses."""
        containers = await self._list_containers(LABEL_WORKSPACE)
        services = states_in(containers)
        return [
            Machine(
                ref=container["Names"][0].removeprefix("/"),
                workspace_id=container["Labels"][LABEL_WORKSPACE],
                operation_id=container["Labels"].get(LABEL_OPERATION, ""),
                power=Power.RUNNING if container["State"] in ("running", "paused") else Power.STOPPED,
                services=tuple(services.get(container["Labels"][LABEL_WORKSPACE], ())),
            )
            for container in containers
            if LABEL_SERVICE not in container["Labels"]
        ]

    async def holdings(self) -> Sequence[Holding]:
        """Return every container, volume, network and image that bears this daemon's label."""
        containers, volumes, networks, images = await asyncio.gather(
            self._list_containers(LABEL_WORKSPACE),
            self._list_volumes(LABEL_WORKSPACE),
            self._list_networks(LABEL_WORKSPACE),
            self._engine.call("images/json", params=self._filters(LABEL_WORKSPACE)),
        )
        found = [
            (
                "service" if LABEL_SERVICE in held["Labels"] else "machine",
                held,
                held["Names"][0].removeprefix("/"),
            )
            for held in containers
        ]
        found += [("files", held, held["Name"]) for held in volumes]
        found += [("network", held, held["Name"]) for held in networks]
        found += [("image", held, held["Id"]) for held in images]
        return [
            Holding(workspace_id=held["Labels"][LABEL_WORKSPACE], kind=kind, name=name)
            for kind, held, name in found
            if held["Labels"][LABEL_WORKSPACE]  # an image of a snapshot has none
        ]

    async def changes(self) -> AsyncIterator[str | None]:
        """Follow the engine's events about containers of this daemon."""
        filters = {
            "type": ["container"],
            "event": ["die", "oom", "start", "destroy"],
            # Containers of builds have the first label alone.
            "label": [f"{LABEL_INSTANCE}={self._instance}", LABEL_WORKSPACE],
        }
        async for event in self._engine.events(filters):
            if event is None:
                self._networks.forget()
                yield None
            elif LABEL_WORKSPACE in (labels := event["Actor"]["Attributes"]):
                yield labels[LABEL_WORKSPACE]

    async def close(self) -> None:
        """Close all connections to the engine."""
        await self._engine.close()

    async def _list_containers(self, label: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self._engine.call(
            "containers/json", params={"all": 1, **self._filters(label)}
        )
        return found

    async def _list_networks(self, label: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self._engine.call("networks", params=self._filters(label))
        return found

    async def _list_volumes(self, label: str) -> list[dict[str, Any]]:
        answer = await self._engine.call("volumes", params=self._filters(label))
        return answer["Volumes"] or []

    def _filters(self, label: str) -> dict[str, str]:
        return {"filters": json.dumps({"label": [f"{LABEL_INSTANCE}={self._instance}", label]})}


def _message(error: Exception) -> str:
    text = error.message if isinstance(error, DockerError) else str(error)
    return str(text).removeprefix("The engine refused: ").rstrip(".")
