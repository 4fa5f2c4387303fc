"""Machines that stand still, and execs that must not be caught halfway by that.

An engine that freezes a container while an exec is being started in it never gets out of that again: the exec
waits for the thaw, and the thaw for the exec. So no exec begins while a machine stands still, and none stands
still before all that began have come to run.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiodocker.exceptions import DockerError

from vmd.providers.base import ProviderError
from vmd.providers.docker.engine import Engine

LOOK_SECONDS = 0.01
STARTING_SECONDS = 30.0  # for an exec to come to run
FORGOTTEN_SECONDS = 2.0  # for one that nobody may ever start


class Stillness:
    """Lets either execs begin in a machine, or the machine stand still."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._beginning: Counter[str] = Counter()  # execs by machine
        self._still: set[str] = set()
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def exec_begins(self, ref: str) -> AsyncIterator[None]:
        """Make and start an exec within this."""
        async with self._changed:
            await self._changed.wait_for(lambda: ref not in self._still)
            self._beginning[ref] += 1
        try:
            yield
        finally:
            self._beginning[ref] -= 1
            await self._tell()

    @asynccontextmanager
    async def of(self, ref: str) -> AsyncIterator[None]:
        """Have a machine that runs stand still until `thaw`, or the end of this."""
        async with self._changed:
            await self._changed.wait_for(lambda: ref not in self._still)
            self._still.add(ref)
            await self._changed.wait_for(lambda: not self._beginning[ref])
            del self._beginning[ref]
        try:
            await self._wait_for_execs(ref)
            try:
                await self._engine.call(f"containers/{ref}/pause", "POST")
            except DockerError as error:
                raise ProviderError(f"The engine cannot pause the machine: {error.message}.") from None
            yield
        finally:
            try:
                await asyncio.shield(self.thaw(ref))
            finally:
                self._still.discard(ref)
                await self._tell()

    async def thaw(self, ref: str) -> None:
        """Let a machine go on if it stands still."""
        found = await self._engine.find(f"containers/{ref}/json")
        if found is not None and found["State"]["Paused"]:
            try:
                await self._engine.call(f"containers/{ref}/unpause", "POST")
            except DockerError as error:
                raise ProviderError(f"The engine cannot unpause the machine: {error.message}.") from None

    async def _wait_for_execs(self, ref: str) -> None:
        """Return once every exec of the machine has come to run, or has ended."""
        found = await self._engine.find(f"containers/{ref}/json")
        for exec_id in (found or {}).get("ExecIDs") or ():
            loop = asyncio.get_running_loop()
            began = loop.time()
            while (run := await self._engine.find(f"exec/{exec_id}/json")) is not None:
                if run["Pid"] or run["ExitCode"] is not None:
                    break
                waited = loop.time() - began
                if waited > (STARTING_SECONDS if run["Running"] else FORGOTTEN_SECONDS):
                    if run["Running"]:
                        raise ProviderError("A command in the machine does not come to run; try again.")
                    break
                await asyncio.sleep(LOOK_SECONDS)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
