"""Which settings and which data directory a command is about."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from vmd.cli.failure import Failure
from vmd.config import ConfigError, Loaded, load

CONFIG_FILE = "vmd.toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Let a command say where its settings and data are."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (default: DATA_DIR/vmd.toml)")
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help=f"data directory (default: {default_data_dir()})"
    )


def data_dir_of(given: argparse.Namespace) -> Path:
    """Return the data directory that a command is about."""
    chosen = given.data_dir or os.environ.get("VMD_DATA_DIR")
    return Path(chosen).absolute() if chosen else default_data_dir()


def default_data_dir() -> Path:
    """Return where the data is when nobody says."""
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA", "~")).expanduser() / "vm" / "api"
    return Path(os.environ.get("HOME", "/var/lib/vmd")) / ".vm" / "api"


def load_settings(given: argparse.Namespace, **flags: Any) -> Loaded:
    """Return the settings in force for a command."""
    chosen = given.config or os.environ.get("VMD_CONFIG")
    file = Path(chosen) if chosen else data_dir_of(given) / CONFIG_FILE
    wanted = {tuple(name.split("__")): value for name, value in flags.items() if value is not None}
    try:
        return load(file if chosen or file.exists() else None, os.environ, wanted)
    except ConfigError as error:
        raise Failure(str(error)) from None
