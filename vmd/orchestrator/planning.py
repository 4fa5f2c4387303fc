"""Plans: a request for a workspace, with everything that it leaves to the daemon."""

from datetime import timedelta

from attrs import evolve, fields, frozen
from msgspec import UNSET

from vmd.model.account import Actor, Scope
from vmd.model.errors import ErrorCode, Refused, invalid_value
from vmd.model.names import made_up_name
from vmd.model.quota import demand
from vmd.model.template import Template
from vmd.model.workspace import NewResources, NewWorkspace, Resources, Status, Workspace
from vmd.orchestrator.machines import Machines
from vmd.orchestrator.parameters import Filled, fill
from vmd.orchestrator.permissions import require_scope, require_unconfined
from vmd.orchestrator.plugins import Merged, Plugins
from vmd.orchestrator.quota import Quotas
from vmd.orchestrator.templates import Catalogue, merge_resources
from vmd.store.database import Transaction
from vmd.store.workspaces import has_name

MAX_NAME_TRIES = 20


@frozen(kw_only=True)
class Resolved:
    """What a request and its template leave no doubt about."""

    template: Template
    filled: Filled
    provider: str
    node: str
    resources: Resources
    merged: Merged
    ttl_seconds: int | None
    idle_timeout_seconds: int | None


class Planner:
    """Works out what a request asks for, or refuses it with the place of what is wrong."""

    def __init__(self, machines: Machines, quotas: Quotas, catalogue: Catalogue, plugins: Plugins) -> None:
        self._machines = machines
        self._quotas = quotas
        self._catalogue = catalogue
        self._plugins = plugins

    def resolve(self, actor: Actor, wanted: NewWorkspace) -> Resolved:
        """Return what a request leaves to the daemon, or refuse it with the place of what is wrong."""
        require_scope(actor, Scope.WRITE)
        require_unconfined(actor)
        template = self._catalogue.resolve(wanted.template)
        filled = fill(template, wanted.parameters)
        provider, node = self._machines.place(wanted.provider, wanted.node)
        resources = merge_resources(template.resources, wanted.resources)
        self._machines.require_capacity(provider, resources)
        as_filled = evolve(template, env=dict(filled.env), provisioning=filled.provisioning)
        merged = self._plugins.merge(as_filled, wanted)
        for place, name in enumerate(wanted.secrets):
            if name not in wanted.env:
                raise invalid_value(f"/secrets/{place}", f"'{name}' is not among the names in env.")
        ttl = template.ttl_seconds if wanted.ttl_seconds is UNSET else wanted.ttl_seconds
        idle = (
            template.idle_timeout_seconds
            if wanted.idle_timeout_seconds is UNSET
            else wanted.idle_timeout_seconds
        )
        return Resolved(
            template=template,
            filled=filled,
            provider=provider,
            node=node,
            resources=resources,
            merged=merged,
            ttl_seconds=ttl,
            idle_timeout_seconds=idle,
        )

    def draft(self, tx: Transaction, actor: Actor, wanted: NewWorkspace, resolved: Resolved) -> Workspace:
        """Return the workspace as it would be recorded in this transaction, within its owner's quota."""
        template, filled, merged = resolved.template, resolved.filled, resolved.merged
        taken = demand(resolved.provider, resolved.node, resolved.resources, merged.services)
        self._quotas.require_another(tx, actor.user_id, taken)
        ttl = self._ttl(tx, actor.user_id, wanted, resolved)
        return Workspace(
            id=tx.new_id("ws"),
            name=_free_name(tx, actor.user_id, wanted.name),
            description=wanted.description,
            owner_id=actor.user_id,
            owner=actor.name,
            status=Status.PENDING,
            health=self._machines.health(resolved.provider),
            version=1,
            template=template.id,
            provider=resolved.provider,
            node=resolved.node,
            image=filled.image,
            repo=wanted.repo,
            resources=resolved.resources,
            env={name: value for name, value in merged.env.items() if name not in wanted.secrets},
            secrets=tuple(sorted(set(wanted.secrets))),
            labels=wanted.labels,
            provisioning=merged.provisioning,
            plugins=merged.plugins,
            ports=merged.ports,
            pinned=wanted.pinned,
            ttl_seconds=ttl,
            expires_at=None if ttl is None else tx.now + timedelta(seconds=ttl),
            idle_timeout_seconds=resolved.idle_timeout_seconds,
            last_activity_at=tx.now,
            created_at=tx.now,
            updated_at=tx.now,
            started_at=None,
            trashed_at=None,
            current_operation=None,
            last_error=None,
            provider_ref=None,
            address=None,
            is_cloned=False,
            is_detecting=wanted.repo is not None and wanted.template is None,
            services=merged.services,
            parameters=filled.parameters,
            recipe=filled.recipe,
        )

    def _ttl(self, tx: Transaction, owner_id: str, wanted: NewWorkspace, resolved: Resolved) -> int | None:
        """Return how long it will live: as was asked for, or a template's time, as long as is allowed."""
        if wanted.ttl_seconds is UNSET:
            return self._quotas.shorten_ttl(tx, owner_id, resolved.ttl_seconds)
        self._quotas.require_ttl(tx, owner_id, resolved.ttl_seconds)
        return resolved.ttl_seconds


def explicit_fields(wanted: NewWorkspace) -> list[str]:
    """Return the names of what a request says itself, among what a detected preset would set."""
    resources = wanted.resources or NewResources()
    said = [field.name for field in fields(NewResources) if getattr(resources, field.name) is not None]
    return said if wanted.ports is None else ["ports", *said]


def name_taken(name: str) -> Refused:
    """Return the refusal of a name that the owner uses already."""
    return Refused(
        ErrorCode.NAME_TAKEN,
        f"You have a workspace called '{name}'; choose another name, or delete that one.",
    )


def _free_name(tx: Transaction, owner_id: str, wanted: str | None) -> str:
    if wanted is not None:
        if has_name(tx, owner_id, wanted):
            raise name_taken(wanted)
        return wanted
    for _ in range(MAX_NAME_TRIES):
        name = made_up_name()
        if not has_name(tx, owner_id, name):
            return name
    raise AssertionError("no made-up name is free")
