-- The books of vmd: the one definition of a fresh database.
-- Times are milliseconds since 1970 in UTC; columns named after plain objects hold JSON.

CREATE TABLE settings (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE users (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL CHECK (role IN ('admin', 'member')),
    created_at INTEGER NOT NULL,
    quota TEXT NOT NULL DEFAULT '{}' -- the limits that are not the usual ones
) STRICT;

CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users (id),
    name TEXT NOT NULL,
    digest BLOB NOT NULL UNIQUE, -- SHA-256 of the secret, which is kept nowhere
    scopes TEXT NOT NULL,
    workspace_id TEXT, -- the one workspace it reaches, or NULL for all of the user's
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    last_used_at INTEGER,
    revoked_at INTEGER
) STRICT;

CREATE INDEX tokens_by_user ON tokens (user_id, id);

CREATE TABLE workspaces (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    owner_id TEXT NOT NULL REFERENCES users (id),
    status TEXT NOT NULL,
    health TEXT NOT NULL,
    version INTEGER NOT NULL,
    template TEXT NOT NULL,
    provider TEXT NOT NULL,
    node TEXT NOT NULL,
    image TEXT NOT NULL,
    repo TEXT,
    resources TEXT NOT NULL,
    env TEXT NOT NULL, -- without the secret values
    secrets TEXT NOT NULL, -- the names of the secret ones
    labels TEXT NOT NULL,
    provisioning TEXT NOT NULL,
    plugins TEXT NOT NULL,
    ports TEXT NOT NULL,
    pinned INTEGER NOT NULL CHECK (pinned IN (0, 1)),
    ttl_seconds INTEGER,
    expires_at INTEGER,
    idle_timeout_seconds INTEGER,
    last_activity_at INTEGER NOT NULL,
    warned TEXT NOT NULL DEFAULT '{}', -- by clock: [the time of the firing that was announced, when it was]
    last_fired TEXT, -- the clock that fired last, and when
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    started_at INTEGER,
    trashed_at INTEGER,
    deleted_at INTEGER, -- set: gone, the row stays as history
    current_operation TEXT REFERENCES operations (id),
    last_error TEXT,
    provider_ref TEXT, -- never cleared before destruction is confirmed
    address TEXT,
    is_cloned INTEGER NOT NULL CHECK (is_cloned IN (0, 1)),
    parameters TEXT NOT NULL DEFAULT '{}', -- what its template was given
    recipe TEXT, -- what the image is built from where it is not there
    services TEXT NOT NULL DEFAULT '[]', -- what runs beside the machine
    is_detecting INTEGER NOT NULL DEFAULT 0 CHECK (is_detecting IN (0, 1)), -- its template is found once it is cloned
    files TEXT, -- what the provider calls its files; NULL for the first ones
    git TEXT -- its repository as it was last looked at
) STRICT;

CREATE UNIQUE INDEX workspaces_by_name ON workspaces (owner_id, name) WHERE deleted_at IS NULL;
CREATE INDEX workspaces_by_owner ON workspaces (owner_id, id) WHERE deleted_at IS NULL;
CREATE INDEX workspaces_alive ON workspaces (id) WHERE deleted_at IS NULL;
CREATE INDEX workspaces_by_operation ON workspaces (current_operation) WHERE current_operation IS NOT NULL;
CREATE INDEX workspaces_by_status ON workspaces (status, id) WHERE deleted_at IS NULL;

CREATE TABLE workspace_secrets (
    workspace_id TEXT NOT NULL REFERENCES workspaces (id),
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (workspace_id, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE operations (
    id TEXT PRIMARY KEY,
    type TEXT NOT NULL,
    status TEXT NOT NULL,
    owner_id TEXT NOT NULL, -- whose share of the workers it uses, and who may see it
    workspace_id TEXT REFERENCES workspaces (id),
    snapshot_id TEXT,
    command_id TEXT,
    actor TEXT NOT NULL,
    input TEXT NOT NULL,
    checkpoint TEXT NOT NULL, -- the steps done, so that a retry goes on after them
    verdict TEXT, -- failed or cancelled, once decided and while it is cleaned up
    may_cancel INTEGER NOT NULL CHECK (may_cancel IN (0, 1)),
    attempt INTEGER NOT NULL,
    not_before INTEGER, -- a pending operation that waits for its provider
    progress TEXT NOT NULL,
    result TEXT,
    error TEXT,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    finished_at INTEGER
) STRICT;

CREATE INDEX operations_by_owner ON operations (owner_id, id);
CREATE INDEX operations_by_workspace ON operations (workspace_id, id);
CREATE INDEX operations_unfinished ON operations (status, id)
    WHERE status IN ('pending', 'running', 'cancelling');
CREATE INDEX operations_by_finish ON operations (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE operation_logs (
    operation_id TEXT NOT NULL REFERENCES operations (id) ON DELETE CASCADE,
    seq INTEGER NOT NULL,
    time INTEGER NOT NULL,
    stream TEXT NOT NULL,
    message TEXT NOT NULL,
    PRIMARY KEY (operation_id, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    type TEXT NOT NULL,
    time INTEGER NOT NULL,
    actor TEXT NOT NULL,
    owner_id TEXT,
    workspace_id TEXT,
    operation_id TEXT,
    data TEXT NOT NULL
) STRICT;

CREATE INDEX events_by_workspace ON events (workspace_id, seq);
CREATE INDEX events_by_owner ON events (owner_id, seq);

CREATE TABLE idempotency_keys (
    user_id TEXT NOT NULL,
    key TEXT NOT NULL,
    fingerprint BLOB NOT NULL, -- SHA-256 of method, path, query and body
    answer TEXT NOT NULL, -- what the use case returned first
    created_at INTEGER NOT NULL,
    PRIMARY KEY (user_id, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);

-- What a forced delete could not destroy: doctor names it and can try again.
CREATE TABLE leftovers (
    workspace_id TEXT PRIMARY KEY,
    provider TEXT NOT NULL,
    node TEXT NOT NULL,
    provider_ref TEXT,
    reason TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

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
