"""One-shot tickets, for clients of sockets that can set neither header nor cookie."""

import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from attrs import frozen

from vmd.model.account import Actor
from vmd.model.errors import ErrorCode, Refused
from vmd.orchestrator.accounts import unauthenticated

LIFETIME = timedelta(seconds=30)
TICKET_BYTES = 32
MAX_TICKETS = 10_000


@frozen(kw_only=True)
class Ticket:
    """What lets one request in, once."""

    ticket: str
    path: str
    expires_at: datetime


@frozen(kw_only=True)
class _Issued:
    actor: Actor
    path: str
    expires_at: datetime


class Tickets:
    """Gives out tickets and takes them back. They are kept in memory: none outlives the daemon."""

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._issued: dict[str, _Issued] = {}

    def issue(self, actor: Actor, path: str) -> Ticket:
        """Return a ticket for one request of the actor's to this path, within 30 seconds."""
        now = self._clock()
        self._forget_old(now)
        if len(self._issued) >= MAX_TICKETS:
            raise Refused(
                ErrorCode.RATE_LIMITED,
                "Too many tickets were given out in the last 30 seconds; try again soon.",
                retry_after_seconds=1,
            )
        ticket = Ticket(ticket=secrets.token_urlsafe(TICKET_BYTES), path=path, expires_at=now + LIFETIME)
        self._issued[ticket.ticket] = _Issued(actor=actor, path=path, expires_at=ticket.expires_at)
        return ticket

    def redeem(self, ticket: str, path: str) -> Actor:
        """Return whose ticket it is; refuse one that was used, is too old, or is for another path."""
        issued = self._issued.pop(ticket, None)
        if issued is None or issued.path != path or issued.expires_at <= self._clock():
            raise unauthenticated(
                "This ticket was used, is too old, or is for another path; get another at POST /ws-tickets."
            )
        return issued.actor

    def _forget_old(self, now: datetime) -> None:
        for ticket, issued in list(self._issued.items()):
            if issued.expires_at > now:
                return  # they expire in the order in which they were given out
            del self._issued[ticket]
