"""The one connection: transactions on its own thread, events after commit."""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from vmd.model.event import Event, EventType
from vmd.model.ids import IdFactory
from vmd.store import migrations
from vmd.store.rows import encode, millis

T = TypeVar("T")

MAX_CACHE_KIB = 8192
_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA busy_timeout = 5000",
    "PRAGMA trusted_schema = OFF",
    f"PRAGMA cache_size = -{MAX_CACHE_KIB}",
    "PRAGMA temp_store = MEMORY",
)
_INSERT_EVENT = """
INSERT INTO events (type, time, actor, owner_id, workspace_id, operation_id, data)
VALUES (:type, :time, :actor, :owner_id, :workspace_id, :operation_id, :data)
"""


class DatabaseUnusable(Exception):
    """The database cannot be opened: locked by another daemon, damaged, or of a newer vmd."""


class Memory:
    """Objects made from rows, each right for as long as its row has the same stamp."""

    def __init__(self, limit: int = 2000) -> None:
        self._limit = limit
        self._known: dict[str, tuple[Any, Any]] = {}

    def recall(self, identifier: str, stamp: Any) -> Any:
        """Return the object made from the row at this stamp, or None."""
        known = self._known.get(identifier)
        return known[1] if known is not None and known[0] == stamp else None

    def keep(self, identifier: str, stamp: Any, made: Any) -> None:
        """Remember an object; the one that was remembered first is forgotten when there are too many."""
        if len(self._known) >= self._limit:
            del self._known[next(iter(self._known))]
        self._known[identifier] = (stamp, made)


class Transaction:
    """One unit of work on the database's thread; `now` is the same throughout."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        now: datetime,
        new_id: Callable[[str], str],
        memory: "Memory | None" = None,
    ) -> None:
        self._connection = connection
        self.memory = memory  # none while writing: what is rolled back must not be remembered
        self.now = now
        self.new_id = new_id
        self.events: list[Event] = []

    def execute(self, sql: str, values: dict[str, Any] | None = None) -> sqlite3.Cursor:
        """Run one statement with its named values."""
        return self._connection.execute(sql, values or {})

    def emit(
        self,
        kind: EventType,
        *,
        actor: str,
        owner_id: str | None,
        workspace_id: str | None = None,
        operation_id: str | None = None,
        **data: Any,
    ) -> None:
        """Record an event; it is told to listeners when, and only if, the transaction commits."""
        text = encode(data)
        cursor = self.execute(
            _INSERT_EVENT,
            {
                "type": kind,
                "time": millis(self.now),
                "actor": actor,
                "owner_id": owner_id,
                "workspace_id": workspace_id,
                "operation_id": operation_id,
                "data": text,
            },
        )
        self.events.append(
            Event(
                seq=cursor.lastrowid or 0,
                type=kind,
                time=self.now,
                actor=actor,
                owner_id=owner_id,
                workspace_id=workspace_id,
                operation_id=operation_id,
                data=data,
            )
        )


class Database:
    """Runs transactions one after another on one thread, over one connection."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        on_commit: Callable[[Sequence[Event]], None] = lambda events: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Take a connection made by `connect`; `on_commit` gets committed events in order, on the loop."""
        self._connection = connection
        self._on_commit = on_commit
        self._clock = clock
        self._ids = IdFactory()
        self._memory = Memory()
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def read(self, unit: Callable[[Transaction], T]) -> T:
        """Return what `unit` returns; it must only read."""
        return await self._submit(lambda: unit(self._transaction(self._memory)))

    async def write(self, unit: Callable[[Transaction], T]) -> T:
        """Return what `unit` returns once it is committed; an exception from it rolls all back.

        The unit runs to its end even if the caller is cancelled while it waits.
        """
        return await self._submit(lambda: self._write(unit))

    async def close(self) -> None:
        """Wait for what is under way, then close."""
        await self._submit(self._connection.close)
        self._calls.put(None)

    def _submit(self, call: Callable[[], T]) -> "asyncio.Future[T]":
        """Queue a call for the thread, which makes it even if nobody waits for its outcome any more.

        Half the cost of run_in_executor, which wraps every call in two futures.
        """
        loop = self._loop = asyncio.get_running_loop()
        if self._thread is None:
            self._thread = Thread(target=self._work, args=(loop,), name="sqlite", daemon=True)
            self._thread.start()
        future: asyncio.Future[T] = loop.create_future()
        self._calls.put((future, call))
        return future

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while (waiting := self._calls.get()) is not None:
            future, call = waiting
            try:
                result = call()
            except BaseException as error:
                loop.call_soon_threadsafe(_settle, future, None, error)
            else:
                loop.call_soon_threadsafe(_settle, future, result, None)

    def _write(self, unit: Callable[[Transaction], T]) -> T:
        transaction = self._transaction()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            result = unit(transaction)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        if transaction.events and self._loop is not None:
            # Scheduled from the writing thread, so listeners hear events in the order of commits.
            self._loop.call_soon_threadsafe(self._on_commit, transaction.events)
        return result

    def _transaction(self, memory: "Memory | None" = None) -> Transaction:
        now = self._clock()
        whole_ms = now.replace(microsecond=now.microsecond // 1000 * 1000)  # as the books keep it
        return Transaction(self._connection, whole_ms, self._ids.new, memory)


def connect(path: Path | str) -> sqlite3.Connection:
    """Open the database, make or upgrade its tables, and set it up; `:memory:` is for tests.

    Raises DatabaseUnusable with a message for the administrator.
    """
    try:
        if path != ":memory:":
            Path(path).touch(mode=0o600, exist_ok=True)
            os.chmod(path, 0o600)
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, cached_statements=256
        )
    except (OSError, sqlite3.Error) as error:
        raise DatabaseUnusable(f"{path} cannot be used: {error}; is it a file of this user's?") from error
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path | str) -> None:
    """Look before anything is written: a file that cannot be used stays as it is."""
    connection.row_factory = sqlite3.Row
    try:
        migrations.require_known(connection)
        check = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        if check != "ok":
            raise DatabaseUnusable(f"{path} is damaged; put a backup in its place.")
        for pragma in _PRAGMAS:
            connection.execute(pragma)
        migrations.upgrade(connection)
    except migrations.NewerSchemaError as error:
        raise DatabaseUnusable(f"{path} cannot be used: {error}.") from error
    except sqlite3.DatabaseError as error:
        raise DatabaseUnusable(f"{path} cannot be used: {error}; put a backup in its place.") from error


_Call = tuple["asyncio.Future[Any]", Callable[[], Any]]


def _settle(future: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    """Answer one who may have left."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


class DataDirectoryLock:
    """Keeps a second daemon out of a data directory, for as long as this process lives."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "vmd.lock"
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Return whether the directory is now ours."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Let others in; the file stays, since removing it would race with one who opens it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
