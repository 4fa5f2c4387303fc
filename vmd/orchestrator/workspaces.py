"""Workspaces: plan, make, look at, change, act on, delete."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from attrs import evolve, frozen
from msgspec import UNSET

from vmd.model.account import Actor, Scope
from vmd.model.errors import ErrorCode, Refused, invalid_value
from vmd.model.operation import Operation, OperationType
from vmd.model.page import Page
from vmd.model.workspace import (
    MAX_LABELS,
    Action,
    ActionRequest,
    NewWorkspace,
    Status,
    Workspace,
    WorkspacePatch,
)
from vmd.operations.queue import OperationQueue
from vmd.orchestrator.changes import (
    add,
    begin,
    require_allowed,
    require_version,
    satisfied,
    save,
    supersede,
)
from vmd.orchestrator.machines import Machines
from vmd.orchestrator.outcomes import Keep
from vmd.orchestrator.permissions import get_running, get_workspace, require_scope
from vmd.orchestrator.planning import Planner, explicit_fields, name_taken
from vmd.orchestrator.quota import Quota, Quotas
from vmd.orchestrator.refusals import refused_by_provider
from vmd.orchestrator.templates import Catalogue
from vmd.providers.base import ProviderError, ProviderUnavailable, Stats
from vmd.store.database import Database, Transaction
from vmd.store.idempotency import Once, answer_once
from vmd.store.operations import find_job, update_job
from vmd.store.workspaces import WorkspaceFilter, has_name, list_workspaces


@frozen(kw_only=True)
class Plan:
    """A workspace as it would be, and its owner's quota without it."""

    workspace: Workspace
    quota: Quota


