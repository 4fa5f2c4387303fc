"""Steps that several works share."""

from vmd.model.operation import Job
from vmd.model.workspace import Status, Workspace
from vmd.operations.queue import Settle
from vmd.orchestrator import outcomes
from vmd.providers.base import Machine, MachineSpec, Provider
from vmd.store.database import Database
from vmd.store.workspaces import list_secrets

STOP_TIMEOUT_SECONDS = 10


async def secrets_of(database: Database, workspace: Workspace) -> dict[str, str]:
    """Return the values of a workspace's secrets by name."""
    return await database.read(lambda tx: list_secrets(tx, workspace.id))


def spec_of(workspace: Workspace, job: Job) -> MachineSpec:
    """Return what the machine that this job makes is made from."""
    return MachineSpec(
        workspace_id=workspace.id,
        operation_id=job.checkpoint.get("machine", job.id),
        hostname=workspace.name,
        node=workspace.node,
        image=workspace.image,
        resources=workspace.resources,
        env=workspace.env,
        files=workspace.files,
        services=workspace.services,
    )


async def switched_off(provider: Provider, ref: str) -> Machine | None:
    """Return a machine after making sure that it is off, with its services, or None if there is none."""
    machine = await provider.inspect(ref)
    if machine is None or machine.is_at_rest:
        return machine
    await provider.stop(ref, STOP_TIMEOUT_SECONDS)
    return await provider.inspect(ref)


async def discard_others(provider: Provider, workspace: Workspace, but: str | None = None) -> None:
    """Take away the workspace's machines, but the one that stays: the present one unless another is named."""
    stays = but or workspace.provider_ref
    for machine in await provider.machines():
        if machine.workspace_id == workspace.id and machine.ref != stays:
            await provider.discard(machine.ref)


async def bring_back(database: Database, job: Job, provider: Provider, workspace: Workspace) -> Settle:
    """Leave the old machine as it was before the job, on or off, and settle on it."""
    old = workspace.provider_ref
    if old is None:
        return outcomes.failed(None)
    if job.input.get("previous") == Status.RUNNING:
        await provider.start(old, await secrets_of(database, workspace))
        found = await provider.inspect(old)
    else:
        found = await switched_off(provider, old)
    was_failed = job.input.get("previous") == Status.FAILED
    return outcomes.failed(found) if was_failed else outcomes.as_observed(found)
