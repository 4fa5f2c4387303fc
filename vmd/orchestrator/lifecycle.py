"""How the life of a machine is worked: create, start, stop, restart, rebuild, restore, expire, delete.

Each work talks to a provider outside any transaction, in steps that may be repeated, and returns a function
that writes its outcome. A work whose workspace was taken from it meanwhile leaves without a word.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

from attrs import frozen
from msgspec import Meta

from vmd.model.errors import ErrorCode, Refused
from vmd.model.operation import Job, OperationType, Phase, Verdict
from vmd.model.workspace import Status, Workspace
from vmd.operations.queue import Settle, Work
from vmd.operations.report import Report
from vmd.orchestrator import outcomes
from vmd.orchestrator.changes import leave
from vmd.orchestrator.detection import Detection, provisioning_user
from vmd.orchestrator.images import ensure_image
from vmd.orchestrator.machine_steps import (
    STOP_TIMEOUT_SECONDS,
    bring_back,
    discard_others,
    secrets_of,
    spec_of,
    switched_off,
)
from vmd.orchestrator.machines import Machines
from vmd.orchestrator.provisioning import clone, provision
from vmd.orchestrator.restoring import Restoring
from vmd.orchestrator.services import ensure_service_images
from vmd.providers.base import Machine, Power, Provider, ProviderError, ProviderUnavailable
from vmd.store.database import Database, Transaction

MAX_DEADLINE_SECONDS = 7 * 24 * 3600
FORGET_ATTEMPTS = 3  # tries before a forced delete forgets what cannot be destroyed


Seconds = Annotated[float, Meta(ge=0.01, le=MAX_DEADLINE_SECONDS)]


@frozen(kw_only=True)
class Deadlines:
    """How many seconds each type of operation may take, waiting for its provider not counted."""

    create: Seconds = 1800.0
    start: Seconds = 120.0
    stop: Seconds = 700.0  # longer than a stop's timeout_seconds may be
    restart: Seconds = 800.0
    rebuild: Seconds = 1800.0
    delete: Seconds = 300.0
    expire: Seconds = 1800.0  # with its final snapshot
    snapshot: Seconds = 3600.0
    snapshot_delete: Seconds = 300.0
    restore: Seconds = 3600.0


_Step = Callable[[Job, Report, Workspace], Awaitable[Settle]]


class Lifecycle:
    """The works, by type of operation."""

    def __init__(
        self,
        database: Database,
        machines: Machines,
        detection: Detection,
        deadlines: Deadlines,
        before_expiry: Callable[[Job, Report, Workspace], Awaitable[None]],
    ) -> None:
        """Take what is to be done with a workspace that expires before it is stopped."""
        self._database = database
        self._machines = machines
        self._detection = detection
        self._deadlines = deadlines
        self._restoring = Restoring(database, machines)
        self._before_expiry = before_expiry

    def works(self) -> Mapping[OperationType, Work]:
        """Return how each type of operation is done."""
        deadlines, look = self._deadlines, self._recover_by_looking
        return {
            OperationType.CREATE: self._work(
                self._create, self._recover_create, deadlines.create, claimed=_claimed_create
            ),
            OperationType.START: self._work(self._start, look, deadlines.start),
            OperationType.STOP: self._work(self._stop, look, deadlines.stop),
            OperationType.RESTART: self._work(self._restart, look, deadlines.restart),
            OperationType.REBUILD: self._work(self._rebuild, self._recover_rebuild, deadlines.rebuild),
            OperationType.RESTORE: self._work(
                self._restoring.restore,
                self._restoring.recover,
                deadlines.restore,
                claimed=_claimed_restore,
            ),
            OperationType.EXPIRE: self._work(self._expire, look, deadlines.expire),
            OperationType.DELETE: self._work(
                self._delete,
                self._recover_delete,
                deadlines.delete,
                give_up=lambda job: outcomes.undeleted,
            ),
        }

    def _work(self, run: _Step, recover: _Step, deadline_seconds: float, **others: Any) -> Work:
        return Work(
            run=self._while_held(run),
            recover=self._while_held(recover),
            deadline_seconds=deadline_seconds,
            **{"give_up": outcomes.unknown, **others},
        )

    # Create.

    async def _create(self, job: Job, report: Report, workspace: Workspace) -> Settle:
        provider = self._machines.provider(workspace.provider)
        machine = await self._make(job, report, provider, workspace)
        return outcomes.running(machine)

    async def _make(self, job: Job, report: Report, provider: Provider, workspace: Workspace) -> Machine:
        """Make a machine, run it, and set it up; go on after the steps that an earlier try recorded."""
        job, workspace, machine = await self._detection.prepare(
            job, report, provider, workspace, self._run_up
        )
        if machine is None:
            machine = await self._run_up(job, report, provider, workspace)
        user = await provisioning_user(provider, machine, workspace, report)
        await provision(provider, machine, workspace.provisioning, job, report, user)
        return machine

    async def _run_up(self, job: Job, report: Report, provider: Provider, workspace: Workspace) -> Machine:
        """Make a machine, run it, and have the repository's files in it."""
        await ensure_image(provider, workspace.image, workspace.recipe, report)
        await ensure_service_images(provider, workspace.services, report)
        await report.phase(Phase.CREATE, "Making the machine.")
        ref = await provider.create(spec_of(workspace, job))
        await report.phase(Phase.START, "Starting the machine.", ref=ref)
        if job.operation.attempt > 1:
            await provider.stop(ref, 0)  # ends what an earlier try may have left running in it
        secrets = await secrets_of(self._database, workspace)
        report.hide(secrets.values())
        machine = await provider.start(ref, secrets)
        if workspace.repo is not None and not (workspace.is_cloned or job.checkpoint.get("is_cloned")):
            commit = await clone(provider, machine, workspace.repo, job, report)
            await report.checkpoint(is_cloned=True, commit=commit)
        return machine

    async def _recover_create(self, job: Job, report: Report, workspace: Workspace) -> Settle:
        """Keep a machine that could not be set up, switched off; take away everything if cancelled."""
        provider = self._machines.provider(workspace.provider)
        await report.phase(Phase.CLEANUP, "Cleaning up.")
        ref = job.checkpoint.get("ref")
        if job.verdict is Verdict.CANCELLED or ref is None:
            await provider.destroy(workspace.id)
            return outcomes.failed(None)
        machine = await switched_off(provider, ref)
        return outcomes.failed(machine)

    # Power.

    async def _start(self, job: Job, report: Report, workspace: Workspace) -> Settle:
        provider, ref = self._machine_of(workspace)
        await report.phase(Phase.START, "Starting the machine.")
        return outcomes.running(await provider.start(ref, await secrets_of(self._database, workspace)))

    async def _stop(self, job: Job, report: Report, workspace: Workspace) -> Settle:
        provider, ref = self._machine_of(workspace)
        await report.phase(Phase.STOP, "Stopping the machine.")
        await provider.stop(ref, _stop_timeout(job))
        return outcomes.as_observed(await provider.inspect(ref))

    async def _restart(self, job: Job, report: Report, workspace: Workspace) -> Settle:
        provider, ref = self._machine_of(workspace)
        await report.phase(Phase.STOP, "Stopping the machine.")
        await provider.stop(ref, _stop_timeout(job))
        await report.phase(Phase.START, "Starting the machine.")
        await self._database.write(lambda tx: outcomes.go_to(tx, job, Status.STARTING))
        return outcomes.running(await provider.start(ref, await secrets_of(self._database, workspace)))

    async def _recover_by_looking(self, job: Job, report: Report, workspace: Workspace) -> Settle:
        """Leave the workspace as its machine is found; a start that was cancelled is switched off."""
        if workspace.provider_ref is None:
            return outcomes.as_observed(None)
        provider = self._machines.provider(workspace.provider)
        machine = await provider.inspect(workspace.provider_ref)
        if machine is not None and (job.verdict is Verdict.CANCELLED or machine.power is Power.STOPPED):
            machine = await switched_off(provider, workspace.provider_ref)
        return outcomes.as_observed(machine)

    # Rebuild: a new machine beside the old one, then the swap.

    async def _rebuild(self, job: Job, report: Report, workspace: Workspace) -> Settle:
        provider = self._machines.provider(workspace.provider)
        new = job.checkpoint.get("swapped")
        if new is None:
            if workspace.provider_ref is not None:
                await report.phase(Phase.STOP, "Stopping the old machine.")
                await switched_off(provider, workspace.provider_ref)
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
            return outcomes.as_observed(await switched_off(provider, new))
        return outcomes.as_observed(await provider.inspect(new))

    async def _recover_rebuild(self, job: Job, report: Report, workspace: Workspace) -> Settle:
        """Before the swap: take the new machine away and bring the old one back. After it: finish."""
        provider = self._machines.provider(workspace.provider)
        swapped = job.checkpoint.get("swapped")
        if swapped is not None:
            return await self._after_swap(job, report, provider, workspace, swapped)
        await report.phase(Phase.CLEANUP, "Bringing the old machine back.")
        await discard_others(provider, workspace)
        return await bring_back(self._database, job, provider, workspace)

    # The end.

    async def _expire(self, job: Job, report: Report, workspace: Workspace) -> Settle:
        await self._before_expiry(job, report, workspace)
        if workspace.status is Status.STOPPING:
            provider, ref = self._machine_of(workspace)
            await report.phase(Phase.STOP, "Stopping the machine.")
            await provider.stop(ref, STOP_TIMEOUT_SECONDS)
        return outcomes.trashed

    async def _delete(self, job: Job, report: Report, workspace: Workspace) -> Settle:
        await report.phase(Phase.DESTROY, "Destroying the machine and its files.")
        snapshots = await self._database.read(lambda tx: outcomes.doomed_snapshots(tx, job))
        try:
            provider = self._machines.provider(workspace.provider)
            await provider.destroy(workspace.id)
            for snapshot in snapshots:
                await provider.snapshots.destroy(snapshot.id)
        except (ProviderError, ProviderUnavailable) as error:
            if not job.input.get("force"):
                raise
            if job.operation.attempt < FORGET_ATTEMPTS:
                raise ProviderUnavailable(str(error)) from error
            reason = str(error)
            report.log(f"Forgetting what is left: {reason}")
            return lambda tx, job: outcomes.deleted(tx, job, leftover=reason)
        return outcomes.deleted

    async def _recover_delete(self, job: Job, report: Report, workspace: Workspace) -> Settle:
        """Keep the workspace, to be deleted again."""
        return outcomes.undeleted

    # Shared.

    def _while_held(self, step: _Step) -> Callable[[Job, Report], Awaitable[Settle]]:
        """Return the step as the queue calls it; a job whose workspace was taken from it just leaves."""

        async def run(job: Job, report: Report) -> Settle:
            workspace = await self._database.read(lambda tx: outcomes.held(tx, job))
            return leave if workspace is None else await step(job, report, workspace)

        return run

    def _machine_of(self, workspace: Workspace) -> tuple[Provider, str]:
        if workspace.provider_ref is None:
            raise Refused(ErrorCode.PROVIDER_ERROR, outcomes.NO_MACHINE)
        return self._machines.provider(workspace.provider), workspace.provider_ref


def _stop_timeout(job: Job) -> int:
    if job.input.get("force"):
        return 0
    timeout = job.input.get("timeout_seconds")
    return STOP_TIMEOUT_SECONDS if timeout is None else int(timeout)


def _claimed_restore(tx: Transaction, job: Job) -> None:
    if job.input.get("previous") == Status.PENDING:
        _claimed_create(tx, job)


def _claimed_create(tx: Transaction, job: Job) -> None:
    if job.verdict is None:
        outcomes.go_to(tx, job, Status.CREATING)
