"""What keeps a workspace from being idle: its shells' traffic, its commands, and its machine's processors."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from attrs import frozen

from vmd.model.workspace import Status, Workspace
from vmd.orchestrator.machines import Machines
from vmd.providers.base import ProviderError, ProviderUnavailable
from vmd.store.commands import count_unfinished
from vmd.store.database import Database, Transaction
from vmd.store.workspaces import (
    WorkspaceFilter,
    list_workspaces,
    touch_commanding,
    touch_workspaces,
)

MAX_LOOKS_AT_ONCE = 8
PAGE = 200

log = structlog.get_logger()


@frozen(kw_only=True)
class _Reading:
    ref: str
    at: float
    cpu_seconds: float


class Signs:
    """Gathers signs of use in memory, and writes them down at each sweep."""

    def __init__(
        self,
        database: Database,
        machines: Machines,
        cpu_percent: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Count a machine as used that used more than `cpu_percent` of one processor between two sweeps."""
        self._database = database
        self._machines = machines
        self._cpu_percent = cpu_percent
        self._clock = clock
        self._touched: set[str] = set()
        self._readings: dict[str, _Reading] = {}
        self._percents: dict[str, float] = {}
        self._disregarded: set[str] = set()

    @contextmanager
    def disregarded(self, workspace_id: str) -> Iterator[None]:
        """Take the processor time of a machine for the daemon's own use meanwhile, and not for its user's."""
        self._disregarded.add(workspace_id)
        try:
            yield
        finally:
            self._disregarded.discard(workspace_id)
            self._readings.pop(workspace_id, None)

    def touch(self, workspace_id: str) -> None:
        """Note that a workspace is in use now."""
        self._touched.add(workspace_id)

    def now(self, tx: Transaction, workspace: Workspace) -> tuple[str, ...]:
        """Return what keeps a workspace from being idle at this moment, for a person to read."""
        found = []
        if workspace.current_operation is not None:
            found.append(f"operation {workspace.current_operation.id}")
        if commands := count_unfinished(tx, workspace.id):
            found.append(f"{commands} running command{'s' if commands > 1 else ''}")
        if workspace.id in self._touched:
            found.append("traffic of a shell since the last sweep")
        percent = self._percents.get(workspace.id, 0.0)
        if percent > self._cpu_percent:
            found.append(f"the machine's processors at {percent:.0f} % of one")
        return tuple(found)

    async def write_down(self) -> None:
        """Write which workspaces were in use since the last sweep, or are now."""
        await self._look_at_processors()
        touched, self._touched = self._touched, set()

        def unit(tx: Transaction) -> None:
            touch_workspaces(tx, touched)
            touch_commanding(tx)

        await self._database.write(unit)

    async def _look_at_processors(self) -> None:
        """Read the processor time of every machine that an idle clock runs for."""
        workspaces = await self._read_watched()
        left = {workspace.id for workspace in workspaces}
        for known in self._readings.keys() - left:
            del self._readings[known]
            self._percents.pop(known, None)
        turns = asyncio.Semaphore(MAX_LOOKS_AT_ONCE)

        async def look(workspace: Workspace) -> None:
            async with turns:
                await self._look_at(workspace)

        await asyncio.gather(*(look(workspace) for workspace in workspaces))

    async def _read_watched(self) -> list[Workspace]:
        wanted = WorkspaceFilter(owner_id=None, statuses=(Status.RUNNING,))
        found: list[Workspace] = []
        after = None
        while True:
            page = await self._database.read(
                lambda tx, after=after: list_workspaces(tx, wanted, after, PAGE)  # type: ignore[misc]
            )
            found += [workspace for workspace in page if workspace.idle_timeout_seconds is not None]
            if len(page) < PAGE:
                return found
            after = page[-1].id

    async def _look_at(self, workspace: Workspace) -> None:
        ref = workspace.provider_ref or ""
        try:
            used = await self._machines.provider(workspace.provider).cpu_seconds(ref)
        except (ProviderError, ProviderUnavailable):
            self._readings.pop(workspace.id, None)
            return
        if workspace.id in self._disregarded:
            return
        now, before = self._clock(), self._readings.get(workspace.id)
        self._readings[workspace.id] = _Reading(ref=ref, at=now, cpu_seconds=used)
        if before is None or before.ref != ref or now <= before.at or used < before.cpu_seconds:
            return
        percent = 100 * (used - before.cpu_seconds) / (now - before.at)
        self._percents[workspace.id] = percent
        if percent > self._cpu_percent:
            self.touch(workspace.id)
