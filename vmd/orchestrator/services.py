"""What runs beside machines: its images, what it means for health, and that it stops with its machine."""

import asyncio
from collections.abc import Iterable

import structlog

from vmd.model.workspace import Health, Service, Workspace
from vmd.operations.report import Report
from vmd.orchestrator.images import ensure_image
from vmd.providers.base import Machine, Power, Provider, ProviderError, ProviderUnavailable

log = structlog.get_logger()


async def ensure_service_images(provider: Provider, services: Iterable[Service], report: Report) -> None:
    """Build or fetch the images of services that are not there yet."""
    for service in services:
        await ensure_image(provider, service.image, service.recipe, report)


def health_with(workspace: Workspace, machine: Machine | None) -> Health:
    """Return the health of a workspace with this machine: degraded while one of its services is missing.

    Whether its provider is within reach is not for this to say.
    """
    if _missing(workspace, machine):
        return Health.DEGRADED
    return Health.OK if workspace.health is Health.DEGRADED else workspace.health


def say_missing(workspace: Workspace, machine: Machine | None) -> str | None:
    """Return which services are missing and what helps, None for none."""
    missing = _missing(workspace, machine)
    if not missing:
        return None
    named = f"The service {missing[0]} is" if len(missing) == 1 else f"The services {', '.join(missing)} are"
    return (
        f"{named} not running; restart the workspace, or rebuild it, to bring back what does not come back."
    )


def _missing(workspace: Workspace, machine: Machine | None) -> list[str]:
    """Return the services that should run beside a machine and do not."""
    if machine is None or machine.power is Power.STOPPED:
        return []
    running = {service.name for service in machine.services if service.is_running}
    return [service.name for service in workspace.services if service.name not in running]


class Resting:
    """Stops what still runs beside machines that are off, with nobody waiting for it."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by workspace

    def follow(self, provider: Provider, workspace_id: str, machine: Machine | None) -> None:
        """Begin to stop a workspace's services if its machine is off or gone."""
        is_off = machine is None or (machine.power is Power.STOPPED and not machine.is_at_rest)
        if is_off and workspace_id not in self._tasks:
            task = asyncio.create_task(self._rest(provider, workspace_id))
            self._tasks[workspace_id] = task
            task.add_done_callback(lambda _: self._tasks.pop(workspace_id))

    async def _rest(self, provider: Provider, workspace_id: str) -> None:
        try:
            await provider.rest(workspace_id)
        except (ProviderError, ProviderUnavailable) as error:
            log.warning("services cannot be stopped", workspace=workspace_id, why=str(error))

    async def close(self) -> None:
        """Leave what is not done; it is begun again at the next start."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
