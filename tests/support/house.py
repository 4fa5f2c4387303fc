"""A whole daemon in this process, on a fake host that outlives it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from attrs import mutable

from tests.support.api import Api
from vmd.bootstrap import ADMIN_TOKEN_FILE, Daemon
from vmd.config import Settings, load
from vmd.model.account import NewToken, NewUser
from vmd.orchestrator.accounts import actor_of, add_token, add_user
from vmd.providers.base import Provider
from vmd.providers.fake import FakeHost, FakeProvider


@mutable(kw_only=True)
class House:
    """A daemon that works, its administrator's client, and the fake host behind it."""

    daemon: Daemon
    api: Api
    fake: FakeProvider
    data_dir: Path
    _stack: AsyncExitStack

    async def member(self, name: str, **token: Any) -> Api:
        """Return a client for a new user, with a token as asked for."""

        def unit(tx: Any) -> str:
            user = add_user(tx, NewUser(name=name))
            return add_token(tx, actor_of(user), NewToken(name="test", **token)).secret

        secret = await self.daemon._database.write(unit)
        return await self._stack.enter_async_context(Api(self.api.url, secret))

    async def ready(self) -> None:
        """Return as soon as every provider is reached."""
        async with asyncio.timeout(5):
            while (await self.api.get("/health/ready")).status != 200:
                await asyncio.sleep(0.01)

    async def client(self, token: str | None) -> Api:
        """Return a client with this token."""
        return await self._stack.enter_async_context(Api(self.api.url, token))


def settings(**values: Any) -> Settings:
    """Return settings for a test; names are paths such as janitor__interval_seconds."""
    given = {"http__listen": "127.0.0.1:0", "workspaces__provider": "fake", **values}
    return load(None, {}, {tuple(name.split("__")): value for name, value in given.items()}).settings


@asynccontextmanager
async def open_house(
    data_dir: Path,
    *,
    host: FakeHost | None = None,
    providers: Callable[[FakeProvider], list[Provider]] = lambda fake: [fake],
    parts: Mapping[str, Any] | None = None,
    **values: Any,
) -> AsyncIterator[House]:
    """Run a daemon until the end of the block; `parts` are its clocks and what else replaces the usual."""
    fake = FakeProvider(host)
    daemon = Daemon(settings(**values), data_dir, providers(fake), **(parts or {}))
    await daemon.open()
    try:
        await daemon.work()
        async with AsyncExitStack() as stack:
            token = (data_dir / ADMIN_TOKEN_FILE).read_text().strip()
            api = await stack.enter_async_context(Api(daemon.addresses[0], token))
            yield House(daemon=daemon, api=api, fake=fake, data_dir=data_dir, stack=stack)
    finally:
        await daemon.close()
