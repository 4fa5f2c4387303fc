"""The one place where concrete parts meet: what is made, in which order it starts, and how it stops."""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from vmd import __version__, systemd
from vmd.config import Settings
from vmd.events import Hub, Lagged
from vmd.http.app import UseCases, make_app
from vmd.janitor import sweep_for_ever
from vmd.model.event import EventType
from vmd.operations.queue import OperationQueue
from vmd.orchestrator.accounts import Accounts, add_first_admin
from vmd.orchestrator.activity import Signs
from vmd.orchestrator.commands import Commands
from vmd.orchestrator.detection import Detection
from vmd.orchestrator.doctor import Doctor
from vmd.orchestrator.expiry import Expiry, KeepFinal
from vmd.orchestrator.git_looks import GitLooks
from vmd.orchestrator.happenings import Happenings
from vmd.orchestrator.hosts import Hosts, Overcommit
from vmd.orchestrator.lifecycle import Lifecycle
from vmd.orchestrator.lifetime import Lifetimes, Retention
from vmd.orchestrator.machines import Machines
from vmd.orchestrator.operations import Operations
from vmd.orchestrator.outputs import Outputs
from vmd.orchestrator.planning import Planner
from vmd.orchestrator.plugin_files import load_plugins
from vmd.orchestrator.presets import list_presets, load_rules
from vmd.orchestrator.probing import Probes
from vmd.orchestrator.quota import Quotas
from vmd.orchestrator.shells import Shells
from vmd.orchestrator.snapshot_files import SnapshotFiles
from vmd.orchestrator.snapshot_works import SnapshotWorks
from vmd.orchestrator.snapshots import Snapshots
from vmd.orchestrator.supervisors import Supervisors
from vmd.orchestrator.templates import Catalogue, Templates
from vmd.orchestrator.tickets import Tickets
from vmd.orchestrator.timekeeping import Timekeeper
from vmd.orchestrator.workspaces import Workspaces
from vmd.providers import PROVIDERS
from vmd.providers.base import Provider
from vmd.providers.docker.body import ContainerOptions
from vmd.store.database import Database, DatabaseUnusable, DataDirectoryLock, Transaction, connect
from vmd.store.settings import find_setting, insert_setting

CONTROL_SOCKET = "control.sock"
ADMIN_TOKEN_FILE = "admin-token"
DATABASE_FILE = "vm.db"
KEEPALIVE_SECONDS = 15.0
SHUTDOWN_SECONDS = 3.0
MAX_PORT = 65535
FIRST_LOOK_SECONDS = 10.0  # at the providers, before the daemon calls itself ready

log = structlog.get_logger()


class DirectoryInUse(Exception):
    """Another daemon has this data directory."""


