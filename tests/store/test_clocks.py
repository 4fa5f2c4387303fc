from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from attrs import evolve

from tests.store.test_workspaces import NOW, add_operation, add_workspace, open_books
from vmd.model.workspace import Health, Status
from vmd.store.clocks import (
    Clock,
    Fired,
    Firing,
    find_fired,
    list_due,
    list_unwarned,
    mark_fired,
    mark_warned,
)
from vmd.store.database import Transaction
from vmd.store.workspaces import delete_workspace, find_workspace, update_workspace

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
GRACE_SECONDS = 3600
GRACE = timedelta(seconds=GRACE_SECONDS)
# What makes each clock fire exactly now.
DUE_NOW: dict[Clock, dict[str, Any]] = {
    Clock.TTL: {"status": Status.RUNNING, "expires_at": NOW},
    Clock.IDLE: {
        "status": Status.RUNNING,
        "idle_timeout_seconds": 60,
        "last_activity_at": NOW - MINUTE,
    },
    Clock.TRASH: {"status": Status.TRASHED, "trashed_at": NOW - GRACE},
}


@pytest.fixture
def tx() -> Iterator[Transaction]:
    books = open_books()
    yield books
    books._connection.close()


def due(
    tx: Transaction, now: datetime = NOW, limit: int = 100, grace_seconds: int = GRACE_SECONDS
) -> list[Firing]:
    """Return what fires now, where a warning at the last moment is enough."""
    before, tx.now = tx.now, now
    for firing in list_unwarned(tx, now, 0, grace_seconds, 1000):
        mark_warned(tx, firing)
    found = list_due(tx, 0, grace_seconds, limit)
    tx.now = before
    return found


def unwarned(tx: Transaction, until: datetime = NOW, limit: int = 100) -> list[Firing]:
    return list_unwarned(tx, until, 0, GRACE_SECONDS, limit)


@pytest.mark.parametrize("clock", Clock)
def test_a_clock_fires_at_its_time_and_not_before(tx: Transaction, clock: Clock) -> None:
    workspace = add_workspace(tx, **DUE_NOW[clock])
    firing = Firing(
        workspace_id=workspace.id, owner_id=workspace.owner_id, clock=clock, at=NOW, notice=timedelta()
    )
    assert due(tx, NOW - SECOND) == []
    assert due(tx) == [firing]
    assert due(tx, NOW + MINUTE) == [firing]


@pytest.mark.parametrize("clock", Clock)
@pytest.mark.parametrize(
    "held",
    [{"pinned": True}, {"health": Health.UNREACHABLE}],
    ids=["pinned", "unreachable"],
)
def test_what_is_pinned_or_unreachable_has_no_clock(
    tx: Transaction, clock: Clock, held: dict[str, Any]
) -> None:
    add_workspace(tx, **DUE_NOW[clock], **held)
    assert due(tx) == unwarned(tx) == []


@pytest.mark.parametrize("clock", Clock)
def test_a_workspace_that_an_operation_holds_has_no_clock(tx: Transaction, clock: Clock) -> None:
    workspace = add_workspace(tx, **DUE_NOW[clock])
    update_workspace(tx, evolve(workspace, current_operation=add_operation(tx, workspace)))
    assert due(tx) == unwarned(tx) == []


@pytest.mark.parametrize("clock", Clock)
def test_history_has_no_clock(tx: Transaction, clock: Clock) -> None:
    delete_workspace(tx, add_workspace(tx, **DUE_NOW[clock]).id)
    assert due(tx) == unwarned(tx) == []


@pytest.mark.parametrize("clock", Clock)
def test_a_degraded_workspace_has_its_clocks(tx: Transaction, clock: Clock) -> None:
    add_workspace(tx, **DUE_NOW[clock], health=Health.DEGRADED)
    assert [firing.clock for firing in due(tx)] == [clock]


@pytest.mark.parametrize("status", Status)
def test_each_clock_runs_in_its_statuses_alone(tx: Transaction, status: Status) -> None:
    for values in DUE_NOW.values():
        add_workspace(tx, **{**values, "status": status})
    expected = {
        Status.RUNNING: {Clock.TTL, Clock.IDLE},
        Status.STOPPED: {Clock.TTL},
        Status.FAILED: {Clock.TTL},
        Status.TRASHED: {Clock.TRASH},
    }
    assert {firing.clock for firing in due(tx)} == expected.get(status, set())


def test_a_workspace_without_limits_lives_for_ever(tx: Transaction) -> None:
    add_workspace(tx, last_activity_at=NOW - timedelta(days=1000))
    assert due(tx, NOW + timedelta(days=1000)) == []


def test_activity_puts_the_idle_clock_off(tx: Transaction) -> None:
    workspace = add_workspace(tx, **DUE_NOW[Clock.IDLE])
    update_workspace(tx, evolve(workspace, last_activity_at=NOW))
    assert due(tx) == []
    assert [firing.at for firing in due(tx, NOW + MINUTE)] == [NOW + MINUTE]


