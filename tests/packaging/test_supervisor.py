"""The compiled supervisor: made of the present source, anew when anything changes, found by its users."""

import importlib.util
import shutil
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.elf import machine_of
from vmd.providers.supervisor.executable import digest, find_executable

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_supervisor", ROOT / "script" / "build_supervisor.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def compiler() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    chosen: str = project["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["compiler"]
    return chosen


@pytest.fixture
def directory(hook: ModuleType, tmp_path: Path) -> Path:
    """A copy of what was compiled, and of its source."""
    shutil.copytree(ROOT / hook.DIRECTORY / hook.SOURCE, tmp_path / hook.SOURCE)
    for name in [hook.STAMP, *hook.EXECUTABLES]:
        shutil.copy(ROOT / hook.DIRECTORY / name, tmp_path)
    return tmp_path


def test_what_is_installed_was_made_from_the_present_source(
    hook: ModuleType, compiler: str, directory: Path
) -> None:
    assert hook.is_current(directory, compiler)


@pytest.mark.parametrize(
    "name",
    ["source/main.c", "source/supervisor.h", "supervisor-x86_64", "supervisor-aarch64", "supervisor-stamp"],
)
def test_a_changed_file_is_noticed(hook: ModuleType, compiler: str, directory: Path, name: str) -> None:
    with (directory / name).open("ab") as file:
        file.write(b"\n")

    assert not hook.is_current(directory, compiler)


@pytest.mark.parametrize("name", ["supervisor-x86_64", "supervisor-aarch64", "supervisor-stamp"])
def test_a_missing_file_is_noticed(hook: ModuleType, compiler: str, directory: Path, name: str) -> None:
    (directory / name).unlink()

    assert not hook.is_current(directory, compiler)


def test_another_compiler_and_other_options_are_noticed(
    hook: ModuleType, compiler: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not hook.is_current(directory, f"{compiler}.1")

    monkeypatch.setattr(hook, "OPTIONS", (*hook.OPTIONS, "-g"))
    assert not hook.is_current(directory, compiler)


def test_a_compiler_that_is_not_installed_is_told(hook: ModuleType, directory: Path) -> None:
    with pytest.raises(hook.CompileError, match=r"^no-such-compiler==1 is not installed$"):
        hook.compile_supervisor(directory, "no-such-compiler==1")


@pytest.mark.parametrize(
    ("name", "machine"),
    [("x86_64", "x86_64"), ("amd64", "x86_64"), ("aarch64", "aarch64"), ("arm64", "aarch64")],
)
def test_it_is_found_by_the_names_of_uname_and_of_engines(name: str, machine: str) -> None:
    executable = find_executable(name)

    assert executable is not None
    assert machine_of(executable) == machine
    assert find_executable(name) is executable


def test_there_is_none_for_another_machine() -> None:
    assert find_executable("riscv64") is None


def test_a_digest_tells_executables_apart() -> None:
    first, second = (find_executable(machine) for machine in ("x86_64", "aarch64"))

    assert first is not None
    assert second is not None
    assert len(digest(first)) == 16
    assert digest(first) != digest(second)
