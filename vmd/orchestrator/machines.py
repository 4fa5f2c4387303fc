"""The providers and what they hold: placement, health, and what changes behind the daemon's back."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import structlog
from attrs import evolve

from vmd.model.account import Actor
from vmd.model.errors import ErrorCode, Problem, Refused, invalid_value, not_found
from vmd.model.event import EventType
from vmd.model.workspace import Health, Resources, Status, Workspace
from vmd.orchestrator.changes import save
from vmd.orchestrator.services import Resting, health_with, say_missing
from vmd.providers.base import Capacity, Machine, Power, Provider, ProviderError, ProviderUnavailable
from vmd.store.accounts import find_user
from vmd.store.database import Database, Transaction
from vmd.store.operations import wake_waiting
from vmd.store.workspaces import find_workspace, list_of_provider, mark_health

RECONNECT_SECONDS = 1.0
_SETTLED = frozenset({Status.RUNNING, Status.STOPPED, Status.TRASHED})

log = structlog.get_logger()


class Machines:
    """Knows the providers, watches them, and keeps the books true to what is there."""

    def __init__(
        self,
        database: Database,
        providers: Mapping[str, Provider],
        default_provider: str,
        *,
        reconnect_seconds: float = RECONNECT_SECONDS,
    ) -> None:
        self._database = database
        self._providers = providers
        self._default_provider = default_provider
        self._reconnect_seconds = reconnect_seconds
        self._capacities: dict[str, Capacity] = {}
        self._tried = asyncio.Event()
        self._to_look_at: dict[str, Provider] = {}  # by workspace: changed while an operation held it
        self._resting = Resting()
        self._is_reached: dict[str, bool | None] = dict.fromkeys(providers)  # None: not tried yet

    # What the use cases ask.

    def provider(self, name: str) -> Provider:
        """Return a provider; one that is no longer configured counts as out of reach."""
        try:
            return self._providers[name]
        except KeyError:
            raise ProviderUnavailable(
                f"The provider '{name}' is not configured; an administrator can add it back."
            ) from None

    def place(self, provider: str | None, node: str | None) -> tuple[str, str]:
        """Return the provider and node for a new workspace, or refuse unknown ones."""
        name = provider or self._default_provider
        if name not in self._providers:
            raise invalid_value("/provider", f"is unknown; there are {', '.join(sorted(self._providers))}")
        nodes = self._providers[name].nodes
        if node is not None and node not in nodes:
            raise invalid_value("/node", f"is unknown at provider {name}; there are {', '.join(nodes)}")
        return name, node or nodes[0]

    def require_capacity(self, provider: str, resources: Resources) -> None:
        """Refuse resources that the host as a whole does not have."""
        capacity = self._capacities.get(provider)
        if capacity is None:
            return
        if resources.cpus > capacity.cpus:
            raise invalid_value("/resources/cpus", f"must be at most {capacity.cpus:g}, which the host has")
        if resources.memory_mb > capacity.memory_mb:
            raise invalid_value(
                "/resources/memory_mb", f"must be at most {capacity.memory_mb}, which the host has"
            )
        if resources.disk_mb is not None and not capacity.can_limit_disk:
            raise invalid_value(
                "/resources/disk_mb", f"cannot be limited here ({capacity.disk_hint}); leave it out"
            )

    def capacity(self, provider: str) -> Capacity | None:
        """Return what a provider's host has, None until it was reached."""
        return self._capacities.get(provider)

    def nodes(self) -> tuple[tuple[str, str], ...]:
        """Return every provider with each of its nodes."""
        return tuple((name, node) for name, provider in self._providers.items() for node in provider.nodes)

    def health(self, provider: str) -> Health:
        """Return the health of a provider's workspaces as far as reaching it goes."""
        return Health.UNREACHABLE if self._is_reached.get(provider) is False else Health.OK

    def status(self) -> dict[str, bool | None]:
        """Return whether each provider is reached; None where that was not tried yet."""
        return dict(self._is_reached)

    @staticmethod
    def owner_id(tx: Transaction, actor: Actor, owner: str | None) -> str:
        """Return the id of an owner given by name, the actor's own for None."""
        if owner in (None, actor.name):
            return actor.user_id
        user = find_user(tx, str(owner))
        if user is None:
            raise not_found("user", str(owner))
        return user.id

    # Watching.

    async def wait_until_tried(self, timeout_seconds: float) -> None:
        """Return once every provider was reached or found out of reach, or when the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while None in self._is_reached.values():
                    await self._tried.wait()
                    self._tried.clear()

    async def watch(self, name: str, on_reached: Callable[[], None]) -> None:
        """Follow a provider for ever: look at all when it is reached, then at each machine that changes."""
        provider = self._providers[name]
        while True:
            try:
                async for workspace_id in provider.changes():
                    if workspace_id is None:
                        self._capacities[name] = await provider.capacity()
                        await self._reconcile(provider)
                        await provider.snapshots.clear()
                        await self._mark(name, is_reached=True)
                        on_reached()
                    else:
                        await self._look_at_one(provider, workspace_id)
            except (ProviderUnavailable, ProviderError) as error:
                await self._mark(name, is_reached=False, reason=str(error))
            except Exception:
                log.exception("watching a provider failed and goes on", provider=name)
            await asyncio.sleep(self._reconnect_seconds)

    async def _mark(self, name: str, *, is_reached: bool, reason: str = "") -> None:
        if self._is_reached[name] is is_reached:
            return
        self._is_reached[name] = is_reached
        self._tried.set()
        log.info(
            "provider is reached" if is_reached else "provider is unreachable", provider=name, why=reason
        )
        health = Health.OK if is_reached else Health.UNREACHABLE

        def unit(tx: Transaction) -> None:
            for workspace_id, owner_id in mark_health(tx, name, health):
                tx.emit(
                    EventType.WORKSPACE_UPDATED,
                    actor="system",
                    owner_id=owner_id,
                    workspace_id=workspace_id,
                    health=health,
                    reason=reason or None,
                )
            if is_reached:
                wake_waiting(tx, name)

        await self._database.write(unit)

    async def _reconcile(self, provider: Provider) -> None:
        """Compare every settled workspace with the machines there are."""
        before = await self._database.read(lambda tx: list_of_provider(tx, provider.name))
        machines = {machine.ref: machine for machine in await provider.machines()}
        for workspace in before:
            machine = machines.get(workspace.provider_ref or "")
            if machine is not None and observe(workspace, machine) is not None:
                machine = await provider.inspect(machine.ref)  # the list lacks exit codes and addresses
            await self._settle(provider, workspace, machine)

    async def _look_at_one(self, provider: Provider, workspace_id: str) -> None:
        """Look at one machine; that the engine has something against it says nothing of the others."""
        try:
            await self._look_at(provider, workspace_id)
        except ProviderError as error:
            log.warning("a machine cannot be looked at", workspace=workspace_id, why=str(error))

    async def look_again(self, workspace_id: str) -> None:
        """Look at a machine that changed while an operation held its workspace, now that none does."""
        provider = self._to_look_at.pop(workspace_id, None)
        if provider is not None:
            with suppress(ProviderUnavailable):  # the watch finds out by itself
                await self._look_at_one(provider, workspace_id)

    async def _look_at(self, provider: Provider, workspace_id: str) -> None:
        self._to_look_at[workspace_id] = provider  # first, so that an operation that ends now is not missed
        workspace = await self._database.read(lambda tx: find_workspace(tx, workspace_id))
        if workspace is not None and workspace.current_operation is not None:
            return
        self._to_look_at.pop(workspace_id, None)
        if workspace is not None and workspace.provider_ref is not None:
            await self._settle(provider, workspace, await provider.inspect(workspace.provider_ref))

    async def _settle(self, provider: Provider, seen: Workspace, machine: Machine | None) -> None:
        """Write what was observed, unless the workspace was changed or taken since it was read."""
        if seen.services and seen.current_operation is None:
            self._resting.follow(provider, seen.id, machine)
        if observe(seen, machine) is None:
            return

        def unit(tx: Transaction) -> None:
            workspace = find_workspace(tx, seen.id)
            if workspace is None or workspace.version != seen.version:
                return
            observed = observe(workspace, machine)
            if observed is not None:
                after, reason = observed
                if after.status is not workspace.status and after.status is Status.RUNNING:
                    after = evolve(after, started_at=tx.now, last_activity_at=tx.now)
                told = {}
                if after.health is not workspace.health:
                    told["reason"] = say_missing(after, machine)
                save(tx, workspace, after, actor="system", reason=reason, told=told)

        await self._database.write(unit)

    async def close(self) -> None:
        """Leave what is done on the side."""
        await self._resting.close()


def observe(workspace: Workspace, machine: Machine | None) -> tuple[Workspace, str | None] | None:
    """Return the workspace as its machine shows it to be, and why its status changed, if it did.

    None where the books are right. A workspace that an operation holds is left to it.
    """
    if workspace.current_operation is not None or workspace.status not in _SETTLED:
        return None
    after, reason = _observe_power(workspace, machine) or (workspace, None)
    health = health_with(after, machine)
    if after is workspace and health is workspace.health:
        return None
    return evolve(after, health=health), reason


def _observe_power(workspace: Workspace, machine: Machine | None) -> tuple[Workspace, str] | None:
    if machine is None:
        return _without_machine(workspace)
    is_running = machine.power is Power.RUNNING
    if workspace.status is Status.RUNNING and not is_running:
        reason = "oom" if machine.is_out_of_memory else "exited"
        stopped = evolve(
            workspace, status=Status.STOPPED, address=None, last_error=_exit_problem(workspace, machine)
        )
        return stopped, reason
    if workspace.status is Status.STOPPED and is_running:
        running = evolve(workspace, status=Status.RUNNING, address=machine.address, last_error=None)
        return running, "adopted"
    return None


def _without_machine(workspace: Workspace) -> tuple[Workspace, str] | None:
    if workspace.provider_ref is None:
        return None
    if workspace.status is Status.TRASHED:
        return evolve(workspace, provider_ref=None, address=None), "removed"
    detail = (
        "The machine was removed behind vmd's back. Its files may be there still: rebuild the workspace to "
        "make a new machine, or delete it."
    )
    failed = evolve(
        workspace,
        status=Status.FAILED,
        provider_ref=None,
        address=None,
        last_error=Refused(ErrorCode.PROVIDER_ERROR, detail).problem(),
    )
    return failed, "removed"


def _exit_problem(workspace: Workspace, machine: Machine) -> Problem:
    if machine.is_out_of_memory:
        detail = (
            f"The machine ran out of its {workspace.resources.memory_mb} MiB of memory and was stopped. "
            "Start it again, or make a workspace with more."
        )
    else:
        detail = f"The machine stopped by itself with exit code {machine.exit_code}. Start it again."
    return Refused(ErrorCode.PROVIDER_ERROR, detail).problem()


def facts(workspace: Workspace, machine: Machine | None) -> dict[str, Any]:
    """Return the fields of a workspace that a look at its machine settles, for `evolve`."""
    health = health_with(workspace, machine)
    if machine is None:
        return {"status": Status.FAILED, "health": health, "provider_ref": None, "address": None}
    is_running = machine.power is Power.RUNNING
    return {
        "health": health,
        "status": Status.RUNNING if is_running else Status.STOPPED,
        "provider_ref": machine.ref,
        "address": machine.address if is_running else None,
    }
