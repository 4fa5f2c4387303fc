"""How commands end: written once, by whoever learns of it first.

That is the report of the supervisor, the comparison when one is reached again, or the stop of the machine.
"""

import asyncio
import signal
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any

from attrs import evolve, frozen
from msgspec import Meta

from vmd.model.command import Command, CommandStatus
from vmd.model.errors import ErrorCode, Problem, Refused
from vmd.model.event import EventType
from vmd.model.operation import Job, Verdict
from vmd.model.workspace import Workspace
from vmd.operations.queue import finish
from vmd.orchestrator.machines import Machines
from vmd.orchestrator.outputs import OutputBytes
from vmd.orchestrator.supervisors import Supervisors
from vmd.providers.base import ProviderError, ProviderUnavailable
from vmd.providers.process import ProcessReport, ProcessState, Supervisor
from vmd.store.commands import (
    delete_old_commands,
    delete_surplus_commands,
    find_command,
    list_known,
    list_unfinished,
    update_command,
)
from vmd.store.database import Database, Transaction
from vmd.store.operations import find_job
from vmd.store.workspaces import find_workspace

PREFIX = "cmd"
MAX_RETENTION_SECONDS = 3650 * 24 * 3600
MAX_FORGOTTEN_AT_ONCE = 1000
LARGE_OUTPUT_BYTES = 64 * 1024  # after which it is looked whether too much is kept

_LOST = (
    "The machine stopped while the command ran. What it had printed is kept; start the workspace and run it "
    "again."
)
_NEVER_BEGUN = "vmd was stopped before the command was begun; run it again."


@frozen(kw_only=True)
class CommandOptions:
    """What is kept of commands."""

    output_bytes: OutputBytes = 64 * 1024 * 1024  # of each stream of a command
    workspace_bytes: OutputBytes = 1024 * 1024 * 1024  # of all commands of a workspace that have ended
    retention_seconds: Annotated[int, Meta(ge=0, le=MAX_RETENTION_SECONDS)] = 7 * 24 * 3600  # after its end


