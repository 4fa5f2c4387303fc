"""Events for those who may hear them: what was missed, then live, without a gap or a repeat."""

from collections.abc import AsyncGenerator, Callable

from vmd.events import Hub
from vmd.model.account import Actor, Scope
from vmd.model.event import Event, EventType
from vmd.orchestrator.permissions import get_workspace, may_see, require_scope
from vmd.store.database import Database, Transaction
from vmd.store.events import find_bounds, list_events

BATCH = 500


class Resync:
    """Said first when events since the given number are no longer kept: look at everything anew."""


class Happenings:
    """The use cases of events."""

    def __init__(self, database: Database, hub: Hub) -> None:
        self._database = database
        self._hub = hub

    async def require_visible(self, actor: Actor, workspace_id: str | None) -> None:
        """Refuse one who may not hear of this workspace, None for all of the actor's."""
        require_scope(actor, Scope.READ)
        if workspace_id is not None:
            await self._database.read(lambda tx: get_workspace(tx, actor, workspace_id))

    async def follow(
        self,
        actor: Actor,
        workspace_id: str | None,
        after: int | None,
        take: Callable[[Event], bool] = lambda event: False,
    ) -> AsyncGenerator[Event | Resync, None]:
        """Yield events after number `after`, from now on for None; end after a workspace's deletion.

        A caller that waits for the next is offered it by `take` first, which is cheaper where there are many;
        what it takes is not yielded. Raises Lagged when the caller takes them too slowly.
        """
        workspace_id = workspace_id or actor.workspace_id
        with self._hub.subscribe(
            lambda event: _concerns(event, actor, workspace_id),
            take=lambda event: not _is_end(event, workspace_id) and take(event),
        ) as live:
            first, last = await self._database.read(find_bounds)
            seq = last if after is None else min(after, last)
            if seq + 1 < first:
                yield Resync()
            while missed := await self._read(actor, workspace_id, seq, last):
                for event in missed:
                    seq = event.seq
                    yield event
                    if _is_end(event, workspace_id):
                        return
            seq = max(seq, last)
            while (live_event := await live.next()) is not None:
                if live_event.seq <= seq:
                    continue
                yield live_event
                if _is_end(live_event, workspace_id):
                    return

    async def _read(self, actor: Actor, workspace_id: str | None, after: int, last: int) -> list[Event]:
        owner_id = None if actor.is_admin else actor.user_id

        def unit(tx: Transaction) -> list[Event]:
            return list_events(tx, owner_id=owner_id, workspace_id=workspace_id, after=after, limit=BATCH)

        return [event for event in await self._database.read(unit) if event.seq <= last]


def _concerns(event: Event, actor: Actor, workspace_id: str | None) -> bool:
    if workspace_id is not None and event.workspace_id != workspace_id:
        return False
    return may_see(actor, event.workspace_id, event.owner_id)


def _is_end(event: Event, workspace_id: str | None) -> bool:
    return workspace_id is not None and event.type is EventType.WORKSPACE_DELETED