class Daemon:
    """One vmd on one data directory. `open` it, let it `work`, `close` it."""

    def __init__(
        self,
        settings: Settings,
        data_dir: Path,
        providers: Sequence[Provider] | None = None,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        keep_final: KeepFinal | None = None,
    ) -> None:
        """Prepare; `providers` replaces those of the settings, and the rest what is usual, for tests."""
        self._clock = clock
        self._monotonic = monotonic
        self._keep_final = keep_final
        self._settings = settings
        self._data_dir = data_dir
        self._given_providers = providers
        self._lock = DataDirectoryLock(data_dir)
        self._tasks: list[asyncio.Task[None]] = []
        self.addresses: list[str] = []

    async def open(self) -> None:
        """Take the data directory, open the books, and answer on the control socket.

        Raises DirectoryInUse, or DatabaseUnusable.
        """
        try:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError:
            raise DatabaseUnusable(f"{self._data_dir} is not a directory; give another --data-dir.") from None
        if not self._lock.acquire():
            raise DirectoryInUse(f"Another vmd uses {self._data_dir}; stop it, or give another --data-dir.")
        try:
            await self._open()
        except BaseException:
            self._lock.release()
            raise

    async def _open(self) -> None:
        settings = self._settings
        self._hub = Hub()
        os.umask(0o077)
        self._database = Database(
            connect(self._data_dir / DATABASE_FILE), on_commit=self._hub.publish, clock=self._clock
        )
        instance = await self._database.write(self._prepare_books)
        given = self._given_providers
        providers = {p.name: p for p in (_make_providers(settings, instance) if given is None else given)}
        self._providers = providers
        default = settings.workspaces.provider
        if default not in providers:
            default = next(iter(providers), default)
        machines = Machines(self._database, providers, default)
        signs = Signs(self._database, machines, settings.janitor.busy_cpu_percent)
        self._looks = GitLooks(self._database, machines, signs)
        snapshot_works = SnapshotWorks(self._database, machines)
        expiry = Expiry(self._looks, self._keep_final or snapshot_works.keep_final)
        overcommit = Overcommit(
            cpus=settings.workspaces.cpu_overcommit, memory=settings.workspaces.memory_overcommit
        )
        hosts = Hosts(machines.nodes(), machines.capacity, overcommit)
        quotas = Quotas(self._database, settings.quota, hosts)
        plugins = load_plugins(self._data_dir / "plugins", settings.providers.docker.base_image)
        for plugin, why in plugins.broken.items():
            log.warning("a plugin is broken", plugin=plugin, why=why)
        catalogue = Catalogue(
            self._data_dir / "templates",
            settings.providers.docker.base_image,
            settings.workspaces.resources,
            known_plugins=plugins.plugins,
            presets=partial(list_presets, load_rules()),
        )
        await catalogue.refresh()
        deadlines = settings.operations.deadlines
        detection = Detection(self._database, machines, quotas, catalogue)
        works = {
            **Lifecycle(self._database, machines, detection, deadlines, expiry.prepare).works(),
            **snapshot_works.works(take_seconds=deadlines.snapshot, delete_seconds=deadlines.snapshot_delete),
        }
        self._queue = OperationQueue(
            self._database, works, concurrency=settings.operations.concurrency, clock=self._clock
        )
        self._supervisors = supervisors = Supervisors(self._database, machines)
        outputs = Outputs(self._database, machines, supervisors)
        commands = Commands(self._database, machines, supervisors, outputs, settings.commands)
        self._shells = Shells(self._database, supervisors, outputs, settings.shell, signs.touch)
        interval_seconds = settings.janitor.interval_seconds
        timekeeper = Timekeeper(interval_seconds, self._monotonic)
        self._lifetimes = Lifetimes(
            self._database,
            self._queue,
            signs,
            self._looks,
            _retention(settings),
            timekeeper,
            ahead_seconds=interval_seconds,
        )
        snapshot_files = SnapshotFiles(self._database, self._queue, machines, quotas)
        self._probes = Probes(self._database, machines, providers, catalogue)
        self._sweeps = (
            self._lifetimes.sweep,  # first, since it judges the clock
            timekeeper.when_settled(commands.ends.forget_old),
            self._shells.ends.end_detached,
            snapshot_files.sweep,
            self._probes.sweep,
        )
        planner = Planner(machines, quotas, catalogue, plugins)
        self._machines = machines
        use_cases = UseCases(
            workspaces=Workspaces(self._database, self._queue, machines, quotas, planner, catalogue),
            snapshots=Snapshots(self._database, self._queue, planner, catalogue, quotas),
            snapshot_files=snapshot_files,
            probes=self._probes,
            templates=Templates(catalogue),
            operations=Operations(self._database, self._hub, self._queue, commands),
            commands=commands,
            shells=self._shells,
            lifetimes=self._lifetimes,
            accounts=Accounts(self._database),
            quotas=quotas,
            plugins=plugins,
            happenings=Happenings(self._database, self._hub),
            doctor=Doctor(self._database, providers, catalogue, plugins, is_probing=self._probes.is_live),
            tickets=Tickets(),
            provider_status=machines.status,
        )
        control, control_path = bind_control_socket(self._data_dir)
        app = make_app(
            use_cases,
            hosts={*settings.http.hosts, socket.gethostname().lower()},
            origins=settings.http.origins,
            control_path=control_path,
        )
        app.on_shutdown.append(self._close_hub)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=KEEPALIVE_SECONDS,
            shutdown_timeout=SHUTDOWN_SECONDS,
        )
        await self._runner.setup()
        await web.SockSite(self._runner, control).start()

    async def work(self) -> None:
        """Run operations, watch providers, sweep, and answer everybody."""
        await self._listen()
        await self._shells.ends.begin()
        self._queue.start()
        for name in self._providers:
            self._spawn(self._machines.watch(name, self._queue.wake))
        self._spawn(self._look_after_operations())
        self._spawn(self._supervisors.look_after(self._hub))
        self._spawn(sweep_for_ever(self._sweeps, self._settings.janitor.interval_seconds))
        interval = systemd.watchdog_seconds()
        if interval is not None:
            self._spawn(self._show_life(interval))
        await self._machines.wait_until_tried(FIRST_LOOK_SECONDS)
        systemd.notify(f"READY=1\nSTATUS=Listening on {', '.join(self.addresses)}")
        log.info("vmd is ready", version=__version__, listen=self.addresses, data_dir=str(self._data_dir))

    async def close(self) -> None:
        """Stop in the reverse order; what is unfinished goes on at the next start."""
        systemd.notify("STOPPING=1")
        await self._runner.cleanup()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._looks.close()
        await self._queue.stop()
        await self._probes.close()
        await self._machines.close()
        await self._supervisors.close()
        for provider in self._providers.values():
            await provider.close()
        await self._database.close()
        (self._data_dir / CONTROL_SOCKET).unlink(missing_ok=True)
        self._lock.release()

    async def _listen(self) -> None:
        handed_over = systemd.listen_sockets()
        for handed in handed_over:
            await web.SockSite(self._runner, handed).start()
        listen = self._settings.http.listen
        if not handed_over:
            if listen.startswith("unix:"):
                await web.UnixSite(self._runner, listen.removeprefix("unix:")).start()
            else:
                host, port = _host_and_port(listen)
                await web.TCPSite(self._runner, host, port).start()
        self.addresses = [_address(found) for found in self._runner.addresses[1:]]

    def _prepare_books(self, tx: Transaction) -> str:
        """Make fresh books usable: an instance id, and an administrator whose token is written to a file."""
        secret = add_first_admin(tx)
        if secret is not None:
            path = self._data_dir / ADMIN_TOKEN_FILE
            path.unlink(missing_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(f"{secret}\n")
            log.info("made the user admin; its token is in a file", file=str(path))
        instance = find_setting(tx, "instance")
        if instance is None:
            instance = secrets.token_hex(8)
            insert_setting(tx, "instance", instance)
        return instance

    async def _look_after_operations(self) -> None:
        """Have machines that changed during an operation looked at when it has ended."""
        while True:
            ended = self._hub.subscribe(lambda event: event.type is EventType.OPERATION_FINISHED)
            with ended, suppress(Lagged):
                while (event := await ended.next()) is not None:
                    await self._machines.look_again(event.workspace_id or "")
                return

    async def _close_hub(self, _: web.Application) -> None:
        self._hub.close()

    async def _show_life(self, interval_seconds: float) -> None:
        """Tell systemd that the loop turns, the books answer and operations are handed out."""
        while self._queue.is_working:
            await self._database.read(lambda tx: find_setting(tx, "instance"))
            systemd.notify("WATCHDOG=1")
            await asyncio.sleep(interval_seconds)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(coroutine))


