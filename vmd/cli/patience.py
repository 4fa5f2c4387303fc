"""How long a connection that broke is sought again."""

import time
from collections.abc import Callable

PATIENCE_SECONDS = 60.0
STEADY_SECONDS = 5.0  # after which a connection counts as a good one, however quiet it was
_FIRST_PAUSE_SECONDS = 0.1
_LAST_PAUSE_SECONDS = 2.0


class Patience:
    """Counts from the first break that no good connection has followed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._connected_at = clock()
        self._broken_at: float | None = None
        self._pause_seconds = _FIRST_PAUSE_SECONDS

    def connected(self) -> None:
        """Take note of a connection, which is not yet a good one."""
        self._connected_at = self._clock()

    def broken(self, *, had_news: bool) -> None:
        """Take note that a connection broke; one that brought something, or lasted, had been good."""
        now = self._clock()
        if self._broken_at is None or had_news or now - self._connected_at > STEADY_SECONDS:
            self._broken_at = now
            self._pause_seconds = _FIRST_PAUSE_SECONDS

    def next_pause(self) -> float | None:
        """Return the seconds to wait before the next attempt, None when there were enough of them."""
        if self.broken_seconds > PATIENCE_SECONDS:
            return None
        pause = self._pause_seconds
        self._pause_seconds = min(2 * pause, _LAST_PAUSE_SECONDS)
        return pause

    @property
    def broken_seconds(self) -> float:
        """How long there has been no good connection."""
        return 0.0 if self._broken_at is None else self._clock() - self._broken_at