def test_a_grace_period_of_nothing_purges_trash_at_once(tx: Transaction) -> None:
    workspace = add_workspace(tx, status=Status.TRASHED, trashed_at=NOW)
    assert [firing.workspace_id for firing in due(tx, grace_seconds=0)] == [workspace.id]


def test_the_longest_overdue_fires_first(tx: Transaction) -> None:
    late = add_workspace(tx, expires_at=NOW - MINUTE)
    later = add_workspace(tx, status=Status.TRASHED, trashed_at=NOW - GRACE - 2 * MINUTE)
    latest = add_workspace(tx, idle_timeout_seconds=60, last_activity_at=NOW - 4 * MINUTE)
    expected = [latest.id, later.id, late.id]
    assert [firing.workspace_id for firing in unwarned(tx)] == expected
    assert [firing.workspace_id for firing in due(tx)] == expected
    assert [firing.workspace_id for firing in due(tx, limit=2)] == expected[:2]


def test_a_workspace_whose_clocks_have_all_run_out_fires_once(tx: Transaction) -> None:
    workspace = add_workspace(tx, **{**DUE_NOW[Clock.IDLE], **DUE_NOW[Clock.TTL]})
    assert [firing.workspace_id for firing in due(tx)] == [workspace.id]


@pytest.mark.parametrize("clock", Clock)
def test_a_firing_is_announced_once(tx: Transaction, clock: Clock) -> None:
    add_workspace(tx, **DUE_NOW[clock])
    (firing,) = unwarned(tx, NOW + MINUTE)
    assert firing.clock is clock
    mark_warned(tx, firing)
    assert unwarned(tx, NOW + MINUTE) == []
    assert due(tx) == [firing]


def test_a_firing_that_was_put_off_is_announced_again(tx: Transaction) -> None:
    workspace = add_workspace(tx, expires_at=NOW)
    for firing in unwarned(tx):
        mark_warned(tx, firing)
    latest = find_workspace(tx, workspace.id)
    assert latest is not None
    update_workspace(tx, evolve(latest, expires_at=NOW + MINUTE))
    assert [firing.at for firing in unwarned(tx, NOW + MINUTE)] == [NOW + MINUTE]


def test_every_clock_of_a_workspace_is_announced_once(tx: Transaction) -> None:
    add_workspace(
        tx, expires_at=NOW + MINUTE, idle_timeout_seconds=60, last_activity_at=NOW - timedelta(seconds=40)
    )
    announced = []
    for _ in range(4):  # as many sweeps
        for firing in unwarned(tx, NOW + 10 * MINUTE):
            announced.append(firing.clock)
            mark_warned(tx, firing)
    assert sorted(announced) == [Clock.IDLE, Clock.TTL]


@pytest.mark.parametrize("clock", Clock)
def test_a_clock_that_was_held_when_it_was_due_is_announced_long_enough_before(
    tx: Transaction, clock: Clock
) -> None:
    add_workspace(tx, **DUE_NOW[clock])
    notice_seconds = 600

    def fires(now: datetime) -> bool:
        tx.now = now
        for firing in unwarned(tx, now):
            mark_warned(tx, firing)
        return list_due(tx, notice_seconds, GRACE_SECONDS, 10) != []

    assert not fires(NOW + 60 * MINUTE)  # the first time that anybody looks
    assert not fires(NOW + 69 * MINUTE)
    assert fires(NOW + 70 * MINUTE)


def test_an_announcement_is_no_new_version(tx: Transaction) -> None:
    workspace = add_workspace(tx, **DUE_NOW[Clock.TTL])
    for firing in unwarned(tx):
        mark_warned(tx, firing)
    mark_fired(tx, workspace.id, Clock.TTL)
    assert find_workspace(tx, workspace.id) == workspace


def test_the_clock_that_fired_last_is_known(tx: Transaction) -> None:
    workspace = add_workspace(tx)
    assert find_fired(tx, workspace.id) is None
    mark_fired(tx, workspace.id, Clock.IDLE)
    tx.now = NOW + MINUTE
    mark_fired(tx, workspace.id, Clock.TTL)
    assert find_fired(tx, workspace.id) == Fired(clock=Clock.TTL, at=NOW + MINUTE)
    assert find_fired(tx, "ws-0000000000") is None


def test_the_idle_clock_is_not_announced_while_there_is_use(tx: Transaction) -> None:
    add_workspace(tx, idle_timeout_seconds=60, last_activity_at=NOW - timedelta(seconds=29))
    assert unwarned(tx, NOW + 10 * MINUTE) == []
    add_workspace(tx, name="resting", idle_timeout_seconds=60, last_activity_at=NOW - timedelta(seconds=31))
    assert [firing.clock for firing in unwarned(tx, NOW + 10 * MINUTE)] == [Clock.IDLE]
