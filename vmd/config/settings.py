"""What can be set, and to what it is set when nobody does."""

from typing import Annotated

from attrs import field, frozen
from msgspec import Meta

from vmd.model.quota import Limits
from vmd.model.workspace import Resources, ShortName
from vmd.orchestrator.command_ends import CommandOptions
from vmd.orchestrator.lifecycle import Deadlines
from vmd.orchestrator.shell_ends import ShellOptions

DAY_SECONDS = 24 * 3600
# How many times what a host has may be promised to the workspaces that run on it.
Overcommit = Annotated[float, Meta(ge=0.001, le=100_000)]
Seconds = Annotated[int, Meta(ge=0, le=3650 * DAY_SECONDS)]


@frozen(kw_only=True)
class HttpSettings:
    """The listener."""

    listen: str = "127.0.0.1:3121"  # HOST:PORT, or unix:PATH
    hosts: tuple[str, ...] = ()  # names that requests may be addressed to, besides localhost and addresses
    origins: tuple[str, ...] = ()  # of pages that may open sockets, besides the daemon's own


@frozen(kw_only=True)
class LogSettings:
    """The log on stderr."""

    level: Annotated[str, Meta(pattern="^(debug|info|warning|error)$")] = "info"
    format: Annotated[str, Meta(pattern="^(auto|json|text)$")] = "auto"  # auto: text on a terminal


@frozen(kw_only=True)
class OperationSettings:
    """The workers."""

    concurrency: Annotated[int, Meta(ge=1, le=1000)] = 10
    deadlines: Deadlines = field(factory=Deadlines)


@frozen(kw_only=True)
class JanitorSettings:
    """The sweep, and how long things are kept."""

    interval_seconds: Annotated[float, Meta(ge=0.05, le=3600)] = 15.0
    warning_seconds: Seconds = 600
    trash_grace_seconds: Seconds = 7 * DAY_SECONDS
    operations_seconds: Seconds = 30 * DAY_SECONDS
    events_seconds: Seconds = 30 * DAY_SECONDS
    events_count: Annotated[int, Meta(ge=100, le=1_000_000_000)] = 1_000_000
    busy_cpu_percent: Annotated[float, Meta(ge=0, le=100_000)] = 5.0  # of one processor: not idle


@frozen(kw_only=True)
class WorkspaceSettings:
    """What a workspace has that does not say, and how much of a host all of them may be promised."""

    provider: ShortName = "docker"
    resources: Resources = field(factory=Resources)
    cpu_overcommit: Overcommit = 16.0  # processors are shared fairly, and idle machines use none
    memory_overcommit: Overcommit = 2.0  # few machines use all the memory that they may


@frozen(kw_only=True)
class DockerSettings:
    """The Docker Engine."""

    enabled: bool = True
    url: str = "unix:///var/run/docker.sock"  # or tcp://HOST:PORT
    base_image: ShortName = "vmd-base:bookworm"
    subnet_pool: Annotated[str, Meta(pattern=r"^[0-9.]+/([89]|1[0-9]|2[0-8])$")] = "10.213.0.0/16"
    runtime: ShortName | None = None  # such as runsc
    sudo: bool = False  # lets the machine's user become root in it


@frozen(kw_only=True)
class FakeSettings:
    """Machines in memory only, to try things out without an engine."""

    enabled: bool = False


@frozen(kw_only=True)
class ProviderSettings:
    """Where machines come from."""

    docker: DockerSettings = field(factory=DockerSettings)
    fake: FakeSettings = field(factory=FakeSettings)


@frozen(kw_only=True)
class Settings:
    """Everything that can be set."""

    http: HttpSettings = field(factory=HttpSettings)
    log: LogSettings = field(factory=LogSettings)
    operations: OperationSettings = field(factory=OperationSettings)
    janitor: JanitorSettings = field(factory=JanitorSettings)
    quota: Limits = field(factory=Limits)
    commands: CommandOptions = field(factory=CommandOptions)
    shell: ShellOptions = field(factory=ShellOptions)
    workspaces: WorkspaceSettings = field(factory=WorkspaceSettings)
    providers: ProviderSettings = field(factory=ProviderSettings)
