"""Commands: run one, find it again, read what it printed, signal it.

A command is in the books before its supervisor hears of it, and is begun at most once. Its end is written by
whoever learns of it first: the report of the supervisor, the comparison when one is reached again, or the
stop of the machine.
"""

import asyncio
import base64
import binascii
import signal
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Annotated, Any

from attrs import evolve, frozen
from msgspec import Meta

from vmd.model.account import Actor, Scope
from vmd.model.command import Command, CommandStatus, NewCommand, StdinEncoding
from vmd.model.errors import ErrorCode, Problem, Refused, invalid_value, not_found
from vmd.model.event import EventType
from vmd.model.operation import (
    Job,
    Operation,
    OperationStatus,
    OperationType,
    Phase,
    Progress,
    Verdict,
)
from vmd.model.page import Page
from vmd.model.workspace import WORKDIR, Workspace
from vmd.operations.queue import finish
from vmd.orchestrator.changes import record
from vmd.orchestrator.machines import Machines
from vmd.orchestrator.outputs import COMMAND_WINDOW_BYTES, OutputBytes, Outputs
from vmd.orchestrator.permissions import get_running, get_workspace, require_scope
from vmd.orchestrator.refusals import refused_by_provider
from vmd.orchestrator.supervisors import Supervisors
from vmd.providers.base import ProviderError, ProviderUnavailable
from vmd.providers.process import (
    MACHINE_USER,
    Chunk,
    ProcessReport,
    ProcessSpec,
    ProcessState,
    Stream,
    Supervisor,
    UnknownUser,
)
from vmd.store.commands import (
    delete_old_commands,
    find_command,
    insert_command,
    list_commands,
    list_known,
    list_unfinished,
    update_command,
)
from vmd.store.database import Database, Transaction
from vmd.store.idempotency import Once, answer_once
from vmd.store.operations import find_job
from vmd.store.workspaces import find_workspace, list_secrets

PREFIX = "cmd"
MAX_RETENTION_SECONDS = 3650 * 24 * 3600
MAX_FORGOTTEN_PER_SWEEP = 1000
QUEUED_CHUNKS = 8

_LOST = (
    "The machine stopped while the command ran. What it had printed is kept; start the workspace and run it "
    "again."
)
_NEVER_BEGUN = "vmd was stopped before the command was begun; run it again."


@frozen(kw_only=True)
class CommandOptions:
    """What is kept of commands."""

    output_bytes: OutputBytes = 64 * 1024 * 1024  # of each stream of a command
    retention_seconds: Annotated[int, Meta(ge=0, le=MAX_RETENTION_SECONDS)] = 7 * 24 * 3600  # after its end


@frozen(kw_only=True)
class Printed:
    """A piece of what a command prints."""

    stream: Stream
    chunk: Chunk


@frozen(kw_only=True)
class _Begun:
    workspace: Workspace
    command: Command
    secrets: Mapping[str, str]