def bind_control_socket(data_dir: Path) -> tuple[socket.socket, str]:
    """Return the control socket and the name it goes by; only the daemon's own user can connect to it.

    Bound through a directory descriptor, since a socket's path may have 107 bytes at most.
    """
    (data_dir / CONTROL_SOCKET).unlink(missing_ok=True)
    directory = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        path = f"/proc/self/fd/{directory}/{CONTROL_SOCKET}"
        control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        control.bind(path)
        os.chmod(data_dir / CONTROL_SOCKET, 0o600)
        return control, path
    finally:
        os.close(directory)


def _make_providers(settings: Settings, instance: str) -> list[Provider]:
    docker, fake = settings.providers.docker, settings.providers.fake
    made = []
    if docker.enabled:
        options = ContainerOptions(has_sudo=docker.sudo, runtime=docker.runtime)
        made.append(
            PROVIDERS["docker"](
                url=docker.url, instance=instance, subnet_pool=docker.subnet_pool, options=options
            )
        )
    if fake.enabled:
        made.append(PROVIDERS["fake"]())
    return made


def _retention(settings: Settings) -> Retention:
    janitor = settings.janitor
    return Retention(
        trash_grace_seconds=janitor.trash_grace_seconds,
        warning_seconds=janitor.warning_seconds,
        operations_seconds=janitor.operations_seconds,
        events_seconds=janitor.events_seconds,
        events_count=janitor.events_count,
    )


def _host_and_port(listen: str) -> tuple[str | None, int]:
    host, _, port = listen.rpartition(":")
    if not port.isdecimal() or int(port) > MAX_PORT:
        raise ValueError(f"it is not HOST:PORT with a port up to {MAX_PORT}, nor unix:PATH")
    return host.strip("[]") or None, int(port)


def _address(found: Any) -> str:
    if not isinstance(found, tuple):
        return f"unix:{found}"
    host = f"[{found[0]}]" if ":" in found[0] else found[0]
    return f"http://{host}:{found[1]}"


__all__ = ["ADMIN_TOKEN_FILE", "CONTROL_SOCKET", "Daemon", "DatabaseUnusable", "DirectoryInUse"]
