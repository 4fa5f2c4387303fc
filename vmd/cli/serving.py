"""The commands that run the daemon, or print what it is made with."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmd import logs
from vmd.bootstrap import Daemon, DatabaseUnusable, DirectoryInUse
from vmd.cli.failure import Failure
from vmd.cli.settings import add_arguments, data_dir_of, load_settings
from vmd.config import Settings
from vmd.http.app import make_specification
from vmd.http.openapi import to_yaml
from vmd.store.migrations import schema_sql

PATIENCE_SECONDS = 0.5


def add_commands(commands: Any) -> None:
    """Add serve, config, openapi and schema."""
    serve = commands.add_parser("serve", help="run the daemon")
    add_arguments(serve)
    serve.add_argument("--listen", metavar="HOST:PORT|unix:PATH", help="where to listen")
    serve.set_defaults(run=_serve)
    config = commands.add_parser("config", help="print the settings in force and where they come from")
    add_arguments(config)
    config.set_defaults(run=_config)
    openapi = commands.add_parser("openapi", help="print the specification of the API (openapi.yaml)")
    openapi.set_defaults(run=lambda _: _print(to_yaml(make_specification())))
    schema = commands.add_parser("schema", help="print the schema of the database (schema.sql)")
    schema.set_defaults(run=lambda _: _print(schema_sql()))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the event loop, None for asyncio's own."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


def _serve(given: argparse.Namespace) -> int:
    loaded = load_settings(given, http__listen=given.listen)
    logs.configure(loaded.settings.log.level, loaded.settings.log.format)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_run(loaded.settings, data_dir_of(given)))
    return 0


async def open_patiently(daemon: Daemon, seconds: float) -> None:
    """Open a daemon, waiting a little for a command that has its data directory just now."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            return await daemon.open()
        except DirectoryInUse:
            if asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(0.05)


async def _run(settings: Settings, data_dir: Path) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    daemon = Daemon(settings, data_dir)
    try:
        await open_patiently(daemon, PATIENCE_SECONDS)
    except (DirectoryInUse, DatabaseUnusable, OSError) as error:
        raise Failure(str(error)) from None
    try:
        await daemon.work()
        await stopping.wait()
    except (OSError, ValueError) as error:
        raise Failure(f"cannot listen on {settings.http.listen}: {error}; give another --listen") from None
    finally:
        await daemon.close()


def _config(given: argparse.Namespace) -> int:
    return _print("".join(f"{line}\n" for line in load_settings(given).lines()))


def _print(text: str) -> int:
    sys.stdout.write(text)
    return 0
