import importlib
import pkgutil
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from attrs import frozen

import vmd.store
from tests.store.test_workspaces import NOW, add_operation, add_owner, add_workspace, open_books
from vmd.model.event import EventType
from vmd.model.operation import OperationStatus
from vmd.store import clocks, events, operations, workspaces
from vmd.store.clocks import list_due, list_unwarned
from vmd.store.database import Transaction
from vmd.store.events import delete_old_events, list_events
from vmd.store.operations import OperationFilter, claim_next, delete_finished, list_operations
from vmd.store.workspaces import WorkspaceFilter, delete_workspace, list_workspaces

FEW, MANY = 200, 2000
PAGE = 21
TABLES = {"workspaces", "operations", "events", "w", "o", "a"}  # and the names they go by in queries


@frozen(kw_only=True)
class Statement:
    """An upper-case constant of a module of the store."""

    name: str
    sql: str


def statements() -> list[Statement]:
    found = []
    for module in pkgutil.iter_modules(vmd.store.__path__, "vmd.store."):
        for name, value in vars(importlib.import_module(module.name)).items():
            is_sql = isinstance(value, str) and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE)\b", value)
            if name.isupper() and is_sql and "{scope}" not in value:
                found.append(Statement(name=f"{module.name.removeprefix('vmd.store.')}.{name}", sql=value))
    return found


STATEMENTS = {statement.name: statement.sql for statement in statements()}


