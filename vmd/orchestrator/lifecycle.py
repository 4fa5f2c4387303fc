"""How the life of a machine is worked: create, start, stop, restart, rebuild, expire, delete.

Each work talks to a provider outside any transaction, in steps that may be repeated, and returns a function
that writes its outcome. A work whose workspace was taken from it meanwhile leaves without a word.
"""

from collections.abc import Mapping
from typing import Any

from attrs import evolve, frozen

from vmd.model.errors import ErrorCode, Refused
from vmd.model.event import EventType
from vmd.model.operation import Job, OperationType, Phase, Verdict
from vmd.model.workspace import Status, Workspace
from vmd.operations.queue import Settle, Work
from vmd.operations.report import Report
from vmd.orchestrator.changes import leave, save
from vmd.orchestrator.machines import Machines, facts
from vmd.orchestrator.provisioning import clone, provision
from vmd.providers.base import Machine, MachineSpec, Power, Provider, ProviderError, ProviderUnavailable
from vmd.store.clocks import Clock
from vmd.store.database import Database, Transaction
from vmd.store.leftovers import insert_leftover
from vmd.store.workspaces import delete_workspace, find_workspace, list_secrets

STOP_TIMEOUT_SECONDS = 10
FORGET_ATTEMPTS = 3  # tries before a forced delete forgets what cannot be destroyed


@frozen(kw_only=True)
class Deadlines:
    """How many seconds each type of operation may take, waiting for its provider not counted."""

    create: float = 1800
    start: float = 120
    stop: float = 700  # longer than a stop's timeout_seconds may be
    restart: float = 800
    rebuild: float = 1800
    delete: float = 300
    expire: float = 120


