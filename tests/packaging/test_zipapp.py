"""The one executable file: reproducible, complete, and able to unpack itself wherever it is allowed to."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.elf import has_interpreter, machine_of
from vmd import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(tmp_path_factory.mktemp("archive") / "vmd.pyz")


def test_a_second_build_elsewhere_and_with_another_umask_gives_the_same_bytes(
    archive: Path, tmp_path: Path
) -> None:
    again = _build(tmp_path / "again.pyz", directory=tmp_path, umask=0o077)

    assert again.read_bytes() == archive.read_bytes()


def test_it_runs_without_a_home_and_unpacks_into_the_temporary_directory(
    archive: Path, tmp_path: Path
) -> None:
    done = _run(archive, "version", TMPDIR=str(tmp_path))

    assert (done.stdout, done.stderr, done.returncode) == (f"{__version__}\n", "", 0)
    cache = tmp_path / f"vmd-{os.getuid()}"
    assert cache.stat().st_mode & 0o777 == 0o700
    (unpacked,) = cache.iterdir()
    assert (unpacked / ".complete").exists()


def test_first_starts_at_the_same_time_leave_one_copy(archive: Path, tmp_path: Path) -> None:
    environment = {"PATH": os.defpath, "VMD_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(archive), "version"]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(3)]

    assert [process.wait() for process in started] == [0, 0, 0]
    assert len([*tmp_path.iterdir()]) == 1


@pytest.mark.parametrize(("command", "file"), [("schema", "schema.sql"), ("openapi", "openapi.yaml")])
def test_it_prints_the_committed_file(archive: Path, tmp_path: Path, command: str, file: str) -> None:
    done = _run(archive, command, VMD_CACHE_DIR=str(tmp_path))

    assert done.stdout == (ROOT / file).read_text()


def test_it_holds_no_source_maps_and_of_swagger_ui_what_is_served(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()

    assert not [name for name in names if name.endswith(".map") or "swagger-editor" in name]
    assert "site/swagger_ui/static/swagger-ui-bundle.js" in names


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("program", ["supervisor", "archiver"])
def test_it_holds_programs_that_need_nothing_of_the_machine_they_run_in(
    archive: Path, program: str, machine: str
) -> None:
    with zipfile.ZipFile(archive) as opened:
        executable = opened.read(f"site/vmd/providers/{program}/{program}-{machine}")

    assert machine_of(executable) == machine
    assert not has_interpreter(executable)


@pytest.mark.parametrize("kind", ["a file", "open to others"])
def test_an_unusable_cache_is_one_line_and_a_failure(archive: Path, tmp_path: Path, kind: str) -> None:
    cache = tmp_path / "cache"
    if kind == "a file":
        cache.touch()
    else:
        cache.mkdir()
        cache.chmod(0o777)
    done = _run(archive, "version", VMD_CACHE_DIR=str(cache))

    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.count("\n") == 1
    assert "VMD_CACHE_DIR" in done.stderr


def _build(output: Path, *, directory: Path = ROOT, umask: int = 0o022) -> Path:
    command = [sys.executable, "-P", str(ROOT / "zipapp.py"), "--output", str(output)]
    subprocess.run(command, cwd=directory, umask=umask, check=True, stdout=subprocess.DEVNULL)
    return output


def _run(archive: Path, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the archive with these variables alone."""
    return subprocess.run(
        [sys.executable, str(archive), command],
        env={"PATH": os.defpath, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