class Commands:
    """The use cases of commands."""

    def __init__(
        self,
        database: Database,
        machines: Machines,
        supervisors: Supervisors,
        outputs: Outputs,
        options: CommandOptions,
    ) -> None:
        self._database = database
        self._machines = machines
        self._supervisors = supervisors
        self._outputs = outputs
        self._options = options
        self._beginning: set[str] = set()  # in the books, and not yet told to their supervisors
        self._waiting: dict[str, asyncio.Event] = {}  # for the end of a command to be in the books
        supervisors.add_listener(self)

    # What is asked.

    async def create(
        self, actor: Actor, workspace_id: str, wanted: NewCommand, once: Once | None = None
    ) -> Operation:
        """Record a command and begin it; return its operation, which names it."""
        require_scope(actor, Scope.EXEC)
        stdin = _stdin_of(wanted)
        begun: list[_Begun] = []

        def make(tx: Transaction) -> Operation:
            workspace = get_running(tx, actor, workspace_id, "run commands")
            one = _record(tx, actor, workspace, wanted)
            begun.append(one)
            self._beginning.add(one.command.id)
            return _operation(tx, one.command)

        operation = await self._database.write(
            lambda tx: answer_once(tx, actor.user_id, once, Operation, lambda: make(tx))
        )
        for one in begun:
            await self._begin(one, self._spec(one, wanted, stdin))
        return operation

    async def list(self, actor: Actor, workspace_id: str, after: str | None, limit: int) -> Page[Command]:
        """Return a page of a workspace's commands."""
        require_scope(actor, Scope.EXEC)

        def unit(tx: Transaction) -> Page[Command]:
            workspace = get_workspace(tx, actor, workspace_id)
            rows = list_commands(tx, workspace.id, after, limit + 1)
            return Page.cut(rows, limit, lambda command: command.id)

        return await self._database.read(unit)

    async def get(self, actor: Actor, workspace_id: str, command_id: str) -> Command:
        """Return one command, with how much it has printed until now."""
        command = await self._get(actor, workspace_id, command_id)
        supervisor = self._supervisors.find(workspace_id)
        if command.finished_at is not None or supervisor is None:
            return command
        try:
            report = await supervisor.look(command_id)
        except ProviderUnavailable:
            return command
        return command if report is None else _with_sizes(command, report)

    async def output(
        self, actor: Actor, workspace_id: str, command_id: str, stream: Stream, offset: int, *, follow: bool
    ) -> AsyncGenerator[Chunk, None]:
        """Yield the bytes of one stream from `offset` on; with `follow`, until the command has ended."""
        command = await self._get(actor, workspace_id, command_id)
        live = follow and command.finished_at is None
        chunks = self._outputs.read(
            workspace_id, command_id, stream, offset, live=live, window=COMMAND_WINDOW_BYTES
        )
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk
        except (ProviderError, ProviderUnavailable) as error:
            raise refused_by_provider(error) from None

    async def follow(
        self, actor: Actor, workspace_id: str, command_id: str, offsets: Mapping[Stream, int] | None = None
    ) -> AsyncGenerator[Printed | Command, None]:
        """Yield what a command prints to both streams, as it comes; last the command as it ended."""
        await self._get(actor, workspace_id, command_id)
        queue: asyncio.Queue[Printed | Exception | None] = asyncio.Queue(QUEUED_CHUNKS)
        readers = [
            asyncio.create_task(
                self._pass_on(workspace_id, command_id, stream, (offsets or {}).get(stream, 0), queue)
            )
            for stream in Stream
        ]
        try:
            unfinished = len(readers)
            while unfinished:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise refused_by_provider(item)
                if item is None:
                    unfinished -= 1
                else:
                    yield item
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
        yield await self._wait_until_ended(actor, workspace_id, command_id)

    async def signal(self, actor: Actor, workspace_id: str, command_id: str, name: str) -> Command:
        """Send a signal to a command and what it started."""
        command = await self._get(actor, workspace_id, command_id)
        if command.finished_at is not None:
            raise Refused(
                ErrorCode.INVALID_STATE, f"The command {command.id} is {command.status}; it takes no signals."
            )
        supervisor = await self._reach(actor, workspace_id)
        supervisor.signal(command_id, signal.Signals[f"SIG{name}"])
        return command

    async def terminate(self, workspace_id: str, command_id: str) -> None:
        """Ask a command to end, and have it killed if it does not: its operation was cancelled."""
        supervisor = self._supervisors.find(workspace_id)
        if supervisor is not None:  # else it is done when the supervisor is found again
            supervisor.end(command_id, signal.SIGTERM)

    # Beginning.

    def _spec(self, one: _Begun, wanted: NewCommand, stdin: bytes) -> ProcessSpec:
        command = one.command
        return ProcessSpec(
            id=command.id,
            arguments=command.command if isinstance(command.command, tuple) else (),
            line=command.command if isinstance(command.command, str) else None,
            user=command.user or MACHINE_USER,
            cwd=command.cwd,
            env={**one.secrets, **wanted.env},
            stdin=stdin,
            timeout_seconds=command.timeout_seconds,
            kept_bytes=self._options.output_bytes,
        )

    async def _begin(self, one: _Begun, spec: ProcessSpec) -> None:
        """Have a recorded command begun; where that fails, it ends as lost, and the caller hears why."""
        try:
            supervisor = await self._supervisors.of(one.workspace)
            await supervisor.start(spec)
        except UnknownUser as error:
            refusal = invalid_value("/user", str(error))
        except (ProviderError, ProviderUnavailable) as error:
            refusal = refused_by_provider(error)
        else:
            return
        finally:
            self._beginning.discard(spec.id)
        await self._lose(one.command, None, refusal.problem())
        raise refusal

    # Listening to supervisors.

    async def found(
        self, workspace: Workspace, supervisor: Supervisor, reports: Sequence[ProcessReport]
    ) -> None:
        """Settle what ended unseen, and have forgotten what the books no longer know."""
        by_id = {report.id: report for report in reports if report.id.startswith(f"{PREFIX}-")}
        unfinished, known = await self._database.read(
            lambda tx: (list_unfinished(tx, workspace.id), list_known(tx, workspace.id))
        )
        for command in unfinished:
            report = by_id.get(command.id)
            if command.id in self._beginning:
                continue
            if report is None:
                await self._lose(command, None, _problem(_NEVER_BEGUN))
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

    # Settling.

    async def _settle(self, command: Command, report: ProcessReport) -> None:
        if report.state is ProcessState.LOST:
            await self._lose(command, report, _problem(_LOST))
            return
        status, error = CommandStatus.EXITED, None
        if report.is_timed_out:
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
        await self._write_end(_with_sizes(ending, report), error)

    async def _lose(self, command: Command, report: ProcessReport | None, error: Problem) -> None:
        lost = evolve(command, status=CommandStatus.LOST)
        await self._write_end(lost if report is None else _with_sizes(lost, report), error)

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

    async def _wait_until_ended(self, actor: Actor, workspace_id: str, command_id: str) -> Command:
        while True:
            ended = self._waiting.setdefault(command_id, asyncio.Event())
            command = await self._get(actor, workspace_id, command_id)
            if command.finished_at is not None:
                self._waiting.pop(command_id, None)
                return command
            await ended.wait()

    # Looking.

    async def _get(self, actor: Actor, workspace_id: str, command_id: str) -> Command:
        require_scope(actor, Scope.EXEC)

        def unit(tx: Transaction) -> Command:
            workspace = get_workspace(tx, actor, workspace_id)
            command = find_command(tx, workspace.id, command_id)
            if command is None:
                raise not_found("command", command_id)
            return command

        return await self._database.read(unit)

    async def _reach(self, actor: Actor, workspace_id: str) -> Supervisor:
        workspace = await self._database.read(lambda tx: get_running(tx, actor, workspace_id, "take signals"))
        try:
            return await self._supervisors.of(workspace)
        except (ProviderError, ProviderUnavailable) as error:
            raise refused_by_provider(error) from None

    async def _pass_on(
        self,
        workspace_id: str,
        command_id: str,
        stream: Stream,
        offset: int,
        queue: "asyncio.Queue[Printed | Exception | None]",
    ) -> None:
        """Put what one stream yields into the queue, then None, or the error that ended it."""
        chunks = self._outputs.read(
            workspace_id, command_id, stream, offset, live=True, window=COMMAND_WINDOW_BYTES
        )
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    await queue.put(Printed(stream=stream, chunk=chunk))
        except (ProviderError, ProviderUnavailable) as error:
            await queue.put(error)
        else:
            await queue.put(None)

    # Forgetting.

    async def forget_old(self) -> None:
        """Forget commands that ended long ago, and what they printed."""
        age = timedelta(seconds=self._options.retention_seconds)
        gone = await self._database.write(lambda tx: delete_old_commands(tx, age, MAX_FORGOTTEN_PER_SWEEP))
        for command_id, workspace_id in gone:
            supervisor = self._supervisors.find(workspace_id)
            if supervisor is not None:  # else it is done when the supervisor is found again
                supervisor.forget(command_id)


