"""Commands: run one, find it again, read what it printed, signal it.

A command is in the books before its supervisor hears of it, and is begun at most once.
"""

import asyncio
import base64
import binascii
import signal
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing

from attrs import frozen

from vmd.model.account import Actor, Scope
from vmd.model.command import Command, CommandStatus, NewCommand, StdinEncoding
from vmd.model.errors import ErrorCode, Refused, invalid_value, not_found
from vmd.model.event import EventType
from vmd.model.operation import (
    Operation,
    OperationStatus,
    OperationType,
    Phase,
    Progress,
)
from vmd.model.page import Page
from vmd.model.workspace import WORKDIR, Workspace
from vmd.operations.report import redact
from vmd.orchestrator.changes import record
from vmd.orchestrator.command_ends import PREFIX, CommandEnds, CommandOptions, with_sizes
from vmd.orchestrator.machines import Machines
from vmd.orchestrator.outputs import COMMAND_WINDOW_BYTES, Outputs
from vmd.orchestrator.permissions import get_running, get_workspace, require_scope
from vmd.orchestrator.refusals import refused_by_provider
from vmd.orchestrator.supervisors import Supervisors
from vmd.providers.base import ProviderError, ProviderUnavailable
from vmd.providers.process import (
    MACHINE_USER,
    Chunk,
    ProcessSpec,
    Stream,
    UnknownUser,
)
from vmd.store.commands import (
    find_command,
    insert_command,
    list_commands,
)
from vmd.store.database import Database, Transaction
from vmd.store.idempotency import Once, answer_once
from vmd.store.operations import find_job
from vmd.store.workspaces import list_secrets

QUEUED_CHUNKS = 8


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
        self._supervisors = supervisors
        self._outputs = outputs
        self._options = options
        self.ends = CommandEnds(database, machines, supervisors, options)

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
            self.ends.beginning.add(one.command.id)
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
        return command if report is None else with_sizes(command, report)

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
        ending = await self.ends.wait(workspace_id, command_id)
        if ending is not None:
            yield ending

    async def signal(
        self, actor: Actor, workspace_id: str, command_id: str, name: str, once: Once | None = None
    ) -> Command:
        """Send a signal to a command and what it started."""
        known = await self._get(actor, workspace_id, command_id)
        is_new: list[bool] = []

        def make(tx: Transaction) -> Command:
            is_new.append(True)
            return _get_running(tx, actor, workspace_id, command_id)

        try:
            if known.finished_at is None:
                await self._supervisors.reach(workspace_id)  # first, since a signal is recorded as sent
            command = await self._database.write(
                lambda tx: answer_once(tx, actor.user_id, once, Command, lambda: make(tx))
            )
            if is_new:
                supervisor = await self._supervisors.reach(workspace_id)
                supervisor.signal(command_id, signal.Signals[f"SIG{name}"])
        except (ProviderError, ProviderUnavailable) as error:
            raise refused_by_provider(error) from None
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
            self.ends.beginning.discard(spec.id)
        await self.ends.lose(one.command, None, refusal.problem())
        raise refusal

    # Looking.

    async def _get(self, actor: Actor, workspace_id: str, command_id: str) -> Command:
        require_scope(actor, Scope.EXEC)
        return await self._database.read(lambda tx: _get_command(tx, actor, workspace_id, command_id))

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


def _get_command(tx: Transaction, actor: Actor, workspace_id: str, command_id: str) -> Command:
    workspace = get_workspace(tx, actor, workspace_id)
    command = find_command(tx, workspace.id, command_id)
    if command is None:
        raise not_found("command", command_id)
    return command


def _get_running(tx: Transaction, actor: Actor, workspace_id: str, command_id: str) -> Command:
    command = _get_command(tx, actor, workspace_id, command_id)
    if command.finished_at is not None:
        raise Refused(
            ErrorCode.INVALID_STATE, f"The command {command.id} is {command.status}; it takes no signals."
        )
    return command


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
    secrets = list_secrets(tx, workspace.id)
    insert_command(tx, command)
    record(tx, operation, workspace.owner_id, {})
    tx.emit(
        EventType.COMMAND_STARTED,
        actor=actor.name,
        owner_id=workspace.owner_id,
        workspace_id=workspace.id,
        operation_id=operation.id,
        command_id=command.id,
        command=_shown(wanted.command, secrets.values()),
    )
    return _Begun(workspace=workspace, command=command, secrets=secrets)


def _operation(tx: Transaction, command: Command) -> Operation:
    job = find_job(tx, command.operation_id)
    assert job is not None
    return job.operation


def _stdin_of(wanted: NewCommand) -> bytes:
    text = wanted.stdin or ""
    if wanted.stdin_encoding is StdinEncoding.UTF_8:
        return text.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise invalid_value("/stdin", "is not base64, which stdin_encoding says it is") from None


def _shown(command: tuple[str, ...] | str, secrets: Collection[str]) -> str:
    """Return a command as short as an event may be, and without secrets."""
    text = redact(command if isinstance(command, str) else " ".join(command), secrets)
    return text if len(text) <= 200 else text[:200] + "…"
