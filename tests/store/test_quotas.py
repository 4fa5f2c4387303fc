from collections.abc import Iterator

import pytest

from tests.store.test_workspaces import add_owner, add_workspace, open_books
from vmd.model.quota import Limits, OwnLimits
from vmd.model.workspace import POWERED, Resources, Service, Status
from vmd.store.database import Transaction
from vmd.store.quotas import (
    Promised,
    Use,
    count_snapshots,
    find_own_limits,
    sum_promised,
    sum_use,
    update_own_limits,
)
from vmd.store.workspaces import delete_workspace

DATABASE = Service(name="db", image="db", memory_mb=200, cpus=0.25)
CACHE = Service(name="cache", image="cache", memory_mb=50, cpus=0.125)


@pytest.fixture
def tx() -> Iterator[Transaction]:
    books = open_books()
    yield books
    books._connection.close()


def add_snapshot(tx: Transaction, owner_id: str, status: str) -> None:
    tx.execute(
        "INSERT INTO snapshots (id, workspace_id, owner_id, name, description, status, is_final, provider,"
        " node, actor, origin, created_at)"
        " VALUES (:id, 'ws-0000000000', :owner_id, 's', '', :status, 0, 'fake', 'local', 'ann', '{}', 0)",
        {"id": tx.new_id("snap"), "owner_id": owner_id, "status": status},
    )


def test_use_counts_machines_that_are_on_and_disks_of_all(tx: Transaction) -> None:
    resources = Resources(cpus=1.5, memory_mb=100, disk_mb=1000)
    on = add_workspace(tx, status=Status.RUNNING, resources=resources)
    add_workspace(tx, status=Status.CREATING, resources=Resources(cpus=0.5, memory_mb=50))
    add_workspace(tx, status=Status.STOPPED, resources=resources)
    delete_workspace(tx, add_workspace(tx, resources=resources).id)
    add_workspace(tx, "bob", resources=resources)
    use = sum_use(tx, on.owner_id, POWERED)
    assert use == Use(workspaces=3, running=2, cpus=2.0, memory_mb=150, disk_mb=2000)
    others = sum_use(tx, on.owner_id, POWERED, apart_from=on.id)
    assert others == Use(workspaces=2, running=1, cpus=0.5, memory_mb=50, disk_mb=1000)


def test_one_who_has_nothing_uses_nothing(tx: Transaction) -> None:
    use = sum_use(tx, add_owner(tx, "ann"), POWERED)
    assert use == Use(workspaces=0, running=0, cpus=0, memory_mb=0, disk_mb=0)


def test_what_runs_beside_a_machine_counts_with_it(tx: Transaction) -> None:
    resources = Resources(cpus=1, memory_mb=100)
    on = add_workspace(tx, resources=resources, services=(DATABASE, CACHE))
    add_workspace(tx, resources=resources, services=(DATABASE,), status=Status.STOPPED)
    assert sum_use(tx, on.owner_id, POWERED).cpus == 1.375
    assert sum_use(tx, on.owner_id, POWERED).memory_mb == 350
    assert sum_promised(tx, "fake", "local", POWERED) == Promised(cpus=1.375, memory_mb=350)


def test_a_host_has_promised_what_everybody_has_on_it(tx: Transaction) -> None:
    resources = Resources(cpus=1, memory_mb=100)
    first = add_workspace(tx, resources=resources)
    add_workspace(tx, "bob", resources=resources, status=Status.STARTING)
    add_workspace(tx, resources=resources, provider="docker")
    add_workspace(tx, resources=resources, node="elsewhere")
    delete_workspace(tx, add_workspace(tx, resources=resources).id)
    assert sum_promised(tx, "fake", "local", POWERED) == Promised(cpus=2, memory_mb=200)
    assert sum_promised(tx, "fake", "local", POWERED, first.id) == Promised(cpus=1, memory_mb=100)
    assert sum_promised(tx, "ssh", "far", POWERED) == Promised(cpus=0, memory_mb=0)


@pytest.mark.parametrize("status", Status)
def test_every_status_counts_as_what_it_holds(tx: Transaction, status: Status) -> None:
    owned = add_workspace(tx, status=status)
    is_on = status not in (Status.STOPPED, Status.FAILED, Status.TRASHED, Status.DELETING)
    use = sum_use(tx, owned.owner_id, POWERED)
    assert (use.workspaces, use.running, use.memory_mb) == (1, is_on, 1024 * is_on)
    assert sum_promised(tx, "fake", "local", POWERED).memory_mb == 1024 * is_on


def test_snapshots_count_from_the_start_until_they_fail_or_go(tx: Transaction) -> None:
    ann, bob = add_owner(tx, "ann"), add_owner(tx, "bob")
    for status in ("creating", "ready", "failed"):
        add_snapshot(tx, ann, status)
    assert (count_snapshots(tx, ann), count_snapshots(tx, bob)) == (2, 0)


def test_own_limits_replace_single_ones_and_may_be_none(tx: Transaction) -> None:
    ann = add_owner(tx, "ann")
    usual = Limits(workspaces=5, running=2, cpus=4.0)
    assert find_own_limits(tx, ann).over(usual) == usual
    update_own_limits(tx, ann, OwnLimits(running=None, cpus=1.5))
    assert find_own_limits(tx, ann) == OwnLimits(running=None, cpus=1.5)
    assert find_own_limits(tx, ann).over(usual) == Limits(workspaces=5, running=None, cpus=1.5)
    assert find_own_limits(tx, add_owner(tx, "bob")) == OwnLimits()
