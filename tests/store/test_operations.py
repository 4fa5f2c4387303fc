from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from attrs import evolve

from tests.store.test_workspaces import NOW, add_operation, add_workspace, open_books
from vmd.model.errors import ErrorCode, Refused
from vmd.model.operation import (
    Job,
    LogLine,
    Operation,
    OperationStatus,
    OperationType,
    Phase,
    Progress,
    Verdict,
)
from vmd.store.database import Transaction
from vmd.store.operations import (
    OperationFilter,
    claim_next,
    delete_finished,
    find_job,
    find_next_time,
    insert_logs,
    insert_operation,
    list_logs,
    list_operations,
    update_job,
    wake_waiting,
)
from vmd.store.workspaces import update_workspace

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
EVERYTHING = OperationFilter(owner_id=None)


@pytest.fixture
def tx() -> Iterator[Transaction]:
    books = open_books()
    yield books
    books._connection.close()


def job(tx: Transaction, operation_id: str) -> Job:
    found = find_job(tx, operation_id)
    assert found is not None
    return found


def postpone(tx: Transaction, operation: Operation, until: datetime) -> None:
    update_job(tx, job(tx, operation.id), not_before=until)


def claim_all(tx: Transaction, *active: str) -> list[str]:
    """Return what is claimed one after the other by workers that do not end."""
    claimed: list[str] = []
    while (found := claim_next(tx, (*active, *claimed))) is not None:
        claimed.append(found.id)
    return claimed


def test_an_operation_is_found_as_it_was_inserted(tx: Transaction) -> None:
    workspace = add_workspace(tx)
    operation = Operation(
        id=tx.new_id("op"),
        type=OperationType.STOP,
        status=OperationStatus.SUCCEEDED,
        workspace_id=workspace.id,
        actor="ann",
        created_at=NOW,
        started_at=NOW,
        finished_at=NOW,
        progress=Progress(phase=Phase.DONE, message="Übung.", percent=100),
        result={"changed": False},
        may_cancel=False,
    )
    insert_operation(tx, operation, workspace.owner_id, {"force": True, "previous": "running"})
    assert find_job(tx, operation.id) == Job(
        operation=operation,
        owner_id=workspace.owner_id,
        input={"force": True, "previous": "running"},
        checkpoint={},
        verdict=None,
    )


def test_what_is_not_there_is_not_found(tx: Transaction) -> None:
    assert find_job(tx, "op-0000000000") is None


def test_an_update_is_found_as_it_was_written(tx: Transaction) -> None:
    before = job(tx, add_operation(tx, add_workspace(tx)).id)
    problem = Refused(ErrorCode.PROVIDER_ERROR, "It broke.", allowed_actions=["delete"]).problem("req-1")
    operation = evolve(
        before.operation,
        status=OperationStatus.FAILED,
        started_at=NOW,
        finished_at=NOW + MINUTE,
        progress=Progress(phase=Phase.PULL, message="m", percent=3),
        result={"a": [1, None]},
        error=problem,
        may_cancel=False,
        attempt=4,
    )
    changed = evolve(
        before, operation=operation, input={"x": 1}, checkpoint={"made": "ref"}, verdict=Verdict.FAILED
    )
    update_job(tx, changed)
    assert job(tx, before.id) == changed


def test_a_claim_says_that_it_runs_since_when_and_for_which_time(tx: Transaction) -> None:
    operation = add_operation(tx, add_workspace(tx))
    tx.now = NOW + MINUTE
    claimed = claim_next(tx, ())
    assert claimed is not None
    assert claimed.operation == evolve(
        operation, status=OperationStatus.RUNNING, started_at=tx.now, attempt=1
    )
    assert job(tx, operation.id) == claimed


def test_nothing_is_claimed_where_there_is_nothing_to_do(tx: Transaction) -> None:
    workspace = add_workspace(tx)
    for status in (OperationStatus.SUCCEEDED, OperationStatus.FAILED, OperationStatus.CANCELLED):
        add_operation(tx, workspace, status=status, finished_at=NOW)
    assert claim_next(tx, ()) is None


def test_what_has_a_worker_is_not_claimed_again(tx: Transaction) -> None:
    operation = add_operation(tx, add_workspace(tx))
    assert claim_all(tx) == [operation.id]
    assert claim_next(tx, (operation.id,)) is None


def test_who_came_first_is_served_first(tx: Transaction) -> None:
    made = [add_operation(tx, add_workspace(tx, "ann")).id for _ in range(4)]
    assert claim_all(tx) == made


def test_owners_take_turns(tx: Transaction) -> None:
    ann = [add_operation(tx, add_workspace(tx, "ann")).id for _ in range(4)]
    bob = [add_operation(tx, add_workspace(tx, "bob")).id for _ in range(2)]
    cyd = [add_operation(tx, add_workspace(tx, "cyd")).id]
    assert claim_all(tx) == [ann[0], bob[0], cyd[0], ann[1], bob[1], ann[2], ann[3]]


