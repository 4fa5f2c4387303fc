"""The one connection: transactions on its own thread, events after commit."""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
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


class Transaction:
    """One unit of work on the database's thread; `now` is the same throughout."""

    def __init__(self, connection: sqlite3.Connection, now: datetime, new_id: Callable[[str], str]) -> None:
        self._connection = connection
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
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")
        self._loop: asyncio.AbstractEventLoop | None = None

    async def read(self, unit: Callable[[Transaction], T]) -> T:
        """Return what `unit` returns; it must only read."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, unit, self._transaction())

    async def write(self, unit: Callable[[Transaction], T]) -> T:
        """Return what `unit` returns once it is committed; an exception from it rolls all back.

        The unit runs to its end even if the caller is cancelled while it waits.
        """
        self._loop = asyncio.get_running_loop()
        return await asyncio.shield(self._loop.run_in_executor(self._thread, self._write, unit))

    def write_now(self, unit: Callable[[Transaction], T]) -> T:
        """Do `write` without a loop, for the command line; the database must not be in use by one."""
        return self._write(unit)

    async def close(self) -> None:
        """Wait for what is under way, then close."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown()

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

    def _transaction(self) -> Transaction:
        now = self._clock()
        whole_ms = now.replace(microsecond=now.microsecond // 1000 * 1000)  # as the books keep it
        return Transaction(self._connection, whole_ms, self._ids.new)


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
