"""Users and tokens, and who a credential speaks for."""

from collections import OrderedDict
from datetime import datetime, timedelta

from attrs import frozen

from vmd.credentials import new_token_secret, token_digest
from vmd.model.account import Actor, NewToken, NewUser, Role, Scope, Token, User
from vmd.model.errors import ErrorCode, Refused, invalid_value, not_found
from vmd.model.page import Page
from vmd.orchestrator.permissions import get_workspace, require_admin, require_scope, require_unconfined
from vmd.store.accounts import (
    find_bearer,
    find_token,
    find_user,
    insert_token,
    insert_user,
    list_tokens,
    list_users,
    revoke_token,
    touch_token,
)
from vmd.store.database import Database, Transaction

ADMIN_NAME = "admin"
MAX_CACHED_BEARERS = 4096
TOUCH_INTERVAL = timedelta(minutes=1)


@frozen(kw_only=True)
class MadeToken:
    """A new token, with the secret that is shown this once."""

    token: Token
    secret: str


class Accounts:
    """The use cases of accounts. All changes go through here, so what is remembered is never stale."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._bearers: OrderedDict[bytes, _Bearer] = OrderedDict()

    async def authenticate(self, secret: str, now: datetime) -> Actor:
        """Return whom a token speaks for; refuse one that is unknown, expired or revoked."""
        digest = token_digest(secret)
        bearer = self._bearers.get(digest)
        if bearer is None:
            found = await self._database.read(lambda tx: find_bearer(tx, digest))
            if found is None:
                raise unauthenticated("This token is unknown or was revoked; use or make another.")
            bearer = _Bearer(actor=found[0], expires_at=found[1])
            self._remember(digest, bearer)
        if bearer.expires_at is not None and bearer.expires_at <= now:
            raise unauthenticated("This token has expired; make another.")
        if bearer.touched_at is None or now - bearer.touched_at > TOUCH_INTERVAL:
            self._remember(digest, _Bearer(actor=bearer.actor, expires_at=bearer.expires_at, touched_at=now))
            await self._database.write(lambda tx: touch_token(tx, digest))
        return bearer.actor

    async def act_as(self, name: str) -> Actor:
        """Return the actor for a user, for a caller that owns the data directory itself."""
        user = await self._database.read(lambda tx: find_user(tx, name))
        if user is None:
            raise not_found("user", name)
        return actor_of(user)

    async def list_users(self, actor: Actor, after: str | None, limit: int) -> Page[User]:
        """Return a page of users, to an administrator."""
        require_admin(actor)
        rows = await self._database.read(lambda tx: list_users(tx, after, limit + 1))
        return Page.cut(rows, limit, lambda user: user.id)

    async def create_user(self, actor: Actor, wanted: NewUser) -> User:
        """Add a user."""
        require_admin(actor)
        return await self._database.write(lambda tx: add_user(tx, wanted))

    async def list_tokens(self, actor: Actor, after: str | None, limit: int) -> Page[Token]:
        """Return a page of the actor's tokens."""
        require_scope(actor, Scope.ADMIN)
        require_unconfined(actor)
        rows = await self._database.read(lambda tx: list_tokens(tx, actor.user_id, after, limit + 1))
        return Page.cut(rows, limit, lambda token: token.id)

    async def create_token(self, actor: Actor, wanted: NewToken) -> MadeToken:
        """Make a token for the actor; it can do no more than the one it was made with."""
        require_scope(actor, Scope.ADMIN)
        require_unconfined(actor)

        def unit(tx: Transaction) -> MadeToken:
            if wanted.workspace_id is not None:
                _require_workspace(tx, actor, wanted.workspace_id)
            return add_token(tx, actor, wanted)

        return await self._database.write(unit)

    async def revoke_token(self, actor: Actor, token_id: str) -> None:
        """End a token of the actor's."""
        require_scope(actor, Scope.ADMIN)
        require_unconfined(actor)

        def unit(tx: Transaction) -> bytes | None:
            if find_token(tx, actor.user_id, token_id) is None:
                raise not_found("token", token_id)
            return revoke_token(tx, token_id)

        digest = await self._database.write(unit)
        if digest is not None:
            self._bearers.pop(digest, None)

    def _remember(self, digest: bytes, bearer: "_Bearer") -> None:
        self._bearers[digest] = bearer
        self._bearers.move_to_end(digest)
        if len(self._bearers) > MAX_CACHED_BEARERS:
            self._bearers.popitem(last=False)


@frozen(kw_only=True)
class _Bearer:
    actor: Actor
    expires_at: datetime | None
    touched_at: datetime | None = None


def actor_of(user: User) -> Actor:
    """Return the actor with all the rights of a user."""
    return Actor(user_id=user.id, name=user.name, role=user.role)


def add_user(tx: Transaction, wanted: NewUser) -> User:
    """Add a user, in a transaction; the name must be free."""
    if find_user(tx, wanted.name) is not None:
        raise Refused(ErrorCode.NAME_TAKEN, f"There is a user called '{wanted.name}'; choose another name.")
    user = User(id=tx.new_id("usr"), name=wanted.name, role=wanted.role, created_at=tx.now)
    insert_user(tx, user)
    return user


def add_token(tx: Transaction, actor: Actor, wanted: NewToken) -> MadeToken:
    """Make a token for the actor, in a transaction."""
    lifetime = wanted.expires_in_seconds
    token = Token(
        id=tx.new_id("tok"),
        user=actor.name,
        name=wanted.name,
        scopes=tuple(dict.fromkeys(wanted.scopes)),
        workspace_id=wanted.workspace_id,
        created_at=tx.now,
        expires_at=None if lifetime is None else tx.now + timedelta(seconds=lifetime),
        last_used_at=None,
    )
    secret = new_token_secret()
    insert_token(tx, token, actor.user_id, token_digest(secret))
    return MadeToken(token=token, secret=secret)


def add_first_admin(tx: Transaction) -> str | None:
    """Make the user `admin` in fresh books, and return the secret of its token; None if there is one."""
    if find_user(tx, ADMIN_NAME) is not None:
        return None
    user = add_user(tx, NewUser(name=ADMIN_NAME, role=Role.ADMIN))
    return add_token(tx, actor_of(user), NewToken(name="admin-token")).secret


def unauthenticated(detail: str) -> Refused:
    """Return the refusal of a caller that is not known."""
    return Refused(ErrorCode.UNAUTHENTICATED, detail)


def _require_workspace(tx: Transaction, actor: Actor, workspace_id: str) -> None:
    try:
        get_workspace(tx, actor, workspace_id)
    except Refused as error:
        raise invalid_value("/workspace_id", error.detail) from None
