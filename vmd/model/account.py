"""Users, their API tokens, and the actor on whose behalf something happens."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from attrs import frozen
from msgspec import Meta

USER_NAME_PATTERN = r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$"
SECONDS_PER_YEAR = 366 * 24 * 3600


class Role(StrEnum):
    """What a user is to the daemon."""

    ADMIN = "admin"  # sees and may change everything
    MEMBER = "member"  # sees and may change what is theirs


class Scope(StrEnum):
    """What a token may be used for."""

    READ = "workspaces:read"
    WRITE = "workspaces:write"
    EXEC = "exec"
    ADMIN = "admin"  # everything its user may do


@frozen(kw_only=True)
class User:
    """A person, or an agent with an account of its own."""

    id: str
    name: str
    role: Role
    created_at: datetime


@frozen(kw_only=True)
class NewUser:
    """What it takes to add a user."""

    name: Annotated[
        str,
        Meta(
            pattern=USER_NAME_PATTERN,
            max_length=64,
            description="a lower-case name of letters, digits and inner . _ -",
        ),
    ]
    role: Role = Role.MEMBER


@frozen(kw_only=True)
class Token:
    """An API token, without its secret."""

    id: str
    user: str
    name: str
    scopes: tuple[Scope, ...]
    workspace_id: str | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


@frozen(kw_only=True)
class NewToken:
    """What it takes to make a token."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1, max_length=4)] = (Scope.ADMIN,)
    workspace_id: str | None = None
    expires_in_seconds: Annotated[int, Meta(ge=60, le=10 * SECONDS_PER_YEAR)] | None = None


@frozen(kw_only=True)
class Actor:
    """Who asks, with which rights; made by a front door, judged by every use case."""

    user_id: str
    name: str
    role: Role
    scopes: frozenset[Scope] = frozenset({Scope.ADMIN})
    workspace_id: str | None = None  # a token confined to one workspace

    @property
    def is_admin(self) -> bool:
        """Whether the actor may see and change what belongs to others."""
        return self.role is Role.ADMIN and Scope.ADMIN in self.scopes and self.workspace_id is None


SYSTEM = Actor(user_id="system", name="system", role=Role.ADMIN)
