"""`vmd user quota`, with the daemon stopped and running."""

from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_commands import data_dir, either, failure, output, serve, vmd

__all__ = ["data_dir", "either"]  # fixtures


def shown(data_dir: Path, *options: str) -> dict[str, list[str]]:
    lines = output(vmd(data_dir, "user", "quota", "ann", *options)).splitlines()
    return {line.split("  ")[0]: line.split("  ")[1:] for line in lines}


@pytest.fixture
def with_ann(either: Path) -> Path:
    output(vmd(either, "user", "add", "ann"))
    return either


def test_limits_are_shown_set_and_taken_back(with_ann: Path) -> None:
    assert shown(with_ann)["workspaces"] == ["50", "default", "0 in use"]
    changed = shown(with_ann, "--workspaces", "3", "--cpus", "2.5", "--running", "none")
    assert changed["workspaces"] == ["3", "own", "0 in use"]
    assert changed["cpus"] == ["2.5", "own", "0.0 in use"]
    assert changed["running"] == ["none", "own", "0 in use"]
    assert changed["max_ttl_seconds"] == ["none", "default"]
    again = shown(
        with_ann, "--workspaces", "default", "--max-ttl-seconds", "3600", "--memory-mb", "0", "--disk-mb", "7"
    )
    assert again["workspaces"] == ["50", "default", "0 in use"]
    assert again["running"] == ["none", "own", "0 in use"]
    assert again["max_ttl_seconds"] == ["3600", "own"]
    assert shown(with_ann, "--snapshots", "9")["snapshots"] == ["9", "own", "0 in use"]
    assert shown(with_ann) == {**again, "snapshots": ["9", "own", "0 in use"]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nobody"], "no user 'nobody'"),
        (["nobody", "--workspaces", "1"], "no user 'nobody'"),
        (["a/b?c"], "no user 'a/b?c'"),
        (["ann", "--workspaces", "1.5"], "/workspaces: must be a whole number"),
        (["ann", "--max-ttl-seconds", "5"], "/max_ttl_seconds: must be at least 60"),
    ],
)
def test_what_cannot_be_set_is_told_in_one_line(with_ann: Path, arguments: list[str], said: str) -> None:
    assert said in failure(vmd(with_ann, "user", "quota", *arguments))
    assert {line[1] for line in shown(with_ann).values()} == {"default"}


@pytest.mark.parametrize("value", ["", "-1", "many", "1e3", "None", "1,5"])
def test_what_is_no_limit_is_wrong_usage(data_dir: Path, value: str) -> None:
    done = vmd(data_dir, "user", "quota", "ann", f"--workspaces={value}")
    assert done.returncode == 2
    assert "is no limit" in done.stderr
    assert not data_dir.exists()


def test_a_limit_holds_at_once(data_dir: Path) -> None:
    with serve(data_dir) as running:
        output(vmd(data_dir, "user", "add", "ann"))
        secret = output(vmd(data_dir, "token", "create", "x", "--user", "ann")).strip()

        def create() -> Any:
            return running.call("POST", "/api/v1/workspaces", secret, {})

        output(vmd(data_dir, "user", "quota", "ann", "--workspaces", "0"))
        status, problem = create()
        assert (status, problem["code"]) == (403, "quota-exceeded")
        output(vmd(data_dir, "user", "quota", "ann", "--workspaces", "1"))
        assert create()[0] == 202
        assert create()[0] == 403
