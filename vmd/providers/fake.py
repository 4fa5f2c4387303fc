"""Machines that exist in memory only: for speed in tests, and for faults at a chosen moment."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence

from attrs import evolve, field, frozen, mutable

from vmd.model.shell import Persistence
from vmd.providers import fake_git
from vmd.providers.base import (
    Capacity,
    CpuStats,
    DiskStats,
    Execution,
    Holding,
    Machine,
    MachineSpec,
    MemoryStats,
    NetworkStats,
    Output,
    PidsStats,
    Power,
    ProviderError,
    ProviderUnavailable,
    Stats,
)
from vmd.providers.fake_processes import FakeSpawner, run_line
from vmd.providers.fake_services import FakeService, FakeServices
from vmd.providers.fake_snapshots import FakeSnapshot, FakeSnapshots, files_key
from vmd.providers.process import (
    Chunk,
    ProcessReport,
    Stream,
    Supervisor,
)
from vmd.providers.supervisor.local import LocalSupervisor

_MIB = 1024 * 1024
_BUILD_COMMANDS = frozenset({"echo", "exit", "sleep"})


@frozen(kw_only=True)
class Fault:
    """What goes wrong at a call."""

    error: Exception | None = None  # raised instead of, or after, doing it
    delay_seconds: float = 0.0  # waited first
    has_effect: bool = False  # done all the same, as when only the answer is lost


@mutable(kw_only=True)
class FakeHost:
    """What a fake provider has: kept apart, so that it outlives a daemon that is killed in a test."""

    machines: dict[str, Machine] = field(factory=dict)
    specs: dict[str, MachineSpec] = field(factory=dict)
    secrets: dict[str, dict[str, str]] = field(factory=dict)
    files: dict[str, dict[str, str]] = field(factory=dict)  # by workspace, or "WORKSPACE/NAME" for others
    snapshots: dict[str, FakeSnapshot] = field(factory=dict)
    frozen: set[str] = field(factory=set)  # refs of the machines that stand still
    services: dict[str, FakeService] = field(factory=dict)  # by "WORKSPACE/NAME"
    images: set[str] = field(factory=lambda: {"vmd-base:bookworm"})
    builds: dict[str, tuple[str, bytes]] = field(factory=dict)  # by image: its recipe, and its context
    repos: dict[str, str] = field(factory=dict)  # url -> commit, of those that can be cloned
    trees: dict[str, dict[str, str]] = field(factory=dict)  # url -> files, of those that have more than one
    faults: dict[str, list[Fault]] = field(factory=dict)  # by method, consumed in order
    calls: Counter[str] = field(factory=Counter)
    supervisors: dict[str, LocalSupervisor] = field(factory=dict)  # by ref
    cpu_seconds: dict[str, float] = field(factory=dict)  # by ref, where it is not the usual
    git: dict[str, str] = field(factory=dict)  # by workspace: what a look at its repositories answers
    is_reachable: bool = True

    def files_of(self, machine: Machine) -> dict[str, str]:
        """Return the files that a machine has, as it sees them."""
        return self.files[files_key(machine.workspace_id, self.specs[machine.ref].files)]


class FakeProvider:
    """Implements every promise of `Provider` over a FakeHost."""

    name = "fake"
    nodes: tuple[str, ...] = ("local",)

    def __init__(self, host: FakeHost | None = None) -> None:
        self.host = host or FakeHost()
        self.snapshots = FakeSnapshots(self.host, self._pass, self._strike)
        self._services = FakeServices(self.host.services, self._pass, self._strike)
        self._listeners: list[asyncio.Queue[str | None]] = []

    def order(self, method: str, *faults: Fault) -> None:
        """Make the next calls of a method go wrong like this."""
        self.host.faults.setdefault(method, []).extend(faults)

    def cut_off(self) -> None:
        """Become unreachable."""
        self.host.is_reachable = False
        for listener in self._listeners:
            listener.put_nowait(None)

    def reconnect(self) -> None:
        """Become reachable again."""
        self.host.is_reachable = True

    def kill_machine(self, ref: str, *, exit_code: int = 137, is_out_of_memory: bool = False) -> None:
        """End a machine behind the daemon's back."""
        self._stop_processes(ref)
        machine = self.host.machines[ref]
        self.host.machines[ref] = evolve(
            machine, power=Power.STOPPED, exit_code=exit_code, is_out_of_memory=is_out_of_memory, address=None
        )
        self._tell(machine.workspace_id)

    def remove_machine(self, ref: str) -> None:
        """Take a machine away behind the daemon's back."""
        self._stop_processes(ref)
        self._tell(self.host.machines.pop(ref).workspace_id)

    def kill_service(self, workspace_id: str, name: str) -> None:
        """End a service behind the daemon's back."""
        self.host.services[f"{workspace_id}/{name}"].is_running = False
        self._tell(workspace_id)

    def revive_service(self, workspace_id: str, name: str) -> None:
        """Start a service behind the daemon's back, as an engine does that restarts what failed."""
        self.host.services[f"{workspace_id}/{name}"].is_running = True
        self._tell(workspace_id)

    def _stop_processes(self, ref: str) -> None:
        if ref in self.host.supervisors:
            self.host.supervisors[ref].lose_all()

    def _tell(self, workspace_id: str) -> None:
        for listener in self._listeners:
            listener.put_nowait(workspace_id)

    async def _pass(self, method: str) -> Fault | None:
        """Go through what was ordered for this call; return a fault that strikes after the effect."""
        self.host.calls[method] += 1
        if not self.host.is_reachable:
            raise ProviderUnavailable("The fake host is cut off.")
        await asyncio.sleep(0)
        ordered = self.host.faults.get(method)
        if not ordered:
            return None
        fault = ordered.pop(0)
        if fault.delay_seconds:
            await asyncio.sleep(fault.delay_seconds)
        if fault.error is not None and not fault.has_effect:
            raise fault.error
        return fault if fault.has_effect else None

    @staticmethod
    def _strike(fault: Fault | None) -> None:
        if fault is not None and fault.error is not None:
            raise fault.error

    def _machine(self, ref: str) -> Machine:
        try:
            return self.host.machines[ref]
        except KeyError:
            raise ProviderError(f"There is no machine {ref}.") from None

    async def capacity(self) -> Capacity:
        """Return a host of 64 processors and 256 GiB."""
        await self._pass("capacity")
        return Capacity(
            cpus=64, memory_mb=256 * 1024, can_limit_disk=False, disk_hint="the fake host has no disks"
        )

    async def has_image(self, image: str) -> bool:
        """Whether the image is among the host's."""
        await self._pass("has_image")
        return image in self.host.images

    async def pull(self, image: str, output: Output) -> None:
        """Fail: there is no registry."""
        await self._pass("pull")
        await output("stderr", f"pull access denied for {image}\n".encode())
        raise ProviderError(f"The image {image} is not there and cannot be pulled: no such image.")

    async def build(
        self, image: str, recipe: str, output: Output, context: AsyncIterable[bytes] | None = None
    ) -> None:
        """Add an image to the host's; of the recipe's steps some commands are really run."""
        fault = await self._pass("build")
        packed = b"" if context is None else b"".join([data async for data in context])
        lines = recipe.replace("\\\n", " ").splitlines()
        steps = [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#")]
        for number, step in enumerate(steps, 1):
            await output("stdout", f"Step {number}/{len(steps)} : {step}\n".encode())
            line = step.removeprefix("RUN ")
            code = await run_line(line, {}, {}, output) if line.split()[0] in _BUILD_COMMANDS else 0
            if code != 0:
                raise ProviderError(
                    f"Building the image {image} failed at step {number} of {len(steps)}, `{step}`: "
                    f"The command returned a non-zero code: {code}."
                )
        self.host.builds[image] = (recipe, packed)
        self.host.images.add(image)
        self._strike(fault)

    async def built_images(self) -> Sequence[str]:
        """Return the images that were built and are there."""
        await self._pass("built_images")
        return sorted(self.host.builds.keys() & self.host.images)

    async def remove_image(self, image: str) -> None:
        """Take an image away."""
        fault = await self._pass("remove_image")
        if image in {self.host.specs[ref].image for ref in self.host.machines}:
            raise ProviderError(f"The image {image} is used by a machine.")
        self.host.images.discard(image)
        self.host.builds.pop(image, None)
        self._strike(fault)

    async def create(self, spec: MachineSpec) -> str:
        """Add a machine, or find the one this operation added before."""
        fault = await self._pass("create")
        await self._services.create(spec)
        ref = f"fake-{spec.workspace_id}-{spec.operation_id}"
        if spec.snapshot_id is not None and spec.snapshot_id not in self.host.snapshots:
            raise ProviderError("The snapshot is not there any more.")
        self.host.files.setdefault(files_key(spec.workspace_id, spec.files), {})
        self.host.specs[ref] = spec
        self.host.machines.setdefault(
            ref,
            Machine(
                ref=ref,
                workspace_id=spec.workspace_id,
                operation_id=spec.operation_id,
                power=Power.STOPPED,
            ),
        )
        self._strike(fault)
        return ref

    async def start(self, ref: str, secrets: Mapping[str, str]) -> Machine:
        """Switch a machine on, after its services."""
        if ref in self.host.machines:
            await self._services.start(self.host.machines[ref].workspace_id)
        fault = await self._pass("start")
        machine = evolve(
            self._machine(ref),
            power=Power.RUNNING,
            exit_code=None,
            is_out_of_memory=False,
            address="192.0.2.1",
        )
        self.host.machines[ref] = machine
        self.host.secrets[ref] = dict(secrets)
        self._strike(fault)
        return self._shown(machine)

    async def stop(self, ref: str, timeout_seconds: int) -> None:
        """Switch a machine off, then its services."""
        fault = await self._pass("stop")
        machine = self._machine(ref)
        if machine.power is Power.RUNNING:
            self._stop_processes(ref)
            exit_code = 137 if timeout_seconds == 0 else 143
            self.host.machines[ref] = evolve(machine, power=Power.STOPPED, exit_code=exit_code, address=None)
        await self._services.stop(machine.workspace_id)
        self._strike(fault)

    async def rest(self, workspace_id: str) -> None:
        """Switch services off unless a machine of theirs runs."""
        await self._pass("rest")
        machines = [found for found in self.host.machines.values() if found.workspace_id == workspace_id]
        if not any(machine.power is Power.RUNNING for machine in machines):
            await self._services.stop(workspace_id)

    async def inspect(self, ref: str) -> Machine | None:
        """Return the machine if it is there."""
        await self._pass("inspect")
        machine = self.host.machines.get(ref)
        return None if machine is None else self._shown(machine)

    def _shown(self, machine: Machine) -> Machine:
        """Return a machine with what runs beside it."""
        return evolve(machine, services=self._services.states(machine))

    async def execute(self, ref: str, execution: Execution, output: Output) -> int:
        """Understand `git` clones of known repositories, and a handful of shell commands."""
        await self._pass("execute")
        machine = self._machine(ref)
        if machine.power is not Power.RUNNING:
            raise ProviderError(f"The machine {ref} is not running.")
        files = self.host.files_of(machine)
        if "VMD_LOOK" in execution.env:
            arguments = execution.argv[4:]
            return await fake_git.answer(execution.env["VMD_LOOK"], arguments, files, output)
        if "VMD_GIT_LOOK" in execution.env:
            return await self._look(machine.workspace_id, files, output)
        if "VMD_REPO_URL" in execution.env:
            return await self._clone(execution.env, files, output)
        env = {**self.host.specs[ref].env, **self.host.secrets[ref], **execution.env}
        return await run_line(execution.argv[-1], env, files, output)

    async def _look(self, workspace_id: str, files: Mapping[str, str], output: Output) -> int:
        """Answer as the machine of a clean clone would, or one without, unless a test says otherwise."""
        await self._pass("look")
        usual = "repo 0 0 0 main\nend\n" if "README.md" in files else f"loose {len(files)}\nend\n"
        await output("stdout", self.host.git.get(workspace_id, usual).encode())
        return 0

    async def _clone(self, env: Mapping[str, str], files: dict[str, str], output: Output) -> int:
        url = env["VMD_REPO_URL"]
        commit = self.host.repos.get(url)
        if commit is None:
            await output("stderr", f"fatal: repository '{url}' not found\n".encode())
            return 128
        branch = env.get("VMD_REPO_BRANCH") or "main"
        if branch != "main":
            await output("stderr", f"fatal: Remote branch {branch} not found in upstream origin\n".encode())
            return 128
        files.clear()
        files.update({**fake_git.README, **self.host.trees.get(url, {})})
        await output("stderr", b"Cloning into '/workspace'...\n")
        await output("stdout", f"{commit}\n".encode())
        return 0

    async def supervise(self, ref: str) -> Supervisor:
        """Return the machine's supervisor, which outlives the daemon as the host does."""
        await self._pass("supervise")
        if self._machine(ref).power is not Power.RUNNING:
            raise ProviderError(f"The machine {ref} is not running.")
        if ref not in self.host.supervisors:
            spawner = FakeSpawner(self.host, ref)
            self.host.supervisors[ref] = LocalSupervisor(spawner, Persistence.MACHINE)
        return self.host.supervisors[ref].reopen()

    async def find_kept(self, ref: str, process_id: str) -> ProcessReport | None:
        """Return what the machine's supervisor knows."""
        await self._pass("find_kept")
        supervisor = self.host.supervisors.get(ref)
        return None if supervisor is None else await supervisor.look(process_id)

    async def read_kept(
        self, ref: str, process_id: str, stream: Stream, offset: int
    ) -> AsyncGenerator[Chunk, None]:
        """Yield what the machine's supervisor has kept."""
        await self._pass("read_kept")
        supervisor = self.host.supervisors.get(ref)
        if supervisor is not None:
            async for chunk in supervisor.follow(process_id, stream, offset, live=False, window=1):
                yield chunk

    async def discard(self, ref: str) -> None:
        """Take one machine away."""
        fault = await self._pass("discard")
        self._stop_processes(ref)
        self.host.machines.pop(ref, None)
        self._strike(fault)

    async def destroy(self, workspace_id: str) -> None:
        """Take all of a workspace away."""
        fault = await self._pass("destroy")
        for ref in [
            ref for ref, machine in self.host.machines.items() if machine.workspace_id == workspace_id
        ]:
            self._stop_processes(ref)
            del self.host.machines[ref]
        for key in [key for key in self.host.files if key.partition("/")[0] == workspace_id]:
            del self.host.files[key]
        self._services.destroy(workspace_id)
        self._strike(fault)

    async def stats(self, ref: str) -> Stats:
        """Return modest figures for a running machine."""
        await self._pass("stats")
        machine = self._machine(ref)
        if machine.power is not Power.RUNNING:
            raise ProviderError(f"The machine {ref} is not running.")
        resources = self.host.specs[ref].resources
        return Stats(
            cpu=CpuStats(usage_seconds=0.25, limit_cpus=resources.cpus),
            memory=MemoryStats(usage_bytes=4 * _MIB, limit_bytes=resources.memory_mb * _MIB),
            pids=PidsStats(current=2, limit=resources.pids),
            network=NetworkStats(rx_bytes=0, tx_bytes=0),
            disk=DiskStats(read_bytes=0, write_bytes=0, used_bytes=None),
        )

    async def cpu_seconds(self, ref: str) -> float:
        """Return a quarter of a second, or what a test says."""
        await self._pass("cpu_seconds")
        return self.host.cpu_seconds.get(self._machine(ref).ref, 0.25)

    async def machines(self) -> Sequence[Machine]:
        """Return all machines."""
        await self._pass("machines")
        return tuple(self._shown(machine) for machine in self.host.machines.values())

    async def holdings(self) -> Sequence[Holding]:
        """Return all machines, services and files."""
        await self._pass("holdings")
        return (
            *(
                Holding(workspace_id=machine.workspace_id, kind="machine", name=ref)
                for ref, machine in self.host.machines.items()
            ),
            *(Holding(workspace_id=key.partition("/")[0], kind="files", name=key) for key in self.host.files),
            *(
                Holding(workspace_id=found.workspace_id, kind="service", name=key)
                for key, found in self.host.services.items()
            ),
        )

    async def changes(self) -> AsyncIterator[str | None]:
        """Yield what was done to machines and services by `kill_machine`, `kill_service` and the like."""
        await self._pass("changes")
        listener: asyncio.Queue[str | None] = asyncio.Queue()
        self._listeners.append(listener)
        try:
            yield None
            while True:
                workspace_id = await listener.get()
                if not self.host.is_reachable:
                    raise ProviderUnavailable("The fake host is cut off.")
                yield workspace_id
        finally:
            self._listeners.remove(listener)

    async def close(self) -> None:
        """Do nothing."""
