"""Making workspaces until they run, one by one and eight at once, beside the engine alone."""

import asyncio
import random
import time
from pathlib import Path
from statistics import median

import uvloop

from tests.benchmarks.api import Api, connect
from tests.benchmarks.engine import RawEngine, raw_engine
from tests.benchmarks.process import daemon, token_of
from tests.benchmarks.table import Row, middle

PAIRS = 14
ROUNDS = 7
AT_ONCE = 8
CONCURRENCIES = (1, 2, 4, 8)
SETTINGS = {"VMD_PROVIDERS__DOCKER__SUBNET_POOL": "10.224.0.0/16"}


def measure(directory: Path) -> list[Row]:
    """Run both comparisons against one daemon with fresh books."""
    data_dir = directory / "creating"
    with daemon(data_dir, SETTINGS) as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(server.port, token_of(data_dir)))


async def _measure(port: int, token: str) -> list[Row]:
    async with connect(port, token) as api, raw_engine() as engine:
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
        compared=median(ours) / median(raw),
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
        compared=median(a / b for a, b in zip(ours, raw[best], strict=True)),
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
