import json
from datetime import UTC, datetime

import pytest
from attrs import evolve

from vmd.http.frames import event_frame, sent_event
from vmd.model.event import Event, EventType
from vmd.orchestrator.happenings import Resync

EVENT = Event(
    seq=7,
    type=EventType.WORKSPACE_UPDATED,
    time=datetime(2026, 1, 1, tzinfo=UTC),
    actor="admin",
    owner_id="usr-0",
    workspace_id=None,
    operation_id=None,
    data={"text": ""},
)
HEADERS = {
    65_535: b"\x81\x7e\xff\xff",
    65_536: b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00",
}


def _of_size(size: int) -> Event:
    """Return an event whose JSON has this many bytes."""
    short = evolve(EVENT, actor="")
    missing = size - len(event_frame(short).partition(b"{")[2]) - 1
    return evolve(short, data={"text": "x" * missing})


@pytest.mark.parametrize("size", [65_535, 65_536])
def test_a_frame_says_how_long_it_is(size: int) -> None:
    frame = event_frame(_of_size(size))
    assert frame.startswith(HEADERS[size] + b"{")
    assert len(frame) == len(HEADERS[size]) + size


def test_a_short_frame_has_a_short_header() -> None:
    assert event_frame(Resync()) == b'\x81\x11{"type":"resync"}'


def test_an_event_is_shown_without_its_owner() -> None:
    shown = json.loads(event_frame(EVENT)[4:])
    assert list(shown) == ["seq", "type", "time", "actor", "workspace_id", "operation_id", "data"]
    assert (shown["seq"], shown["type"]) == (7, "workspace.updated")


def test_all_who_hear_of_an_event_share_its_frames() -> None:
    assert event_frame(EVENT) is event_frame(EVENT)
    assert sent_event(EVENT) is sent_event(EVENT)


def test_events_that_differ_in_their_data_alone_have_frames_of_their_own() -> None:
    other = evolve(EVENT, data={"text": "other"})
    assert event_frame(other) != event_frame(EVENT)
