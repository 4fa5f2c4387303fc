import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest

from tests.support.house import House
from vmd.events import Subscription
from vmd.model.account import SYSTEM
from vmd.model.errors import Refused
from vmd.model.event import EventType
from vmd.orchestrator.tickets import Tickets
from vmd.store.events import delete_surplus_events, find_bounds

FLOOD = 20  # events at once


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
    known = set(house.daemon._hub._subscriptions)
    async with house.api.session.ws_connect("/ws/events", autoping=False) as socket:
        [subscription] = house.daemon._hub._subscriptions - known
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


def _flood(tx: Any) -> None:
    for _ in range(FLOOD):
        tx.emit(EventType.WORKSPACE_UPDATED, actor="test", owner_id=None, text="x" * 10_000)


@asynccontextmanager
async def _stalled(house: House) -> AsyncIterator[tuple[aiohttp.ClientWebSocketResponse, Subscription]]:
    """Yield a socket that is not read, and its subscription, in which more waits than any buffer takes."""
    subscriptions = house.daemon._hub._subscriptions
    known = set(subscriptions)
    async with house.api.session.ws_connect("/ws/events", autoping=False) as socket:
        [subscription] = subscriptions - known
        async with asyncio.timeout(30):
            while len(subscription._events) < 3 * FLOOD and subscription in subscriptions:
                await house.daemon._database.write(_flood)
                await asyncio.sleep(0.01)
        yield socket, subscription


async def _until_gone(house: House, subscription: Subscription) -> None:
    async with asyncio.timeout(10):
        while subscription in house.daemon._hub._subscriptions:
            await asyncio.sleep(0.01)


def _connections(house: House) -> set[Any]:
    assert house.daemon._runner.server is not None
    return set(house.daemon._runner.server.connections)


async def test_one_who_falls_behind_and_reads_on_misses_nothing(house: House) -> None:
    async with _stalled(house) as (socket, _):
        before = json.loads(await socket.receive_str())["seq"]
        await house.api.make()
        events = await _take(socket, "operation.finished")
        await house.api.make(name="live")
        events += await _take(socket, "operation.finished")
    sequence = [event["seq"] for event in events]
    assert sequence == list(range(before + 1, before + 1 + len(sequence)))


