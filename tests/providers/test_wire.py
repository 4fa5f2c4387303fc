"""What a supervisor sends is untrusted: root of a machine may send anything in its place."""

import asyncio
import struct
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmd.providers.base import ProviderError, ProviderUnavailable
from vmd.providers.process import ProcessReport, ProcessSpec, ProcessState, Stream, UnknownUser
from vmd.providers.supervisor.client import LinkFollower, OtherVersion, SupervisorClient
from vmd.providers.supervisor.wire import (
    MAX_FRAME_BYTES,
    MAX_OFFSET,
    VERSION,
    FrameReader,
    FromSupervisor,
    identifier,
)

ID = "cmd-1"
WINDOW = 100


class Talk:
    """A client with everything under way that can be: a start, a look, a list, input, and a reader."""

    def __init__(self) -> None:
        self.said = b""
        self.times_closed = 0
        self.client = SupervisorClient(self._hear, self._close)
        self.reports: list[ProcessReport] = []
        self.client.on_report = self.reports.append
        self.follower: LinkFollower = self.client.follow(ID, Stream.STDOUT, 10, live=True, window=WINDOW)
        self.waiting = [
            asyncio.create_task(self.client.greet()),
            asyncio.create_task(self.client.start(ProcessSpec(id=ID, line="x", kept_bytes=1))),
            asyncio.create_task(self.client.look(ID)),
            asyncio.create_task(self.client.list()),
        ]
        self.writing = asyncio.create_task(self.client.write(ID, b"x" * 200_000))

    def _hear(self, data: bytes) -> None:
        self.said += data

    def _close(self) -> None:
        self.times_closed += 1

    async def hear_out(self, data: Iterable[bytes]) -> None:
        """Feed it, as it may come, then end."""
        await asyncio.sleep(0)
        for part in data:
            self.client.feed(part)
            await asyncio.sleep(0)

    async def end(self) -> None:
        """Lose the link; everything that waits must end by that, and in no other way."""
        self.client.lost()
        results = await asyncio.gather(*self.waiting, self.writing, return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        assert {type(error) for error in errors} <= {
            ProviderUnavailable,
            ProviderError,
            UnknownUser,
            OtherVersion,
        }
        assert self.times_closed == 1


def framed(kind: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack("<IB", len(body) + 1, kind) + body


def data_frame(number: int, offset: int, data: bytes) -> bytes:
    return framed(FromSupervisor.DATA, struct.pack("<IQ", number, offset), data)


def report_frame(*, state: int = 1, kept: tuple[int, int, int, int] = (0, 0, 0, 0)) -> bytes:
    return framed(FromSupervisor.REPORT, identifier(ID), struct.pack("<BBBxiiQQQQ", state, 0, 0, 0, 0, *kept))


NONSENSE = {
    "no frame at all": b"HTTP/1.1 200 OK\r\n\r\n",
    "a frame without a type": struct.pack("<IB", 0, FromSupervisor.READY),
    "a frame that is too large": struct.pack("<IB", MAX_FRAME_BYTES + 1, FromSupervisor.DATA),
    "a frame of an unknown type": framed(99),
    "a frame that is meant for a supervisor": framed(1),
    "another version": framed(FromSupervisor.READY, struct.pack("<I", VERSION + 1)),
    "a version that is cut off": framed(FromSupervisor.READY, b"\1"),
    "an id that is cut off": framed(FromSupervisor.STARTED, b"\7cmd-1"),
    "no id": framed(FromSupervisor.UNKNOWN),
    "a report that is cut off": framed(FromSupervisor.REPORT, identifier(ID), b"\1\0\0"),
    "a report of no state": report_frame(state=3),
    "a report that keeps what was not printed": report_frame(kept=(2, 1, 0, 0)),
    "a report beyond all offsets": report_frame(kept=(0, 0, 0, MAX_OFFSET)),
    "data that is cut off": framed(FromSupervisor.DATA, b"\1\0\0\0"),
    "data beyond the window": data_frame(1, 10, b"x" * (WINDOW + 1)),
    "data beyond the window in two pieces": data_frame(1, 10, b"x" * WINDOW) + data_frame(1, 110, b"x"),
    "data before where it was to begin": data_frame(1, 9, b"x"),
    "data twice": data_frame(1, 10, b"xx") + data_frame(1, 11, b"x"),
    "data in too many pieces": b"".join(data_frame(1, 10 + 2 * at, b"x") for at in range(50)),
    "no data in too many pieces": b"".join(data_frame(1, 10 + at, b"") for at in range(50)),
    "data beyond all offsets": data_frame(1, MAX_OFFSET, b"x"),
    "an end that is cut off": framed(FromSupervisor.FINISHED, b"\1\0\0\0"),
    "no count of what was taken": framed(FromSupervisor.TAKEN, identifier(ID)),
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
async def test_a_supervisor_that_talks_nonsense_is_hung_up_on(nonsense: bytes) -> None:
    talk = Talk()
    await talk.hear_out([nonsense])
    assert talk.client.is_open is False
    await talk.client.wait_closed()
    with pytest.raises(ProviderUnavailable):
        _ = [chunk async for chunk in talk.follower]
    for attempt in (talk.client.look(ID), talk.client.list(), talk.client.write(ID, b"x")):
        with pytest.raises(ProviderUnavailable):
            await attempt
    with pytest.raises(ProviderUnavailable):
        talk.client.signal(ID, 15)
    talk.follower.close()
    talk.client.feed(b"more of it")
    await talk.end()


UNASKED = {
    "data for a reader that went away": data_frame(77, 0, b"x" * 1000),
    "the end of another reader": framed(FromSupervisor.FINISHED, struct.pack("<IQ", 77, 0)),
    "the start of another process": framed(FromSupervisor.STARTED, identifier("cmd-2")),
    "a refusal of another process": framed(FromSupervisor.REFUSED, identifier("cmd-2"), b"no"),
    "input that was not given": framed(FromSupervisor.TAKEN, identifier("cmd-2"), b"\xff\xff\xff\xff"),
    "another process that is unknown": framed(FromSupervisor.UNKNOWN, identifier("cmd-2")),
    "an id that is not ASCII": framed(FromSupervisor.UNKNOWN, b"\2\xff\xfe"),
}


@pytest.mark.parametrize("unasked", UNASKED.values(), ids=UNASKED)
async def test_what_nobody_waits_for_is_passed_over(unasked: bytes) -> None:
    talk = Talk()
    await talk.hear_out([unasked, data_frame(1, 12, b"abc")])
    assert talk.client.is_open
    talk.client.feed(framed(FromSupervisor.FINISHED, struct.pack("<IQ", 1, 15)))
    assert [(chunk.offset, chunk.data) async for chunk in talk.follower] == [(12, b"abc")]
    await talk.end()


async def test_a_reader_that_takes_nothing_is_granted_nothing() -> None:
    talk = Talk()
    await talk.hear_out([data_frame(1, 10, b"x" * WINDOW)])
    before = talk.said
    await talk.hear_out([framed(FromSupervisor.LISTED)])
    assert talk.said == before
    chunks = aiter(talk.follower)
    assert (await anext(chunks)).data == b"x" * WINDOW
    coming = asyncio.ensure_future(anext(chunks))
    await asyncio.sleep(0)
    assert talk.said == before + struct.pack("<IBIQ", 13, 7, 1, WINDOW)
    talk.client.feed(data_frame(1, 110, b"y" * WINDOW))
    assert (await coming).offset == 110
    await talk.end()


async def test_pieces_as_small_as_they_can_be_are_one_for_who_takes_them_late() -> None:
    talk = Talk()
    await talk.hear_out([*(data_frame(1, 10 + at, b"x") for at in range(50)), data_frame(1, 70, b"y")])
    talk.client.feed(framed(FromSupervisor.FINISHED, struct.pack("<IQ", 1, 71)))
    assert [(chunk.offset, chunk.data) async for chunk in talk.follower] == [(10, b"x" * 50), (70, b"y")]
    await talk.end()


async def test_a_report_of_anything_changes_only_what_it_may() -> None:
    talk = Talk()
    wild = struct.pack("<BBBxiiQQQQ", 1, 255, 255, -1, 1 << 30, 0, MAX_OFFSET - 1, 5, 5)
    await talk.hear_out([framed(FromSupervisor.REPORT, identifier(ID), wild)])
    [report] = talk.reports
    assert (report.state, report.exit_code, report.signal) == (ProcessState.EXITED, 255, None)
    assert await talk.waiting[2] == report
    await talk.end()


kinds = st.sampled_from([*FromSupervisor, 0, 1, 64, 74, 255])
ids = st.one_of(st.just(identifier(ID)), st.binary(max_size=70))
numbers = st.integers(0, 3).map(lambda number: struct.pack("<I", number))
offsets = st.one_of(st.integers(0, 300), st.integers(0, (1 << 64) - 1)).map(lambda at: struct.pack("<Q", at))
bodies = st.one_of(
    st.binary(max_size=80),
    st.builds(lambda *parts: b"".join(parts), ids, st.binary(max_size=50)),
    st.builds(lambda *parts: b"".join(parts), numbers, offsets, st.binary(max_size=WINDOW + 2)),
)
talks = st.lists(st.one_of(st.builds(framed, kinds, bodies), st.binary(max_size=20)), max_size=12)


@given(talks, st.integers(0, 40))
def test_whatever_is_said_nothing_else_is_raised(frames: list[bytes], cut: int) -> None:
    async def hear() -> None:
        talk = Talk()
        following = asyncio.create_task(_take_all(talk.follower))
        said = b"".join(frames)
        await talk.hear_out([said[:cut], said[cut:]])
        was_open = talk.client.is_open
        await talk.end()
        offsets = await following
        assert offsets == sorted(offsets)
        assert was_open or not talk.client.is_open

    asyncio.run(hear())


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300)), max_size=20), st.data())
def test_frames_are_the_same_however_they_arrive(
    frames: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(framed(kind, body) for kind, body in frames)
    reader, got = FrameReader(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        got += list(reader.feed(stream[:size]))
        stream = stream[size:]
    assert got == frames


async def _take_all(follower: LinkFollower) -> list[int]:
    """Return the offsets of what came until the end, which is the reader's own or the link's."""
    offsets: list[int] = []
    try:
        async for chunk in follower:
            offsets.append(chunk.offset)
            assert len(chunk.data) <= WINDOW
    except ProviderUnavailable:
        pass
    return offsets
