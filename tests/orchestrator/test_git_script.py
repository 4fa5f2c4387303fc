"""The look at a machine's repositories, run by the shell and git that are here, without a machine."""

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from tests.support.git_server import make_repository, run_git
from tests.support.repositories import HOSTILE, SENTINEL
from vmd.model.workspace import GitState
from vmd.orchestrator.git_script import LOOK, read_answer

NOW = datetime(2026, 1, 2, tzinfo=UTC)
CLEAN = GitState(looked_at=NOW, branch="main", uncommitted=0, unpushed=0, stashes=0)
NOTHING = evolve(CLEAN, branch=None, repositories=0)


def ask(directory: Path, **environment: str) -> bytes:
    done = subprocess.run(
        LOOK.argv, cwd=directory, env={**os.environ, **LOOK.env, **environment}, capture_output=True
    )
    return done.stdout


def look(directory: Path, **environment: str) -> GitState:
    state = read_answer(ask(directory, **environment), NOW)
    assert state is not None
    return state


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    make_repository(tmp_path / "git")
    return tmp_path / "git" / "hello.git"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir()
    return path


def clone(origin: Path, to: Path) -> Path:
    run_git(origin.parent, "clone", "-q", str(origin), str(to))
    return to


def change(repository: Path, name: str = "hello.txt") -> None:
    (repository / name).write_text("changed\n")


def commit(repository: Path, name: str) -> None:
    change(repository, name)
    run_git(repository, "add", ".")
    run_git(repository, "commit", "-q", "-m", name)


def test_an_empty_workspace_has_nothing(workspace: Path) -> None:
    assert look(workspace) == NOTHING
    assert NOTHING.is_clean


def test_a_fresh_clone_is_clean(origin: Path, workspace: Path) -> None:
    clone(origin, workspace)
    assert look(workspace) == CLEAN
    assert CLEAN.is_clean


def test_changed_new_and_staged_files_are_uncommitted(origin: Path, workspace: Path) -> None:
    clone(origin, workspace)
    change(workspace)
    change(workspace, "new file\nof two lines")
    (workspace / "directory").mkdir()
    for name in ("a", "b"):
        change(workspace / "directory", name)
    (workspace / "staged").write_text("x")
    run_git(workspace, "add", "staged")
    (workspace / ".gitignore").write_text("*.log\n")
    change(workspace, "ignored.log")
    assert look(workspace) == evolve(CLEAN, uncommitted=5)


def test_commits_of_every_branch_and_of_none_are_unpushed(origin: Path, workspace: Path) -> None:
    clone(origin, workspace)
    commit(workspace, "a")
    run_git(workspace, "switch", "-q", "-c", "other", "origin/topic")
    commit(workspace, "b")
    assert look(workspace) == evolve(CLEAN, branch="other", unpushed=2)
    run_git(workspace, "checkout", "-q", "--detach")
    commit(workspace, "c")
    assert look(workspace) == evolve(CLEAN, branch=None, unpushed=3)
    run_git(workspace, "push", "-q", "origin", "HEAD:refs/heads/c", "other", "main")
    assert look(workspace) == evolve(CLEAN, branch=None)


def test_stashes_are_counted(origin: Path, workspace: Path) -> None:
    clone(origin, workspace)
    for name in ("first", "second"):
        (workspace / "hello.txt").write_text(name)
        run_git(workspace, "stash", "-q")
    assert look(workspace) == evolve(CLEAN, stashes=2)


def test_a_repository_without_commits_or_remote_is_counted(workspace: Path) -> None:
    run_git(workspace, "init", "-q", "-b", "main")
    assert look(workspace) == CLEAN
    commit(workspace, "a")
    assert look(workspace) == evolve(CLEAN, unpushed=1)


def test_several_clones_are_counted_together(origin: Path, workspace: Path) -> None:
    first = clone(origin, workspace / "first")
    second = clone(origin, workspace / "group" / "second")
    third = clone(origin, workspace / "group" / "deep" / "third")
    assert look(workspace) == evolve(CLEAN, repositories=3)
    change(first)
    commit(second, "a")
    commit(third, "b")
    (workspace / "notes.txt").write_text("x")
    (workspace / "group" / "notes.txt").write_text("x")
    assert look(workspace) == evolve(CLEAN, repositories=3, uncommitted=1, unpushed=2, loose=2)


