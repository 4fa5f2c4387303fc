"""The supervisors of the machines that run, each reached over one connection that is kept."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import structlog
from attrs import frozen

from vmd.events import Hub, Lagged
from vmd.model.event import Event, EventType
from vmd.model.workspace import TRANSITIONAL, Status, Workspace
from vmd.orchestrator.machines import Machines
from vmd.providers.base import ProviderError, ProviderUnavailable
from vmd.providers.process import ProcessReport, Supervisor
from vmd.store.commands import list_workspaces_with_unfinished
from vmd.store.database import Database, Transaction
from vmd.store.shells import list_workspaces_with_shells
from vmd.store.workspaces import WorkspaceFilter, find_workspace, list_workspaces

RETRY_SECONDS = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # between tries to connect again; the last repeats
MAX_AT_ONCE = 8  # connections that are being made while nobody waits for them
PAGE = 200

log = structlog.get_logger()


class Listener(Protocol):
    """One who keeps account of a kind of process."""

    async def found(
        self, workspace: Workspace, supervisor: Supervisor, reports: Sequence[ProcessReport]
    ) -> None:
        """Compare the books with what a supervisor has, now that it is reached."""

    async def ended(self, workspace_id: str, supervisor: Supervisor, report: ProcessReport) -> None:
        """Take note of a process that ended."""

    async def gone(self, workspace_id: str) -> None:
        """Take note that the workspace's machine does not run."""


@frozen(kw_only=True)
class _Connection:
    ref: str
    supervisor: Supervisor