def test_an_owner_whose_operations_ended_is_served_as_if_they_never_were(tx: Transaction) -> None:
    for _ in range(3):
        add_operation(tx, add_workspace(tx, "ann"), status=OperationStatus.SUCCEEDED, finished_at=NOW)
    first = add_operation(tx, add_workspace(tx, "ann")).id
    second = add_operation(tx, add_workspace(tx, "bob")).id
    assert claim_all(tx) == [first, second]


def test_what_counts_is_the_owner_of_the_workspace_and_not_who_asked(tx: Transaction) -> None:
    busy = add_operation(tx, add_workspace(tx, "ann"), actor="admin").id
    assert claim_all(tx) == [busy]
    second = add_operation(tx, add_workspace(tx, "ann"), actor="ann").id
    other = add_operation(tx, add_workspace(tx, "bob"), actor="admin").id
    assert claim_all(tx, busy) == [other, second]


def test_a_workspace_has_one_worker_at_a_time(tx: Transaction) -> None:
    workspace = add_workspace(tx)
    first, second = add_operation(tx, workspace).id, add_operation(tx, workspace).id
    assert claim_all(tx) == [first]
    assert claim_all(tx, "op-another000") == [first]
    update_job(tx, evolve(job(tx, first), operation=_ended(job(tx, first).operation)))
    assert claim_all(tx) == [second]


def _ended(operation: Operation) -> Operation:
    return evolve(operation, status=OperationStatus.SUCCEEDED, finished_at=NOW)


def test_an_operation_that_waits_is_claimed_when_its_time_has_come(tx: Transaction) -> None:
    operation = add_operation(tx, add_workspace(tx))
    postpone(tx, operation, NOW + MINUTE)
    assert claim_next(tx, ()) is None
    assert find_next_time(tx) == NOW + MINUTE
    tx.now = NOW + MINUTE
    assert find_next_time(tx) is None
    assert claim_all(tx) == [operation.id]


def test_an_operation_that_waits_holds_up_nobody_else(tx: Transaction) -> None:
    waiting = add_operation(tx, add_workspace(tx))
    postpone(tx, waiting, NOW + MINUTE)
    next_in_line = add_operation(tx, add_workspace(tx))
    assert claim_all(tx) == [next_in_line.id]


def test_the_first_of_those_that_wait_sets_the_time(tx: Transaction) -> None:
    assert find_next_time(tx) is None
    for minutes in (3, 1, 2):
        postpone(tx, add_operation(tx, add_workspace(tx)), NOW + minutes * MINUTE)
    ended = add_operation(tx, add_workspace(tx), status=OperationStatus.FAILED, finished_at=NOW)
    postpone(tx, ended, NOW + timedelta(seconds=1))
    assert find_next_time(tx) == NOW + MINUTE


def test_those_that_wait_for_a_provider_are_woken_when_it_is_back(tx: Transaction) -> None:
    waiting = [add_operation(tx, add_workspace(tx, provider=name)) for name in ("fake", "docker")]
    for operation in waiting:
        postpone(tx, operation, NOW + MINUTE)
    wake_waiting(tx, "fake")
    assert claim_all(tx) == [waiting[0].id]


def test_a_claim_forgets_when_it_was_to_be_tried_again(tx: Transaction) -> None:
    postpone(tx, add_operation(tx, add_workspace(tx)), NOW)
    claimed = claim_next(tx, ())
    assert claimed is not None
    row = tx.execute("SELECT not_before FROM operations").fetchone()
    assert row["not_before"] is None


@pytest.mark.parametrize("status", [OperationStatus.RUNNING, OperationStatus.CANCELLING])
def test_what_a_dead_process_left_is_resumed_as_it_stood(tx: Transaction, status: OperationStatus) -> None:
    operation = add_operation(tx, add_workspace(tx))
    claimed = claim_next(tx, ())
    assert claimed is not None
    left = evolve(
        claimed,
        operation=evolve(claimed.operation, status=status),
        checkpoint={"made": "ref"},
        verdict=Verdict.CANCELLED if status is OperationStatus.CANCELLING else None,
    )
    update_job(tx, left)
    tx.now = NOW + MINUTE
    resumed = claim_next(tx, ())
    assert resumed == evolve(left, operation=evolve(left.operation, attempt=2))
    assert resumed is not None
    assert (resumed.id, resumed.operation.started_at) == (operation.id, NOW)


def test_what_was_left_goes_before_what_came_later(tx: Transaction) -> None:
    left = [add_operation(tx, add_workspace(tx), status=OperationStatus.RUNNING).id for _ in range(2)]
    later = add_operation(tx, add_workspace(tx)).id
    assert claim_all(tx) == [*left, later]


def test_a_cancelled_operation_is_cleaned_up_before_the_next_on_its_workspace(tx: Transaction) -> None:
    workspace = add_workspace(tx)
    cancelling = add_operation(tx, workspace, status=OperationStatus.CANCELLING).id
    deleting = add_operation(tx, workspace, OperationType.DELETE).id
    assert claim_all(tx) == [cancelling]
    assert claim_all(tx, deleting) == []


def found(tx: Transaction, after: str | None = None, limit: int = 10, **wanted: Any) -> list[str]:
    rows = list_operations(tx, OperationFilter(**{"owner_id": None, **wanted}), after, limit)
    return [operation.id for operation in rows]


