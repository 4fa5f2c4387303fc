import asyncio
from datetime import UTC, datetime

import pytest

from vmd.events import Hub, Lagged, Subscription
from vmd.model.event import Event, EventType


def _event(seq: int) -> Event:
    return Event(
        seq=seq,
        type=EventType.WORKSPACE_UPDATED,
        time=datetime(2026, 1, 1, tzinfo=UTC),
        actor="test",
        owner_id=None,
        workspace_id=None,
        operation_id=None,
        data={},
    )


class Listener:
    """Takes events in passing for as long as it is willing; the others it gets one by one."""

    def __init__(self) -> None:
        self.is_willing = True
        self.taken: list[int] = []
        self.told: list[int] = []

    def take(self, event: Event) -> bool:
        if self.is_willing:
            self.taken.append(event.seq)
        return self.is_willing

    async def follow(self, subscription: Subscription) -> None:
        while (event := await subscription.next()) is not None:
            self.told.append(event.seq)


async def _until_waiting() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_events_are_told_in_order_until_the_hub_closes() -> None:
    hub, listener = Hub(), Listener()
    with hub.subscribe(lambda event: event.seq % 2 == 0) as subscription:
        hub.publish([_event(seq) for seq in range(5)])
        hub.close()
        await listener.follow(subscription)
    assert listener.told == [0, 2, 4]


async def test_one_who_waits_takes_what_is_wanted_in_passing() -> None:
    hub, listener = Hub(), Listener()
    with hub.subscribe(lambda event: event.seq != 2, take=listener.take) as subscription:
        following = asyncio.create_task(listener.follow(subscription))
        await _until_waiting()
        hub.publish([_event(1), _event(2), _event(3)])
        hub.close()
        await following
    assert (listener.taken, listener.told) == ([1, 3], [])


async def test_nothing_is_taken_before_what_is_queued() -> None:
    hub, listener = Hub(), Listener()
    with hub.subscribe(lambda event: True, take=listener.take) as subscription:
        hub.publish([_event(1)])  # nobody waits yet
        following = asyncio.create_task(listener.follow(subscription))
        await _until_waiting()
        listener.is_willing = False
        hub.publish([_event(2)])
        listener.is_willing = True
        hub.publish([_event(3)])  # 2 is still queued
        await _until_waiting()
        hub.publish([_event(4)])
        hub.close()
        await following
    assert (listener.told, listener.taken) == ([1, 2, 3], [4])


async def test_nothing_is_taken_once_nobody_waits_any_more() -> None:
    hub, listener = Hub(), Listener()
    with hub.subscribe(lambda event: True, take=listener.take) as subscription:
        following = asyncio.create_task(listener.follow(subscription))
        await _until_waiting()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        hub.publish([_event(1)])
    hub.publish([_event(2)])
    assert listener.taken == []


async def test_one_who_is_too_far_behind_is_told_so_after_what_is_queued() -> None:
    hub, listener = Hub(), Listener()
    with hub.subscribe(lambda event: True, take=listener.take, backlog=2) as subscription:
        hub.publish([_event(seq) for seq in range(4)])
        with pytest.raises(Lagged):
            await listener.follow(subscription)
        hub.publish([_event(4)])
        with pytest.raises(Lagged):
            await listener.follow(subscription)
    assert (listener.told, listener.taken) == ([0, 1], [])
