"""What processes printed, read from wherever it is kept now."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Annotated

from msgspec import Meta

from vmd.model.workspace import TRANSITIONAL, Status, Workspace
from vmd.orchestrator.machines import Machines
from vmd.orchestrator.supervisors import Supervisors
from vmd.providers.base import ProviderUnavailable
from vmd.providers.process import Chunk, Stream
from vmd.store.database import Database
from vmd.store.workspaces import find_workspace

OutputBytes = Annotated[int, Meta(ge=512 * 1024, le=1 << 40)]  # that are kept of a stream

RETRY_SECONDS = 0.2
MAX_RETRY_SECONDS = 5.0
COMMAND_WINDOW_BYTES = 1024 * 1024
TERMINAL_WINDOW_BYTES = 256 * 1024


class Outputs:
    """Reads on across broken connections, restarted engines, and the end of the machine."""

    def __init__(self, database: Database, machines: Machines, supervisors: Supervisors) -> None:
        self._database = database
        self._machines = machines
        self._supervisors = supervisors

    async def read(
        self, workspace_id: str, process_id: str, stream: Stream, offset: int, *, live: bool, window: int
    ) -> AsyncGenerator[Chunk, None]:
        """Yield a stream from `offset` on, or from the first byte that is kept, each byte once.

        With `live`, until the process has ended; else what there is now. Raises ProviderError, and
        ProviderUnavailable unless it is live and may hope.
        """
        at, pause = offset, RETRY_SECONDS
        while (workspace := await self._find(workspace_id)) is not None:
            is_running = workspace.status is Status.RUNNING
            if not is_running and not (live and workspace.status in TRANSITIONAL):
                async for chunk in self._read_kept(workspace, process_id, stream, at):
                    yield chunk
                return
            try:
                if is_running:
                    supervisor = await self._supervisors.of(workspace)
                    follower = supervisor.follow(process_id, stream, at, live=live, window=window)
                    with contextlib.closing(follower):
                        async for chunk in follower:
                            at, pause = chunk.end, RETRY_SECONDS
                            yield chunk
                    return
            except ProviderUnavailable:
                if not live:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_RETRY_SECONDS)

    async def _read_kept(
        self, workspace: Workspace, process_id: str, stream: Stream, offset: int
    ) -> AsyncGenerator[Chunk, None]:
        """Yield what a machine that is off still holds."""
        if workspace.provider_ref is None:
            return
        provider = self._machines.provider(workspace.provider)
        async for chunk in provider.read_kept(workspace.provider_ref, process_id, stream, offset):
            yield chunk

    async def _find(self, workspace_id: str) -> Workspace | None:
        return await self._database.read(lambda tx: find_workspace(tx, workspace_id))
