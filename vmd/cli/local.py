"""The daemon of a data directory, whether it runs or not.

A running one answers on its control socket. If none runs, one is opened for as long as the command takes,
which answers there and does nothing else; so every command has one way through.
"""

import asyncio
import http.client
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vmd import logs
from vmd.bootstrap import Daemon, DatabaseUnusable, DirectoryInUse
from vmd.cli.client import Endpoint, local_endpoint
from vmd.cli.failure import Failure
from vmd.config import Settings

T = TypeVar("T")

PATIENCE_SECONDS = 10.0


def with_local_daemon(settings: Settings, data_dir: Path, user: str, action: Callable[[Endpoint], T]) -> T:
    """Return what `action` returns, given the daemon of this data directory."""
    return asyncio.run(_with_local_daemon(settings, data_dir, local_endpoint(data_dir, user), action))


async def _with_local_daemon(
    settings: Settings, data_dir: Path, endpoint: Endpoint, action: Callable[[Endpoint], T]
) -> T:
    logs.configure("warning", "auto")
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while True:
        daemon: Daemon | None = Daemon(settings, data_dir)
        try:
            await daemon.open()  # type: ignore[union-attr]
        except DirectoryInUse:
            daemon = None
        except (DatabaseUnusable, OSError) as error:
            raise Failure(str(error)) from None
        try:
            return await asyncio.to_thread(action, endpoint)
        except (ConnectionError, FileNotFoundError) as error:
            # Another command has the directory and is about to open its socket, or has just closed it
            # on this one in the queue.
            if asyncio.get_running_loop().time() > deadline:
                raise no_answer(endpoint, error) from None
        except (OSError, http.client.HTTPException) as error:
            raise no_answer(endpoint, error) from None
        finally:
            if daemon is not None:
                await daemon.close()
        await asyncio.sleep(0.05)


def no_answer(endpoint: Endpoint, error: Exception) -> Failure:
    """Return the failure of a request that got no answer."""
    return Failure(f"{endpoint.name} does not answer: {error}; is it running, and reached from here?")
