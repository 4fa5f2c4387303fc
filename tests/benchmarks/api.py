"""The daemon's API as its clients use it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.benchmarks.process import HOST

WAIT_SECONDS = 120


class Api:
    """Workspaces, over one session."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def make(self, wanted: Mapping[str, Any] | None = None) -> str:
        """Make a workspace and return its id when it runs."""
        operation = await self._ask("POST", "/api/v1/workspaces", wanted or {})
        await self._wait(operation)
        return str(operation["workspace_id"])

    async def remove(self, workspace_id: str) -> None:
        """Delete a workspace that runs, and wait until it is gone."""
        found = await self._ask("GET", f"/api/v1/workspaces/{workspace_id}")
        assert found["status"] == "running", found
        await self._wait(await self._ask("DELETE", f"/api/v1/workspaces/{workspace_id}"))

    async def remove_all(self) -> None:
        """Delete every workspace."""
        listed = await self._ask("GET", "/api/v1/workspaces?limit=200")
        for workspace in listed["items"]:
            await self._wait(await self._ask("DELETE", f"/api/v1/workspaces/{workspace['id']}"))

    async def run(self, workspace_id: str, command: str) -> str:
        """Begin a command, and return its id."""
        operation = await self._ask(
            "POST", f"/api/v1/workspaces/{workspace_id}/commands", {"command": command}
        )
        return str(operation["command_id"])

    async def snapshot(self, workspace_id: str) -> tuple[str, Any]:
        """Take a snapshot, and return its id with the operation's result when it is ready."""
        operation = await self._ask("POST", f"/api/v1/workspaces/{workspace_id}/snapshots", {})
        ended = await self._wait(operation)
        return str(operation["snapshot_id"]), ended["result"]

    async def restore(self, workspace_id: str, snapshot_id: str) -> str:
        """Make another workspace from a snapshot, and return its id when it runs."""
        path = f"/api/v1/workspaces/{workspace_id}/snapshots/{snapshot_id}/restore"
        operation = await self._ask("POST", path, {"new_workspace": {}})
        await self._wait(operation)
        return str(operation["workspace_id"])

    async def remove_snapshot(self, workspace_id: str, snapshot_id: str) -> None:
        """Delete a snapshot, and wait until it is gone."""
        path = f"/api/v1/workspaces/{workspace_id}/snapshots/{snapshot_id}"
        await self._wait(await self._ask("DELETE", path))

    async def _wait(self, operation: Any) -> Any:
        path = f"/api/v1/operations/{operation['id']}/wait?timeout={WAIT_SECONDS}"
        ended = await self._ask("GET", path)
        assert ended["status"] == "succeeded", ended
        return ended

    async def _ask(self, method: str, path: str, body: Any = None) -> Any:
        async with self._session.request(method, path, json=body) as response:
            answer = await response.json()
            assert response.ok, answer
            return answer


@asynccontextmanager
async def connect(port: int, token: str) -> AsyncIterator[Api]:
    """Open a session with a daemon; every workspace is deleted afterwards."""
    headers = {"Authorization": f"Bearer {token}"}
    timeout = aiohttp.ClientTimeout(total=WAIT_SECONDS + 30)
    async with aiohttp.ClientSession(f"http://{HOST}:{port}", headers=headers, timeout=timeout) as session:
        api = Api(session)
        try:
            yield api
        finally:
            await api.remove_all()
