"""Whether time passed between two sweeps as it should, or the clock jumped, or nobody was there to sweep."""

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from attrs import frozen

from vmd.store.database import Transaction
from vmd.store.settings import find_setting, keep_setting

TOLERANCE_SECONDS = 60.0
AWAY_SECONDS = 600.0  # without a sweep, in a process that lives: it was stopped, or held up
KEEP_SECONDS = 60.0  # between two writings of when the last sweep was
SETTLE_SECONDS = 3600.0  # after a gap, for a clock that is wrong to be put right again
_KEPT = "swept_at"


@frozen(kw_only=True)
class Reading:
    """Both clocks at one moment, and what was wrong since the reading before; None for nothing."""

    wall: datetime
    monotonic: float
    gap: str | None

    @property
    def lead(self) -> float:
        """How many seconds the wall clock is ahead of the other one."""
        return self.wall.timestamp() - self.monotonic


class Timekeeper:
    """Compares the wall clock, which people set, with the monotonic one, which only runs while vmd does."""

    def __init__(self, interval_seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Expect a sweep about every `interval_seconds`."""
        self._interval_seconds = interval_seconds
        self._monotonic = monotonic
        self._last: Reading | None = None
        self._anchor: Reading | None = None  # the first since the last gap: small jumps add up
        self._settled_at: float | None = None
        self._kept: datetime | None = None

    def read(self, tx: Transaction) -> Reading:
        """Return this moment, judged by the last one that was kept; writes it down now and then."""
        now, monotonic = tx.now, self._monotonic()
        gap = self._gap_of_process(now, monotonic) if self._last else self._gap_of_books(tx, now)
        kept = self._kept
        if kept is None or not timedelta() <= now - kept < timedelta(seconds=KEEP_SECONDS):
            keep_setting(tx, _KEPT, now.isoformat())
        return Reading(wall=now, monotonic=monotonic, gap=gap)

    def keep(self, reading: Reading) -> None:
        """Judge later readings by this one, now that what it led to is committed."""
        kept = self._kept
        if kept is None or not timedelta() <= reading.wall - kept < timedelta(seconds=KEEP_SECONDS):
            self._kept = reading.wall
        if reading.gap is not None:
            self._settled_at = reading.monotonic + SETTLE_SECONDS
        if reading.gap is not None or self._anchor is None:
            self._anchor = reading
        self._last = reading

    @property
    def is_settled(self) -> bool:
        """Whether the wall clock has gone on as it should for long enough to forget by it what is old."""
        return self._last is not None and (self._settled_at is None or self._monotonic() >= self._settled_at)

    def when_settled(self, sweep: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """Return a sweep that does nothing while the wall clock is not to be relied on."""

        async def careful() -> None:
            if self.is_settled:
                await sweep()

        return careful

    def _gap_of_process(self, now: datetime, monotonic: float) -> str | None:
        assert self._last is not None
        assert self._anchor is not None
        passed = monotonic - self._last.monotonic
        jump = Reading(wall=now, monotonic=monotonic, gap=None).lead - self._anchor.lead
        if abs(jump) > TOLERANCE_SECONDS:
            return f"the clock jumped by {jump:.0f} s"
        if passed > self._interval_seconds + AWAY_SECONDS:
            return f"nothing was swept for {passed:.0f} s"
        return None

    def _gap_of_books(self, tx: Transaction, now: datetime) -> str | None:
        found = find_setting(tx, _KEPT)
        if found is None:
            return None
        passed = (now - datetime.fromisoformat(found).astimezone(UTC)).total_seconds()
        if not -TOLERANCE_SECONDS <= passed <= self._interval_seconds + KEEP_SECONDS + TOLERANCE_SECONDS:
            return f"vmd was last there {passed:.0f} s ago"
        return None
