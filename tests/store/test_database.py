import asyncio
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from vmd.model.event import Event, EventType
from vmd.store.database import Database, DataDirectoryLock, Transaction, connect
from vmd.store.events import list_events
from vmd.store.settings import find_setting, insert_setting

HOLDER = """
import sys
from pathlib import Path
from vmd.store.database import DataDirectoryLock
lock = DataDirectoryLock(Path(sys.argv[1]))
print(lock.acquire(), flush=True)
sys.stdin.read()
"""


@frozen(kw_only=True)
class Books:
    """A database in a file, and the events that it told of."""

    database: Database
    path: Path
    told: list[Event]
    kept_when_told: list[int]  # how many events others could read then


@pytest.fixture
async def books(tmp_path: Path) -> AsyncIterator[Books]:
    path = tmp_path / "vm.db"
    told: list[Event] = []
    kept_when_told: list[int] = []

    def on_commit(events: Sequence[Event]) -> None:
        told.extend(events)
        with closing(sqlite3.connect(path)) as other:
            kept_when_told.append(other.execute("SELECT count(*) FROM events").fetchone()[0])

    database = Database(connect(path), on_commit=on_commit)
    yield Books(database=database, path=path, told=told, kept_when_told=kept_when_told)
    await database.close()


def emit(tx: Transaction, **data: Any) -> None:
    tx.emit(EventType.WORKSPACE_UPDATED, actor="ann", owner_id="usr-1", workspace_id="ws-1", **data)


def add_one(tx: Transaction) -> None:
    """Count on in a way that goes wrong when two units mix."""
    tx.execute("INSERT OR IGNORE INTO settings (name, value) VALUES ('count', '0')")
    before = int(find_setting(tx, "count") or 0)
    emit(tx, count=before + 1)
    tx.execute("UPDATE settings SET value = :value WHERE name = 'count'", {"value": str(before + 1)})


async def setting(books: Books, name: str) -> str | None:
    return await books.database.read(lambda tx: find_setting(tx, name))


async def told(books: Books, count: int) -> list[Event]:
    """Return the events that were told, once there are that many."""
    async with asyncio.timeout(10):
        while len(books.told) < count:
            await asyncio.sleep(0)
    return books.told


async def test_a_write_returns_what_its_unit_returns_once_it_is_committed(books: Books) -> None:
    def unit(tx: Transaction) -> str:
        insert_setting(tx, "a", "b")
        return "done"

    assert await books.database.write(unit) == "done"
    with closing(sqlite3.connect(books.path)) as other:
        assert other.execute("SELECT value FROM settings").fetchall() == [("b",)]


async def test_an_exception_rolls_everything_back_and_reaches_the_caller(books: Books) -> None:
    def unit(tx: Transaction) -> None:
        insert_setting(tx, "a", "b")
        emit(tx)
        raise LookupError("no")

    with pytest.raises(LookupError, match=r"^no$"):
        await books.database.write(unit)
    assert await setting(books, "a") is None


async def test_a_broken_constraint_rolls_everything_back(books: Books) -> None:
    def unit(tx: Transaction) -> None:
        insert_setting(tx, "a", "b")
        insert_setting(tx, "a", "c")

    with pytest.raises(sqlite3.IntegrityError):
        await books.database.write(unit)
    assert await setting(books, "a") is None


async def test_a_write_after_a_rolled_back_one_is_whole(books: Books) -> None:
    def unit(tx: Transaction) -> None:
        insert_setting(tx, "a", "b")
        raise LookupError

    with pytest.raises(LookupError):
        await books.database.write(unit)
    await books.database.write(lambda tx: insert_setting(tx, "a", "c"))
    assert await setting(books, "a") == "c"


async def test_the_unit_of_a_cancelled_caller_still_commits_and_is_told_of(books: Books) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def unit(tx: Transaction) -> None:
        begun.set()
        may_go_on.wait(10)
        insert_setting(tx, "a", "b")
        emit(tx)

    caller = asyncio.create_task(books.database.write(unit))
    await asyncio.to_thread(begun.wait, 10)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    may_go_on.set()
    assert await setting(books, "a") == "b"
    assert len(await told(books, 1)) == 1


async def test_a_cancelled_caller_that_still_waits_for_its_turn_is_served_too(books: Books) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def first(_: Transaction) -> None:
        begun.set()
        may_go_on.wait(10)

    ahead = asyncio.create_task(books.database.write(first))
    await asyncio.to_thread(begun.wait, 10)
    caller = asyncio.create_task(books.database.write(lambda tx: insert_setting(tx, "a", "b")))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    may_go_on.set()
    await ahead
    assert await setting(books, "a") == "b"


async def test_the_failed_unit_of_a_cancelled_caller_leaves_nothing(books: Books) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def unit(tx: Transaction) -> None:
        begun.set()
        may_go_on.wait(10)
        insert_setting(tx, "a", "b")
        raise LookupError

    caller = asyncio.create_task(books.database.write(unit))
    await asyncio.to_thread(begun.wait, 10)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    may_go_on.set()
    assert await setting(books, "a") is None


async def test_concurrent_writers_do_not_mix(books: Books) -> None:
    await asyncio.gather(*(books.database.write(add_one) for _ in range(100)))
    assert await setting(books, "count") == "100"