def test_operations_are_filtered_by_owner_workspace_type_status_and_actor(tx: Transaction) -> None:
    mine, theirs = add_workspace(tx, "ann"), add_workspace(tx, "bob")
    start = add_operation(tx, mine, OperationType.START, status=OperationStatus.SUCCEEDED).id
    stop = add_operation(tx, mine, OperationType.STOP, actor="admin").id
    other = add_operation(tx, theirs, OperationType.STOP).id
    assert found(tx) == [other, stop, start]
    assert found(tx, owner_id=mine.owner_id) == [stop, start]
    assert found(tx, workspace_ids=(theirs.id, mine.id)) == [other, stop, start]
    assert found(tx, workspace_ids=(theirs.id,)) == [other]
    assert found(tx, workspace_ids=()) == []
    assert found(tx, workspace_ids=(theirs.id,), owner_id=mine.owner_id) == []
    assert found(tx, types=(OperationType.STOP,)) == [other, stop]
    assert found(tx, types=(OperationType.STOP, OperationType.START), owner_id=mine.owner_id) == [stop, start]
    assert found(tx, statuses=(OperationStatus.PENDING,)) == [other, stop]
    assert found(tx, statuses=(OperationStatus.SUCCEEDED,), types=(OperationType.STOP,)) == []
    assert found(tx, actor="admin") == [stop]
    assert found(tx, actor="nobody") == []


def test_a_list_shows_operations_as_they_are(tx: Transaction) -> None:
    made = [add_operation(tx, add_workspace(tx)) for _ in range(3)]
    assert list_operations(tx, EVERYTHING, None, 10) == made[::-1]
    assert list_operations(tx, EVERYTHING, None, 2) == made[:0:-1]


def test_pages_stay_right_while_rows_come_and_go(tx: Transaction) -> None:
    workspace = add_workspace(tx)
    ended: dict[str, Any] = {"status": OperationStatus.FAILED, "finished_at": NOW - 2 * DAY}
    made = [add_operation(tx, workspace, **(ended if place in (1, 4) else {})).id for place in range(6)]
    first = found(tx, after=None, limit=2)
    add_operation(tx, workspace)
    assert delete_finished(tx, DAY, 10) == 2  # the cursor itself, and one that is yet to come
    assert first == [made[5], made[4]]
    assert found(tx, after=first[-1], limit=2) == [made[3], made[2]]
    assert found(tx, after=made[2], limit=2) == [made[0]]


def test_lines_are_numbered_on_from_the_last(tx: Transaction) -> None:
    operation = add_operation(tx, add_workspace(tx))
    other = add_operation(tx, add_workspace(tx))
    first = insert_logs(tx, operation.id, [(NOW, "vmd", "one"), (NOW + MINUTE, "stdout", "zwö\t")])
    insert_logs(tx, other.id, [(NOW, "vmd", "other")])
    second = insert_logs(tx, operation.id, [(NOW, "stderr", "")])
    assert [line.seq for line in (*first, *second)] == [1, 2, 3]
    assert first[1] == LogLine(seq=2, time=NOW + MINUTE, stream="stdout", message="zwö\t")
    assert list_logs(tx, operation.id, 0, 10) == [*first, *second]
    assert list_logs(tx, operation.id, 1, 1) == [first[1]]
    assert list_logs(tx, operation.id, 3, 10) == []
    assert insert_logs(tx, operation.id, []) == []


def test_operations_are_forgotten_with_their_logs_when_they_ended_long_ago(tx: Transaction) -> None:
    workspace = add_workspace(tx)
    old = add_operation(tx, workspace, status=OperationStatus.FAILED, finished_at=NOW - DAY - MINUTE)
    young = add_operation(tx, workspace, status=OperationStatus.FAILED, finished_at=NOW - DAY + MINUTE)
    unfinished = add_operation(tx, workspace, created_at=NOW - 10 * DAY)
    for operation in (old, young):
        insert_logs(tx, operation.id, [(NOW, "vmd", "line")])
    assert delete_finished(tx, DAY, 10) == 1
    assert found(tx) == [unfinished.id, young.id]
    assert tx.execute("SELECT operation_id FROM operation_logs").fetchone()["operation_id"] == young.id


def test_no_more_are_forgotten_at_once_than_asked(tx: Transaction) -> None:
    workspace = add_workspace(tx)
    for _ in range(5):
        add_operation(tx, workspace, status=OperationStatus.FAILED, finished_at=NOW - 2 * DAY)
    assert [delete_finished(tx, DAY, 2) for _ in range(4)] == [2, 2, 1, 0]


def test_an_operation_that_a_workspace_points_to_is_kept(tx: Transaction) -> None:
    workspace = add_workspace(tx)
    operation = add_operation(tx, workspace, status=OperationStatus.FAILED, finished_at=NOW - 2 * DAY)
    update_workspace(tx, evolve(workspace, current_operation=operation))
    assert delete_finished(tx, DAY, 10) == 0
    assert found(tx) == [operation.id]