class Supervisors:
    """Keeps a connection to the supervisor of every machine that runs, for whoever needs it."""

    def __init__(self, database: Database, machines: Machines) -> None:
        self._database = database
        self._machines = machines
        self._listeners: list[Listener] = []
        self._connections: dict[str, _Connection] = {}  # by workspace
        self._locks: dict[str, asyncio.Lock] = {}
        self._turns = asyncio.Semaphore(MAX_AT_ONCE)  # for those that nobody waits for
        self._tasks: set[asyncio.Task[None]] = set()

    def add_listener(self, listener: Listener) -> None:
        """Tell one more of what supervisors say."""
        self._listeners.append(listener)

    def find(self, workspace_id: str) -> Supervisor | None:
        """Return the supervisor of a machine if it is connected now."""
        connection = self._connections.get(workspace_id)
        return None if connection is None or not connection.supervisor.is_open else connection.supervisor

    async def reach(self, workspace_id: str) -> Supervisor:
        """Return the supervisor of a machine; connect if need be.

        Raises ProviderError, or ProviderUnavailable, also where the machine does not run.
        """
        known = self.find(workspace_id)
        if known is not None:
            return known
        workspace = await self._find(workspace_id)
        if workspace is None or workspace.status is not Status.RUNNING:
            raise ProviderUnavailable("The machine does not run; start the workspace.")
        return await self.of(workspace)

    async def of(self, workspace: Workspace) -> Supervisor:
        """Return the supervisor of a workspace that runs; connect if need be.

        Raises ProviderError or ProviderUnavailable.
        """
        ref = workspace.provider_ref or ""
        known = self._known(workspace.id, ref)
        if known is not None:
            return known
        async with self._locks.setdefault(workspace.id, asyncio.Lock()):
            known = self._known(workspace.id, ref)
            return known or await self._connect(workspace, ref)

    def _known(self, workspace_id: str, ref: str) -> Supervisor | None:
        connection = self._connections.get(workspace_id)
        is_good = connection is not None and connection.ref == ref and connection.supervisor.is_open
        return connection.supervisor if connection is not None and is_good else None

    async def _connect(self, workspace: Workspace, ref: str) -> Supervisor:
        supervisor = await self._machines.provider(workspace.provider).supervise(ref)
        supervisor.on_report = partial(self._take_report, workspace.id, supervisor)
        try:
            reports = await supervisor.list()
            for listener in self._listeners:
                await listener.found(workspace, supervisor, reports)
        except BaseException:
            await supervisor.close()
            raise
        self._connections[workspace.id] = _Connection(ref=ref, supervisor=supervisor)
        self._spawn(self._keep(workspace.id, supervisor))
        return supervisor

    def _take_report(self, workspace_id: str, supervisor: Supervisor, report: ProcessReport) -> None:
        self._spawn(self._tell_ended(workspace_id, supervisor, report))

    async def _tell_ended(self, workspace_id: str, supervisor: Supervisor, report: ProcessReport) -> None:
        for listener in self._listeners:
            await listener.ended(workspace_id, supervisor, report)

    async def _keep(self, workspace_id: str, supervisor: Supervisor) -> None:
        """Connect again when a connection breaks, for as long as the machine runs."""
        await supervisor.wait_closed()
        for pause in _pauses():
            await asyncio.sleep(pause)
            workspace = await self._find(workspace_id)
            if workspace is None or workspace.status is not Status.RUNNING:
                return
            if self.find(workspace_id) is not None:
                return
            with suppress(ProviderError, ProviderUnavailable):
                async with self._turns:
                    await self.of(workspace)
                return

    # Following the machines.

    async def look_after(self, hub: Hub) -> None:
        """Connect to machines as they start, and let go of them as they stop, for ever."""
        while True:
            with hub.subscribe(_is_about_power) as news, suppress(Lagged):
                await self._look_at_all()
                while (event := await news.next()) is not None:
                    await self._look_at(event.workspace_id or "")
                return

    async def _look_at_all(self) -> None:
        """Connect to every machine that runs, and settle what ran in those that do not."""

        def unit(tx: Transaction) -> set[str]:
            return {*list_workspaces_with_unfinished(tx), *list_workspaces_with_shells(tx)}

        for workspace_id in {*await self._database.read(unit), *self._connections}:
            await self._look_at(workspace_id)
        after = None
        while page := await self._read_running(after):
            for workspace in page:
                self._spawn(self._try(workspace))
            after = page[-1].id

    async def _read_running(self, after: str | None) -> list[Workspace]:
        wanted = WorkspaceFilter(owner_id=None, statuses=(Status.RUNNING,))
        return await self._database.read(lambda tx: list_workspaces(tx, wanted, after, PAGE))

    async def _look_at(self, workspace_id: str) -> None:
        workspace = await self._find(workspace_id)
        if workspace is not None and workspace.status is Status.RUNNING:
            self._spawn(self._try(workspace))
        elif workspace is None or workspace.status not in TRANSITIONAL or workspace.status is Status.DELETING:
            connection = self._connections.pop(workspace_id, None)
            self._locks.pop(workspace_id, None)
            if connection is not None:
                await connection.supervisor.close()
            for listener in self._listeners:
                await listener.gone(workspace_id)

    async def _try(self, workspace: Workspace) -> None:
        """Connect to a machine that is said to run; if it cannot be now, whoever needs it tries again."""
        for pause in RETRY_SECONDS:
            try:
                async with self._turns:
                    await self.of(workspace)
                return
            except (ProviderError, ProviderUnavailable) as error:
                log.info("a supervisor cannot be reached", workspace=workspace.id, why=str(error))
            await asyncio.sleep(pause)
            latest = await self._find(workspace.id)
            if latest is None or latest.status is not Status.RUNNING:
                return
            workspace = latest

    async def _find(self, workspace_id: str) -> Workspace | None:
        return await self._database.read(lambda tx: find_workspace(tx, workspace_id))

    async def close(self) -> None:
        """Let go of all; what they look after goes on."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in self._connections.values():
            await connection.supervisor.close()
        self._connections.clear()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("looking after a supervisor failed", exc_info=error)


def _is_about_power(event: Event) -> bool:
    return event.type in (EventType.WORKSPACE_STATUS, EventType.WORKSPACE_DELETED)


def _pauses() -> Any:
    yield from RETRY_SECONDS
    while True:
        yield RETRY_SECONDS[-1]
