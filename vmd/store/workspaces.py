"""Workspaces and the values of their secrets."""

import sqlite3
from collections.abc import Collection, Mapping
from typing import Any

from attrs import evolve, frozen

from vmd.model.errors import Problem
from vmd.model.workspace import GitState, Health, Repo, Resources, Service, Status, Workspace
from vmd.store.database import Transaction
from vmd.store.operations import OPERATION_COLUMNS, operation_of
from vmd.store.rows import decoder, encode, millis, moment, optional_json, optional_millis, optional_moment

_REPO = decoder(Repo)
_RESOURCES = decoder(Resources)
_TEXTS = decoder(dict[str, str])
_NAMES = decoder(tuple[str, ...])
_PORTS = decoder(tuple[int, ...])
_PROBLEM = decoder(Problem)
_OBJECT = decoder(dict[str, Any])
_SERVICES = decoder(tuple[Service, ...])
_GIT = decoder(GitState)

_SELECT = f"""
SELECT w.id, w.name, w.description, w.owner_id, u.name AS owner, w.status, w.health, w.version, w.template,
    w.provider, w.node, w.image, w.repo, w.resources, w.env, w.secrets, w.labels, w.provisioning, w.plugins,
    w.ports, w.pinned, w.ttl_seconds, w.expires_at, w.idle_timeout_seconds, w.last_activity_at, w.created_at,
    w.updated_at, w.started_at, w.trashed_at, w.last_error, w.provider_ref, w.address, w.is_cloned,
    w.parameters, w.recipe, w.services, w.is_detecting, w.files, w.git,
    {OPERATION_COLUMNS}
FROM workspaces w JOIN users u ON u.id = w.owner_id LEFT JOIN operations o ON o.id = w.current_operation
WHERE w.deleted_at IS NULL
"""
FIND_WORKSPACE = f"{_SELECT} AND w.id = :id"
# Whatever changes a workspace's columns changes one of these too.
_STAMPS = """
SELECT w.id, w.version, w.last_activity_at, w.current_operation FROM workspaces w WHERE w.deleted_at IS NULL
"""
FIND_STAMP = f"{_STAMPS} AND w.id = :id"
FIND_MANY = f"{_SELECT} AND w.id IN (SELECT value FROM json_each(:ids))"
_LIST = f"""
{_STAMPS} {{scope}} AND w.id < coalesce(:after, '~')
    AND (:name IS NULL OR w.name = :name)
    AND (:statuses IS NULL OR w.status IN (SELECT value FROM json_each(:statuses)))
    AND (:templates IS NULL OR w.template IN (SELECT value FROM json_each(:templates)))
    AND (:providers IS NULL OR w.provider IN (SELECT value FROM json_each(:providers)))
    AND NOT EXISTS (SELECT 1 FROM json_each(:labels) wanted WHERE NOT EXISTS (
        SELECT 1 FROM json_each(w.labels) present
        WHERE present.key = json_extract(wanted.value, '$[0]')
        AND coalesce(present.value = json_extract(wanted.value, '$[1]'), TRUE)))
ORDER BY w.id DESC LIMIT :limit
"""
LIST_ALL = _LIST.format(scope="")
LIST_OF_OWNER = _LIST.format(scope="AND w.owner_id = :owner_id")
LIST_OF_PROVIDER = f"{_SELECT} AND w.provider = :provider ORDER BY w.id"
INSERT_WORKSPACE = """
INSERT INTO workspaces (id, name, description, owner_id, status, health, version, template, provider, node,
    image, repo, resources, env, secrets, labels, provisioning, plugins, ports, pinned, ttl_seconds,
    expires_at, idle_timeout_seconds, last_activity_at, created_at, updated_at, current_operation, is_cloned,
    parameters, recipe, services, is_detecting)
VALUES (:id, :name, :description, :owner_id, :status, :health, 1, :template, :provider, :node,
    :image, :repo, :resources, :env, :secrets, :labels, :provisioning, :plugins, :ports, :pinned,
    :ttl_seconds, :expires_at, :idle_timeout_seconds, :last_activity_at, :created_at, :updated_at, NULL,
    :is_cloned, :parameters, :recipe, :services, :is_detecting)
"""
UPDATE_WORKSPACE = """
UPDATE workspaces SET name = :name, description = :description, status = :status, health = :health,
    version = version + 1, repo = :repo, labels = :labels, ports = :ports, pinned = :pinned,
    ttl_seconds = :ttl_seconds, expires_at = :expires_at, idle_timeout_seconds = :idle_timeout_seconds,
    last_activity_at = :last_activity_at, updated_at = :now, started_at = :started_at,
    trashed_at = :trashed_at, current_operation = :current_operation, last_error = :last_error,
    provider_ref = :provider_ref, address = :address, is_cloned = :is_cloned, template = :template,
    image = :image, recipe = :recipe, resources = :resources, env = :env, provisioning = :provisioning,
    plugins = :plugins, services = :services, parameters = :parameters, is_detecting = :is_detecting,
    files = :files, git = :git
WHERE id = :id AND version = :version AND deleted_at IS NULL
"""
DELETE_WORKSPACE = """
UPDATE workspaces SET deleted_at = :now, updated_at = :now, version = version + 1, current_operation = NULL,
    provider_ref = NULL, address = NULL
WHERE id = :id AND deleted_at IS NULL
"""
TOUCH_WORKSPACES = """
UPDATE workspaces SET last_activity_at = :now
WHERE id IN (SELECT value FROM json_each(:ids)) AND deleted_at IS NULL
"""
TOUCH_COMMANDING = """
UPDATE workspaces SET last_activity_at = :now
WHERE id IN (SELECT workspace_id FROM commands WHERE finished_at IS NULL) AND deleted_at IS NULL
"""
MARK_HEALTH = """
UPDATE workspaces SET health = :health, version = version + 1, updated_at = :now
WHERE provider = :provider AND deleted_at IS NULL AND health <> :health
    AND (:health = 'unreachable' OR health = 'unreachable')
RETURNING id, owner_id
"""
INSERT_SECRET = "INSERT INTO workspace_secrets (workspace_id, name, value) VALUES (:id, :name, :value)"
LIST_SECRETS = "SELECT name, value FROM workspace_secrets WHERE workspace_id = :id ORDER BY name"
DELETE_SECRETS = "DELETE FROM workspace_secrets WHERE workspace_id = :id"
EXISTS_NAME = "SELECT 1 FROM workspaces WHERE owner_id = :owner_id AND name = :name AND deleted_at IS NULL"