async def test_writers_do_not_mix_with_those_that_fail_or_are_cancelled(books: Books) -> None:
    def fail(tx: Transaction) -> None:
        add_one(tx)
        raise LookupError

    writers = [
        asyncio.create_task(books.database.write(fail if number % 3 == 0 else add_one))
        for number in range(90)
    ]
    await asyncio.sleep(0)
    for writer in writers[1::3]:
        writer.cancel()
    await asyncio.gather(*writers, return_exceptions=True)
    assert await setting(books, "count") == "60"
    assert [event.data["count"] for event in await told(books, 60)] == list(range(1, 61))


async def test_events_are_told_after_the_commit(books: Books) -> None:
    for number in range(1, 6):
        await books.database.write(emit)
        await told(books, number)
    assert books.kept_when_told == [1, 2, 3, 4, 5]


async def test_events_are_told_in_the_order_of_commits_as_they_are_in_the_books(books: Books) -> None:
    await asyncio.gather(*(books.database.write(add_one) for _ in range(50)))
    heard = await told(books, 50)
    assert [event.seq for event in heard] == list(range(1, 51))
    assert heard == await books.database.read(
        lambda tx: list_events(tx, owner_id=None, workspace_id=None, after=0, limit=100)
    )


async def test_the_events_of_one_unit_are_told_together(books: Books) -> None:
    def unit(tx: Transaction) -> None:
        emit(tx, place=1)
        emit(tx, place=2)

    await books.database.write(unit)
    assert [event.data for event in await told(books, 2)] == [{"place": 1}, {"place": 2}]
    assert books.kept_when_told == [2]


async def test_events_of_a_rolled_back_unit_are_never_told(books: Books) -> None:
    def fail(tx: Transaction) -> None:
        emit(tx, told=False)
        raise LookupError

    with pytest.raises(LookupError):
        await books.database.write(fail)
    await books.database.write(lambda tx: emit(tx, told=True))
    assert [event.data for event in await told(books, 1)] == [{"told": True}]


async def test_the_time_is_the_same_throughout_a_unit_and_whole_milliseconds(tmp_path: Path) -> None:
    moments = iter(datetime(2026, 1, 2, 3, 4, second, 678912, UTC) for second in range(60))
    database = Database(connect(":memory:"), clock=lambda: next(moments))
    first = await database.write(lambda tx: (tx.now, tx.now))
    second = await database.read(lambda tx: (tx.now, tx.now))
    await database.close()
    assert first == (datetime(2026, 1, 2, 3, 4, 0, 678000, UTC),) * 2
    assert second == (datetime(2026, 1, 2, 3, 4, 1, 678000, UTC),) * 2


async def test_ids_made_in_different_units_differ(books: Books) -> None:
    made = [await books.database.write(lambda tx: tx.new_id("op")) for _ in range(100)]
    assert made == sorted(set(made))


async def test_closing_waits_for_what_is_under_way(tmp_path: Path) -> None:
    path = tmp_path / "vm.db"
    database = Database(connect(path))
    begun, may_go_on = threading.Event(), threading.Event()

    def unit(tx: Transaction) -> None:
        begun.set()
        may_go_on.wait(10)
        insert_setting(tx, "a", "b")

    writing = asyncio.create_task(database.write(unit))
    await asyncio.to_thread(begun.wait, 10)
    closing_task = asyncio.create_task(database.close())
    await asyncio.sleep(0)
    may_go_on.set()
    await asyncio.gather(writing, closing_task)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT value FROM settings").fetchall() == [("b",)]


@contextmanager
def holder(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that tries to take the directory, says whether it did, and stays."""
    command = [sys.executable, "-c", HOLDER, str(directory)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_directory_that_another_process_has_is_refused(tmp_path: Path) -> None:
    with holder(tmp_path) as first, holder(tmp_path) as second:
        answers = {answer(first), answer(second)}
        lock = DataDirectoryLock(tmp_path)
        assert not lock.acquire()
    assert answers == {"True", "False"}


def test_a_directory_is_free_again_when_its_process_is_killed(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        assert answer(first) == "True"
        first.kill()
        first.wait()
        with holder(tmp_path) as second:
            assert answer(second) == "True"


def test_a_directory_is_taken_once_within_a_process_too(tmp_path: Path) -> None:
    first, second = DataDirectoryLock(tmp_path), DataDirectoryLock(tmp_path)
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()


def test_two_directories_do_not_keep_one_another_out(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    locks = [DataDirectoryLock(tmp_path / "a"), DataDirectoryLock(tmp_path / "b")]
    assert [lock.acquire() for lock in locks] == [True, True]
    for lock in locks:
        lock.release()


def test_a_lock_that_was_never_taken_can_be_released(tmp_path: Path) -> None:
    lock = DataDirectoryLock(tmp_path)
    lock.release()
    assert lock.acquire()
    lock.release()
    lock.release()


def test_a_child_of_the_holder_does_not_keep_the_directory(tmp_path: Path) -> None:
    lock = DataDirectoryLock(tmp_path)
    assert lock.acquire()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as child:
        lock.release()
        other = DataDirectoryLock(tmp_path)
        assert other.acquire()
        other.release()
        child.kill()
