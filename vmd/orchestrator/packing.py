"""A directory of a workspace as a tar archive, for an image that is built from it.

It is packed inside the machine, as the machine's user, and comes out as a stream; nothing of it is unpacked
on the host.
"""

import asyncio
from collections.abc import AsyncGenerator

from vmd.model.workspace import WORKDIR
from vmd.providers.base import Execution, Provider, ProviderError

PACK = "pack"
MAX_PACKED_BYTES = 512 * 1024 * 1024
MAX_WAITING = 16  # pieces between the machine and whoever takes them
MAX_SAID_BYTES = 2048

# A directory that is a link to somewhere else in the machine is not packed.
_SCRIPT = f"""
cd -P -- "$1" || exit 1
case $PWD/ in {WORKDIR}/*) ;; *) echo "$1 leads out of {WORKDIR}" >&2; exit 1 ;; esac
exec tar --create --file=- --exclude=./.git .
"""


async def pack(provider: Provider, ref: str, directory: str) -> AsyncGenerator[bytes, None]:
    """Yield the archive of a directory below /workspace, '' for all of it, without the root's `.git`.

    Raises ProviderError for one that is not there, or larger than MAX_PACKED_BYTES.
    """
    pieces: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_WAITING)
    said = bytearray()

    async def output(stream: str, data: bytes) -> None:
        if stream == "stdout":
            await pieces.put(data)
        else:
            said.extend(data[: MAX_SAID_BYTES - len(said)])

    async def run() -> int:
        argv = ("/bin/sh", "-c", _SCRIPT, "vmd", f"{WORKDIR}/{directory}")
        try:
            return await provider.execute(ref, Execution(argv=argv, env={"VMD_LOOK": PACK}), output)
        finally:
            await pieces.put(None)

    running = asyncio.create_task(run())
    try:
        size = 0
        while (data := await pieces.get()) is not None:
            size += len(data)
            if size > MAX_PACKED_BYTES:
                limit = MAX_PACKED_BYTES >> 20
                raise ProviderError(
                    f"{directory or 'The repository'} has more than {limit} MiB to build from."
                )
            yield data
        if await running != 0:
            reason = " ".join(said.decode("utf-8", "replace").split())
            raise ProviderError(f"{directory or 'The repository'} cannot be packed: {reason or 'tar failed'}")
    finally:
        running.cancel()
        while not running.done():  # it may want to put one more piece
            if not pieces.empty():
                pieces.get_nowait()
            await asyncio.wait({running}, timeout=0.05)
