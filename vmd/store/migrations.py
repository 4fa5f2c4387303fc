"""From any released schema to today's: `schema.sql` for a fresh database, numbered steps for an older one."""

import sqlite3
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

SCHEMA_VERSION = 3
# The step that leads to a version from the one before it. Version 1 is the first that was released.
STEPS: Mapping[int, str] = {
    2: """
CREATE TABLE commands (
    id TEXT PRIMARY KEY,
    workspace_id TEXT NOT NULL REFERENCES workspaces (id),
    operation_id TEXT NOT NULL,
    actor TEXT NOT NULL,
    command TEXT NOT NULL,
    cwd TEXT NOT NULL,
    user TEXT,
    timeout_seconds REAL,
    status TEXT NOT NULL,
    exit_code INTEGER,
    signal TEXT,
    created_at INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    finished_at INTEGER,
    stdout_bytes INTEGER NOT NULL DEFAULT 0,
    stderr_bytes INTEGER NOT NULL DEFAULT 0,
    stdout_dropped_bytes INTEGER NOT NULL DEFAULT 0,
    stderr_dropped_bytes INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX commands_by_workspace ON commands (workspace_id, id);
CREATE INDEX commands_unfinished ON commands (workspace_id) WHERE finished_at IS NULL;
CREATE INDEX commands_by_finish ON commands (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE shells (
    id TEXT PRIMARY KEY,
    workspace_id TEXT NOT NULL REFERENCES workspaces (id),
    actor TEXT NOT NULL,
    command TEXT, -- NULL for a login shell
    persistence TEXT NOT NULL,
    status TEXT NOT NULL,
    exit_code INTEGER,
    created_at INTEGER NOT NULL,
    detached_at INTEGER, -- since when nobody is attached
    finished_at INTEGER
) STRICT;

CREATE INDEX shells_by_workspace ON shells (workspace_id, id);
CREATE INDEX shells_detached ON shells (detached_at) WHERE detached_at IS NOT NULL;
""",
    3: """
ALTER TABLE users ADD COLUMN quota TEXT NOT NULL DEFAULT '{}';
ALTER TABLE workspaces ADD COLUMN parameters TEXT NOT NULL DEFAULT '{}';
ALTER TABLE workspaces ADD COLUMN recipe TEXT;
ALTER TABLE workspaces ADD COLUMN services TEXT NOT NULL DEFAULT '[]';
ALTER TABLE workspaces ADD COLUMN is_detecting INTEGER NOT NULL DEFAULT 0 CHECK (is_detecting IN (0, 1));
ALTER TABLE workspaces ADD COLUMN files TEXT;
ALTER TABLE workspaces ADD COLUMN git TEXT;

-- A snapshot outlives its workspace when it is kept, or when it came from another daemon.
CREATE TABLE snapshots (
    id TEXT PRIMARY KEY,
    workspace_id TEXT NOT NULL, -- which may be gone, or never have been here
    owner_id TEXT NOT NULL REFERENCES users (id),
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    status TEXT NOT NULL,
    is_final INTEGER NOT NULL CHECK (is_final IN (0, 1)), -- taken before its workspace expired
    provider TEXT NOT NULL,
    node TEXT NOT NULL,
    actor TEXT NOT NULL,
    origin TEXT NOT NULL, -- what a workspace made from it starts with: template, image, resources, env, …
    size_bytes INTEGER,
    manifest TEXT, -- entries, bytes and digest of the files
    error TEXT,
    created_at INTEGER NOT NULL,
    current_operation TEXT REFERENCES operations (id) -- that makes or deletes it
) STRICT;

CREATE INDEX snapshots_by_workspace ON snapshots (workspace_id, id);
CREATE INDEX snapshots_by_owner ON snapshots (owner_id, id);
CREATE INDEX snapshots_by_operation ON snapshots (current_operation) WHERE current_operation IS NOT NULL;
""",
}


class NewerSchemaError(Exception):
    """The database was written by a newer vmd."""


def schema_sql() -> str:
    """Return the text of `schema.sql`, from the package or, in a checkout, from beside it."""
    packaged = resources.files("vmd") / "schema.sql"
    if packaged.is_file():
        return packaged.read_text("utf-8")
    return (Path(__file__).parents[2] / "schema.sql").read_text("utf-8")


def require_known(connection: sqlite3.Connection) -> int:
    """Return the schema's version; raise NewerSchemaError for one that this vmd does not know."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"it has schema {version} of a newer vmd, this one knows {SCHEMA_VERSION}; install that again"
        )
    return version


def upgrade(connection: sqlite3.Connection) -> None:
    """Bring the database to today's schema, each step in a transaction of its own."""
    version = require_known(connection)
    if version == 0:
        _apply(connection, schema_sql(), SCHEMA_VERSION)
        return
    for number in range(version + 1, SCHEMA_VERSION + 1):
        _apply(connection, STEPS[number], number)


def _apply(connection: sqlite3.Connection, script: str, version: int) -> None:
    connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {version};\nCOMMIT;")
