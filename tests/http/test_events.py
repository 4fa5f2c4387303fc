import asyncio
import json
from typing import Any

import aiohttp
import pytest

from tests.support.house import House
from vmd.model.event import EventType


async def _take(socket: aiohttp.ClientWebSocketResponse, until: str) -> list[Any]:
    """Return the events up to the first of this type."""
    events: list[Any] = []
    async with asyncio.timeout(10):
        while not events or events[-1]["type"] != until:
            events.append(json.loads(await socket.receive_str()))
    return events


async def test_events_tell_a_workspaces_story_without_a_gap(house: House) -> None:
    async with house.api.session.ws_connect("/ws/events") as socket:
        workspace = await house.api.make(provisioning=["echo hello"])
        await house.api.done(await house.api.delete(f"/workspaces/{workspace['id']}"))
        events = await _take(socket, "workspace.deleted")
    assert set(events[0]) == {"seq", "type", "time", "actor", "workspace_id", "operation_id", "data"}
    sequence = [event["seq"] for event in events]
    assert sequence == list(range(sequence[0], sequence[0] + len(sequence)))
    statuses = [event["data"]["status"] for event in events if event["type"] == "workspace.status"]
    assert statuses == ["creating", "running", "deleting"]
    logged = [event["data"]["lines"] for event in events if event["type"] == "operation.log"]
    assert "hello" in [line["message"] for lines in logged for line in lines]
    kinds = {event["type"] for event in events}
    assert {"workspace.created", "operation.created", "operation.progress", "operation.finished"} <= kinds


async def test_after_replays_exactly_what_was_missed(house: House) -> None:
    async with house.api.session.ws_connect("/ws/events") as socket:
        await house.api.make(name="one")
        seen = await _take(socket, "operation.finished")
    await house.api.make(name="two")
    async with house.api.session.ws_connect(f"/ws/events?after={seen[-1]['seq']}") as socket:
        await house.api.make(name="three")
        created: list[str] = []
        last = seen[-1]["seq"]
        while "three" not in created:
            for event in await _take(socket, "workspace.created"):
                assert event["seq"] == last + 1
                last = event["seq"]
            created.append(event["data"]["name"])
    assert created == ["two", "three"]


async def test_many_listeners_that_come_at_any_time_all_see_the_same(house: House) -> None:
    async def follow(delay: float) -> list[Any]:
        await asyncio.sleep(delay)
        async with house.api.session.ws_connect("/ws/events?after=0") as socket:
            events: list[Any] = []
            while sum(event["type"] == "operation.finished" for event in events) < 20:
                events += await _take(socket, "operation.finished")
            return events

    listeners = [asyncio.create_task(follow(number / 50)) for number in range(10)]
    await asyncio.gather(*(house.api.make() for _ in range(20)))
    stories = await asyncio.gather(*listeners)
    for story in stories:
        sequence = [event["seq"] for event in story]
        assert sequence == list(range(1, len(sequence) + 1))


async def test_a_workspaces_events_end_with_it(house: House) -> None:
    workspace, other = await house.api.make(), await house.api.make()
    async with house.api.session.ws_connect(f"/ws/workspaces/{workspace['id']}/events?after=0") as socket:
        await house.api.patch(f"/workspaces/{other['id']}", {"description": "x"})
        await house.api.done(await house.api.delete(f"/workspaces/{workspace['id']}"))
        events = await _take(socket, "workspace.deleted")
        assert {event["workspace_id"] for event in events} == {workspace["id"]}
        assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 4004


async def test_an_after_that_is_no_longer_kept_gets_resync(house: House) -> None:
    await house.api.make()
    await house.daemon._database.write(lambda tx: tx.execute("DELETE FROM events WHERE seq < 5"))
    async with house.api.session.ws_connect("/ws/events?after=2") as socket:
        assert json.loads(await socket.receive_str()) == {"type": "resync"}
        assert json.loads(await socket.receive_str())["seq"] == 5


async def test_a_member_hears_only_of_what_is_theirs(house: House) -> None:
    bob = await house.member("bob")
    await house.api.make()
    mine = await bob.make()
    async with bob.session.ws_connect("/ws/events?after=0") as socket:
        events = await _take(socket, "operation.finished")
    assert {event["workspace_id"] for event in events} == {mine["id"]}
    foreign = (await house.api.get("/workspaces?owner=admin")).json["items"][0]["id"]
    answer = await bob.get(f"/ws/workspaces/{foreign}/events")
    assert answer.status == 404


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
async def test_pages_of_other_origins_are_refused_before_the_upgrade(house: House, origin: str) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await house.api.session.ws_connect("/ws/events", origin=origin)
    assert refused.value.status == 403


async def test_the_daemons_own_page_may_connect(house: House) -> None:
    async with house.api.session.ws_connect("/ws/events", origin=house.api.url):
        pass


async def test_a_plain_request_is_told_to_upgrade(house: House) -> None:
    answer = await house.api.get("/ws/events")
    assert (answer.status, answer.json["code"]) == (400, "malformed-request")
    assert (await house.api.get("/ws/events?after=x")).status == 400


async def test_a_listener_that_does_not_read_is_cut_off(house: House) -> None:
    async with house.api.session.ws_connect("/ws/events", autoping=False) as socket:
        subscription = next(iter(house.daemon._hub._subscriptions))
        subscription._backlog = 3
        data = "x" * 10_000

        def flood(tx: Any) -> None:
            for _ in range(10):
                tx.emit(EventType.WORKSPACE_UPDATED, actor="test", owner_id=None, text=data)

        await house.daemon._database.write(flood)
        async with asyncio.timeout(10):
            async for _ in socket:
                pass
        assert socket.close_code == 4002


async def test_sockets_close_as_going_away(house: House) -> None:
    async with house.api.session.ws_connect("/ws/events") as socket:
        closing = asyncio.create_task(house.daemon._runner.cleanup())
        async with asyncio.timeout(5):
            message = await socket.receive()
        assert message.type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 4000
        await closing
