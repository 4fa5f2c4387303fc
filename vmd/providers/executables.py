"""The programs that vmd brings into machines, as executables for each kind of machine."""

from functools import cache
from hashlib import sha256
from importlib import resources

SUPERVISOR = "supervisor"
ARCHIVER = "archiver"
_SUFFIXES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


def find_executable(program: str, machine: str) -> bytes | None:
    """Return a program for a machine as uname or an engine names it, None if there is none for it."""
    suffix = _SUFFIXES.get(machine)
    return None if suffix is None else _read(program, suffix)


def digest(executable: bytes) -> str:
    """Return 16 hexadecimal digits that tell one executable from another."""
    return sha256(executable).hexdigest()[:16]


@cache
def _read(program: str, suffix: str) -> bytes:
    return (resources.files(__package__) / program / f"{program}-{suffix}").read_bytes()