class Lifecycle:
    """The works, by type of operation."""

    def __init__(self, database: Database, machines: Machines, deadlines: Deadlines) -> None:
        self._database = database
        self._machines = machines
        self._deadlines = deadlines

    def works(self) -> Mapping[OperationType, Work]:
        """Return how each type of operation is done."""
        give_up = self._give_up
        look = self._recover_by_looking
        deadlines = self._deadlines
        return {
            OperationType.CREATE: Work(
                run=self._create,
                recover=self._recover_create,
                give_up=give_up,
                claimed=_claimed_create,
                deadline_seconds=deadlines.create,
            ),
            OperationType.START: Work(
                run=self._start, recover=look, give_up=give_up, deadline_seconds=deadlines.start
            ),
            OperationType.STOP: Work(
                run=self._stop, recover=look, give_up=give_up, deadline_seconds=deadlines.stop
            ),
            OperationType.RESTART: Work(
                run=self._restart, recover=look, give_up=give_up, deadline_seconds=deadlines.restart
            ),
            OperationType.REBUILD: Work(
                run=self._rebuild,
                recover=self._recover_rebuild,
                give_up=give_up,
                deadline_seconds=deadlines.rebuild,
            ),
            OperationType.EXPIRE: Work(
                run=self._expire, recover=look, give_up=give_up, deadline_seconds=deadlines.expire
            ),
            OperationType.DELETE: Work(
                run=self._delete,
                recover=self._recover_delete,
                give_up=lambda job: _settle_undeleted,
                deadline_seconds=deadlines.delete,
            ),
        }

    # Create.

    async def _create(self, job: Job, report: Report) -> Settle:
        workspace = await self._held(job)
        if workspace is None:
            return leave
        provider = self._machines.provider(workspace.provider)
        machine = await self._make(job, report, provider, workspace)
        return _settle_running(machine)

    async def _make(self, job: Job, report: Report, provider: Provider, workspace: Workspace) -> Machine:
        """Make a machine, run it, and set it up; go on after the steps that an earlier try recorded."""
        if not await provider.has_image(workspace.image):
            await report.phase(Phase.PULL, f"Fetching the image {workspace.image}.")
            await provider.pull(workspace.image, report.output)
        await report.phase(Phase.CREATE, "Making the machine.")
        spec = MachineSpec(
            workspace_id=workspace.id,
            operation_id=job.id,
            hostname=workspace.name,
            node=workspace.node,
            image=workspace.image,
            resources=workspace.resources,
            env=workspace.env,
        )
        ref = await provider.create(spec)
        await report.phase(Phase.START, "Starting the machine.", ref=ref)
        if job.operation.attempt > 1:
            await provider.stop(ref, 0)  # ends what an earlier try may have left running in it
        machine = await provider.start(ref, await self._secrets(workspace))
        if workspace.repo is not None and not (workspace.is_cloned or job.checkpoint.get("is_cloned")):
            commit = await clone(provider, machine, workspace.repo, report)
            await report.checkpoint(is_cloned=True, commit=commit)
        await provision(provider, machine, workspace.provisioning, job, report)
        return machine

    async def _recover_create(self, job: Job, report: Report) -> Settle:
        """Keep a machine that could not be set up, switched off; take away everything if cancelled."""
        workspace = await self._held(job)
        if workspace is None:
            return leave
        provider = self._machines.provider(workspace.provider)
        await report.phase(Phase.CLEANUP, "Cleaning up.")
        ref = job.checkpoint.get("ref")
        if job.verdict is Verdict.CANCELLED or ref is None:
            await provider.destroy(workspace.id)
            return _settle_failed(None)
        machine = await _switched_off(provider, ref)
        return _settle_failed(machine)

    # Power.

    async def _start(self, job: Job, report: Report) -> Settle:
        workspace = await self._held(job)
        if workspace is None:
            return leave
        provider, ref = self._machine_of(workspace)
        await report.phase(Phase.START, "Starting the machine.")
        return _settle_running(await provider.start(ref, await self._secrets(workspace)))

    async def _stop(self, job: Job, report: Report) -> Settle:
        workspace = await self._held(job)
        if workspace is None:
            return leave
        provider, ref = self._machine_of(workspace)
        await report.phase(Phase.STOP, "Stopping the machine.")
        await provider.stop(ref, _stop_timeout(job))
        return _settle_observed(await provider.inspect(ref))

    async def _restart(self, job: Job, report: Report) -> Settle:
        workspace = await self._held(job)
        if workspace is None:
            return leave
        provider, ref = self._machine_of(workspace)
        await report.phase(Phase.STOP, "Stopping the machine.")
        await provider.stop(ref, _stop_timeout(job))
        await report.phase(Phase.START, "Starting the machine.")
        await self._database.write(lambda tx: _go_to(tx, job, Status.STARTING))
        return _settle_running(await provider.start(ref, await self._secrets(workspace)))

    async def _recover_by_looking(self, job: Job, report: Report) -> Settle:
        """Leave the workspace as its machine is found; a start that was cancelled is switched off."""
        workspace = await self._held(job)
        if workspace is None:
            return leave
        if workspace.provider_ref is None:
            return _settle_observed(None)
        provider = self._machines.provider(workspace.provider)
        if job.verdict is Verdict.CANCELLED:
            return _settle_observed(await _switched_off(provider, workspace.provider_ref))
        return _settle_observed(await provider.inspect(workspace.provider_ref))

    # Rebuild: a new machine beside the old one, then the swap.

    async def _rebuild(self, job: Job, report: Report) -> Settle:
        workspace = await self._held(job)
        if workspace is None:
            return leave
        provider = self._machines.provider(workspace.provider)
        new = job.checkpoint.get("swapped")
        if new is None:
            if workspace.provider_ref is not None:
                await report.phase(Phase.STOP, "Stopping the old machine.")
                await _switched_off(provider, workspace.provider_ref)
            new = (await self._make(job, report, provider, workspace)).ref
            await report.forbid_cancel(swapped=new)
        return await self._after_swap(job, report, provider, workspace, str(new))

    async def _after_swap(
        self, job: Job, report: Report, provider: Provider, workspace: Workspace, new: str
    ) -> Settle:
        await report.phase(Phase.SWAP, "Taking the old machine away.")
        if workspace.provider_ref not in (None, new):
            await provider.discard(str(workspace.provider_ref))
        if job.input.get("previous") == Status.STOPPED:
            return _settle_observed(await _switched_off(provider, new))
        return _settle_observed(await provider.inspect(new))

    async def _recover_rebuild(self, job: Job, report: Report) -> Settle:
        """Before the swap: take the new machine away and bring the old one back. After it: finish."""
        workspace = await self._held(job)
        if workspace is None:
            return leave
        provider = self._machines.provider(workspace.provider)
        swapped = job.checkpoint.get("swapped")
        if swapped is not None:
            return await self._after_swap(job, report, provider, workspace, swapped)
        await report.phase(Phase.CLEANUP, "Bringing the old machine back.")
        for machine in await provider.machines():
            if machine.workspace_id == workspace.id and machine.ref != workspace.provider_ref:
                await provider.discard(machine.ref)
        old = workspace.provider_ref
        if old is None:
            return _settle_failed(None)
        if job.input.get("previous") == Status.RUNNING:
            await provider.start(old, await self._secrets(workspace))
        found = await provider.inspect(old)
        was_failed = job.input.get("previous") == Status.FAILED
        return _settle_failed(found) if was_failed else _settle_observed(found)

    # The end.

    async def _expire(self, job: Job, report: Report) -> Settle:
        workspace = await self._held(job)
        if workspace is None:
            return leave
        if workspace.status is Status.STOPPING:
            provider, ref = self._machine_of(workspace)
            await report.phase(Phase.STOP, "Stopping the machine.")
            await provider.stop(ref, STOP_TIMEOUT_SECONDS)
        return _settle_trashed

    async def _delete(self, job: Job, report: Report) -> Settle:
        workspace = await self._held(job)
        if workspace is None:
            return leave
        await report.phase(Phase.DESTROY, "Destroying the machine and its files.")
        try:
            await self._machines.provider(workspace.provider).destroy(workspace.id)
        except (ProviderError, ProviderUnavailable) as error:
            if not job.input.get("force"):
                raise
            if job.operation.attempt < FORGET_ATTEMPTS:
                raise ProviderUnavailable(str(error)) from error
            reason = str(error)
            report.log(f"Forgetting what is left: {reason}")
            return lambda tx, job: _settle_deleted(tx, job, leftover=reason)
        return _settle_deleted

    async def _recover_delete(self, job: Job, report: Report) -> Settle:
        """Keep the workspace, to be deleted again."""
        return _settle_undeleted

    # Shared.

    async def _held(self, job: Job) -> Workspace | None:
        """Return the job's workspace, or None when it was taken from it."""
        return await self._database.read(lambda tx: _held(tx, job))

    async def _secrets(self, workspace: Workspace) -> dict[str, str]:
        return await self._database.read(lambda tx: list_secrets(tx, workspace.id))

    def _machine_of(self, workspace: Workspace) -> tuple[Provider, str]:
        if workspace.provider_ref is None:
            raise Refused(
                ErrorCode.PROVIDER_ERROR, "There is no machine any more; rebuild the workspace or delete it."
            )
        return self._machines.provider(workspace.provider), workspace.provider_ref

    def _give_up(self, job: Job) -> Settle:
        """Settle without a look: what may be there is kept on record."""

        def settle(tx: Transaction, job: Job) -> None:
            workspace = _held(tx, job)
            if workspace is not None:
                ref = workspace.provider_ref or job.checkpoint.get("ref")
                _release(tx, job, workspace, status=Status.FAILED, provider_ref=ref, last_error=_reason(job))

        return settle


