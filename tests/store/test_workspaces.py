import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from attrs import evolve

from vmd.model.account import Role, User
from vmd.model.errors import ErrorCode, Refused
from vmd.model.ids import IdFactory
from vmd.model.operation import Operation, OperationStatus, OperationType, Phase, Progress
from vmd.model.workspace import Health, Repo, Resources, Status, Workspace
from vmd.store.accounts import find_user, insert_user
from vmd.store.database import Database, Transaction, connect
from vmd.store.operations import find_job, insert_operation, update_job
from vmd.store.workspaces import (
    WorkspaceFilter,
    delete_workspace,
    find_workspace,
    has_name,
    insert_workspace,
    list_of_provider,
    list_secrets,
    list_workspaces,
    mark_health,
    touch_workspaces,
    update_workspace,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
EVERYTHING = WorkspaceFilter(owner_id=None)


def open_books() -> Transaction:
    """Return a transaction on empty books in memory, at a fixed time that a test may change."""
    return Transaction(connect(":memory:"), NOW, IdFactory().new)


def add_owner(tx: Transaction, name: str) -> str:
    """Return the id of the user of this name, who is made at need."""
    user = find_user(tx, name)
    if user is None:
        user = User(id=tx.new_id("usr"), name=name, role=Role.MEMBER, created_at=tx.now)
        insert_user(tx, user)
    return user.id


def draft(tx: Transaction, owner: str = "ann", **changes: Any) -> Workspace:
    """Return a workspace that is not in the books yet."""
    workspace_id = tx.new_id("ws")
    workspace = Workspace(
        id=workspace_id,
        name=workspace_id,
        description="",
        owner_id=add_owner(tx, owner),
        owner=owner,
        status=Status.RUNNING,
        health=Health.OK,
        version=1,
        template="base",
        provider="fake",
        node="local",
        image="vmd-base:bookworm",
        repo=None,
        resources=Resources(),
        env={},
        secrets=(),
        labels={},
        provisioning=(),
        plugins=(),
        ports=(),
        pinned=False,
        ttl_seconds=None,
        expires_at=None,
        idle_timeout_seconds=None,
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
    )
    return evolve(workspace, **changes)


def add_workspace(tx: Transaction, owner: str = "ann", **changes: Any) -> Workspace:
    """Add a workspace with these values, also of those that a new one has not, and return it."""
    workspace = draft(tx, owner, **changes)
    insert_workspace(tx, workspace, {})
    return update_workspace(tx, workspace)


def add_operation(
    tx: Transaction, workspace: Workspace, kind: OperationType = OperationType.START, **changes: Any
) -> Operation:
    """Add an operation on a workspace, pending unless something else is said, and return it."""
    operation = Operation(
        id=tx.new_id("op"),
        type=kind,
        status=OperationStatus.PENDING,
        workspace_id=workspace.id,
        actor=workspace.owner,
        created_at=tx.now,
        may_cancel=True,
    )
    operation = evolve(operation, **changes)
    insert_operation(tx, operation, workspace.owner_id, {})
    return operation


@pytest.fixture
def tx() -> Iterator[Transaction]:
    books = open_books()
    yield books
    books._connection.close()


def ids(found: list[Workspace]) -> list[str]:
    return [workspace.id for workspace in found]


def test_a_workspace_is_found_as_it_was_inserted(tx: Transaction) -> None:
    workspace = draft(
        tx,
        name="calm-otter",
        description="Übung\n",
        status=Status.PENDING,
        repo=Repo(url="https://example.com/x", branch="main", commit="abcdef1"),
        resources=Resources(cpus=0.5, memory_mb=256, disk_mb=1024, pids=64),
        env={"A": "b\n"},
        secrets=("TOKEN",),
        labels={"team/a": "", "b": "ü"},
        provisioning=("make", "make check"),
        plugins=("p",),
        ports=(80, 3000),
        pinned=True,
        ttl_seconds=3600,
        expires_at=NOW + timedelta(hours=1),
        idle_timeout_seconds=600,
    )
    insert_workspace(tx, workspace, {"TOKEN": "s3cret"})
    assert find_workspace(tx, workspace.id) == workspace


def test_secrets_are_kept_apart_from_the_workspace(tx: Transaction) -> None:
    workspace = draft(tx, secrets=("A", "B"))
    insert_workspace(tx, workspace, {"B": "2\n", "A": "1"})
    assert list_secrets(tx, workspace.id) == {"A": "1", "B": "2\n"}
    assert list_secrets(tx, draft(tx).id) == {}


def test_what_is_not_there_is_not_found(tx: Transaction) -> None:
    assert find_workspace(tx, "ws-0000000000") is None


def test_an_update_is_found_with_its_new_version_and_time(tx: Transaction) -> None:
    before = add_workspace(tx)
    operation = add_operation(tx, before)
    tx.now = NOW + timedelta(seconds=5)
    changed = evolve(
        before,
        name="new",
        description="d",
        status=Status.STOPPED,
        health=Health.DEGRADED,
        repo=Repo(url="https://example.com/x"),
        labels={"a": "b"},
        ports=(1,),
        pinned=True,
        ttl_seconds=60,
        expires_at=NOW,
        idle_timeout_seconds=60,
        last_activity_at=NOW + timedelta(seconds=1),
        started_at=NOW + timedelta(seconds=2),
        trashed_at=NOW + timedelta(seconds=3),
        current_operation=operation,
        last_error=Refused(ErrorCode.PROVIDER_ERROR, "It broke.", allowed_actions=["delete"]).problem(),
        provider_ref="machine-1",
        address="10.0.0.2",
        is_cloned=True,
    )
    saved = update_workspace(tx, changed)
    assert saved == evolve(changed, version=before.version + 1, updated_at=tx.now)
    assert find_workspace(tx, before.id) == saved


def test_an_update_from_a_stale_copy_is_refused_and_changes_nothing(tx: Transaction) -> None:
    stale = add_workspace(tx)
    latest = update_workspace(tx, evolve(stale, description="first"))
    with pytest.raises(AssertionError, match="stale"):
        update_workspace(tx, evolve(stale, description="second"))
    assert find_workspace(tx, stale.id) == latest


def test_an_update_of_what_is_gone_is_refused(tx: Transaction) -> None:
    workspace = add_workspace(tx)
    delete_workspace(tx, workspace.id)
    with pytest.raises(AssertionError, match="stale"):
        update_workspace(tx, workspace)


def test_a_deleted_workspace_is_history_without_secrets(tx: Transaction) -> None:
    workspace = draft(tx, secrets=("A",))
    insert_workspace(tx, workspace, {"A": "1"})
    delete_workspace(tx, workspace.id)
    assert find_workspace(tx, workspace.id) is None
    assert list_workspaces(tx, EVERYTHING, None, 10) == []
    assert list_secrets(tx, workspace.id) == {}
    row = tx.execute("SELECT deleted_at, provider_ref FROM workspaces").fetchone()
    assert (row["deleted_at"] is not None, row["provider_ref"]) == (True, None)


def test_a_name_is_unique_among_its_owners_workspaces(tx: Transaction) -> None:
    add_workspace(tx, "ann", name="x")
    add_workspace(tx, "bob", name="x")
    with pytest.raises(sqlite3.IntegrityError):
        add_workspace(tx, "ann", name="x")


def test_a_name_is_free_again_after_deletion(tx: Transaction) -> None:
    first = add_workspace(tx, "ann", name="x")
    assert has_name(tx, first.owner_id, "x")
    delete_workspace(tx, first.id)
    assert not has_name(tx, first.owner_id, "x")
    assert find_workspace(tx, add_workspace(tx, "ann", name="x").id) is not None


def test_an_owner_lists_what_is_theirs_newest_first(tx: Transaction) -> None:
    mine = [add_workspace(tx, "ann") for _ in range(3)]
    other = add_workspace(tx, "bob")
    wanted = WorkspaceFilter(owner_id=mine[0].owner_id)
    assert list_workspaces(tx, wanted, None, 10) == mine[::-1]
    assert list_workspaces(tx, EVERYTHING, None, 10) == [other, *mine[::-1]]


def test_a_list_shows_the_operation_that_holds_a_workspace(tx: Transaction) -> None:
    workspace = add_workspace(tx)
    operation = add_operation(tx, workspace)
    held = update_workspace(tx, evolve(workspace, current_operation=operation))
    assert list_workspaces(tx, EVERYTHING, None, 10) == [held]


def test_filters_of_one_kind_widen_and_of_different_kinds_narrow(tx: Transaction) -> None:
    running = add_workspace(tx, status=Status.RUNNING, template="go", provider="fake")
    stopped = add_workspace(tx, status=Status.STOPPED, template="go", provider="docker")
    failed = add_workspace(tx, status=Status.FAILED, template="python", provider="fake")

    def found(**wanted: Any) -> list[str]:
        return ids(list_workspaces(tx, WorkspaceFilter(owner_id=None, **wanted), None, 10))

    assert found(statuses=(Status.RUNNING,)) == [running.id]
    assert found(statuses=(Status.RUNNING, Status.STOPPED)) == [stopped.id, running.id]
    assert found(statuses=()) == []
    assert found(templates=("go",)) == [stopped.id, running.id]
    assert found(templates=("go",), providers=("fake",)) == [running.id]
    assert found(providers=("fake", "docker"), statuses=(Status.FAILED,)) == [failed.id]
    assert found(name=stopped.name) == [stopped.id]
    assert found(name=stopped.name, statuses=(Status.RUNNING,)) == []


def test_labels_filter_by_key_and_by_key_and_value(tx: Transaction) -> None:
    plain = add_workspace(tx, labels={})
    red = add_workspace(tx, labels={"colour": "red", "team/x.y": "a=b"})
    blue = add_workspace(tx, labels={"colour": "blue", "empty": ""})

    def found(*labels: tuple[str, str | None]) -> list[str]:
        return ids(list_workspaces(tx, WorkspaceFilter(owner_id=None, labels=labels), None, 10))

    assert found() == [blue.id, red.id, plain.id]
    assert found(("colour", None)) == [blue.id, red.id]
    assert found(("colour", "red")) == [red.id]
    assert found(("colour", "re")) == []
    assert found(("colour", "")) == []
    assert found(("Colour", "red")) == []
    assert found(("colour", "red"), ("team/x.y", None)) == [red.id]
    assert found(("colour", "red"), ("colour", "blue")) == []
    assert found(("team/x.y", "a=b")) == [red.id]
    assert found(("empty", "")) == [blue.id]
    assert found(("empty", None), ("colour", "red")) == []
    assert found(("missing", None)) == []


@pytest.mark.parametrize("value", ["1", "0", "true", "null", "1.0", '"', "[]", "%", "a'b"])
def test_a_label_is_compared_as_text_whatever_it_looks_like(tx: Transaction, value: str) -> None:
    right = add_workspace(tx, labels={"k": value})
    add_workspace(tx, labels={"k": f"{value}x"})
    wanted = WorkspaceFilter(owner_id=None, labels=(("k", value),))
    assert ids(list_workspaces(tx, wanted, None, 10)) == [right.id]


def test_pages_follow_one_another_without_a_gap_or_a_repeat(tx: Transaction) -> None:
    made = [add_workspace(tx).id for _ in range(7)]
    seen: list[str] = []
    after = None
    while page := ids(list_workspaces(tx, EVERYTHING, after, 3)):
        seen += page
        after = page[-1]
    assert seen == made[::-1]


def test_pages_stay_right_while_rows_come_and_go(tx: Transaction) -> None:
    made = [add_workspace(tx).id for _ in range(9)]
    first = ids(list_workspaces(tx, EVERYTHING, None, 3))
    add_workspace(tx)
    delete_workspace(tx, made[7])  # of the first page
    delete_workspace(tx, first[-1])  # the cursor itself
    delete_workspace(tx, made[4])  # yet to come
    second = ids(list_workspaces(tx, EVERYTHING, first[-1], 3))
    add_workspace(tx)
    third = ids(list_workspaces(tx, EVERYTHING, second[-1], 3))
    assert first == [made[8], made[7], made[6]]
    assert second == [made[5], made[3], made[2]]
    assert third == [made[1], made[0]]


def test_activity_is_noted_without_a_new_version(tx: Transaction) -> None:
    workspace = add_workspace(tx)
    tx.now = NOW + timedelta(minutes=1)
    touch_workspaces(tx, [workspace.id])
    assert find_workspace(tx, workspace.id) == evolve(workspace, last_activity_at=tx.now)


def test_a_health_is_marked_where_it_changes_alone(tx: Transaction) -> None:
    well = add_workspace(tx)
    gone = add_workspace(tx)
    delete_workspace(tx, gone.id)
    already = add_workspace(tx, health=Health.UNREACHABLE)
    elsewhere = add_workspace(tx, provider="docker")
    assert mark_health(tx, "fake", Health.UNREACHABLE) == [(well.id, well.owner_id)]
    marked = find_workspace(tx, well.id)
    assert marked == evolve(well, health=Health.UNREACHABLE, version=well.version + 1)
    assert find_workspace(tx, already.id) == already
    assert find_workspace(tx, elsewhere.id) == elsewhere
    assert mark_health(tx, "fake", Health.UNREACHABLE) == []
    degraded = add_workspace(tx, health=Health.DEGRADED)
    assert mark_health(tx, "fake", Health.OK) == [(found.id, found.owner_id) for found in (well, already)]
    assert find_workspace(tx, degraded.id) == degraded  # reaching it mends nothing
    assert mark_health(tx, "fake", Health.UNREACHABLE)[-1] == (degraded.id, degraded.owner_id)


def test_a_provider_is_told_of_what_it_holds_oldest_first(tx: Transaction) -> None:
    first, second = add_workspace(tx), add_workspace(tx, "bob")
    add_workspace(tx, provider="docker")
    assert list_of_provider(tx, "fake") == [first, second]


async def test_what_is_remembered_is_never_stale() -> None:
    database = Database(connect(":memory:"))

    def setup(tx: Transaction) -> Workspace:
        return add_workspace(tx, add_owner(tx, "ann"))

    made = await database.write(setup)

    async def seen() -> Workspace:
        found = await database.read(lambda tx: find_workspace(tx, made.id))
        wanted = WorkspaceFilter(owner_id=made.owner_id)
        listed = await database.read(lambda tx: list_workspaces(tx, wanted, None, 10))
        fresh = await database.write(lambda tx: find_workspace(tx, made.id))  # writers remember nothing
        assert found is not None
        assert found == fresh == listed[0]
        return found

    first = await seen()
    assert await seen() is first
    await database.write(lambda tx: update_workspace(tx, evolve(first, description="changed")))
    second = await seen()
    assert second.description == "changed"
    with pytest.raises(ZeroDivisionError):
        await database.write(lambda tx: (update_workspace(tx, evolve(second, name="never")), 1 / 0))
    assert (await seen()).name == second.name
    await database.write(lambda tx: touch_workspaces(tx, [made.id]))
    assert (await seen()).last_activity_at > second.last_activity_at
    await database.write(lambda tx: mark_health(tx, made.provider, Health.UNREACHABLE))
    assert (await seen()).health is Health.UNREACHABLE

    def hold(tx: Transaction) -> Operation:
        current = find_workspace(tx, made.id)
        assert current is not None
        operation = add_operation(tx, current)
        update_workspace(tx, evolve(current, current_operation=operation))
        return operation

    operation = await database.write(hold)
    assert (await seen()).current_operation is not None

    def progress(tx: Transaction) -> None:
        job = find_job(tx, operation.id)
        assert job is not None
        moved = evolve(job.operation, progress=Progress(phase=Phase.CLONE, message="half way"))
        update_job(tx, evolve(job, operation=moved))

    await database.write(progress)
    current = (await seen()).current_operation
    assert current is not None
    assert current.progress.message == "half way"
    await database.write(lambda tx: delete_workspace(tx, made.id))
    assert await database.read(lambda tx: find_workspace(tx, made.id)) is None
    await database.close()
