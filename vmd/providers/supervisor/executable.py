"""The supervisor as an executable, for each kind of machine."""

from functools import cache
from hashlib import sha256
from importlib import resources

_SUFFIXES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


def find_executable(machine: str) -> bytes | None:
    """Return the executable for a machine as uname or an engine names it, None if there is none for it."""
    suffix = _SUFFIXES.get(machine)
    return None if suffix is None else _read(suffix)


def digest(executable: bytes) -> str:
    """Return 16 hexadecimal digits that tell one executable from another."""
    return sha256(executable).hexdigest()[:16]


@cache
def _read(suffix: str) -> bytes:
    return (resources.files(__package__) / f"supervisor-{suffix}").read_bytes()
