"""A daemon that several tests share, with one workspace, and that each of them may kill."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from attrs import mutable

from tests.support.api import Api
from tests.support.process import Process, daemon_process


@mutable(kw_only=True)
class Resident:
    """A daemon's process, its administrator's client, and a workspace that runs."""

    process: Process
    api: Api
    workspace_id: str

    @property
    def path(self) -> str:
        return f"/workspaces/{self.workspace_id}"

    def kill(self) -> None:
        self.process.kill()

    async def start(self) -> None:
        """Start the daemon again, on a port of its own choice."""
        await self.api.session.close()
        self.api = await (await self.process.start()).__aenter__()

    async def kill_and_start(self) -> None:
        self.kill()
        await self.start()

    async def running(self) -> None:
        """Return when the workspace runs, started if it does not."""
        workspace = await self.api.until(self.workspace_id, current_operation=None)
        if workspace["status"] != "running":
            await self.api.done(await self.api.post(f"{self.path}/actions/start"))


@asynccontextmanager
async def resident(
    data_dir: Path, workspace: dict[str, Any] | None = None, **environment: str
) -> AsyncIterator[Resident]:
    """Run a daemon with a workspace until the end of the block."""
    async with daemon_process(data_dir, **environment) as process:
        api = await (await process.start()).__aenter__()
        made = Resident(process=process, api=api, workspace_id="")
        try:
            made.workspace_id = (await api.make(**(workspace or {})))["id"]
            yield made
        finally:
            await made.api.session.close()
