"""What a provider of machines must do, and how it fails.

A machine is where a workspace runs: a container, or a place on a host. Its files at `/workspace` outlive it.
Every call may be repeated: making what is there adopts it, destroying what is not there succeeds.
"""

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from enum import StrEnum
from typing import Protocol

from attrs import field, frozen

from vmd.model.workspace import Resources, Service
from vmd.providers.process import MACHINE_USER, Chunk, ProcessReport, Stream, Supervisor
from vmd.providers.snapshots import Snapshots


class ProviderError(Exception):
    """The engine or host refused or failed: the message says what it said."""


class ProviderUnavailable(Exception):
    """The engine or host cannot be reached: nothing is known, and the work must wait."""


class Power(StrEnum):
    """Whether a machine runs."""

    RUNNING = "running"
    STOPPED = "stopped"


@frozen(kw_only=True)
class MachineSpec:
    """What a machine is made from."""

    workspace_id: str
    operation_id: str  # who makes it; part of its name, so that a retry finds it
    hostname: str
    node: str
    image: str
    resources: Resources
    env: Mapping[str, str] = field(factory=dict)  # without secrets
    files: str | None = None  # which of the workspace's files it gets, None for the first ones
    services: tuple[Service, ...] = ()  # what runs beside it
    snapshot_id: str | None = None  # whose disk it gets instead of the image's


@frozen(kw_only=True)
class ServiceState:
    """A service beside a machine as it was observed."""

    name: str
    is_running: bool


@frozen(kw_only=True)
class Machine:
    """A machine as it was observed."""

    ref: str
    workspace_id: str
    operation_id: str
    power: Power
    exit_code: int | None = None
    is_out_of_memory: bool = False
    address: str | None = None
    services: tuple[ServiceState, ...] = ()

    @property
    def is_at_rest(self) -> bool:
        """Whether neither it nor any service beside it runs."""
        return self.power is Power.STOPPED and not any(service.is_running for service in self.services)


@frozen(kw_only=True)
class Execution:
    """A command to run in a machine; it sees the workspace's secrets in its environment."""

    argv: tuple[str, ...]
    user: str = MACHINE_USER
    cwd: str = "/workspace"
    env: Mapping[str, str] = field(factory=dict)


@frozen(kw_only=True)
class Capacity:
    """What the host has, for requests that no machine there could meet."""

    cpus: float
    memory_mb: int
    can_limit_disk: bool
    disk_hint: str  # why disks cannot be limited


@frozen(kw_only=True)
class CpuStats:
    """Processor use."""

    usage_seconds: float  # since the machine started
    limit_cpus: float


@frozen(kw_only=True)
class MemoryStats:
    """Memory use, without the page cache that can be given back."""

    usage_bytes: int
    limit_bytes: int


@frozen(kw_only=True)
class PidsStats:
    """Processes and threads."""

    current: int
    limit: int


@frozen(kw_only=True)
class NetworkStats:
    """Traffic since the machine started."""

    rx_bytes: int
    tx_bytes: int


@frozen(kw_only=True)
class DiskStats:
    """Disk traffic since the machine started, and the space its own layer and files take, where known."""

    read_bytes: int
    write_bytes: int
    used_bytes: int | None


@frozen(kw_only=True)
class Stats:
    """What a running machine uses at one moment."""

    cpu: CpuStats
    memory: MemoryStats
    pids: PidsStats
    network: NetworkStats
    disk: DiskStats


@frozen(kw_only=True)
class Holding:
    """Something a provider holds for this daemon: of which workspace or snapshot, and what."""

    workspace_id: str  # or a snapshot's id
    kind: str  # machine, service, files, network, image
    name: str


Output = Callable[[str, bytes], Awaitable[None]]  # (stdout or stderr, bytes)


class Provider(Protocol):
    """Makes, runs and destroys machines. Every method raises ProviderError or ProviderUnavailable."""

    name: str
    nodes: tuple[str, ...]

    @property
    def snapshots(self) -> Snapshots:
        """What it does with snapshots."""

    async def capacity(self) -> Capacity:
        """Return what the host has."""

    async def has_image(self, image: str) -> bool:
        """Whether the image is there already."""

    async def pull(self, image: str, output: Output) -> None:
        """Fetch an image, telling how it goes."""

    async def build(
        self, image: str, recipe: str, output: Output, context: AsyncIterable[bytes] | None = None
    ) -> None:
        """Build an image from a recipe, the text of a Dockerfile, which may copy from a tar archive.

        Each step is told by a line `Step I/N : INSTRUCTION` before what it prints. Raises ProviderError with
        the step that failed and the end of what it printed. Nothing but a whole image is left, whether the
        build fails or its caller leaves; there is no limit of time.
        """

    async def built_images(self) -> Sequence[str]:
        """Return what this daemon built and no workspace owns: names, or ids of what lost its name."""

    async def remove_image(self, image: str) -> None:
        """Remove an image; "not there" is success, one that is in use is a ProviderError."""

    async def create(self, spec: MachineSpec) -> str:
        """Make the machine, and its files, network and services if there are none yet; return its ref."""

    async def start(self, ref: str, secrets: Mapping[str, str]) -> Machine:
        """Run the machine, with these values in the environment of what runs in it.

        What runs beside it is started first, and ready; a service that does not get there is a ProviderError
        with the end of what it printed.
        """

    async def stop(self, ref: str, timeout_seconds: int) -> None:
        """Ask the machine to end, and kill it when the time is over; then stop what runs beside it."""

    async def rest(self, workspace_id: str) -> None:
        """Stop what still runs beside a machine that is off or gone; do nothing while one runs."""

    async def inspect(self, ref: str) -> Machine | None:
        """Return the machine as it is now, or None if there is none."""

    async def execute(self, ref: str, execution: Execution, output: Output) -> int:
        """Run a command to its end and return its exit code."""

    async def supervise(self, ref: str) -> Supervisor:
        """Connect to what looks after the commands and terminals of a running machine."""

    async def find_kept(self, ref: str, process_id: str) -> ProcessReport | None:
        """Return how a process of a machine that is off had ended, None if there is no trace of it."""

    def read_kept(
        self, ref: str, process_id: str, stream: Stream, offset: int
    ) -> AsyncGenerator[Chunk, None]:
        """Yield what a machine that is off has kept of a process's output, from `offset` on."""

    async def discard(self, ref: str) -> None:
        """Destroy one machine and keep the workspace's files and services."""

    async def destroy(self, workspace_id: str) -> None:
        """Destroy all that there is of a workspace: machines, services, files, network, images."""

    async def stats(self, ref: str) -> Stats:
        """Return what a running machine uses now."""

    async def cpu_seconds(self, ref: str) -> float:
        """Return the processor time that a running machine has used since it started."""

    async def machines(self) -> Sequence[Machine]:
        """Return every machine of this daemon; exit codes and addresses may be missing."""

    async def holdings(self) -> Sequence[Holding]:
        """Return everything the provider holds for this daemon."""

    def changes(self) -> AsyncIterator[str | None]:
        """Yield the id of each workspace whose machine or service changed by itself, or None: look at all.

        The first item, None, says that the provider is reached; the iterator ends by raising
        ProviderUnavailable when it is no longer.
        """

    async def close(self) -> None:
        """Let go of connections."""
