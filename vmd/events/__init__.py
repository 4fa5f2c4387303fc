"""In-memory fan-out of events that were committed."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from vmd.model.event import Event

DEFAULT_BACKLOG = 1000  # events a listener may be behind before it is told that it lags


class Lagged(Exception):
    """The listener was too slow, and events were dropped; it must read them from the books."""


class Subscription:
    """One listener's share of the events, in order; use it as a context manager."""

    def __init__(
        self, hub: "Hub", wanted: Callable[[Event], bool], take: Callable[[Event], bool], backlog: int
    ) -> None:
        self._hub = hub
        self._wanted = wanted
        self._take = take
        self._backlog = backlog
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._is_waiting = False
        self._lagged = False
        self._closed = False

    def __enter__(self) -> "Subscription":
        self._hub._subscriptions.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._hub._subscriptions.discard(self)

    async def next(self) -> Event | None:
        """Return the next event, or None once the hub is closed; raise Lagged when some were dropped."""
        while not self._events:
            if self._lagged:
                raise Lagged
            if self._closed:
                return None
            await self._wait()
        return self._events.popleft()

    def offer(self, event: Event) -> None:
        """Queue an event if this listener wants it, and does not take it in passing."""
        if self._lagged or not self._wanted(event):
            return
        if self._is_waiting and not self._events and self._take(event):
            return
        if len(self._events) >= self._backlog:
            self._lagged = True
        else:
            self._events.append(event)
        self._arrived.set()

    def close(self) -> None:
        """End the stream after what is queued."""
        self._closed = True
        self._arrived.set()

    async def _wait(self) -> None:
        self._arrived.clear()
        self._is_waiting = True
        try:
            await self._arrived.wait()
        finally:
            self._is_waiting = False


class Hub:
    """Hands every published event to every subscription, without ever waiting for one."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()

    def publish(self, events: Sequence[Event]) -> None:
        """Offer committed events, in order."""
        for event in events:
            for subscription in tuple(self._subscriptions):
                subscription.offer(event)

    def subscribe(
        self,
        wanted: Callable[[Event], bool],
        *,
        take: Callable[[Event], bool] = lambda event: False,
        backlog: int = DEFAULT_BACKLOG,
    ) -> Subscription:
        """Return a subscription to the events for which `wanted` is true, from its entering on.

        While the listener waits for the next event, `take` is called with it first; where that is true, the
        event is dealt with, and nobody need be woken.
        """
        return Subscription(self, wanted, take, backlog)

    def close(self) -> None:
        """End every subscription."""
        for subscription in tuple(self._subscriptions):
            subscription.close()
