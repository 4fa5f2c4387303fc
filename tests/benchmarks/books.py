"""A data directory with a thousand workspaces on record, written as the daemon would have."""

import asyncio
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from tests.benchmarks.process import FAKE_ONLY, daemon
from vmd.bootstrap import DATABASE_FILE
from vmd.model.workspace import Health, Repo, Resources, Status, Workspace
from vmd.store.accounts import find_user
from vmd.store.database import Database, Transaction, connect
from vmd.store.workspaces import WorkspaceFilter, insert_workspace, list_workspaces

T = TypeVar("T")

WORKSPACE_COUNT = 1000
_DAY_SECONDS = 24 * 3600


def make_data_dir(data_dir: Path, provider: str) -> list[str]:
    """Make books of stopped workspaces of the administrator's; return their ids, newest first."""
    with daemon(data_dir, FAKE_ONLY):
        pass  # the first start makes the books, and the administrator with its token
    _write(data_dir, provider)
    return stopped_ids(data_dir)


def stopped_ids(data_dir: Path) -> list[str]:
    """Return the ids of all workspaces that are as `make_data_dir` left them, newest first."""
    wanted = WorkspaceFilter(owner_id=None, statuses=(Status.STOPPED,))
    found = _transact(data_dir, lambda tx: list_workspaces(tx, wanted, None, WORKSPACE_COUNT + 1))
    return [workspace.id for workspace in found if workspace.health is Health.OK and workspace.version == 1]


def _write(data_dir: Path, provider: str) -> None:
    chance = random.Random(1)  # the same books in every run

    def unit(tx: Transaction) -> None:
        for number in range(WORKSPACE_COUNT):
            secrets = {"API_KEY": f"{chance.getrandbits(256):064x}"} if number % 4 == 0 else {}
            insert_workspace(tx, _workspace(tx, provider, number, chance, tuple(secrets)), secrets)

    _transact(data_dir, unit)


def _transact(data_dir: Path, unit: Callable[[Transaction], T]) -> T:
    """Do one transaction on the books of a daemon that does not run."""

    async def transact() -> T:
        database = Database(connect(data_dir / DATABASE_FILE))
        try:
            return await database.write(unit)
        finally:
            await database.close()

    return asyncio.run(transact())


def _workspace(
    tx: Transaction, provider: str, number: int, chance: random.Random, secrets: tuple[str, ...]
) -> Workspace:
    owner = find_user(tx, "admin")
    assert owner is not None
    made_at = tx.now - timedelta(seconds=(WORKSPACE_COUNT - number) * 600)
    team, ttl = chance.choice(("search", "billing", "mobile", "platform")), chance.choice((7, 30, 90))
    return Workspace(
        id=tx.new_id("ws"),
        name=f"{team}-feature-{number}",
        description=f"Ticket {team.upper()}-{4000 + number}: the report page times out for large accounts",
        owner_id=owner.id,
        owner=owner.name,
        status=Status.STOPPED,
        health=Health.OK,
        version=1,
        template=chance.choice(("default", "python", "node")),
        provider=provider,
        node="local",
        image="vmd-base:bookworm",
        repo=Repo(
            url=f"https://git.example.com/{team}/service-{number % 40}.git",
            branch=f"feature/{number}-timeouts",
            commit=f"{chance.getrandbits(160):040x}",
        ),
        resources=Resources(cpus=chance.choice((1.0, 2.0)), memory_mb=chance.choice((1024, 2048, 4096))),
        env={
            "LANG": "C.UTF-8",
            "APP_ENV": "development",
            "DATABASE_URL": f"postgresql://app@db:5432/{team}_{number}",
            "FEATURE_FLAGS": "new-report,fast-export",
        },
        secrets=secrets,
        labels={"team": team, "ticket": f"{team}-{4000 + number}", "made-by": "ci"},
        provisioning=("pip install -r requirements.txt", "make migrate", "make seed"),
        plugins=(),
        ports=(8000, 5432),
        pinned=number % 50 == 0,
        ttl_seconds=ttl * _DAY_SECONDS,
        expires_at=tx.now + timedelta(days=ttl),
        idle_timeout_seconds=3600,
        last_activity_at=made_at,
        created_at=made_at,
        updated_at=made_at,
        started_at=None,
        trashed_at=None,
        current_operation=None,
        last_error=None,
        provider_ref=None,
        address=None,
        is_cloned=False,
    )
