"""What systemd hands over and wants to hear: sockets, readiness, signs of life."""

import os
import socket

_FIRST_DESCRIPTOR = 3


def listen_sockets() -> list[socket.socket]:
    """Return the sockets that were handed over (sd_listen_fds(3)), none if they are for another process."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    return [socket.socket(fileno=_FIRST_DESCRIPTOR + place) for place in range(count)]


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)), if it asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.connect(address)
        channel.sendall(state.encode())


def watchdog_seconds() -> float | None:
    """Return how often systemd wants a sign of life, halved for safety, None if it does not."""
    microseconds = os.environ.get("WATCHDOG_USEC")
    return None if microseconds is None else int(microseconds) / 2_000_000
