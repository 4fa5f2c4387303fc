"""Identifiers: opaque, sortable by creation, safe as a host name."""

import secrets
import time
from collections.abc import Callable

ID_PATTERN = r"^[a-z]{2,4}-[0-9a-z]{10,26}$"

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_TIME_DIGITS = 9  # milliseconds in base 36, enough until the year 5188
_RANDOM_DIGITS = 11
_RANDOM_LIMIT = 36**_RANDOM_DIGITS


class IdFactory:
    """Makes ids like `ws-0mhx3k2f1a7b9c…` that sort as they were made, within one process.

    Ids of one millisecond, or made while the clock stands still or goes back, count on from the last.
    """

    def __init__(
        self,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        randbelow: Callable[[int], int] = secrets.randbelow,
    ) -> None:
        self._now_ms = now_ms
        self._randbelow = randbelow
        self._last_ms = -1
        self._last_random = 0

    def new(self, prefix: str) -> str:
        """Return a fresh id with this prefix, greater than every earlier one with the same prefix."""
        now_ms = self._now_ms()
        if now_ms > self._last_ms:
            self._last_ms = now_ms
            self._last_random = self._randbelow(_RANDOM_LIMIT // 2)
        else:
            self._last_random += 1 + self._randbelow(1 << 20)
        return f"{prefix}-{_base36(self._last_ms, _TIME_DIGITS)}{_base36(self._last_random, _RANDOM_DIGITS)}"


_PAIRS = tuple(high + low for high in _DIGITS for low in _DIGITS)


def _base36(number: int, width: int) -> str:
    """Return the last `width` digits, two at a time."""
    pairs = []
    for _ in range((width + 1) // 2):
        number, pair = divmod(number, len(_PAIRS))
        pairs.append(_PAIRS[pair])
    pairs.reverse()
    return "".join(pairs)[-width:]
