"""Making workspaces until they run, one by one and eight at once, beside the engine alone."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import uvloop

from tests.benchmarks.engine import RawEngine, raw_engine
from tests.benchmarks.process import HOST, daemon, token_of
from tests.benchmarks.table import Row, middle

PAIRS = 14
ROUNDS = 7
AT_ONCE = 8
CONCURRENCIES = (1, 2, 4, 8)
WAIT_SECONDS = 120
SETTINGS = {"VMD_PROVIDERS__DOCKER__SUBNET_POOL": "10.224.0.0/16"}


class Api:
    """The daemon as its clients use it."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def make(self) -> str:
        """Make a workspace and return its id when it runs."""
        operation = await self._ask("POST", "/api/v1/workspaces", {})
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

    async def _wait(self, operation: Any) -> None:
        path = f"/api/v1/operations/{operation['id']}/wait?timeout={WAIT_SECONDS}"
        ended = await self._ask("GET", path)
        assert ended["status"] == "succeeded", ended

    async def _ask(self, method: str, path: str, body: Any = None) -> Any:
        async with self._session.request(method, path, json=body) as response:
            answer = await response.json()
            assert response.ok, answer
            return answer


def measure(directory: Path) -> list[Row]:
    """Run both comparisons against one daemon with fresh books."""
    data_dir = directory / "creating"
    with daemon(data_dir, SETTINGS) as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(server.port, token_of(data_dir)))


async def _measure(port: int, token: str) -> list[Row]:
    async with _api(port, token) as api, raw_engine() as engine:
        return [await _one_by_one(api, engine), await _at_once(api, engine)]


async def _one_by_one(api: Api, engine: RawEngine) -> Row:
    """Make pairs, one machine at a time, by turns first and second; nothing else of ours is there."""
    ours: list[float] = []
    raw: list[float] = []
    sides: list[tuple[Api | RawEngine, list[float]]] = [(api, ours), (engine, raw)]
    for number in range(-1, PAIRS):
        for side, times in sides if number % 2 else reversed(sides):
            started = time.perf_counter()
            made = await side.make()
            taken = time.perf_counter() - started
            await side.remove(made)
            if number >= 0:  # the first pair warms up
                times.append(taken * 1000)
    return Row(
        subject="create until running",
        ours=middle(ours, "ms"),
        yardstick=middle(raw, "ms"),
        ratio=median(ours) / median(raw),
        bound=1.2,
        is_upper=True,
    )


async def _at_once(api: Api, engine: RawEngine) -> Row:
    """Make eight, ours all at once and the engine's so many at a time, in another order every round."""
    ours: list[float] = []
    raw: dict[int, list[float]] = {concurrency: [] for concurrency in CONCURRENCIES}
    sides: list[tuple[Api | RawEngine, int, list[float]]] = [(api, AT_ONCE, ours)]
    sides += [(engine, concurrency, rates) for concurrency, rates in raw.items()]
    for number in range(ROUNDS):
        for side, concurrency, rates in random.Random(number).sample(sides, len(sides)):
            rates.append(await _rate(side, concurrency))
    best = max(raw, key=lambda concurrency: median(raw[concurrency]))
    return Row(
        subject=f"create {AT_ONCE} at once (engine's best: {best} at a time)",
        ours=middle(ours, "/s", 2),
        yardstick=middle(raw[best], "/s", 2),
        ratio=median(a / b for a, b in zip(ours, raw[best], strict=True)),
        bound=0.9,
        is_upper=False,
    )


async def _rate(side: Api | RawEngine, concurrency: int) -> float:
    """Return how many machines were made a second, making eight; remove them."""
    turns = asyncio.Semaphore(concurrency)

    async def make() -> str:
        async with turns:
            return await side.make()

    started = time.perf_counter()
    made = await asyncio.gather(*(make() for _ in range(AT_ONCE)))
    taken = time.perf_counter() - started
    await asyncio.gather(*(side.remove(name) for name in made))
    return AT_ONCE / taken


@asynccontextmanager
async def _api(port: int, token: str) -> AsyncIterator[Api]:
    headers = {"Authorization": f"Bearer {token}"}
    timeout = aiohttp.ClientTimeout(total=WAIT_SECONDS + 30)
    async with aiohttp.ClientSession(f"http://{HOST}:{port}", headers=headers, timeout=timeout) as session:
        api = Api(session)
        try:
            yield api
        finally:
            await api.remove_all()