def plan(sql: str) -> list[str]:
    """Return SQLite's plan for a statement whose named parameters are NULL."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript((Path(__file__).parents[2] / "schema.sql").read_text("utf-8"))
        values = dict.fromkeys(re.findall(r":([a-z_]+)", sql))
        return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]


def test_the_statements_of_the_store_are_found() -> None:
    assert len(STATEMENTS) >= 50
    assert {"workspaces.LIST_ALL", "database._INSERT_EVENT", "idempotency.KEEP_ANSWER"} <= set(STATEMENTS)


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_every_statement_fits_the_schema(name: str) -> None:
    steps = plan(STATEMENTS[name])
    assert steps or STATEMENTS[name].lstrip().startswith("INSERT")


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_every_value_is_bound_by_name(name: str) -> None:
    assert "?" not in STATEMENTS[name]
    assert "%s" not in STATEMENTS[name]


@pytest.mark.parametrize(
    "sql",
    [
        workspaces.LIST_ALL,
        workspaces.LIST_OF_OWNER,
        operations.LIST_ALL,
        operations.LIST_OF_OWNER,
        operations.LIST_OF_WORKSPACES,
        operations.LIST_LOGS,
        operations.FIND_NEXT,
        events.LIST_ALL,
        events.LIST_OF_OWNER,
        events.LIST_OF_WORKSPACE,
        clocks.LIST_DUE,
        clocks.LIST_UNWARNED,
        clocks.LIST_UNWARNED_OF_WORKSPACE,
    ],
)
def test_no_list_reads_a_whole_table(sql: str) -> None:
    read_whole = [step for step in plan(sql) if step.split()[0] == "SCAN" and step.split()[1] in TABLES]
    # Along an index is in order, so that it ends with the page.
    assert [step for step in read_whole if " USING INDEX " not in step] == []


@pytest.mark.parametrize(
    "sql",
    [
        workspaces.LIST_ALL,
        workspaces.LIST_OF_OWNER,
        operations.LIST_ALL,
        operations.LIST_OF_OWNER,
        events.LIST_ALL,
        events.LIST_OF_OWNER,
        events.LIST_OF_WORKSPACE,
    ],
)
def test_no_list_is_sorted_before_its_page_is_cut(sql: str) -> None:
    assert [step for step in plan(sql) if "TEMP B-TREE" in step] == []


# What a query costs is counted in steps of SQLite's virtual machine, which no load on the machine changes.


def cost(tx: Transaction, work: Callable[[], object]) -> int:
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    tx._connection.set_progress_handler(count, 10)
    try:
        work()
    finally:
        tx._connection.set_progress_handler(None, 0)
    return steps


@contextmanager
def books(fill: Callable[[Transaction, int], None], count: int) -> Iterator[Transaction]:
    tx = open_books()
    tx.execute("BEGIN")
    fill(tx, count)
    tx.execute("COMMIT")
    yield tx
    tx._connection.close()


def growth(fill: Callable[[Transaction, int], None], work: Callable[[Transaction], object]) -> float:
    """Return how many times as much the work costs with ten times the rows."""
    with books(fill, FEW) as few, books(fill, MANY) as many:
        return cost(many, lambda: work(many)) / cost(few, lambda: work(few))


def fill_workspaces(tx: Transaction, count: int) -> None:
    for _ in range(count):
        add_workspace(tx)


def fill_operations(tx: Transaction, count: int) -> None:
    workspace = add_workspace(tx)
    for _ in range(count):
        add_operation(tx, workspace, status=OperationStatus.SUCCEEDED, finished_at=NOW)


def fill_events(tx: Transaction, count: int) -> None:
    owner_id = add_owner(tx, "ann")
    for _ in range(count):
        tx.emit(EventType.WORKSPACE_UPDATED, actor="ann", owner_id=owner_id, workspace_id="ws-0000000000")


def page_of_workspaces(tx: Transaction, *, of_owner: bool, deep: bool) -> object:
    owner_id = add_owner(tx, "ann") if of_owner else None
    oldest = tx.execute("SELECT id FROM workspaces ORDER BY id LIMIT 1 OFFSET 50").fetchone()["id"]
    return list_workspaces(tx, WorkspaceFilter(owner_id=owner_id), oldest if deep else None, PAGE)


def page_of_operations(tx: Transaction, *, of_owner: bool, deep: bool) -> object:
    owner_id = add_owner(tx, "ann") if of_owner else None
    oldest = tx.execute("SELECT id FROM operations ORDER BY id LIMIT 1 OFFSET 50").fetchone()["id"]
    return list_operations(tx, OperationFilter(owner_id=owner_id), oldest if deep else None, PAGE)


@pytest.mark.parametrize("of_owner", [True, False])
@pytest.mark.parametrize("deep", [False, True])
def test_a_page_of_workspaces_costs_the_page_and_not_the_table(of_owner: bool, deep: bool) -> None:
    assert growth(fill_workspaces, lambda tx: page_of_workspaces(tx, of_owner=of_owner, deep=deep)) < 2


@pytest.mark.parametrize("of_owner", [True, False])
@pytest.mark.parametrize("deep", [False, True])
def test_a_page_of_operations_costs_the_page_and_not_the_table(of_owner: bool, deep: bool) -> None:
    assert growth(fill_operations, lambda tx: page_of_operations(tx, of_owner=of_owner, deep=deep)) < 2


@pytest.mark.parametrize("scope", ["all", "owner", "workspace"])
def test_a_batch_of_events_costs_the_batch_and_not_the_table(scope: str) -> None:
    def work(tx: Transaction) -> object:
        owner_id = add_owner(tx, "ann") if scope == "owner" else None
        workspace_id = "ws-0000000000" if scope == "workspace" else None
        return list_events(tx, owner_id=owner_id, workspace_id=workspace_id, after=100, limit=PAGE)

    assert growth(fill_events, work) < 2


def test_clocks_cost_nothing_for_history() -> None:
    def fill(tx: Transaction, count: int) -> None:
        for _ in range(count):
            delete_workspace(tx, add_workspace(tx, expires_at=NOW).id)
        for _ in range(10):
            add_workspace(tx, expires_at=NOW)

    assert growth(fill, lambda tx: list_due(tx, 60, 60, 100)) < 2
    assert growth(fill, lambda tx: list_unwarned(tx, NOW, 60, 60, 100)) < 2


def test_a_claim_costs_nothing_for_operations_that_ended() -> None:
    def fill(tx: Transaction, count: int) -> None:
        fill_operations(tx, count)
        add_operation(tx, add_workspace(tx))

    assert growth(fill, lambda tx: claim_next(tx, ())) < 2


def test_forgetting_events_costs_nothing_for_those_that_are_kept() -> None:
    assert growth(fill_events, lambda tx: delete_old_events(tx, timedelta(days=1), 100)) < 2


def test_forgetting_operations_costs_nothing_for_those_that_are_kept() -> None:
    assert growth(fill_operations, lambda tx: delete_finished(tx, timedelta(days=1), 100)) < 2


def test_forgetting_an_operation_does_not_read_every_workspace() -> None:
    def fill(tx: Transaction, count: int) -> None:
        fill_workspaces(tx, count)
        ended = NOW - timedelta(days=2)
        add_operation(tx, add_workspace(tx), status=OperationStatus.FAILED, finished_at=ended)

    def work(tx: Transaction) -> None:
        assert delete_finished(tx, timedelta(days=1), 100) == 1

    assert growth(fill, work) < 2