async def test_one_who_takes_too_long_for_a_frame_is_told_so(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmd.http.sockets.SEND_SECONDS", 0.1)
    monkeypatch.setattr("vmd.http.sockets.CLOSE_SECONDS", 10.0)
    async with _stalled(house) as (socket, subscription):
        await _until_gone(house, subscription)
        async with asyncio.timeout(10):
            async for _ in socket:
                pass
        assert socket.close_code == 4002


@pytest.mark.parametrize("patience", ["SEND_SECONDS", "HEARTBEAT_SECONDS"])
async def test_nothing_is_kept_of_one_who_never_reads(
    house: House, monkeypatch: pytest.MonkeyPatch, patience: str
) -> None:
    monkeypatch.setattr(f"vmd.http.sockets.{patience}", 0.5)
    monkeypatch.setattr("vmd.http.sockets.CLOSE_SECONDS", 0.1)
    known = _connections(house)
    async with _stalled(house) as (_, subscription):
        await _until_gone(house, subscription)
        async with asyncio.timeout(10):
            while _connections(house) - known:
                await asyncio.sleep(0.01)


async def test_one_who_never_reads_takes_nothing_from_the_others(house: House) -> None:
    async with AsyncExitStack() as stack:
        connect = house.api.session.ws_connect
        sockets = [await stack.enter_async_context(connect("/ws/events?after=0")) for _ in range(20)]
        reading = [asyncio.create_task(_take(socket, "operation.finished")) for socket in sockets]
        _, subscription = await stack.enter_async_context(_stalled(house))
        workspace = await house.api.make()
        stories = await asyncio.gather(*reading)
        assert subscription._events
    for story in stories:
        assert [event["seq"] for event in story] == list(range(1, len(story) + 1))
        assert story[-1]["workspace_id"] == workspace["id"]


async def test_sockets_close_as_going_away(house: House) -> None:
    async with house.api.session.ws_connect("/ws/events") as socket:
        closing = asyncio.create_task(house.daemon._runner.cleanup())
        async with asyncio.timeout(5):
            message = await socket.receive()
        assert message.type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 4000
        await closing


async def _stream(house: House, query: str = "", **headers: str) -> Any:
    """Open the server-sent events; the caller reads and closes them."""
    response = await house.api.session.get(f"/api/v1/events{query}", headers=headers)
    assert response.status == 200, await response.text()
    assert response.headers["Content-Type"] == "text/event-stream"
    return response


async def _take_sent(response: aiohttp.ClientResponse, until: str) -> list[dict[str, str]]:
    """Return the server-sent events up to the first of this type, by field."""
    events: list[dict[str, str]] = []
    async with asyncio.timeout(10):
        while not events or events[-1]["event"] != until:
            fields: dict[str, str] = {}
            while (line := (await response.content.readline()).decode().rstrip("\n")) != "":
                name, _, value = line.partition(": ")
                fields[name] = value
            if "data" in fields:
                events.append(fields)
    return events


async def test_server_sent_events_tell_the_same_story(house: House) -> None:
    await house.api.make(name="one")
    response = await _stream(house, "?after=0")
    events = await _take_sent(response, "operation.finished")
    assert [int(event["id"]) for event in events] == list(range(1, len(events) + 1))
    assert [json.loads(event["data"])["type"] for event in events] == [event["event"] for event in events]
    await house.api.make(name="two")
    live = await _take_sent(response, "workspace.created")
    assert json.loads(live[-1]["data"])["data"]["name"] == "two"
    response.close()


async def test_a_browser_that_comes_back_goes_on_after_its_last_event(house: House) -> None:
    workspace = await house.api.make()
    await house.api.make()
    query = f"?after=0&workspace_id={workspace['id']}"
    response = await _stream(house, query, **{"Last-Event-ID": "3"})
    events = await _take_sent(response, "operation.finished")
    assert int(events[0]["id"]) > 3
    assert {json.loads(event["data"])["workspace_id"] for event in events} == {workspace["id"]}
    response.close()


async def test_a_last_event_that_is_no_longer_kept_gets_resync(house: House) -> None:
    await house.api.make()
    await house.daemon._database.write(lambda tx: tx.execute("DELETE FROM events WHERE seq < 5"))
    response = await _stream(house, **{"Last-Event-ID": "1"})
    [resync] = await _take_sent(response, "resync")
    assert json.loads(resync["data"]) == {"type": "resync"}
    response.close()


async def test_a_quiet_stream_shows_that_it_lives(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmd.http.events.HEARTBEAT_SECONDS", 0.05)
    response = await _stream(house)
    async with asyncio.timeout(5):
        assert await response.content.readline() == b":\n"
    response.close()


async def test_wrong_stream_requests_are_refused(house: House) -> None:
    assert (await house.api.get("/events?workspace_id=ws-none")).status == 404
    assert (await house.api.get("/events?after=x")).status == 400
    assert (await house.api.get("/events", headers={"Last-Event-ID": "x"})).status == 400
    stranger = await house.client(None)
    assert (await stranger.get("/events")).status == 401


async def test_a_stream_of_one_who_does_not_read_is_cut_off(house: House) -> None:
    known = set(house.daemon._hub._subscriptions)
    response = await _stream(house)
    [subscription] = house.daemon._hub._subscriptions - known
    subscription._backlog = 3

    def flood(tx: Any) -> None:
        for _ in range(10):
            tx.emit(EventType.WORKSPACE_UPDATED, actor="test", owner_id=None, text="x")

    await house.daemon._database.write(flood)
    async with asyncio.timeout(5):
        assert (await response.content.read()).count(b"data: ") == 3
    assert house.daemon._hub._subscriptions == known


async def test_old_events_are_forgotten_by_count(house: House) -> None:
    for _ in range(5):
        await house.api.make()
    before = await house.daemon._database.read(find_bounds)
    await house.daemon._database.write(lambda tx: delete_surplus_events(tx, 10, 1000))
    first, last = await house.daemon._database.read(find_bounds)
    assert (first, last) == (before[1] - 9, before[1])


async def test_a_ticket_opens_its_socket_once(house: House) -> None:
    workspace = await house.api.make()
    path = f"/ws/workspaces/{workspace['id']}/events"
    made = await house.api.post("/ws-tickets", {"path": path})
    assert made.status == 201
    assert set(made.json) == {"ticket", "path", "expires_at"}
    stranger = await house.client(None)
    async with stranger.session.ws_connect(f"{path}?after=0&ticket={made.json['ticket']}") as socket:
        assert json.loads(await socket.receive_str())["workspace_id"] == workspace["id"]
    again = await stranger.get(f"{path}?ticket={made.json['ticket']}")
    assert (again.status, again.json["code"]) == (401, "unauthenticated")


async def test_a_ticket_is_good_for_its_path_and_caller_alone(house: House) -> None:
    bob = await house.member("bob")
    foreign = await house.api.make()
    stranger = await house.client(None)

    async def ticket(path: str) -> str:
        secret: str = (await bob.post("/ws-tickets", {"path": path})).json["ticket"]
        return secret

    elsewhere = await stranger.get(f"/ws/events?ticket={await ticket('/ws/workspaces/x/events')}")
    assert elsewhere.status == 401
    path = f"/ws/workspaces/{foreign['id']}/events"
    assert (await stranger.get(f"{path}?ticket={await ticket(path)}")).status == 404
    assert (await stranger.get(f"/workspaces?ticket={await ticket('/ws/events')}")).status == 401
    for path in ("/workspaces", "/ws/../api", "http://x/ws/events", ""):
        assert (await bob.post("/ws-tickets", {"path": path})).status == 422


def test_a_ticket_is_good_for_thirty_seconds() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    tickets = Tickets(lambda: now)
    early, late = (tickets.issue(SYSTEM, "/ws/events") for _ in range(2))
    now += timedelta(seconds=29)
    assert tickets.redeem(early.ticket, "/ws/events") is SYSTEM
    now += timedelta(seconds=1)
    with pytest.raises(Refused, match="too old"):
        tickets.redeem(late.ticket, "/ws/events")
