"""A client of the API, as small as a test needs."""

import asyncio
import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp
from attrs import frozen

BASE = "/api/v1"


@frozen(kw_only=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Api:
    """Calls one daemon with one token."""

    def __init__(self, url: str, token: str | None, connector: aiohttp.BaseConnector | None = None) -> None:
        self.url = url
        self.token = token
        self._connector = connector

    async def __aenter__(self) -> Self:
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        self.session = aiohttp.ClientSession(self.url, headers=headers, connector=self._connector)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.session.close()

    async def call(self, method: str, path: str, **options: Any) -> Answer:
        path = path if path.startswith(("/health", "/docs", "/ws/", "/control")) else BASE + path
        async with self.session.request(method, path, **options) as response:
            return Answer(status=response.status, headers=response.headers, text=await response.text())

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.call("GET", path, **options)

    async def post(self, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.call("POST", path, json=body, **options)

    async def patch(self, path: str, body: Any, **options: Any) -> Answer:
        return await self.call("PATCH", path, json=body, **options)

    async def delete(self, path: str, **options: Any) -> Answer:
        return await self.call("DELETE", path, **options)

    async def wait(self, operation: Any, timeout_seconds: int = 60) -> Any:
        """Return the operation in its final state."""
        answer = await self.get(f"/operations/{operation['id']}/wait", params={"timeout": timeout_seconds})
        assert answer.status == 200, answer.text
        assert answer.json["finished_at"] is not None, answer.text
        return answer.json

    async def done(self, answer: Answer) -> Any:
        """Return the operation that was accepted, once it has succeeded."""
        assert answer.status == 202, answer.text
        operation = await self.wait(answer.json)
        assert operation["status"] == "succeeded", operation
        return operation

    async def workspace(self, workspace_id: str) -> Any:
        answer = await self.get(f"/workspaces/{workspace_id}")
        assert answer.status == 200, answer.text
        return answer.json

    async def make(self, **wanted: Any) -> Any:
        """Return a workspace that is running."""
        operation = await self.done(await self.post("/workspaces", wanted))
        return await self.workspace(operation["workspace_id"])

    async def until(self, workspace_id: str, seconds: float = 10.0, **wanted: Any) -> Any:
        """Return the workspace as soon as these fields have these values."""
        workspace: Any = None
        async with asyncio.timeout(seconds):
            while True:
                workspace = await self.workspace(workspace_id)
                if all(workspace[name] == value for name, value in wanted.items()):
                    return workspace
                await asyncio.sleep(0.02)

    async def until_phase(self, operation_id: str, phase: str, seconds: float = 10.0) -> None:
        """Return as soon as the operation is in this phase."""
        async with asyncio.timeout(seconds):
            while (await self.get(f"/operations/{operation_id}")).json["progress"]["phase"] != phase:
                await asyncio.sleep(0.01)