def _held(tx: Transaction, job: Job) -> Workspace | None:
    workspace = find_workspace(tx, job.operation.workspace_id or "")
    current = None if workspace is None else workspace.current_operation
    return workspace if current is not None and current.id == job.id else None


def _release(tx: Transaction, job: Job, workspace: Workspace, **changes: Any) -> Workspace:
    """Write an outcome and let go of the workspace."""
    if job.checkpoint.get("is_cloned") and workspace.repo is not None:
        commit = job.checkpoint.get("commit") or workspace.repo.commit
        changes |= {"is_cloned": True, "repo": evolve(workspace.repo, commit=commit)}
    after = evolve(workspace, current_operation=None, **changes)
    return save(tx, workspace, after, actor=job.operation.actor, reason=job.operation.type)


def _go_to(tx: Transaction, job: Job, status: Status) -> None:
    workspace = _held(tx, job)
    if workspace is not None and workspace.status is not status:
        save(tx, workspace, evolve(workspace, status=status), actor=job.operation.actor)


def _claimed_create(tx: Transaction, job: Job) -> None:
    if job.verdict is None:
        _go_to(tx, job, Status.CREATING)


def _settle_running(machine: Machine) -> Settle:
    def settle(tx: Transaction, job: Job) -> dict[str, Any] | None:
        workspace = _held(tx, job)
        if workspace is None:
            return None
        _release(
            tx,
            job,
            workspace,
            **facts(machine),
            started_at=tx.now,
            last_activity_at=tx.now,
            last_error=None,
        )
        return {"changed": True}

    return settle


