"""Users and tokens over HTTP."""

from typing import Annotated

from aiohttp import web
from attrs import frozen
from msgspec import Meta

from vmd.http.openapi import docs, refuses, returns, takes
from vmd.http.wire import (
    ACTOR,
    DEFAULT_LIMIT,
    Cursor,
    Limit,
    read_body,
    read_cursor,
    read_query,
    respond,
    respond_page,
)
from vmd.http.workspaces import NoQuery
from vmd.model.account import NewToken, NewUser, Role, Scope, Token, User
from vmd.model.errors import ErrorCode
from vmd.model.quota import OwnLimits
from vmd.orchestrator.accounts import Accounts
from vmd.orchestrator.quota import QuotaReport, Quotas

_TAGS = ["accounts"]


@frozen(kw_only=True)
class Me:
    """Who the credential speaks for, and what it may be used for."""

    id: str
    name: str
    role: Role
    scopes: tuple[Scope, ...]
    workspace_id: str | None


@frozen(kw_only=True)
class SecretToken(Token):
    """A new token with its secret, which is shown this once."""

    secret: str


@frozen(kw_only=True)
class TokenPage:
    """Tokens, newest first."""

    items: tuple[Token, ...]
    next_cursor: str | None


@frozen(kw_only=True)
class UserPage:
    """Users, newest first."""

    items: tuple[User, ...]
    next_cursor: str | None


@frozen(kw_only=True)
class PageQuery:
    """The query of a list without filters."""

    limit: Limit = DEFAULT_LIMIT
    cursor: Cursor | None = None


@frozen(kw_only=True)
class QuotaQuery:
    """Whose quota is asked for."""

    owner: Annotated[str, Meta(description="admins: a user's name")] | None = None


@frozen(kw_only=True)
class SetQuotaQuery:
    """Whose quota is set."""

    owner: Annotated[str, Meta(description="a user's name")]


class AccountHandlers:
    """The handlers of `/me`, `/quota`, `/tokens` and `/users`."""

    def __init__(self, accounts: Accounts, quotas: Quotas) -> None:
        self._accounts = accounts
        self._quotas = quotas

    def routes(self) -> list[web.RouteDef]:
        """Return the routes below the base path."""
        return [
            web.get("/me", self.me, allow_head=False),
            web.get("/quota", self.quota, allow_head=False),
            web.put("/quota", self.set_quota),
            web.get("/tokens", self.list_tokens, allow_head=False),
            web.post("/tokens", self.create_token),
            web.delete("/tokens/{id}", self.revoke_token),
            web.get("/users", self.list_users, allow_head=False),
            web.post("/users", self.create_user),
        ]

    @docs(tags=_TAGS, summary="Who am I")
    @takes(query=NoQuery)
    @returns(200, Me, "Who the credential speaks for.")
    async def me(self, request: web.Request) -> web.Response:
        """Return the caller."""
        read_query(request, NoQuery)
        actor = request[ACTOR]
        return respond(
            Me(
                id=actor.user_id,
                name=actor.name,
                role=actor.role,
                scopes=tuple(sorted(actor.scopes)),
                workspace_id=actor.workspace_id,
            )
        )

    @docs(
        tags=_TAGS,
        summary="Limits and present use",
        description="Workspaces in trash count as workspaces and with their disks. Administrators may look "
        "at the quota of another user, and see what the hosts have promised.",
    )
    @takes(query=QuotaQuery)
    @returns(200, QuotaReport, "The quota.")
    @refuses(ErrorCode.NOT_FOUND)
    async def quota(self, request: web.Request) -> web.Response:
        """Return a user's quota, the caller's own unless another is asked for."""
        query = read_query(request, QuotaQuery)
        return respond(await self._quotas.get(request[ACTOR], query.owner))

    @docs(
        tags=_TAGS,
        summary="Set a user's own limits",
        description="For administrators. The limits given replace all that the user had of their own: null "
        "sets no limit, and what is absent is as the settings say. What is in use already stays.",
    )
    @takes(body=OwnLimits, query=SetQuotaQuery)
    @returns(200, QuotaReport, "The quota as it is now.")
    @refuses(ErrorCode.NOT_FOUND, ErrorCode.VALIDATION_FAILED)
    async def set_quota(self, request: web.Request) -> web.Response:
        """Replace a user's own limits."""
        query = read_query(request, SetQuotaQuery)
        own = await read_body(request, OwnLimits)
        return respond(await self._quotas.set(request[ACTOR], query.owner, own))

    @docs(tags=_TAGS, summary="List the caller's tokens")
    @takes(query=PageQuery)
    @returns(200, TokenPage, "A page, newest first.")
    async def list_tokens(self, request: web.Request) -> web.Response:
        """Return a page of tokens."""
        query = read_query(request, PageQuery)
        page = await self._accounts.list_tokens(request[ACTOR], read_cursor(query.cursor, "tok"), query.limit)
        return respond_page(page.items, page)

    @docs(
        tags=_TAGS,
        summary="Make a token",
        description="The secret is shown once and kept nowhere, so `Idempotency-Key` has no effect here.",
    )
    @takes(body=NewToken, query=NoQuery)
    @returns(201, SecretToken, "The token with its secret.")
    @refuses(ErrorCode.VALIDATION_FAILED)
    async def create_token(self, request: web.Request) -> web.Response:
        """Make a token for the caller."""
        read_query(request, NoQuery)
        made = await self._accounts.create_token(request[ACTOR], await read_body(request, NewToken))
        shown = {name: getattr(made.token, name) for name in _TOKEN_FIELDS}
        return respond(SecretToken(**shown, secret=made.secret), 201)

    @docs(tags=_TAGS, summary="Revoke a token")
    @takes(query=NoQuery)
    @returns(204, None, "It is revoked.")
    async def revoke_token(self, request: web.Request) -> web.Response:
        """End a token of the caller's."""
        read_query(request, NoQuery)
        await self._accounts.revoke_token(request[ACTOR], request.match_info["id"])
        return web.Response(status=204)

    @docs(tags=_TAGS, summary="List users", description="For administrators.")
    @takes(query=PageQuery)
    @returns(200, UserPage, "A page, newest first.")
    async def list_users(self, request: web.Request) -> web.Response:
        """Return a page of users."""
        query = read_query(request, PageQuery)
        page = await self._accounts.list_users(request[ACTOR], read_cursor(query.cursor, "usr"), query.limit)
        return respond_page(page.items, page)

    @docs(tags=_TAGS, summary="Add a user", description="For administrators.")
    @takes(body=NewUser, query=NoQuery)
    @returns(201, User, "The user.")
    @refuses(ErrorCode.NAME_TAKEN, ErrorCode.VALIDATION_FAILED)
    async def create_user(self, request: web.Request) -> web.Response:
        """Add a user."""
        read_query(request, NoQuery)
        return respond(
            await self._accounts.create_user(request[ACTOR], await read_body(request, NewUser)), 201
        )


_TOKEN_FIELDS = ("id", "user", "name", "scopes", "workspace_id", "created_at", "expires_at", "last_used_at")
