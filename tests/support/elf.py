"""What an executable for Linux says about itself (elf(5)), for 64 bits and the little end first."""

import struct

_MACHINES = {62: "x86_64", 183: "aarch64"}
_INTERPRETER = 3  # the kind of the segment that names a dynamic linker


def machine_of(executable: bytes) -> str:
    """Return the machine that it runs on, as uname names it."""
    assert executable[:6] == b"\x7fELF\x02\x01"
    (machine,) = struct.unpack_from("<H", executable, 18)
    return _MACHINES[machine]


def has_interpreter(executable: bytes) -> bool:
    """Return whether it asks for a dynamic linker."""
    (start,) = struct.unpack_from("<Q", executable, 32)
    size, count = struct.unpack_from("<HH", executable, 54)
    segments = [struct.unpack_from("<I", executable, start + size * place)[0] for place in range(count)]
    assert segments
    return _INTERPRETER in segments
