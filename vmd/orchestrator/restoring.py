"""How a snapshot is restored: into a new workspace, or in place, where what is there stays until the swap."""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from attrs import evolve

from vmd.model.errors import ErrorCode, Refused
from vmd.model.event import EventType
from vmd.model.operation import Job, Phase, Verdict
from vmd.model.snapshot import Manifest, Snapshot
from vmd.model.workspace import Status, Workspace
from vmd.operations.queue import Settle
from vmd.operations.report import Report
from vmd.orchestrator import outcomes
from vmd.orchestrator.machine_steps import bring_back, discard_others, secrets_of, spec_of, switched_off
from vmd.orchestrator.machines import Machines
from vmd.orchestrator.provisioning import provision
from vmd.orchestrator.services import ensure_service_images
from vmd.orchestrator.snapshots import tell
from vmd.providers.base import Machine, Provider, ProviderError
from vmd.store.database import Database, Transaction
from vmd.store.snapshots import find_snapshot

T = TypeVar("T")
U = TypeVar("U")


class Restoring:
    """The work of operations of the type `restore`, in steps that may be repeated."""

    def __init__(self, database: Database, machines: Machines) -> None:
        self._database = database
        self._machines = machines

    async def restore(self, job: Job, report: Report, workspace: Workspace) -> Settle:
        """Bring a snapshot's disk and files to a workspace."""
        provider = self._machines.provider(workspace.provider)
        if _is_new(job):
            machine = await self._fill(job, report, provider, workspace)
            return _restored(outcomes.running(machine))
        new = job.checkpoint.get("swapped")
        if new is None:
            new = await self._build_beside(job, report, provider, workspace)
            await report.forbid_cancel(swapped=new)
        return await self._after_swap(job, report, provider, workspace, str(new))

    async def recover(self, job: Job, report: Report, workspace: Workspace) -> Settle:
        """Before the swap: take away what was built beside, and let the old go on. After it: finish."""
        provider = self._machines.provider(workspace.provider)
        if _is_new(job):
            await report.phase(Phase.CLEANUP, "Cleaning up.")
            await provider.destroy(workspace.id)
            return outcomes.failed(None)
        swapped = job.checkpoint.get("swapped")
        if swapped is not None:
            return await self._after_swap(job, report, provider, workspace, swapped)
        await report.phase(Phase.CLEANUP, "Bringing the old machine back.")
        await discard_others(provider, workspace)
        await provider.snapshots.discard_files(workspace.id, job.id)
        return await bring_back(self._database, job, provider, workspace)

    # A new workspace.

    async def _fill(self, job: Job, report: Report, provider: Provider, workspace: Workspace) -> Machine:
        snapshot = await self._find(job)
        if job.operation.attempt > 1 and not job.checkpoint.get("is_unpacked"):
            await provider.destroy(workspace.id)  # a part of the files may be there
        await ensure_service_images(provider, workspace.services, report)
        await report.phase(Phase.CREATE, "Making the machine.")
        ref = await provider.create(evolve(spec_of(workspace, job), snapshot_id=snapshot.id))
        secrets = await secrets_of(self._database, workspace)
        report.hide(secrets.values())
        missing = set(snapshot.origin.secrets) - set(workspace.secrets) - set(workspace.env)
        if missing:
            report.log(f"Not in the snapshot, and not given: the secrets {', '.join(sorted(missing))}.")
        if not job.checkpoint.get("is_unpacked"):
            await report.phase(Phase.RESTORE, "Bringing the files back, while the machine starts.", ref=ref)
            unpacked, machine = await _both(
                provider.snapshots.unpack(snapshot.id, workspace.id, None), provider.start(ref, secrets)
            )
            _require_same(unpacked, snapshot)
            await report.checkpoint(is_unpacked=True)
        else:
            machine = await provider.start(ref, secrets)
        await provision(provider, machine, tuple(job.input.get("provisioning", ())), job, report)
        return machine

    # In place.

    async def _build_beside(self, job: Job, report: Report, provider: Provider, workspace: Workspace) -> str:
        snapshot = await self._find(job)
        files = str(job.id)
        if not job.checkpoint.get("is_unpacked"):
            await report.phase(Phase.RESTORE, "Bringing the files back, beside those that are there.")
            if job.operation.attempt > 1:
                await provider.snapshots.discard_files(workspace.id, files)
            _require_same(await provider.snapshots.unpack(snapshot.id, workspace.id, files), snapshot)
            await report.checkpoint(is_unpacked=True, files=files)
        if workspace.provider_ref is not None:
            await report.phase(Phase.STOP, "Stopping the old machine.")
            await switched_off(provider, workspace.provider_ref)
        await ensure_service_images(provider, workspace.services, report)
        await report.phase(Phase.CREATE, "Making the machine from the snapshot.")
        spec = evolve(spec_of(workspace, job), files=files, snapshot_id=snapshot.id)
        ref = await provider.create(spec)
        await report.phase(Phase.START, "Starting the machine.")
        await provider.start(ref, await secrets_of(self._database, workspace))
        return ref

    async def _after_swap(
        self, job: Job, report: Report, provider: Provider, workspace: Workspace, new: str
    ) -> Settle:
        await report.phase(Phase.SWAP, "Taking the old machine and files away.")
        await discard_others(provider, workspace, but=new)
        if workspace.provider_ref not in (None, new):
            await provider.discard(str(workspace.provider_ref))  # also what is left when its machine is gone
        if workspace.files != job.id:
            await provider.snapshots.discard_files(workspace.id, workspace.files)
        if job.input.get("previous") == Status.STOPPED:
            return _restored(outcomes.as_observed(await switched_off(provider, new)))
        return _restored(outcomes.as_observed(await provider.inspect(new)))

    async def _find(self, job: Job) -> Snapshot:
        found = await self._database.read(lambda tx: find_snapshot(tx, job.operation.snapshot_id or ""))
        if found is None:
            raise Refused(ErrorCode.PROVIDER_ERROR, "The snapshot was deleted meanwhile; restore another.")
        return found


async def _both(first: Coroutine[Any, Any, T], second: Coroutine[Any, Any, U]) -> tuple[T, U]:
    """Do both to the end before the first error of either is raised, so that none goes on unseen."""
    one, other = await asyncio.gather(first, second, return_exceptions=True)
    if isinstance(one, BaseException):
        raise one
    if isinstance(other, BaseException):
        raise other
    return one, other


def _is_new(job: Job) -> bool:
    return job.input.get("previous") == Status.PENDING


def _require_same(unpacked: Manifest, snapshot: Snapshot) -> None:
    if snapshot.manifest is None or not unpacked.describes(snapshot.manifest):
        raise ProviderError("The files of the snapshot are not those that were kept; restore another one.")


def _restored(settle: Settle) -> Settle:
    """Settle, and tell that the snapshot was restored."""

    def settle_and_tell(tx: Transaction, job: Job) -> Mapping[str, Any] | None:
        is_held = outcomes.held(tx, job) is not None
        result = settle(tx, job)
        snapshot = find_snapshot(tx, job.operation.snapshot_id or "")
        if is_held and snapshot is not None and job.verdict is not Verdict.FAILED:
            tell(tx, EventType.SNAPSHOT_RESTORED, snapshot, job.operation.actor, job.id)
        return result

    return settle_and_tell
