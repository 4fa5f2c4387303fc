from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from tests.store.test_workspaces import NOW, open_books
from vmd.model.event import Event, EventType
from vmd.store.database import Transaction
from vmd.store.events import delete_old_events, find_bounds, list_events

HOUR = timedelta(hours=1)


@pytest.fixture
def tx() -> Iterator[Transaction]:
    books = open_books()
    yield books
    books._connection.close()


def emit(tx: Transaction, owner: str | None = "usr-1", workspace: str | None = "ws-1", **data: Any) -> None:
    tx.emit(EventType.WORKSPACE_STATUS, actor="ann", owner_id=owner, workspace_id=workspace, **data)


def numbers(tx: Transaction, after: int = 0, limit: int = 100, **scope: str) -> list[int]:
    wanted = {"owner_id": None, "workspace_id": None, **scope}
    return [event.seq for event in list_events(tx, after=after, limit=limit, **wanted)]


def test_an_event_is_kept_as_it_was_emitted(tx: Transaction) -> None:
    tx.emit(
        EventType.OPERATION_FINISHED,
        actor="ann",
        owner_id="usr-1",
        workspace_id="ws-1",
        operation_id="op-1",
        status="failed",
        error={"detail": "Übung\n", "list": [1, None, 2.5]},
    )
    expected = Event(
        seq=1,
        type=EventType.OPERATION_FINISHED,
        time=NOW,
        actor="ann",
        owner_id="usr-1",
        workspace_id="ws-1",
        operation_id="op-1",
        data={"status": "failed", "error": {"detail": "Übung\n", "list": [1, None, 2.5]}},
    )
    assert tx.events == [expected]
    assert list_events(tx, owner_id=None, workspace_id=None, after=0, limit=10) == [expected]


def test_an_event_may_belong_to_nobody(tx: Transaction) -> None:
    emit(tx, owner=None, workspace=None)
    (event,) = list_events(tx, owner_id=None, workspace_id=None, after=0, limit=10)
    assert (event.owner_id, event.workspace_id, event.operation_id, event.data) == (None, None, None, {})


def test_events_are_numbered_one_after_the_other(tx: Transaction) -> None:
    for _ in range(3):
        emit(tx)
    assert [event.seq for event in tx.events] == numbers(tx) == [1, 2, 3]


def test_events_are_listed_by_owner_and_by_workspace(tx: Transaction) -> None:
    emit(tx, "usr-1", "ws-1")
    emit(tx, "usr-2", "ws-2")
    emit(tx, "usr-1", "ws-3")
    emit(tx, None, None)
    assert numbers(tx) == [1, 2, 3, 4]
    assert numbers(tx, owner_id="usr-1") == [1, 3]
    assert numbers(tx, workspace_id="ws-2") == [2]
    assert numbers(tx, owner_id="usr-3") == []


def test_a_batch_begins_after_what_is_known_and_is_no_longer_than_asked(tx: Transaction) -> None:
    for _ in range(6):
        emit(tx)
    assert numbers(tx, after=2, limit=3) == [3, 4, 5]
    assert numbers(tx, after=5, limit=3, owner_id="usr-1") == [6]
    assert numbers(tx, after=6) == []
    assert numbers(tx, after=1000) == []


def test_without_events_the_bounds_are_empty(tx: Transaction) -> None:
    assert find_bounds(tx) == (1, 0)


def test_the_bounds_are_the_first_that_is_kept_and_the_last_that_was(tx: Transaction) -> None:
    emit(tx)
    assert find_bounds(tx) == (1, 1)
    emit(tx)
    emit(tx)
    assert find_bounds(tx) == (1, 3)


def test_the_bounds_move_on_as_events_are_forgotten(tx: Transaction) -> None:
    emit(tx)
    emit(tx)
    tx.now = NOW + 2 * HOUR
    emit(tx)
    assert delete_old_events(tx, HOUR, 100) == 2
    assert find_bounds(tx) == (3, 3)
    assert numbers(tx) == [3]


def test_the_bounds_know_the_last_number_when_all_is_forgotten(tx: Transaction) -> None:
    emit(tx)
    emit(tx)
    tx.now = NOW + 2 * HOUR
    assert delete_old_events(tx, HOUR, 100) == 2
    assert find_bounds(tx) == (3, 2)


def test_a_number_is_never_used_twice(tx: Transaction) -> None:
    emit(tx)
    emit(tx)
    tx.now = NOW + 2 * HOUR
    delete_old_events(tx, HOUR, 100)
    emit(tx)
    assert numbers(tx) == [3]


def test_events_are_kept_for_as_long_as_asked(tx: Transaction) -> None:
    emit(tx)
    tx.now = NOW + HOUR
    assert delete_old_events(tx, HOUR, 100) == 0
    tx.now = NOW + HOUR + timedelta(milliseconds=1)
    assert delete_old_events(tx, HOUR, 100) == 1


def test_no_more_are_forgotten_at_once_than_asked_and_the_oldest_first(tx: Transaction) -> None:
    for _ in range(5):
        emit(tx)
    tx.now = NOW + 2 * HOUR
    assert delete_old_events(tx, HOUR, 2) == 2
    assert numbers(tx) == [3, 4, 5]
    assert [delete_old_events(tx, HOUR, 2) for _ in range(3)] == [2, 1, 0]
