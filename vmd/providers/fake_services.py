"""What runs beside fake machines: records that tests can look at, and kill."""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from attrs import field, mutable

from vmd.model.workspace import Service
from vmd.providers.base import Machine, MachineSpec, ProviderError, ServiceState

F = TypeVar("F")


@mutable(kw_only=True)
class FakeService:
    """One service, with what it keeps."""

    workspace_id: str
    service: Service
    is_running: bool = False
    starts: int = 0
    data: dict[str, str] = field(factory=dict)  # a test writes into it

    @property
    def state(self) -> ServiceState:
        """How it would be observed."""
        return ServiceState(name=self.service.name, is_running=self.is_running)


class FakeServices(Generic[F]):
    """Keeps the services of a fake host, with the faults that are ordered for it."""

    def __init__(
        self,
        found: dict[str, FakeService],
        go_through: Callable[[str], Awaitable[F]],
        strike: Callable[[F], None],
    ) -> None:
        self._found = found
        self._pass = go_through
        self._strike = strike

    async def create(self, spec: MachineSpec) -> None:
        """Add a machine's services, or find those that are there."""
        for service in spec.services:
            fault = await self._pass("create_service")
            made = FakeService(workspace_id=spec.workspace_id, service=service)
            self._found.setdefault(f"{spec.workspace_id}/{service.name}", made)
            self._strike(fault)

    async def start(self, workspace_id: str) -> None:
        """Switch a workspace's services on; when one fails all are switched off again."""
        try:
            for found in self.of(workspace_id):
                fault = await self._pass("start_service")
                found.starts += not found.is_running
                found.is_running = True
                self._strike(fault)
        except ProviderError:
            await self.stop(workspace_id)
            raise

    async def stop(self, workspace_id: str) -> None:
        """Switch a workspace's services off."""
        for found in self.of(workspace_id):
            if found.is_running:
                fault = await self._pass("stop_service")
                found.is_running = False
                self._strike(fault)

    def of(self, workspace_id: str) -> list[FakeService]:
        """Return a workspace's services."""
        return [found for found in self._found.values() if found.workspace_id == workspace_id]

    def destroy(self, workspace_id: str) -> None:
        """Take a workspace's services away."""
        for found in self.of(workspace_id):
            del self._found[f"{workspace_id}/{found.service.name}"]

    def states(self, machine: Machine) -> tuple[ServiceState, ...]:
        """Return how the services beside a machine are."""
        return tuple(found.state for found in self.of(machine.workspace_id))