class Workspaces:
    """The use cases of workspaces. A change that needs a provider is recorded and answered at once."""

    def __init__(
        self,
        database: Database,
        queue: OperationQueue,
        machines: Machines,
        quotas: Quotas,
        planner: Planner,
        catalogue: Catalogue,
    ) -> None:
        self._database = database
        self._queue = queue
        self._machines = machines
        self._quotas = quotas
        self._catalogue = catalogue
        self._planner = planner

    async def plan(self, actor: Actor, wanted: NewWorkspace) -> Plan:
        """Return what `create` would make, or refuse as it would; nothing is made."""
        await self._catalogue.refresh()
        resolved = self._planner.resolve(actor, wanted)

        def unit(tx: Transaction) -> Plan:
            workspace = self._planner.draft(tx, actor, wanted, resolved)
            return Plan(workspace=workspace, quota=self._quotas.of_owner(tx, actor.user_id))

        return await self._database.read(unit)

    async def create(self, actor: Actor, wanted: NewWorkspace, once: Once | None = None) -> Operation:
        """Record a new workspace, with its quota reserved, and the operation that makes it."""
        await self._catalogue.refresh()
        resolved = self._planner.resolve(actor, wanted)

        def make(tx: Transaction) -> Operation:
            workspace = self._planner.draft(tx, actor, wanted, resolved)
            add(tx, actor, workspace, wanted)
            return begin(
                tx, actor, workspace, OperationType.CREATE, to=None, explicit=explicit_fields(wanted)
            )

        operation = await self._database.write(
            lambda tx: answer_once(tx, actor.user_id, once, Operation, lambda: make(tx))
        )
        self._queue.wake()
        return operation

    async def list(
        self, actor: Actor, wanted: WorkspaceFilter, owner: str | None, after: str | None, limit: int
    ) -> Page[Workspace]:
        """Return a page of workspaces: the actor's own, or for admins another owner's, or all ('*')."""
        require_scope(actor, Scope.READ)
        if owner not in (None, actor.name) and not actor.is_admin:
            raise Refused(ErrorCode.FORBIDDEN, "Only an administrator may list the workspaces of others.")

        def unit(tx: Transaction) -> Page[Workspace]:
            if actor.workspace_id is not None:
                return Page(items=(get_workspace(tx, actor, actor.workspace_id),), next_after=None)
            owner_id = None if owner == "*" else self._machines.owner_id(tx, actor, owner)
            rows = list_workspaces(tx, evolve(wanted, owner_id=owner_id), after, limit + 1)
            return Page.cut(rows, limit, lambda workspace: workspace.id)

        return await self._database.read(unit)

    async def get(self, actor: Actor, workspace_id: str) -> Workspace:
        """Return one workspace."""
        require_scope(actor, Scope.READ)
        return await self._database.read(lambda tx: get_workspace(tx, actor, workspace_id))

    async def patch(
        self, actor: Actor, workspace_id: str, patch: WorkspacePatch, version: int | None
    ) -> Workspace:
        """Change what may be changed in any status; `version` is the one the change was meant for."""
        require_scope(actor, Scope.WRITE)

        def unit(tx: Transaction) -> Workspace:
            before = get_workspace(tx, actor, workspace_id)
            require_version(before, version)
            changes = self._changes(tx, before, patch)
            if not changes:
                return before
            after = evolve(before, **changes, last_activity_at=tx.now)
            return save(tx, before, after, actor=actor.name, told=changes)

        return await self._database.write(unit)

    async def act(
        self,
        actor: Actor,
        workspace_id: str,
        action: Action,
        request: ActionRequest,
        once: Once | None = None,
    ) -> Operation:
        """Record an action; one that is already satisfied ends at once with `{"changed": false}`."""
        require_scope(actor, Scope.WRITE)
        interrupted: list[str] = []

        def make(tx: Transaction) -> Operation:
            workspace = get_workspace(tx, actor, workspace_id)
            if action is Action.UNDELETE:
                return self._undelete(tx, actor, workspace)
            kind = OperationType(action)
            if workspace.current_operation is None and workspace.status is _SATISFIED.get(action):
                return satisfied(tx, actor, workspace, kind)
            require_allowed(workspace, action)
            if workspace.status is Status.STOPPING and not request.force:
                raise _needs_force(workspace)
            if action is not Action.STOP and workspace.status is not Status.RUNNING:
                self._quotas.require_power(tx, workspace)
            workspace, left = supersede(tx, workspace)
            if left is not None:
                interrupted.append(left)
            return begin(
                tx,
                actor,
                workspace,
                kind,
                to=_LEADS_TO[action],
                force=request.force,
                timeout_seconds=request.timeout_seconds,
            )

        operation = await self._database.write(
            lambda tx: answer_once(tx, actor.user_id, once, Operation, lambda: make(tx))
        )
        self._tell_queue(interrupted)
        return operation

    async def delete(
        self,
        actor: Actor,
        workspace_id: str,
        *,
        force: bool,
        keep_snapshots: bool = False,
        version: int | None = None,
    ) -> Operation:
        """Record the destruction of a workspace in whatever status, taking it from a running operation."""
        require_scope(actor, Scope.WRITE)
        interrupted: list[str] = []

        def unit(tx: Transaction) -> Operation:
            workspace = get_workspace(tx, actor, workspace_id)
            require_version(workspace, version)
            current = workspace.current_operation
            keep = Keep.ALL if keep_snapshots else Keep.NONE
            if current is not None and current.type is OperationType.DELETE:
                return _insist(tx, current, force, keep)
            workspace, left = supersede(tx, workspace)
            if left is not None:
                interrupted.append(left)
            return begin(
                tx, actor, workspace, OperationType.DELETE, to=Status.DELETING, force=force, keep=keep
            )

        operation = await self._database.write(unit)
        self._tell_queue(interrupted)
        return operation

    async def stats(self, actor: Actor, workspace_id: str) -> tuple[datetime, Stats]:
        """Return when, and what the running machine used then."""
        require_scope(actor, Scope.READ)
        workspace = await self._database.read(lambda tx: get_running(tx, actor, workspace_id, "be measured"))
        try:
            stats = await self._machines.provider(workspace.provider).stats(workspace.provider_ref or "")
        except (ProviderError, ProviderUnavailable) as error:
            raise refused_by_provider(error) from None
        return await self._database.read(lambda tx: tx.now), stats

    def _tell_queue(self, interrupted: Sequence[str]) -> None:
        for operation_id in interrupted:
            self._queue.interrupt(operation_id)
        self._queue.wake()

    def _changes(self, tx: Transaction, before: Workspace, patch: WorkspacePatch) -> dict[str, Any]:
        """Return the fields that a patch really changes, by name."""
        changes: dict[str, Any] = {}
        if patch.name is not UNSET:
            changes["name"] = patch.name
            if patch.name != before.name and has_name(tx, before.owner_id, str(patch.name)):
                raise name_taken(str(patch.name))
        if patch.description is not UNSET:
            changes["description"] = patch.description or ""
        if patch.labels is not UNSET:
            changes["labels"] = _merge_labels(before.labels, patch.labels)
            if len(changes["labels"]) > MAX_LABELS:
                raise invalid_value("/labels", f"would leave more than {MAX_LABELS}; remove some with null")
        if patch.pinned is not UNSET:
            changes["pinned"] = bool(patch.pinned)
        if patch.ports is not UNSET:
            changes["ports"] = patch.ports or ()
        if patch.idle_timeout_seconds is not UNSET:
            changes["idle_timeout_seconds"] = patch.idle_timeout_seconds
        different = {name: value for name, value in changes.items() if getattr(before, name) != value}
        if patch.ttl_seconds is not UNSET:
            ttl = patch.ttl_seconds
            assert ttl is None or isinstance(ttl, int)
            self._quotas.require_ttl(tx, before.owner_id, ttl)
            different["ttl_seconds"] = ttl
            different["expires_at"] = None if ttl is None else tx.now + timedelta(seconds=ttl)
        return different

    def _undelete(self, tx: Transaction, actor: Actor, workspace: Workspace) -> Operation:
        """Take a workspace out of trash: nothing of it was destroyed, so there is nothing to wait for."""
        if workspace.status is Status.STOPPED:
            return satisfied(tx, actor, workspace, OperationType.RESTORE)
        require_allowed(workspace, Action.UNDELETE)
        self._quotas.require_undelete(tx, workspace)
        operation = satisfied(tx, actor, workspace, OperationType.RESTORE, is_changed=True)
        ttl = self._quotas.shorten_ttl(tx, workspace.owner_id, workspace.ttl_seconds)
        after = evolve(
            workspace,
            status=Status.FAILED if workspace.provider_ref is None else Status.STOPPED,
            trashed_at=None,
            ttl_seconds=ttl,
            expires_at=None if ttl is None else tx.now + timedelta(seconds=ttl),
            last_activity_at=tx.now,
        )
        save(tx, workspace, after, actor=actor.name, reason="undelete")
        return operation


