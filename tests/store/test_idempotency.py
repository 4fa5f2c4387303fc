import asyncio
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.store.test_workspaces import NOW, add_operation, add_workspace, open_books
from vmd.model.errors import ErrorCode, Refused
from vmd.model.operation import Operation, Phase, Progress
from vmd.model.workspace import Status, Workspace
from vmd.store.database import Database, Transaction, connect
from vmd.store.idempotency import KEPT, Once, answer_once, delete_old_answers

ONCE = Once(key="key-1", fingerprint=b"request")
SECOND = timedelta(seconds=1)


@pytest.fixture
def tx() -> Iterator[Transaction]:
    books = open_books()
    yield books
    books._connection.close()


class Counter:
    """Makes another answer each time that it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, int]:
        self.calls += 1
        return {"call": self.calls}


def ask(tx: Transaction, make: Callable[[], Any], once: Once | None = ONCE, user: str = "usr-1") -> Any:
    return answer_once(tx, user, once, dict, make)


def test_a_request_without_a_key_takes_effect_each_time(tx: Transaction) -> None:
    make = Counter()
    assert [ask(tx, make, None), ask(tx, make, None)] == [{"call": 1}, {"call": 2}]


def test_a_request_that_comes_again_gets_its_first_answer(tx: Transaction) -> None:
    make = Counter()
    assert [ask(tx, make) for _ in range(3)] == [{"call": 1}] * 3
    assert make.calls == 1


def test_another_key_is_another_request(tx: Transaction) -> None:
    make = Counter()
    other = Once(key="key-2", fingerprint=ONCE.fingerprint)
    assert [ask(tx, make), ask(tx, make, other)] == [{"call": 1}, {"call": 2}]


def test_keys_are_told_apart_by_their_case(tx: Transaction) -> None:
    make = Counter()
    assert ask(tx, make) != ask(tx, make, Once(key="KEY-1", fingerprint=b"request"))


def test_the_same_key_of_another_caller_is_another_request(tx: Transaction) -> None:
    make = Counter()
    assert [ask(tx, make), ask(tx, make, user="usr-2")] == [{"call": 1}, {"call": 2}]


def test_a_key_with_another_request_is_refused(tx: Transaction) -> None:
    make = Counter()
    ask(tx, make)
    with pytest.raises(Refused) as caught:
        ask(tx, make, Once(key=ONCE.key, fingerprint=b"another"))
    assert caught.value.code is ErrorCode.IDEMPOTENCY_MISMATCH
    assert make.calls == 1
    assert ask(tx, make) == {"call": 1}


def test_what_was_refused_may_be_tried_again_with_its_key(tx: Transaction) -> None:
    def refuse() -> None:
        raise Refused(ErrorCode.QUOTA_EXCEEDED, "Full.")

    with pytest.raises(Refused, match="Full"):
        ask(tx, refuse)
    assert ask(tx, Counter()) == {"call": 1}


def test_an_answer_is_kept_for_a_day_and_not_longer(tx: Transaction) -> None:
    make = Counter()
    ask(tx, make)
    tx.now = NOW + KEPT - SECOND
    assert ask(tx, make) == {"call": 1}
    tx.now = NOW + KEPT
    assert ask(tx, make) == {"call": 2}
    assert ask(tx, make, Once(key="key-1", fingerprint=b"request")) == {"call": 2}
    assert timedelta(hours=24) == KEPT


def test_a_key_may_come_with_another_request_after_a_day(tx: Transaction) -> None:
    make = Counter()
    ask(tx, make)
    tx.now = NOW + KEPT
    assert ask(tx, make, Once(key=ONCE.key, fingerprint=b"another")) == {"call": 2}


def test_old_answers_are_forgotten_and_young_ones_kept(tx: Transaction) -> None:
    make = Counter()
    ask(tx, make)
    tx.now = NOW + SECOND
    ask(tx, make, Once(key="key-2", fingerprint=b"request"))
    tx.now = NOW + KEPT
    assert delete_old_answers(tx) == 1
    assert ask(tx, make, Once(key="key-2", fingerprint=b"request")) == {"call": 2}


def test_an_operation_comes_back_as_it_was_at_first(tx: Transaction) -> None:
    progress = Progress(phase=Phase.PULL, message="Übung", percent=1)
    operation = add_operation(
        tx, add_workspace(tx), progress=progress, started_at=NOW, result={"changed": True}
    )
    first = answer_once(tx, "usr-1", ONCE, Operation, lambda: operation)
    assert first == operation
    assert answer_once(tx, "usr-1", ONCE, Operation, lambda: add_operation(tx, add_workspace(tx))) == first


def test_a_workspace_comes_back_as_it_was_at_first(tx: Transaction) -> None:
    workspace = add_workspace(tx, status=Status.FAILED, labels={"a": "b"}, ports=(1,), expires_at=NOW)
    answer_once(tx, "usr-1", ONCE, Workspace, lambda: workspace)
    assert answer_once(tx, "usr-1", ONCE, Workspace, lambda: add_workspace(tx)) == workspace


async def test_of_two_that_arrive_together_one_takes_effect_and_both_get_its_answer(tmp_path: Path) -> None:
    database = Database(connect(tmp_path / "vm.db"))
    make = Counter()
    answers = await asyncio.gather(*(database.write(lambda tx: ask(tx, make)) for _ in range(20)))
    await database.close()
    assert answers == [{"call": 1}] * 20


async def test_an_answer_outlives_the_daemon(tmp_path: Path) -> None:
    make = Counter()
    for _ in range(2):
        database = Database(connect(tmp_path / "vm.db"))
        assert await database.write(lambda tx: ask(tx, make)) == {"call": 1}
        await database.close()


async def test_what_is_rolled_back_leaves_no_answer(tmp_path: Path) -> None:
    database = Database(connect(tmp_path / "vm.db"))
    make = Counter()

    def fail(tx: Transaction) -> None:
        ask(tx, make)
        raise LookupError

    with pytest.raises(LookupError):
        await database.write(fail)
    assert await database.write(lambda tx: ask(tx, make)) == {"call": 2}
    await database.close()
