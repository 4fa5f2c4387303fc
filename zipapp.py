"""Build vmd as one executable file: `python -P zipapp.py [--output FILE]`.

Compiled wheels cannot be imported from inside a zip, so the file unpacks itself, once for each version, into
a cache directory and runs from there. The second half of this module is that bootstrap: its source is copied
into the file, so it uses the standard library alone. The same sources, wheels and Python give the same bytes.

This name hides the standard library's zipapp from whatever runs in this directory; -P keeps it from doing so.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import hashlib
import importlib
import inspect
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

ENTRY_POINT = "vmd.cli:main"
ZIP_EPOCH_SECONDS = 315532800  # 1980-01-01, the oldest time a zip can tell
# Below the site directory. Of Swagger UI only the bundle, its style and its icon are served.
UNUSED = ("**/*.map", "swagger_ui/static/swagger-editor*")
NOT_REPRODUCIBLE = ("RECORD", "direct_url.json", "INSTALLER", "REQUESTED")  # pip's notes on its own run

MAIN = '''\
"""Unpack and start vmd; made by zipapp.py, where it is explained."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib
import os
import re
import sys


{functions}


archive = os.path.dirname(os.path.abspath(__file__))
sys.exit(start(archive, digest={digest!r}, python={python!r}, entry_point={entry_point!r}))
'''


def main() -> None:
    """Build the archive that the command line asks for."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(prog="zipapp.py", description="Build vmd as one executable file.")
    parser.add_argument("--output", type=Path, default=here / "dist" / "vmd.pyz", metavar="FILE")
    output: Path = parser.parse_args().output
    try:
        build(here, output)
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"zipapp: {' '.join(map(str, error.cmd[:5]))} failed with status {error.returncode}, see above"
        )
    except OSError as error:
        sys.exit(f"zipapp: {error}")
    print(f"{output}  {output.stat().st_size / 1e6:.1f} MB")


def build(project: Path, output: Path) -> None:
    """Write project and its runtime dependencies to output, replacing it in one step."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vmd-zipapp.") as directory:
        site = Path(directory, "site")
        install(project, site)
        contents = {
            path.relative_to(directory).as_posix(): path.read_bytes()
            for path in sorted(site.rglob("*"))
            if path.is_file()
        }
        contents["__main__.py"] = bootstrap_source(contents).encode()
        unfinished = Path(directory, "vmd.pyz")
        write_archive(contents, unfinished)
        beside = output.with_name(output.name + ".new")
        shutil.copy2(unfinished, beside)
        beside.replace(output)


def install(project: Path, site: Path) -> None:
    """Install project into site: byte-compiled, without what differs from run to run or is never used."""
    python = [sys.executable, "-P", "-m"]
    pip = [*python, "pip", "install", "-qq", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([*pip, "--target", site, project], check=True)
    shutil.rmtree(site / "bin", ignore_errors=True)
    for metadata in site.glob("*.dist-info"):
        for name in NOT_REPRODUCIBLE:
            (metadata / name).unlink(missing_ok=True)
    for pattern in UNUSED:
        for file in [*site.glob(pattern)]:
            file.unlink()
    # One process, in the order of names: what was compiled before leaves traces in the marshalled bytes.
    compileall = [*python, "compileall", "-q", "-j1", "--invalidation-mode", "unchecked-hash"]
    fixed = os.environ | {"PYTHONHASHSEED": "0"}
    subprocess.run([*compileall, "-s", site, "-p", "vmd.pyz", site], check=True, env=fixed)


def bootstrap_source(contents: dict[str, bytes]) -> str:
    """Return the archive's __main__.py, which knows contents by their digest."""
    digest = hashlib.sha256()
    for name, data in contents.items():
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return MAIN.format(
        functions="\n\n".join([inspect.getsource(function) for function in BOOTSTRAP]),
        digest=digest.hexdigest()[:32],
        python=describe_python(),
        entry_point=ENTRY_POINT,
    )


def write_archive(contents: dict[str, bytes], output: Path) -> None:
    """Write an executable zip that depends on no clock, no umask and no order of a directory."""
    seconds = max(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), ZIP_EPOCH_SECONDS)
    with output.open("wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in sorted(contents.items()):
                entry = zipfile.ZipInfo(name, time.gmtime(seconds)[:6])
                entry.external_attr = (stat.S_IFREG | 0o644) << 16
                archive.writestr(entry, data, zipfile.ZIP_DEFLATED, compresslevel=6)
    output.chmod(0o755)


# The bootstrap. Every start runs it: it does without pathlib, and imports late what only unpacking needs.


def start(archive: str, digest: str, python: str, entry_point: str) -> object:
    """Run entry_point from the unpacked archive, in the first cache directory that can be used."""
    if python != describe_python():
        return f"vmd: this archive was made for {python} and cannot run with {describe_python()}"
    problems = []
    for cache in cache_directories():
        try:
            sys.path.insert(0, provide(archive, cache, digest))
            break
        except OSError as error:
            problems.append(f"{cache}: {error.strerror}")
    else:
        return (
            f"vmd: set VMD_CACHE_DIR to a directory that can be used to unpack; tried {', '.join(problems)}"
        )
    module, function = entry_point.split(":")
    status: object = getattr(importlib.import_module(module), function)()
    return status


def describe_python() -> str:
    """Return the kind of Python that compiled modules fit."""
    system = os.uname()
    name, version = sys.implementation.name, sys.version_info
    return f"{name} {version.major}.{version.minor} on {system.sysname} {system.machine}"


def cache_directories() -> Iterator[str]:
    """Yield where to unpack, best first; systemd sets CACHE_DIRECTORY to what CacheDirectory= made."""
    environment = os.environ
    if environment.get("VMD_CACHE_DIR"):
        yield environment["VMD_CACHE_DIR"]
        return  # who names a directory wants that one
    if environment.get("CACHE_DIRECTORY"):
        yield environment["CACHE_DIRECTORY"].split(":")[0]
    if environment.get("XDG_CACHE_HOME"):
        yield os.path.join(environment["XDG_CACHE_HOME"], "vmd")
    if environment.get("HOME"):
        yield os.path.join(environment["HOME"], ".cache", "vmd")
    import tempfile

    with contextlib.suppress(OSError):  # no temporary directory at all
        yield os.path.join(tempfile.gettempdir(), f"vmd-{os.getuid()}")


def provide(archive: str, cache: str, digest: str) -> str:
    """Return the directory in cache to import from; raise OSError where cache cannot be used."""
    os.makedirs(cache, 0o700, exist_ok=True)
    cache = os.path.realpath(cache)  # with DynamicUser=, systemd's root owns a link to our directory
    status = os.stat(cache)
    if status.st_uid not in (0, os.getuid()) or status.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "others may write to it")
    if os.statvfs(cache).f_flag & os.ST_NOEXEC:
        raise PermissionError(errno.EACCES, "compiled modules cannot be loaded from it, it is mounted noexec")
    home = os.path.join(cache, digest)
    while not hold(home):
        unpack(archive, home)
        prune(cache)
    return os.path.join(home, "site")


def hold(home: str) -> bool:
    """Return whether home is complete; if so, lock it against pruning for as long as this process lives."""
    try:
        directory = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    with contextlib.suppress(OSError):  # a file system without locks: then nothing is pruned either
        fcntl.flock(directory, fcntl.LOCK_SH)
    try:
        os.stat(".complete", dir_fd=directory)
    except FileNotFoundError:
        os.close(directory)
        return False
    return True


def unpack(archive: str, home: str) -> None:
    """Fill home in one step; when another process was first, its copy stays."""
    import shutil
    import tempfile
    import zipfile

    unfinished = tempfile.mkdtemp(prefix="unpacking.", dir=os.path.dirname(home))
    try:
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(unfinished, [name for name in opened.namelist() if name.startswith("site/")])
        os.sync()  # a power failure must not leave a complete directory of empty files
        open(os.path.join(unfinished, ".complete"), "w").close()
        os.rename(unfinished, home)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        if not os.path.exists(os.path.join(home, ".complete")):
            shutil.rmtree(home, ignore_errors=True)


def prune(cache: str) -> None:
    """Remove what other versions unpacked, but for the two newest and all that are in use."""
    import shutil
    import tempfile
    import time

    with contextlib.suppress(OSError):
        entries = sorted(os.scandir(cache), key=lambda entry: entry.stat().st_mtime, reverse=True)
        for entry in entries:
            if entry.name.startswith("unpacking.") and entry.stat().st_mtime < time.time() - 86400:
                shutil.rmtree(entry.path, ignore_errors=True)
        for entry in [entry for entry in entries if re.fullmatch("[0-9a-f]{32}", entry.name)][2:]:
            directory = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY)
            with contextlib.suppress(BlockingIOError):  # in use
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                grave = tempfile.mkdtemp(prefix="unpacking.", dir=cache)
                os.rename(entry.path, os.path.join(grave, entry.name))
                shutil.rmtree(grave, ignore_errors=True)
            os.close(directory)


BOOTSTRAP = (start, describe_python, cache_directories, provide, hold, unpack, prune)

if __name__ == "__main__":
    main()