@frozen(kw_only=True)
class WorkspaceFilter:
    """Which workspaces a list is about; None asks for all."""

    owner_id: str | None
    name: str | None = None
    statuses: tuple[Status, ...] | None = None
    templates: tuple[str, ...] | None = None
    providers: tuple[str, ...] | None = None
    labels: tuple[tuple[str, str | None], ...] = ()  # (key, value), or (key, None) for any value


def find_workspace(tx: Transaction, workspace_id: str) -> Workspace | None:
    """Return a workspace unless it is gone."""
    if tx.memory is None:
        row = tx.execute(FIND_WORKSPACE, {"id": workspace_id}).fetchone()
        return None if row is None else _workspace(row)
    found = _stamped(tx, tx.execute(FIND_STAMP, {"id": workspace_id}).fetchall())
    return found[0] if found else None


def list_workspaces(
    tx: Transaction, wanted: WorkspaceFilter, after: str | None, limit: int
) -> list[Workspace]:
    """Return up to `limit` workspaces older than `after`, newest first."""
    values = {
        "owner_id": wanted.owner_id,
        "name": wanted.name,
        "statuses": optional_json(wanted.statuses),
        "templates": optional_json(wanted.templates),
        "providers": optional_json(wanted.providers),
        "labels": encode(wanted.labels),
        "after": after,
        "limit": limit,
    }
    sql = LIST_ALL if wanted.owner_id is None else LIST_OF_OWNER
    return _stamped(tx, tx.execute(sql, values).fetchall())


def list_of_provider(tx: Transaction, provider: str) -> list[Workspace]:
    """Return every workspace that this provider holds, oldest first."""
    return [_workspace(row) for row in tx.execute(LIST_OF_PROVIDER, {"provider": provider})]


def has_name(tx: Transaction, owner_id: str, name: str) -> bool:
    """Whether the owner has a workspace of this name."""
    return tx.execute(EXISTS_NAME, {"owner_id": owner_id, "name": name}).fetchone() is not None


def insert_workspace(tx: Transaction, workspace: Workspace, secrets: Mapping[str, str]) -> None:
    """Add a workspace, with the values of its secrets."""
    tx.execute(
        INSERT_WORKSPACE, {**_mutable(workspace), **_immutable(workspace), "updated_at": millis(tx.now)}
    )
    for name, value in secrets.items():
        tx.execute(INSERT_SECRET, {"id": workspace.id, "name": name, "value": value})


def update_workspace(tx: Transaction, workspace: Workspace) -> Workspace:
    """Write all that may change of a workspace read in this transaction; return it with its new version."""
    values = {**_mutable(workspace), "id": workspace.id, "version": workspace.version, "now": millis(tx.now)}
    if tx.execute(UPDATE_WORKSPACE, values).rowcount != 1:
        raise AssertionError(f"{workspace.id} was written from a stale copy")
    return evolve(workspace, version=workspace.version + 1, updated_at=tx.now)


def delete_workspace(tx: Transaction, workspace_id: str) -> None:
    """Turn a workspace into history, and forget its secrets."""
    tx.execute(DELETE_WORKSPACE, {"id": workspace_id, "now": millis(tx.now)})
    tx.execute(DELETE_SECRETS, {"id": workspace_id})


def touch_workspaces(tx: Transaction, workspace_ids: Collection[str]) -> None:
    """Note that these workspaces are in use now."""
    if workspace_ids:
        tx.execute(TOUCH_WORKSPACES, {"ids": encode(sorted(workspace_ids)), "now": millis(tx.now)})


def touch_commanding(tx: Transaction) -> None:
    """Note that the workspaces in which commands run are in use now."""
    tx.execute(TOUCH_COMMANDING, {"now": millis(tx.now)})


