"""Signals, for a loop that waits with select."""

import contextlib
import signal
import socket
from types import FrameType, TracebackType
from typing import Any, Self

_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_NEWS = (signal.SIGWINCH, signal.SIGCONT)


class Stopped(Exception):
    """The process is asked to end by this signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Signals:
    """Until the end of the block, a signal wakes the loop; the first one that asks to end raises Stopped."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._is_stopped = False
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1

    def __enter__(self) -> Self:
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in _NEWS:
            self._before[number] = signal.signal(number, lambda *_: None)
        for number in _ENDING:
            self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._reader.close()
        self._writer.close()

    def _stop(self, number: int, _: FrameType | None) -> None:
        if not self._is_stopped:  # and what is put back now stays undisturbed
            self._is_stopped = True
            raise Stopped(number)

    def fileno(self) -> int:
        """Return what select takes."""
        return self._reader.fileno()

    def wake(self) -> None:
        """Wake the loop from another thread."""
        with contextlib.suppress(OSError):  # it is full, so it wakes; or closed
            self._writer.send(b"\0")

    def take(self) -> frozenset[int]:
        """Return the signals that came since."""
        try:
            return frozenset(self._reader.recv(4096)) - {0}
        except BlockingIOError:
            return frozenset()