_SATISFIED: Mapping[Action, Status] = {Action.START: Status.RUNNING, Action.STOP: Status.STOPPED}
_LEADS_TO: Mapping[Action, Status] = {
    Action.START: Status.STARTING,
    Action.STOP: Status.STOPPING,
    Action.RESTART: Status.STOPPING,
    Action.REBUILD: Status.REBUILDING,
}


def _needs_force(workspace: Workspace) -> Refused:
    current = workspace.current_operation
    return Refused(
        ErrorCode.OPERATION_IN_PROGRESS,
        f"{workspace.id} is stopping already; wait for it, or stop it with force to kill it.",
        allowed_actions=workspace.allowed_actions,
        operation_id=None if current is None else current.id,
    )


def _insist(tx: Transaction, current: Operation, force: bool, keep: Keep) -> Operation:
    """Return the deletion that is under way; force makes it forget what it cannot destroy.

    One that keeps snapshots goes on to; one that does not may have destroyed them already.
    """
    job = find_job(tx, current.id)
    assert job is not None
    if keep is Keep.ALL and job.input.get("keep") != Keep.ALL:
        raise Refused(
            ErrorCode.OPERATION_IN_PROGRESS,
            f"The operation {current.id} deletes the workspace with its snapshots already.",
            operation_id=current.id,
        )
    if force and not job.input.get("force"):
        update_job(tx, evolve(job, input={**job.input, "force": True}))
    return current


def _merge_labels(before: Mapping[str, str], patch: Any) -> dict[str, str]:
    """Apply a JSON merge patch (RFC 7396) to labels."""
    if patch is None:
        return {}
    merged = {**before, **patch}
    return {key: value for key, value in merged.items() if value is not None}
