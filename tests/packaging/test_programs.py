"""The compiled programs: made of the present source, anew when anything changes, found by its users."""

import importlib.util
import shutil
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.elf import machine_of
from vmd.providers.executables import digest, find_executable

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_programs", ROOT / "script" / "build_programs.py")
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


@pytest.fixture(scope="module", params=["supervisor", "archiver"])
def program(hook: ModuleType, request: pytest.FixtureRequest) -> Any:
    return next(program for program in hook.PROGRAMS if program.name == request.param)


@pytest.fixture
def directory(hook: ModuleType, program: Any, tmp_path: Path) -> Path:
    """A copy of what was compiled, and of its source."""
    origin = ROOT / hook.DIRECTORY / program.name
    shutil.copytree(origin / hook.SOURCE, tmp_path / hook.SOURCE)
    for name in [program.stamp, *program.executables]:
        shutil.copy(origin / name, tmp_path)
    return tmp_path


def test_what_is_installed_was_made_from_the_present_source(
    hook: ModuleType, program: Any, compiler: str, directory: Path
) -> None:
    assert hook.is_current(program, directory, compiler)


@pytest.mark.parametrize(
    "name",
    ["source/main.c", "source/{}.h", "{}-x86_64", "{}-aarch64", "{}-stamp"],
)
def test_a_changed_file_is_noticed(
    hook: ModuleType, program: Any, compiler: str, directory: Path, name: str
) -> None:
    with (directory / name.format(program.name)).open("ab") as file:
        file.write(b"\n")

    assert not hook.is_current(program, directory, compiler)


@pytest.mark.parametrize("name", ["{}-x86_64", "{}-aarch64", "{}-stamp"])
def test_a_missing_file_is_noticed(
    hook: ModuleType, program: Any, compiler: str, directory: Path, name: str
) -> None:
    (directory / name.format(program.name)).unlink()

    assert not hook.is_current(program, directory, compiler)


def test_another_compiler_and_other_options_are_noticed(
    hook: ModuleType, program: Any, compiler: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not hook.is_current(program, directory, f"{compiler}.1")

    monkeypatch.setattr(hook, "OPTIONS", (*hook.OPTIONS, "-g"))
    assert not hook.is_current(program, directory, compiler)


def test_a_compiler_that_is_not_installed_is_told(hook: ModuleType, program: Any, directory: Path) -> None:
    with pytest.raises(hook.CompileError, match=r"^no-such-compiler==1 is not installed$"):
        hook.compile_program(program, directory, "no-such-compiler==1")


@pytest.mark.parametrize(
    ("name", "machine"),
    [("x86_64", "x86_64"), ("amd64", "x86_64"), ("aarch64", "aarch64"), ("arm64", "aarch64")],
)
def test_they_are_found_by_the_names_of_uname_and_of_engines(program: Any, name: str, machine: str) -> None:
    executable = find_executable(program.name, name)

    assert executable is not None
    assert machine_of(executable) == machine
    assert find_executable(program.name, name) is executable


def test_there_is_none_for_another_machine() -> None:
    assert find_executable("supervisor", "riscv64") is None


def test_a_digest_tells_executables_apart() -> None:
    first, second = (find_executable("supervisor", machine) for machine in ("x86_64", "aarch64"))

    assert first is not None
    assert second is not None
    assert len(digest(first)) == 16
    assert digest(first) != digest(second)
