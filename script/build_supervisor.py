"""Compile the supervisor while vmd is built, unless that was done from the same source in the same way.

A build hook of hatchling, see pyproject.toml. The same source gives the same bytes on every machine.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

DIRECTORY = "vmd/providers/supervisor"
SOURCE = "source"  # a directory
EXECUTABLES = {"supervisor-x86_64": "x86_64-linux-musl", "supervisor-aarch64": "aarch64-linux-musl"}
STAMP = "supervisor-stamp"
OPTIONS = ("-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror")


class CompileError(Exception):
    """There is no compiler, or it refuses the source."""


class SupervisorBuildHook(BuildHookInterface[BuilderConfig]):
    """Asks for the compiler and uses it when an executable is missing or outdated."""

    def dependencies(self) -> list[str]:
        """Return the compiler, which is large, only if it is needed."""
        directory, compiler = Path(self.root, DIRECTORY), self.config["compiler"]
        return [] if is_current(directory, compiler) else [compiler]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the executables before hatchling looks for them."""
        directory, compiler = Path(self.root, DIRECTORY), self.config["compiler"]
        if is_current(directory, compiler):
            return
        try:
            compile_supervisor(directory, compiler)
        except (CompileError, OSError) as error:
            self.app.abort(f"cannot compile the supervisor: {error}")


def is_current(directory: Path, compiler: str) -> bool:
    """Return whether directory holds the executables that compiler makes of its source."""
    try:
        stamp = make_stamp(read_source(directory), compiler, directory)
        return (directory / STAMP).read_text() == stamp
    except FileNotFoundError:
        return False


def read_source(directory: Path) -> bytes:
    """Return all of the source as one, each file after its name."""
    files = sorted((directory / SOURCE).glob("*.[ch]"))
    return b"".join(f"{file.name} {file.stat().st_size}\n".encode() + file.read_bytes() for file in files)


def make_stamp(source: bytes, compiler: str, directory: Path) -> str:
    """Return a digest of the executables in directory and of all they are made from."""
    digest = hashlib.sha256(f"{compiler} {EXECUTABLES} {OPTIONS}".encode())
    for data in [source, *((directory / name).read_bytes() for name in EXECUTABLES)]:
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()


def compile_supervisor(directory: Path, compiler: str) -> None:
    """Compile for all machines at the same time, and replace each executable, then the stamp, in one step."""
    zig = find_zig(compiler)
    source = read_source(directory)  # before it is compiled: what changes later is compiled again
    directory = directory.resolve()
    files = sorted((directory / SOURCE).glob("*.c"))
    options = [*OPTIONS, f"-ffile-prefix-map={directory}=."]  # no path of this machine gets into what is made
    # Nothing else of the environment, since variables like C_INCLUDE_PATH would change what is made.
    environment = {"ZIG_GLOBAL_CACHE_DIR": str(make_cache())}
    with tempfile.TemporaryDirectory(prefix="supervisor-", suffix=".new", dir=directory) as unfinished:
        started = {
            name: subprocess.Popen(
                [zig, "cc", "-target", target, *options, "-o", Path(unfinished, name), *files],
                cwd=zig.parent,  # else zig builds its C library again for each directory that pip puts it in
                env=environment,
                stderr=subprocess.PIPE,
            )
            for name, target in EXECUTABLES.items()
        }
        complaints = {name: process.communicate()[1] for name, process in started.items()}
        for name, process in started.items():
            if process.returncode:
                sys.stderr.write(complaints[name].decode(errors="replace"))
                raise CompileError(f"{compiler} ended with status {process.returncode} for {name}, see above")
        Path(unfinished, STAMP).write_text(make_stamp(source, compiler, Path(unfinished)))
        for name in [*EXECUTABLES, STAMP]:
            Path(unfinished, name).replace(directory / name)


def find_zig(compiler: str) -> Path:
    """Return the program in the installed package compiler, "NAME==VERSION"."""
    name, version = compiler.split("==")
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise CompileError(f"{compiler} is not installed") from None
    if package.version != version:
        raise CompileError(f"it takes {compiler}, and {package.version} is installed")
    return Path(str(package.locate_file("ziglang/zig")))


def make_cache() -> Path:
    """Return where zig keeps the C libraries that it has built, made here because zig may try for ever."""
    chosen = os.environ.get("ZIG_GLOBAL_CACHE_DIR")
    parent = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = Path(chosen or Path(parent, "zig")).absolute()
    cache.mkdir(parents=True, exist_ok=True)
    return cache