def _record(tx: Transaction, actor: Actor, workspace: Workspace, wanted: NewCommand) -> _Begun:
    """Write a new command and its operation."""
    command = Command(
        id=tx.new_id(PREFIX),
        workspace_id=workspace.id,
        operation_id=tx.new_id("op"),
        actor=actor.name,
        command=wanted.command,
        cwd=wanted.cwd or WORKDIR,
        user=wanted.user,
        timeout_seconds=wanted.timeout_seconds,
        status=CommandStatus.RUNNING,
        exit_code=None,
        signal=None,
        created_at=tx.now,
        started_at=tx.now,
        finished_at=None,
        stdout_bytes=0,
        stderr_bytes=0,
        stdout_dropped_bytes=0,
        stderr_dropped_bytes=0,
    )
    operation = Operation(
        id=command.operation_id,
        type=OperationType.COMMAND,
        status=OperationStatus.RUNNING,
        workspace_id=workspace.id,
        command_id=command.id,
        actor=actor.name,
        created_at=tx.now,
        started_at=tx.now,
        may_cancel=True,
        attempt=1,
        progress=Progress(phase=Phase.RUN, message="The command runs."),
    )
    insert_command(tx, command)
    record(tx, operation, workspace, {})
    tx.emit(
        EventType.COMMAND_STARTED,
        actor=actor.name,
        owner_id=workspace.owner_id,
        workspace_id=workspace.id,
        operation_id=operation.id,
        command_id=command.id,
        command=_shown(wanted.command),
    )
    return _Begun(workspace=workspace, command=command, secrets=list_secrets(tx, workspace.id))


def _operation(tx: Transaction, command: Command) -> Operation:
    job = find_job(tx, command.operation_id)
    assert job is not None
    return job.operation


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


def _with_sizes(command: Command, report: ProcessReport) -> Command:
    """Return the command with how much it has printed, and how much of that is kept."""
    return evolve(
        command,
        stdout_bytes=report.stdout.end,
        stderr_bytes=report.stderr.end,
        stdout_dropped_bytes=report.stdout.first,
        stderr_dropped_bytes=report.stderr.first,
    )


def _stdin_of(wanted: NewCommand) -> bytes:
    text = wanted.stdin or ""
    if wanted.stdin_encoding is StdinEncoding.UTF_8:
        return text.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise invalid_value("/stdin", "is not base64, which stdin_encoding says it is") from None


def _signal_name(number: int | None) -> str | None:
    if number is None:
        return None
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:  # a real-time signal
        return str(number)


def _shown(command: tuple[str, ...] | str) -> str:
    """Return a command as short as an event may be."""
    text = command if isinstance(command, str) else " ".join(command)
    return text if len(text) <= 200 else text[:200] + "…"


def _problem(detail: str) -> Problem:
    return Refused(ErrorCode.PROVIDER_ERROR, detail).problem()


def _remove(supervisor: Supervisor, report: ProcessReport) -> None:
    """End or forget a process that is not in the books, or not any more."""
    if report.state is ProcessState.RUNNING:
        supervisor.end(report.id, signal.SIGTERM)
    else:
        supervisor.forget(report.id)