def mark_health(tx: Transaction, provider: str, health: Health) -> list[tuple[str, str]]:
    """Note that a provider's workspaces are unreachable, or that those which were are no longer.

    Returns (id, owner id) of those it changed for.
    """
    rows = tx.execute(MARK_HEALTH, {"provider": provider, "health": health, "now": millis(tx.now)})
    return [(row["id"], row["owner_id"]) for row in rows.fetchall()]


def list_secrets(tx: Transaction, workspace_id: str) -> dict[str, str]:
    """Return the secret values by name."""
    return {row["name"]: row["value"] for row in tx.execute(LIST_SECRETS, {"id": workspace_id})}


def _stamped(tx: Transaction, stamps: list[sqlite3.Row]) -> list[Workspace]:
    """Return the workspaces of these stamps, made anew where they are not remembered."""
    found: dict[str, Workspace] = {}
    for identifier, *stamp in stamps:
        known = None if tx.memory is None else tx.memory.recall(identifier, stamp)
        if known is not None:
            found[identifier] = known
    missing = [row["id"] for row in stamps if row["id"] not in found]
    if missing:
        rows = tx.execute(FIND_MANY, {"ids": encode(missing)})
        found.update((row["id"], _workspace(row)) for row in rows)
        for identifier, *stamp in stamps:
            made = found[identifier]
            # An operation's progress changes without its workspace, so those are never remembered.
            if tx.memory is not None and made.current_operation is None:
                tx.memory.keep(identifier, stamp, made)
    return [found[row["id"]] for row in stamps]


def _mutable(workspace: Workspace) -> dict[str, Any]:
    current = workspace.current_operation
    return {
        "name": workspace.name,
        "description": workspace.description,
        "status": workspace.status,
        "health": workspace.health,
        "repo": optional_json(workspace.repo),
        "labels": encode(workspace.labels),
        "ports": encode(workspace.ports),
        "pinned": workspace.pinned,
        "ttl_seconds": workspace.ttl_seconds,
        "expires_at": optional_millis(workspace.expires_at),
        "idle_timeout_seconds": workspace.idle_timeout_seconds,
        "last_activity_at": millis(workspace.last_activity_at),
        "started_at": optional_millis(workspace.started_at),
        "trashed_at": optional_millis(workspace.trashed_at),
        "current_operation": None if current is None else current.id,
        "last_error": optional_json(workspace.last_error),
        "provider_ref": workspace.provider_ref,
        "address": workspace.address,
        "is_cloned": workspace.is_cloned,
        "template": workspace.template,
        "image": workspace.image,
        "recipe": workspace.recipe,
        "resources": encode(workspace.resources),
        "env": encode(workspace.env),
        "provisioning": encode(workspace.provisioning),
        "plugins": encode(workspace.plugins),
        "services": encode(workspace.services),
        "parameters": encode(workspace.parameters),
        "is_detecting": workspace.is_detecting,
        "files": workspace.files,
        "git": optional_json(workspace.git),
    }


def _immutable(workspace: Workspace) -> dict[str, Any]:
    return {
        "id": workspace.id,
        "owner_id": workspace.owner_id,
        "provider": workspace.provider,
        "node": workspace.node,
        "secrets": encode(workspace.secrets),
        "created_at": millis(workspace.created_at),
    }


def _workspace(row: sqlite3.Row) -> Workspace:
    repo, last_error, git = row["repo"], row["last_error"], row["git"]
    return Workspace(
        id=row["id"],
        name=row["name"],
        description=row["description"],
        owner_id=row["owner_id"],
        owner=row["owner"],
        status=Status(row["status"]),
        health=Health(row["health"]),
        version=row["version"],
        template=row["template"],
        provider=row["provider"],
        node=row["node"],
        image=row["image"],
        repo=None if repo is None else _REPO(repo),
        resources=_RESOURCES(row["resources"]),
        env=_TEXTS(row["env"]),
        secrets=_NAMES(row["secrets"]),
        labels=_TEXTS(row["labels"]),
        provisioning=_NAMES(row["provisioning"]),
        plugins=_NAMES(row["plugins"]),
        ports=_PORTS(row["ports"]),
        pinned=bool(row["pinned"]),
        ttl_seconds=row["ttl_seconds"],
        expires_at=optional_moment(row["expires_at"]),
        idle_timeout_seconds=row["idle_timeout_seconds"],
        last_activity_at=moment(row["last_activity_at"]),
        created_at=moment(row["created_at"]),
        updated_at=moment(row["updated_at"]),
        started_at=optional_moment(row["started_at"]),
        trashed_at=optional_moment(row["trashed_at"]),
        current_operation=None if row["op_id"] is None else operation_of(row),
        last_error=None if last_error is None else _PROBLEM(last_error),
        provider_ref=row["provider_ref"],
        address=row["address"],
        is_cloned=bool(row["is_cloned"]),
        parameters=_OBJECT(row["parameters"]),
        recipe=row["recipe"],
        services=_SERVICES(row["services"]),
        is_detecting=bool(row["is_detecting"]),
        files=row["files"],
        git=None if git is None else _GIT(git),
    )