def test_a_clone_inside_another_counts_for_itself(origin: Path, workspace: Path) -> None:
    clone(origin, workspace)
    inner = clone(origin, workspace / "inner")
    assert look(workspace) == evolve(CLEAN, repositories=2)
    commit(inner, "a")
    assert look(workspace) == evolve(CLEAN, repositories=2, unpushed=1)


def test_files_outside_any_repository_are_loose(workspace: Path) -> None:
    (workspace / "a" / "b" / "c" / "d").mkdir(parents=True)
    assert look(workspace) == NOTHING
    (workspace / "a" / "b" / "c" / "d" / "e").write_text("x")
    (workspace / "a" / "link").symlink_to("/nowhere")
    assert look(workspace) == evolve(NOTHING, loose=2)


@pytest.mark.parametrize(
    "damage",
    ["HEAD", "config", "index"],
)
def test_a_repository_that_cannot_be_read_is_not_clean(origin: Path, workspace: Path, damage: str) -> None:
    clone(origin, workspace)
    (workspace / ".git" / damage).write_bytes(b"[junk")
    state = look(workspace)
    assert state == evolve(NOTHING, unreadable=1)
    assert not state.is_clean


def test_counts_end_at_a_thousand(workspace: Path, origin: Path) -> None:
    clone(origin, workspace / "repo")
    for number in range(1100):
        (workspace / f"{number}").touch()
        (workspace / "repo" / f"{number}").touch()
    assert look(workspace) == evolve(CLEAN, uncommitted=1000, loose=1000)


def test_what_the_environment_says_of_git_does_not_count(origin: Path, workspace: Path) -> None:
    clone(origin, workspace)
    change(workspace)
    hostile = {
        "GIT_DIR": "/nowhere",
        "GIT_TRACE": SENTINEL,
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.fsmonitor",
        "GIT_CONFIG_VALUE_0": f"touch {SENTINEL}",
        "LC_ALL": "de_DE.UTF-8",
        "IFS": "a",
        "CDPATH": "/",
    }
    Path(SENTINEL).unlink(missing_ok=True)
    assert look(workspace, **hostile) == evolve(CLEAN, uncommitted=1)
    assert not Path(SENTINEL).exists()


def test_a_hostile_repository_runs_nothing(workspace: Path) -> None:
    subprocess.run(["sh", "-c", HOSTILE], cwd=workspace, check=True, env={**os.environ, "HOME": "/nowhere"})
    index = workspace / "repo" / ".git" / "index"
    before = index.stat()
    state = look(workspace)
    assert not Path(SENTINEL).exists(), Path(SENTINEL).read_text()
    assert (state.uncommitted >= 2, state.unpushed, state.repositories) == (True, 1, 1)
    assert index.stat() == before
    subprocess.run(["git", "status"], cwd=workspace / "repo", capture_output=True)
    assert Path(SENTINEL).exists(), "the repository is not hostile"
    Path(SENTINEL).unlink()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", None),
        (b"end\n", NOTHING),
        (b"sh: not found\n", evolve(NOTHING, unreadable=2)),
        (b"repo 0 0 0 main\n", evolve(CLEAN, unreadable=1)),
        (b"repo 0 0 0 main\nend", CLEAN),
        (b"repo 1 2 3 a b\nend\n", evolve(NOTHING, unreadable=1)),
        (b"repo -1 0 0 main\nrepo 0 0 999999 main\nend\n", evolve(NOTHING, unreadable=2)),
        (b"repo 0 0 0 \x1b[31m\nend\n", evolve(NOTHING, unreadable=1)),
        (b"repo 0 0 0 -\nrepo 0 0 0 main\nend\n", evolve(NOTHING, repositories=2)),
        ("repo 0 0 0 über/ß\nend\n".encode(), evolve(CLEAN, branch="über/ß")),
        (b"\xff\xfe\nend\n", evolve(NOTHING, unreadable=1)),
        (b"end\nrepo 0 0 0 main\nend\n", evolve(CLEAN, unreadable=1)),
        (b"loose 7\nbad\nbad\nend\n", evolve(NOTHING, loose=7, unreadable=2)),
    ],
)
def test_an_answer_is_read_as_a_strangers(answer: bytes, expected: Any) -> None:
    assert read_answer(answer, NOW) == expected
