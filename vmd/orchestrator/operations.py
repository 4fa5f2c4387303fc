"""Operations as their owners see them: list, get, wait, read the log, cancel."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

from attrs import evolve

from vmd.events import Hub, Lagged
from vmd.model.account import Actor, Scope
from vmd.model.errors import ErrorCode, Refused, not_found
from vmd.model.event import Event, EventType
from vmd.model.operation import Job, LogLine, Operation
from vmd.model.page import Page
from vmd.operations.queue import OperationQueue
from vmd.orchestrator.changes import cancel_job
from vmd.orchestrator.commands import Commands
from vmd.orchestrator.outcomes import as_before
from vmd.orchestrator.permissions import may_see, require_scope
from vmd.store.database import Database, Transaction
from vmd.store.operations import OperationFilter, find_job, list_logs, list_operations

LOG_BATCH = 500


class Operations:
    """The use cases of operations."""

    def __init__(self, database: Database, hub: Hub, queue: OperationQueue, commands: Commands) -> None:
        self._database = database
        self._hub = hub
        self._queue = queue
        self._commands = commands

    async def list(
        self, actor: Actor, wanted: OperationFilter, after: str | None, limit: int
    ) -> Page[Operation]:
        """Return a page of the operations on the actor's workspaces; admins see everybody's."""
        require_scope(actor, Scope.READ)
        wanted = evolve(wanted, owner_id=None if actor.is_admin else actor.user_id)
        if actor.workspace_id is not None:
            asked = wanted.workspace_ids or (actor.workspace_id,)
            wanted = evolve(wanted, workspace_ids=tuple({*asked} & {actor.workspace_id}))

        def unit(tx: Transaction) -> Page[Operation]:
            rows = list_operations(tx, wanted, after, limit + 1)
            return Page.cut(rows, limit, lambda operation: operation.id)

        return await self._database.read(unit)

    async def get(self, actor: Actor, operation_id: str) -> Operation:
        """Return one operation."""
        require_scope(actor, Scope.READ)
        return (await self._database.read(lambda tx: _get_job(tx, actor, operation_id))).operation

    async def wait(self, actor: Actor, operation_id: str, timeout_seconds: float) -> Operation:
        """Return the operation when it is final, or at the timeout as it stands."""
        with self._hub.subscribe(
            lambda event: event.type is EventType.OPERATION_FINISHED and event.operation_id == operation_id
        ) as finished:
            operation = await self.get(actor, operation_id)
            if operation.is_final or timeout_seconds == 0:
                return operation
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    await finished.next()
            return await self.get(actor, operation_id)

    async def logs(
        self, actor: Actor, operation_id: str, after: int, *, follow: bool
    ) -> AsyncGenerator[tuple[LogLine, ...], None]:
        """Yield batches of log lines; with `follow`, until the operation is final."""
        told = {EventType.OPERATION_LOG, EventType.OPERATION_FINISHED}

        def concerns(event: Event) -> bool:
            return event.operation_id == operation_id and event.type in told

        while True:
            with self._hub.subscribe(concerns) as news, suppress(Lagged):  # what was missed is in the books
                while True:
                    operation = await self.get(actor, operation_id)
                    while lines := await self._read_logs(operation_id, after):
                        yield lines
                        after = lines[-1].seq
                    if operation.is_final or not follow or await news.next() is None:
                        return

    async def cancel(self, actor: Actor, operation_id: str) -> Operation:
        """Record that an operation is to be cancelled, and return it as it stands then."""
        require_scope(actor, Scope.WRITE)
        interrupted: list[str] = []

        def unit(tx: Transaction) -> Operation:
            job = _get_job(tx, actor, operation_id)
            _require_cancellable(job.operation)
            left = cancel_job(tx, job, as_before)
            if left is not None:
                interrupted.append(left)
            return _get_job(tx, actor, operation_id).operation

        operation = await self._database.write(unit)
        if operation.command_id is not None:
            await self._commands.terminate(operation.workspace_id or "", operation.command_id)
            return operation
        for left in interrupted:
            self._queue.interrupt(left)
        return operation

    async def _read_logs(self, operation_id: str, after: int) -> tuple[LogLine, ...]:
        lines = await self._database.read(lambda tx: list_logs(tx, operation_id, after, LOG_BATCH))
        return tuple(lines)


def _get_job(tx: Transaction, actor: Actor, operation_id: str) -> Job:
    job = find_job(tx, operation_id)
    if job is None or not may_see(actor, job.operation.workspace_id, job.owner_id):
        raise not_found("operation", operation_id)
    return job


def _require_cancellable(operation: Operation) -> None:
    if operation.may_cancel:
        return
    why = (
        f"is {operation.status} already" if operation.is_final else f"({operation.type}) cannot be cancelled"
    )
    raise Refused(
        ErrorCode.INVALID_STATE,
        f"The operation {operation.id} {why}; wait for it, or delete the workspace.",
        operation_id=operation.id,
    )