def _settle_observed(machine: Machine | None) -> Settle:
    """Settle on the machine that was found; a failure is remembered beside it."""

    def settle(tx: Transaction, job: Job) -> dict[str, Any] | None:
        workspace = _held(tx, job)
        if workspace is None:
            return None
        changes = facts(machine)
        if changes["status"] is Status.RUNNING and job.verdict is None:
            changes["started_at"] = tx.now
        last_error = _reason(job) if job.verdict is Verdict.FAILED else None
        if machine is None and last_error is None:
            last_error = Refused(
                ErrorCode.PROVIDER_ERROR, "There is no machine any more; rebuild the workspace or delete it."
            ).problem()
        _release(tx, job, workspace, **changes, last_error=last_error)
        return {"changed": True} if job.verdict is None else None

    return settle


def _settle_failed(machine: Machine | None) -> Settle:
    def settle(tx: Transaction, job: Job) -> None:
        workspace = _held(tx, job)
        if workspace is not None:
            ref = None if machine is None else machine.ref
            _release(
                tx,
                job,
                workspace,
                status=Status.FAILED,
                provider_ref=ref,
                address=None,
                last_error=_reason(job),
            )

    return settle


def settle_unbegun(tx: Transaction, job: Job) -> None:
    """Settle an operation that was cancelled before any worker had it: all is as it was."""
    workspace = _held(tx, job)
    if workspace is None:
        return
    previous = Status(job.input["previous"])
    if previous is Status.PENDING:
        _release(tx, job, workspace, status=Status.FAILED, last_error=_reason(job))
    else:
        _release(tx, job, workspace, status=previous)


def _settle_trashed(tx: Transaction, job: Job) -> dict[str, Any] | None:
    workspace = _held(tx, job)
    if workspace is None:
        return None
    _release(tx, job, workspace, status=Status.TRASHED, trashed_at=tx.now, address=None)
    tx.emit(
        EventType.WORKSPACE_EXPIRED,
        actor=job.operation.actor,
        owner_id=workspace.owner_id,
        workspace_id=workspace.id,
        operation_id=job.id,
        clock=Clock.TTL,
    )
    return {"changed": True}


def _settle_deleted(tx: Transaction, job: Job, leftover: str | None = None) -> dict[str, Any] | None:
    workspace = _held(tx, job)
    if workspace is None:
        return None
    if leftover is not None:
        insert_leftover(tx, workspace, leftover)
    delete_workspace(tx, workspace.id)
    tx.emit(
        EventType.WORKSPACE_DELETED,
        actor=job.operation.actor,
        owner_id=workspace.owner_id,
        workspace_id=workspace.id,
        operation_id=job.id,
        name=workspace.name,
    )
    return {"changed": True} if leftover is None else {"changed": True, "leftover": leftover}


def _settle_undeleted(tx: Transaction, job: Job) -> None:
    """Keep what could not be destroyed on record, to be deleted again."""
    workspace = _held(tx, job)
    if workspace is not None:
        _release(tx, job, workspace, last_error=_reason(job))


def _stop_timeout(job: Job) -> int:
    if job.input.get("force"):
        return 0
    timeout = job.input.get("timeout_seconds")
    return STOP_TIMEOUT_SECONDS if timeout is None else int(timeout)


async def _switched_off(provider: Provider, ref: str) -> Machine | None:
    """Return a machine after making sure that it is off, or None if there is none."""
    machine = await provider.inspect(ref)
    if machine is None or machine.power is Power.STOPPED:
        return machine
    await provider.stop(ref, STOP_TIMEOUT_SECONDS)
    return await provider.inspect(ref)


def _reason(job: Job) -> Any:
    """Return why an operation came to nothing."""
    if job.operation.error is not None:
        return job.operation.error
    detail = f"Its {job.operation.type} was cancelled; rebuild the workspace, or delete it."
    return Refused(ErrorCode.INVALID_STATE, detail).problem()
