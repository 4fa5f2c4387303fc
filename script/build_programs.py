"""Compile what runs in machines while vmd is built, unless it was from the same source in the same way.

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
from typing import Any, NamedTuple

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

DIRECTORY = "vmd/providers"  # each program has one in it
SOURCE = "source"  # a directory
TARGETS = {"x86_64": "x86_64-linux-musl", "aarch64": "aarch64-linux-musl"}
OPTIONS = ("-static", "-s", "-Wall", "-Wextra", "-Werror")


class Program(NamedTuple):
    """What is compiled, and whether to be small or fast."""

    name: str
    optimisation: str

    @property
    def executables(self) -> dict[str, str]:
        """Return the compiler's target for each file that is made."""
        return {f"{self.name}-{machine}": target for machine, target in TARGETS.items()}

    @property
    def stamp(self) -> str:
        """Return the name of the file that says what the executables were made from."""
        return f"{self.name}-stamp"


PROGRAMS = (Program("supervisor", "-Os"), Program("archiver", "-O2"))


class CompileError(Exception):
    """There is no compiler, or it refuses the source."""


class ProgramsBuildHook(BuildHookInterface[BuilderConfig]):
    """Asks for the compiler and uses it when an executable is missing or outdated."""

    def dependencies(self) -> list[str]:
        """Return the compiler, which is large, only if it is needed."""
        return [self.config["compiler"]] if self._outdated() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the executables before hatchling looks for them."""
        for program in self._outdated():
            try:
                compile_program(program, self._directory(program), self.config["compiler"])
            except (CompileError, OSError) as error:
                self.app.abort(f"cannot compile the {program.name}: {error}")

    def _outdated(self) -> list[Program]:
        compiler = self.config["compiler"]
        return [p for p in PROGRAMS if not is_current(p, self._directory(p), compiler)]

    def _directory(self, program: Program) -> Path:
        return Path(self.root, DIRECTORY, program.name)


def is_current(program: Program, directory: Path, compiler: str) -> bool:
    """Return whether directory holds the executables that compiler makes of its source."""
    try:
        stamp = make_stamp(program, read_source(directory), compiler, directory)
        return (directory / program.stamp).read_text() == stamp
    except FileNotFoundError:
        return False


def read_source(directory: Path) -> bytes:
    """Return all of the source as one, each file after its name."""
    files = sorted((directory / SOURCE).glob("*.[ch]"))
    return b"".join(f"{file.name} {file.stat().st_size}\n".encode() + file.read_bytes() for file in files)


def make_stamp(program: Program, source: bytes, compiler: str, directory: Path) -> str:
    """Return a digest of the executables in directory and of all they are made from."""
    digest = hashlib.sha256(f"{compiler} {program} {TARGETS} {OPTIONS}".encode())
    for data in [source, *((directory / name).read_bytes() for name in program.executables)]:
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()


def compile_program(program: Program, directory: Path, compiler: str) -> None:
    """Compile for all machines at the same time, and replace each executable, then the stamp, in one step."""
    zig = find_zig(compiler)
    source = read_source(directory)  # before it is compiled: what changes later is compiled again
    directory = directory.resolve()
    files = sorted((directory / SOURCE).glob("*.c"))
    # No path of this machine gets into what is made.
    options = [*OPTIONS, program.optimisation, f"-ffile-prefix-map={directory}=."]
    # Nothing else of the environment, since variables like C_INCLUDE_PATH would change what is made.
    environment = {"ZIG_GLOBAL_CACHE_DIR": str(make_cache())}
    with tempfile.TemporaryDirectory(prefix=f"{program.name}-", suffix=".new", dir=directory) as unfinished:
        started = {
            name: subprocess.Popen(
                [zig, "cc", "-target", target, *options, "-o", Path(unfinished, name), *files],
                cwd=zig.parent,  # else zig builds its C library again for each directory that pip puts it in
                env=environment,
                stderr=subprocess.PIPE,
            )
            for name, target in program.executables.items()
        }
        complaints = {name: process.communicate()[1] for name, process in started.items()}
        for name, process in started.items():
            if process.returncode:
                sys.stderr.write(complaints[name].decode(errors="replace"))
                raise CompileError(f"{compiler} ended with status {process.returncode} for {name}, see above")
        Path(unfinished, program.stamp).write_text(make_stamp(program, source, compiler, Path(unfinished)))
        for name in [*program.executables, program.stamp]:
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
