"""The hostRequirements of a devcontainer.json."""

import re
from typing import Any

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)\s*([kmgt]?)b?", re.IGNORECASE)
_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_MIB = 1 << 20


def read_requirements(given: Any) -> tuple[float | None, int | None, tuple[str, ...]]:
    """Return the processors and MiB of memory that are asked for, and notes on what is not honoured."""
    if given is None:
        return None, None, ()
    if not isinstance(given, dict):
        return None, None, ("hostRequirements is not an object, and left out.",)
    notes = [
        f"hostRequirements.{key} is not honoured." for key in ("storage", "gpu") if given.get(key) is not None
    ]
    cpus = given.get("cpus")
    if cpus is not None and (type(cpus) not in (int, float) or not 0 < cpus <= 4096):
        notes.append("hostRequirements.cpus is not a number of processors, and left out.")
        cpus = None
    memory_mb = None
    if given.get("memory") is not None:
        memory_mb = _memory_mb(given["memory"])
        if memory_mb is None:
            notes.append("hostRequirements.memory is not a size, and left out.")
    return None if cpus is None else float(cpus), memory_mb, tuple(notes)


def _memory_mb(value: Any) -> int | None:
    text = str(value) if type(value) is int and 0 < value < 1 << 60 else value
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    mb = int(float(match[1]) * _BYTES[match[2].lower()]) // _MIB
    return mb if 0 < mb <= 1 << 24 else None
