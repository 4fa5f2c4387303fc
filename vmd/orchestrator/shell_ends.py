"""How shells end: by themselves, with their machine, or because nobody came back to them."""

import signal
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Annotated, Any

from attrs import evolve, frozen
from msgspec import Meta

from vmd.model.event import EventType
from vmd.model.shell import Shell, ShellStatus
from vmd.model.workspace import Workspace
from vmd.orchestrator.outputs import OutputBytes
from vmd.orchestrator.supervisors import Supervisors
from vmd.providers.process import ProcessReport, ProcessState, Supervisor
from vmd.store.database import Database, Transaction
from vmd.store.shells import (
    delete_shell,
    find_shell,
    list_detached,
    list_shells_of,
    mark_all_detached,
    update_shell,
)
from vmd.store.workspaces import find_workspace

PREFIX = "sh"
MAX_DETACH_SECONDS = 30 * 24 * 3600
MAX_ENDED_PER_SWEEP = 200


@frozen(kw_only=True)
class ShellOptions:
    """What is kept of shells."""

    # How long one goes on with nobody attached, or can be read after its end.
    detach_seconds: Annotated[int, Meta(ge=0, le=MAX_DETACH_SECONDS)] = 15 * 60
    output_bytes: OutputBytes = 2 * 1024 * 1024  # that can be replayed, at least four fifths of it


class ShellEnds:
    """Keeps the books of shells true to what their supervisors say."""

    def __init__(
        self,
        database: Database,
        supervisors: Supervisors,
        options: ShellOptions,
        is_attached: Callable[[str], bool],
    ) -> None:
        self._database = database
        self._supervisors = supervisors
        self._options = options
        self._is_attached = is_attached
        self.beginning: set[str] = set()  # in the books, and not yet told to their supervisors
        supervisors.add_listener(self)

    async def found(
        self, workspace: Workspace, supervisor: Supervisor, reports: Sequence[ProcessReport]
    ) -> None:
        """Settle what ended unseen, and have ended what the books do not know."""
        by_id = {report.id: report for report in reports if report.id.startswith(f"{PREFIX}-")}
        shells = await self._database.read(lambda tx: list_shells_of(tx, workspace.id))
        for shell in shells:
            report = by_id.pop(shell.id, None)
            if shell.status is ShellStatus.EXITED or shell.id in self.beginning:
                continue
            if report is None or report.state is not ProcessState.RUNNING:
                await self.write(shell, None if report is None else report.exit_code)
        for report in by_id.values():
            if report.state is ProcessState.RUNNING:
                supervisor.end(report.id, signal.SIGHUP)
            else:
                supervisor.forget(report.id)

    async def ended(self, workspace_id: str, supervisor: Supervisor, report: ProcessReport) -> None:
        """Write the end of a shell."""
        shell = await self._database.read(lambda tx: find_shell(tx, workspace_id, report.id))
        if shell is not None:
            await self.write(shell, report.exit_code)

    async def gone(self, workspace_id: str) -> None:
        """Write the end of the shells of a machine that stopped."""
        for shell in await self._database.read(lambda tx: list_shells_of(tx, workspace_id)):
            await self.write(shell, None)

    async def write(self, shell: Shell, exit_code: int | None) -> None:
        """Write that a shell has ended, once."""

        def unit(tx: Transaction) -> None:
            latest = find_shell(tx, shell.workspace_id, shell.id)
            if latest is None or latest.status is ShellStatus.EXITED:
                return
            workspace = find_workspace(tx, shell.workspace_id)
            ended = evolve(
                latest,
                status=ShellStatus.EXITED,
                exit_code=exit_code,
                finished_at=tx.now,
                detached_at=latest.detached_at or tx.now,
            )
            update_shell(tx, ended)
            if workspace is not None:
                tell(tx, EventType.SHELL_FINISHED, workspace.owner_id, ended, exit_code=exit_code)

        await self._database.write(unit)

    async def begin(self) -> None:
        """Take note that after a start nobody is attached to anything."""
        await self._database.write(mark_all_detached)

    async def end_detached(self) -> None:
        """End shells that nobody came back to, and forget those that ended."""
        age = timedelta(seconds=self._options.detach_seconds)
        for shell in await self._database.read(lambda tx: list_detached(tx, age, MAX_ENDED_PER_SWEEP)):
            supervisor = self._supervisors.find(shell.workspace_id)
            if self._is_attached(shell.id):
                continue
            if shell.status is ShellStatus.RUNNING:
                if supervisor is not None:
                    supervisor.end(shell.id, signal.SIGHUP)
                continue
            if supervisor is not None:
                supervisor.forget(shell.id)
            await self._database.write(lambda tx, gone=shell.id: delete_shell(tx, gone))  # type: ignore[misc]


def tell(tx: Transaction, kind: EventType, owner_id: str, shell: Shell, **data: Any) -> None:
    """Record an event about a shell."""
    tx.emit(
        kind,
        actor=shell.actor,
        owner_id=owner_id,
        workspace_id=shell.workspace_id,
        session_id=shell.id,
        **data,
    )