class CommandEnds:
    """Keeps the books of commands true to what their supervisors say."""

    def __init__(
        self, database: Database, machines: Machines, supervisors: Supervisors, options: CommandOptions
    ) -> None:
        self._database = database
        self._machines = machines
        self._supervisors = supervisors
        self._options = options
        self._waiting: dict[str, asyncio.Event] = {}  # for the end of a command to be in the books
        self.beginning: set[str] = set()  # in the books, and not yet told to their supervisors
        supervisors.add_listener(self)

    async def found(
        self, workspace: Workspace, supervisor: Supervisor, reports: Sequence[ProcessReport]
    ) -> None:
        """Settle what ended unseen, and have forgotten what the books no longer know."""
        by_id = {report.id: report for report in reports if report.id.startswith(f"{PREFIX}-")}
        unfinished, known = await self._database.read(
            lambda tx: (list_unfinished(tx, workspace.id), list_known(tx, workspace.id))
        )
        for command in unfinished:
            if command.id in self.beginning:
                continue
            report = by_id.get(command.id) or await supervisor.look(command.id)
            if report is None:
                await self.lose(command, None, _problem(_NEVER_BEGUN))
            elif report.state is not ProcessState.RUNNING:
                await self._settle(command, report)
            elif await self._is_cancelling(command):
                supervisor.end(command.id, signal.SIGTERM)
        for report in by_id.values():
            if report.id not in known:
                _remove(supervisor, report)

    async def ended(self, workspace_id: str, supervisor: Supervisor, report: ProcessReport) -> None:
        """Write the end of a command."""
        command = await self._database.read(lambda tx: find_command(tx, workspace_id, report.id))
        if command is not None:
            await self._settle(command, report)

    async def gone(self, workspace_id: str) -> None:
        """Write that what ran in a machine that stopped is lost, unless it had ended before."""
        workspace, unfinished = await self._database.read(
            lambda tx: (find_workspace(tx, workspace_id), list_unfinished(tx, workspace_id))
        )
        for command in unfinished:
            await self._settle(command, await self._find_kept(workspace, command))

    async def _find_kept(self, workspace: Workspace | None, command: Command) -> ProcessReport:
        lost = ProcessReport(id=command.id, state=ProcessState.LOST)
        if workspace is None or workspace.provider_ref is None:
            return lost
        try:
            provider = self._machines.provider(workspace.provider)
            return await provider.find_kept(workspace.provider_ref, command.id) or lost
        except (ProviderError, ProviderUnavailable):
            return lost

    async def _is_cancelling(self, command: Command) -> bool:
        job = await self._database.read(lambda tx: find_job(tx, command.operation_id))
        return job is not None and job.verdict is Verdict.CANCELLED

    async def _settle(self, command: Command, report: ProcessReport) -> None:
        if report.state is ProcessState.LOST:
            await self.lose(command, report, _problem(_LOST))
            return
        status, error = CommandStatus.EXITED, None
        if report.is_timed_out and command.timeout_seconds is not None:
            status = CommandStatus.TIMED_OUT
            error = _problem(
                f"The command ran for longer than its timeout of {command.timeout_seconds:g} s and was "
                "stopped; give it more time, or none."
            )
        elif report.signal is not None:
            status = CommandStatus.KILLED
        ending = evolve(
            command, status=status, exit_code=report.exit_code, signal=_signal_name(report.signal)
        )
        await self._write_end(with_sizes(ending, report), error)

    async def lose(self, command: Command, report: ProcessReport | None, error: Problem) -> None:
        """Write that a command is lost, and why."""
        lost = evolve(command, status=CommandStatus.LOST)
        await self._write_end(lost if report is None else with_sizes(lost, report), error)

    async def _write_end(self, ending: Command, error: Problem | None) -> None:
        """Write how a command ended, once, with its operation and the event."""

        def unit(tx: Transaction) -> None:
            before = find_command(tx, ending.workspace_id, ending.id)
            if before is None or before.finished_at is not None:
                return
            update_command(tx, evolve(ending, finished_at=tx.now))
            job = find_job(tx, ending.operation_id)
            if job is not None and not job.operation.is_final:
                _finish(tx, job, ending, error)

        await self._database.write(unit)
        waiting = self._waiting.pop(ending.id, None)
        if waiting is not None:
            waiting.set()
        if ending.stdout_bytes + ending.stderr_bytes >= LARGE_OUTPUT_BYTES:
            await self._forget_surplus(ending.workspace_id)

    async def wait(self, workspace_id: str, command_id: str) -> Command | None:
        """Return a command once its end is written; None if it is forgotten by then."""
        while True:
            ended = self._waiting.setdefault(command_id, asyncio.Event())
            command = await self._database.read(lambda tx: find_command(tx, workspace_id, command_id))
            if command is None or command.finished_at is not None:
                self._waiting.pop(command_id, None)
                return command
            await ended.wait()

    async def forget_old(self) -> None:
        """Forget commands that ended long ago, and what they printed."""
        age = timedelta(seconds=self._options.retention_seconds)
        self._forget(
            await self._database.write(lambda tx: delete_old_commands(tx, age, MAX_FORGOTTEN_AT_ONCE))
        )

    async def _forget_surplus(self, workspace_id: str) -> None:
        """Forget the oldest commands of a workspace that keeps more than it may."""
        most = self._options.workspace_bytes
        self._forget(
            await self._database.write(
                lambda tx: delete_surplus_commands(tx, workspace_id, most, MAX_FORGOTTEN_AT_ONCE)
            )
        )

    def _forget(self, gone: Sequence[tuple[str, str]]) -> None:
        for command_id, workspace_id in gone:
            supervisor = self._supervisors.find(workspace_id)
            if supervisor is not None:  # else it is done when the supervisor is found again
                supervisor.forget(command_id)


def _finish(tx: Transaction, job: Job, ending: Command, error: Problem | None) -> None:
    """End a command's operation: cancelled if that was asked for, failed if there is an error."""
    if error is not None and job.verdict is None:
        job = evolve(job, verdict=Verdict.FAILED, operation=evolve(job.operation, error=error))
    result: dict[str, Any] = {
        "status": ending.status,
        "exit_code": ending.exit_code,
        "signal": ending.signal,
    }
    tx.emit(
        EventType.COMMAND_FINISHED,
        actor=job.operation.actor,
        owner_id=job.owner_id,
        workspace_id=ending.workspace_id,
        operation_id=job.id,
        command_id=ending.id,
        **result,
    )
    finish(tx, job, lambda tx, job: result)


def with_sizes(command: Command, report: ProcessReport) -> Command:
    """Return the command with how much it has printed, and how much of that is kept."""
    return evolve(
        command,
        stdout_bytes=report.stdout.end,
        stderr_bytes=report.stderr.end,
        stdout_dropped_bytes=report.stdout.first,
        stderr_dropped_bytes=report.stderr.first,
    )


def _signal_name(number: int | None) -> str | None:
    if number is None:
        return None
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:  # a real-time signal
        return str(number)


def _problem(detail: str) -> Problem:
    return Refused(ErrorCode.PROVIDER_ERROR, detail).problem()


def _remove(supervisor: Supervisor, report: ProcessReport) -> None:
    """End or forget a process that is not in the books, or not any more."""
    if report.state is ProcessState.RUNNING:
        supervisor.end(report.id, signal.SIGTERM)
    else:
        supervisor.forget(report.id)
