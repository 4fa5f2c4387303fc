"""Shells: terminals in a workspace, which outlive the connections to them."""

from datetime import datetime
from enum import StrEnum

from attrs import frozen


class Persistence(StrEnum):
    """What commands and terminals, with what they printed, outlive."""

    MACHINE = "machine"  # the daemon: they last for as long as their machine runs
    DAEMON = "daemon"  # nothing: they end with the daemon, since the machine cannot hold them


class ShellStatus(StrEnum):
    """Where a shell stands."""

    RUNNING = "running"
    EXITED = "exited"  # and what it printed last can still be read for a while


@frozen(kw_only=True)
class Shell:
    """A terminal session."""

    id: str
    workspace_id: str
    actor: str
    command: str | None  # null for a login shell
    persistence: Persistence
    status: ShellStatus
    exit_code: int | None
    created_at: datetime
    detached_at: datetime | None  # since when nobody is attached
    finished_at: datetime | None
