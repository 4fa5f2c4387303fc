import re
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from vmd.store.database import DatabaseUnusable, connect
from vmd.store.migrations import SCHEMA_VERSION, STEPS, schema_sql

RELEASED = {int(file.stem): file for file in (Path(__file__).parent / "released").glob("*.sql")}
Tables = list[tuple[object, ...]]


def tables(connection: sqlite3.Connection) -> Tables:
    """Return every table and index with its SQL, without the comments and spaces that no column has."""
    rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name")
    return [(*row[:3], words(row[3] or "")) for row in map(tuple, rows)]


def words(sql: str) -> list[str]:
    return re.findall(r"'[^']*'|\w+|[^\w\s]", re.sub(r"--[^\n]*", "", sql))


def version(connection: sqlite3.Connection) -> int:
    number: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return number


def make(path: Path, sql: str, user_version: int, *, journal_mode: str = "WAL") -> None:
    """Make a database file as a release with this schema would have left it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        connection.executescript(f"{sql}\nPRAGMA user_version = {user_version};")
        connection.execute("INSERT INTO settings (name, value) VALUES ('instance', 'kept')")
        connection.commit()


def refusal(path: Path) -> str:
    """Return why a file is refused, having seen that nothing in its directory was changed."""
    before = {file.name: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    with pytest.raises(DatabaseUnusable) as caught:
        connect(path)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir() if file.is_file()} == before
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.fixture
def fresh() -> Tables:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript((Path(__file__).parents[2] / "schema.sql").read_text("utf-8"))
        return tables(connection)


def test_a_fresh_database_is_exactly_the_schema(tmp_path: Path, fresh: Tables) -> None:
    with closing(connect(tmp_path / "vm.db")) as connection:
        assert tables(connection) == fresh
        assert version(connection) == SCHEMA_VERSION


def test_the_printed_schema_is_the_committed_one() -> None:
    assert schema_sql() == (Path(__file__).parents[2] / "schema.sql").read_text("utf-8")


def test_there_is_a_step_to_every_version_after_the_first() -> None:
    assert set(STEPS) == set(range(2, SCHEMA_VERSION + 1))


def test_every_schema_up_to_todays_is_kept_as_it_was_released() -> None:
    assert set(RELEASED) == set(range(1, SCHEMA_VERSION + 1))


@pytest.mark.parametrize("number", sorted(RELEASED))
def test_every_released_schema_migrates_to_exactly_todays(number: int, tmp_path: Path, fresh: Tables) -> None:
    path = tmp_path / "vm.db"
    make(path, RELEASED[number].read_text("utf-8"), number)
    with closing(connect(path)) as connection:
        assert tables(connection) == fresh
        assert version(connection) == SCHEMA_VERSION
        assert connection.execute("SELECT value FROM settings").fetchone()["value"] == "kept"


def test_a_database_opens_again_with_what_it_held(tmp_path: Path, fresh: Tables) -> None:
    path = tmp_path / "vm.db"
    with closing(connect(path)) as connection:
        connection.execute("INSERT INTO settings (name, value) VALUES ('instance', 'kept')")
    with closing(connect(path)) as connection:
        assert tables(connection) == fresh
        assert connection.execute("SELECT value FROM settings").fetchone()["value"] == "kept"


@pytest.mark.parametrize("journal_mode", ["WAL", "DELETE"])
def test_a_database_of_a_newer_vmd_is_refused_and_left_alone(tmp_path: Path, journal_mode: str) -> None:
    path = tmp_path / "vm.db"
    make(path, schema_sql(), SCHEMA_VERSION + 1, journal_mode=journal_mode)
    assert f"schema {SCHEMA_VERSION + 1} of a newer vmd" in refusal(path)


def test_nobody_is_told_to_replace_the_database_of_a_newer_vmd(tmp_path: Path) -> None:
    path = tmp_path / "vm.db"
    make(path, schema_sql(), SCHEMA_VERSION + 1)
    assert "put a backup in its place" not in refusal(path)


@pytest.mark.parametrize("content", [b"this is no database\n" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vm.db"
    path.write_bytes(content)
    assert "put a backup in its place" in refusal(path)


@pytest.mark.parametrize("damage", ["overwritten", "cut off"])
def test_a_damaged_database_is_refused_and_left_alone(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "vm.db"
    make(path, schema_sql(), SCHEMA_VERSION)
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "overwritten":
        path.write_bytes(content[:middle] + b"\xff" * 8192 + content[middle + 8192 :])
    else:
        path.write_bytes(content[:middle])
    assert "put a backup in its place" in refusal(path)


def test_a_directory_in_the_place_of_the_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vm.db"
    path.mkdir()
    assert "cannot be used" in refusal(path)


def test_nobody_else_can_read_the_database_and_what_lies_beside_it(tmp_path: Path) -> None:
    with closing(connect(tmp_path / "vm.db")) as connection:
        connection.execute("INSERT INTO settings (name, value) VALUES ('a', 'b')")
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert modes == {"vm.db": 0o600, "vm.db-wal": 0o600, "vm.db-shm": 0o600}


def test_commits_survive_a_loss_of_power_and_references_are_kept(tmp_path: Path) -> None:
    with closing(connect(tmp_path / "vm.db")) as connection:
        pragmas = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
