"""Users and their tokens."""

import sqlite3
from datetime import datetime

from vmd.model.account import Actor, Role, Scope, Token, User
from vmd.store.database import Transaction
from vmd.store.rows import decoder, encode, millis, moment, optional_millis, optional_moment

_SCOPES = decoder(tuple[Scope, ...])

INSERT_USER = "INSERT INTO users (id, name, role, created_at) VALUES (:id, :name, :role, :created_at)"
FIND_USER = "SELECT id, name, role, created_at FROM users WHERE name = :name"
LIST_USERS = """
SELECT id, name, role, created_at FROM users
WHERE id < coalesce(:after, '~') ORDER BY id DESC LIMIT :limit
"""
INSERT_TOKEN = """
INSERT INTO tokens (id, user_id, name, digest, scopes, workspace_id, created_at, expires_at)
VALUES (:id, :user_id, :name, :digest, :scopes, :workspace_id, :created_at, :expires_at)
"""
_TOKEN = """
SELECT t.id, u.name AS user, t.name, t.scopes, t.workspace_id, t.created_at, t.expires_at, t.last_used_at
FROM tokens t JOIN users u ON u.id = t.user_id
"""
FIND_TOKEN = f"{_TOKEN} WHERE t.id = :id AND t.user_id = :user_id AND t.revoked_at IS NULL"
LIST_TOKENS = f"""
{_TOKEN} WHERE t.user_id = :user_id AND t.revoked_at IS NULL AND t.id < coalesce(:after, '~')
ORDER BY t.id DESC LIMIT :limit
"""
REVOKE_TOKEN = "UPDATE tokens SET revoked_at = :now WHERE id = :id AND revoked_at IS NULL RETURNING digest"
FIND_BEARER = """
SELECT t.id AS token_id, t.scopes, t.workspace_id, t.expires_at, u.id, u.name, u.role
FROM tokens t JOIN users u ON u.id = t.user_id
WHERE t.digest = :digest AND t.revoked_at IS NULL
"""
TOUCH_TOKEN = "UPDATE tokens SET last_used_at = :now WHERE digest = :digest"


def insert_user(tx: Transaction, user: User) -> None:
    """Add a user; the name must be free."""
    tx.execute(
        INSERT_USER,
        {"id": user.id, "name": user.name, "role": user.role, "created_at": millis(user.created_at)},
    )


def find_user(tx: Transaction, name: str) -> User | None:
    """Return the user of this name."""
    row = tx.execute(FIND_USER, {"name": name}).fetchone()
    return None if row is None else _user(row)


def list_users(tx: Transaction, after: str | None, limit: int) -> list[User]:
    """Return up to `limit` users older than `after`, newest first."""
    return [_user(row) for row in tx.execute(LIST_USERS, {"after": after, "limit": limit})]


def insert_token(tx: Transaction, token: Token, user_id: str, digest: bytes) -> None:
    """Add a token by the SHA-256 of its secret."""
    tx.execute(
        INSERT_TOKEN,
        {
            "id": token.id,
            "user_id": user_id,
            "name": token.name,
            "digest": digest,
            "scopes": encode(token.scopes),
            "workspace_id": token.workspace_id,
            "created_at": millis(token.created_at),
            "expires_at": optional_millis(token.expires_at),
        },
    )


def find_token(tx: Transaction, user_id: str, token_id: str) -> Token | None:
    """Return this user's token unless it is revoked."""
    row = tx.execute(FIND_TOKEN, {"id": token_id, "user_id": user_id}).fetchone()
    return None if row is None else _token(row)


def list_tokens(tx: Transaction, user_id: str, after: str | None, limit: int) -> list[Token]:
    """Return up to `limit` of the user's tokens older than `after`, newest first."""
    rows = tx.execute(LIST_TOKENS, {"user_id": user_id, "after": after, "limit": limit})
    return [_token(row) for row in rows]


def revoke_token(tx: Transaction, token_id: str) -> bytes | None:
    """End a token; return its digest, or None if it was not there."""
    row = tx.execute(REVOKE_TOKEN, {"id": token_id, "now": millis(tx.now)}).fetchone()
    return None if row is None else bytes(row["digest"])


def find_bearer(tx: Transaction, digest: bytes) -> tuple[Actor, datetime | None] | None:
    """Return whom the secret with this digest speaks for, and until when."""
    row = tx.execute(FIND_BEARER, {"digest": digest}).fetchone()
    if row is None:
        return None
    actor = Actor(
        user_id=row["id"],
        name=row["name"],
        role=Role(row["role"]),
        scopes=frozenset(_SCOPES(row["scopes"])),
        workspace_id=row["workspace_id"],
    )
    return actor, optional_moment(row["expires_at"])


def touch_token(tx: Transaction, digest: bytes) -> None:
    """Note that a token was used now."""
    tx.execute(TOUCH_TOKEN, {"digest": digest, "now": millis(tx.now)})


def _user(row: sqlite3.Row) -> User:
    return User(id=row["id"], name=row["name"], role=Role(row["role"]), created_at=moment(row["created_at"]))


def _token(row: sqlite3.Row) -> Token:
    return Token(
        id=row["id"],
        user=row["user"],
        name=row["name"],
        scopes=_SCOPES(row["scopes"]),
        workspace_id=row["workspace_id"],
        created_at=moment(row["created_at"]),
        expires_at=optional_moment(row["expires_at"]),
        last_used_at=optional_moment(row["last_used_at"]),
    )
