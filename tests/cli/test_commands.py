import http.client
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from attrs import frozen

from vmd import __version__

ROOT = Path(__file__).parents[2]
FAKE = {
    "VMD_PROVIDERS__DOCKER__ENABLED": "false",
    "VMD_PROVIDERS__FAKE__ENABLED": "true",
    "VMD_WORKSPACES__PROVIDER": "fake",
}
HANG_SECONDS = 60  # after which a command counts as hung, however slow the machine is

Done = subprocess.CompletedProcess[str]


def environment(data_dir: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("VMD_")}
    return {**own, **FAKE, "VMD_DATA_DIR": str(data_dir), "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}


def vmd(data_dir: Path, *arguments: str, **variables: str) -> Done:
    return subprocess.run(
        [sys.executable, "-m", "vmd", *arguments],
        env={**environment(data_dir), **variables},
        cwd=data_dir.parent,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )


def output(done: Done) -> str:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def failure(done: Done) -> str:
    """Return the one line on stderr of a command that failed."""
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("vmd: ")
    return line


@frozen(kw_only=True)
class Running:
    """A daemon in a process of its own."""

    data_dir: Path
    process: subprocess.Popen[str]
    host: str
    port: int

    def call(self, method: str, path: str, secret: str, body: Any = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
        with closing(http.client.HTTPConnection(self.host, self.port, timeout=HANG_SECONDS)) as connection:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text else None


@contextmanager
def serve(data_dir: Path, *arguments: str) -> Iterator[Running]:
    """Run a daemon until the end of the block."""
    command = [sys.executable, "-m", "vmd", "serve", "--listen", "127.0.0.1:0", *arguments]
    with subprocess.Popen(
        command, env=environment(data_dir), stderr=subprocess.PIPE, text=True, cwd=data_dir.parent
    ) as process:
        try:
            assert process.stderr is not None
            seen = []
            for line in process.stderr:
                seen.append(line)
                entry = json.loads(line)
                if entry["event"] == "vmd is ready":
                    host, _, port = entry["listen"][0].removeprefix("http://").rpartition(":")
                    break
            else:
                raise AssertionError(f"the daemon did not start: {seen}")
            yield Running(data_dir=data_dir, process=process, host=host, port=int(port))
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=HANG_SECONDS)
            assert process.returncode == 0
        finally:
            process.kill()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture(params=["stopped", "running"])
def either(request: pytest.FixtureRequest, data_dir: Path) -> Iterator[Path]:
    """The data directory of a daemon that is stopped, or that runs."""
    if request.param == "stopped":
        yield data_dir
        return
    with serve(data_dir) as running:
        yield running.data_dir


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# What needs no data directory.


def test_version_prints_the_version(data_dir: Path) -> None:
    assert output(vmd(data_dir, "version")) == f"{__version__}\n"
    assert not data_dir.exists()


def test_schema_prints_the_committed_schema(data_dir: Path) -> None:
    assert output(vmd(data_dir, "schema")) == (ROOT / "schema.sql").read_text("utf-8")
    assert not data_dir.exists()


def test_openapi_prints_the_committed_specification(data_dir: Path) -> None:
    printed = output(vmd(data_dir, "openapi"))
    assert printed == (ROOT / "openapi.yaml").read_text("utf-8")
    assert yaml.safe_load(printed)["openapi"].startswith("3.1")


def test_config_prints_the_settings_with_their_sources(data_dir: Path) -> None:
    printed = output(vmd(data_dir, "config")).splitlines()
    assert 'http.listen = "127.0.0.1:3121"  # default' in printed
    assert "providers.fake.enabled = true  # VMD_PROVIDERS__FAKE__ENABLED" in printed
    assert not data_dir.exists()


def test_config_reads_the_file_in_the_data_directory(data_dir: Path) -> None:
    data_dir.mkdir()
    file = data_dir / "vmd.toml"
    file.write_text("[operations]\nconcurrency = 3\n")
    assert f"operations.concurrency = 3  # {file}" in output(vmd(data_dir, "config")).splitlines()


def test_config_reads_the_file_that_is_given(data_dir: Path, tmp_path: Path) -> None:
    data_dir.mkdir()
    (data_dir / "vmd.toml").write_text("[operations]\nconcurrency = 3\n")
    other = tmp_path / "other.toml"
    other.write_text("[operations]\nconcurrency = 4\n")
    for done in (
        vmd(data_dir, "config", "--config", str(other)),
        vmd(data_dir, "config", VMD_CONFIG=str(other)),
    ):
        assert f"operations.concurrency = 4  # {other}" in output(done).splitlines()


def test_the_flag_for_the_data_directory_wins_over_the_variable(data_dir: Path, tmp_path: Path) -> None:
    output(vmd(data_dir, "user", "list", "--data-dir", str(tmp_path / "other")))
    assert (tmp_path / "other" / "vm.db").exists()
    assert not data_dir.exists()


# How commands end.


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["serve", "--nonsense"],
        ["token"],
        ["token", "create"],
        ["token", "create", "x", "--scope", "root"],
        ["token", "create", "x", "--expires", "soon"],
        ["user", "add", "x", "--role", "king"],
        ["version", "x"],
    ],
)
def test_wrong_usage_ends_with_status_two(data_dir: Path, arguments: Sequence[str]) -> None:
    done = vmd(data_dir, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: vmd")
    assert not data_dir.exists()


@pytest.mark.parametrize("command", [["serve"], ["config"], ["user", "list"], ["token", "create", "x"]])
def test_an_unknown_setting_stops_every_command_with_its_line(data_dir: Path, command: list[str]) -> None:
    data_dir.mkdir()
    (data_dir / "vmd.toml").write_text("[http]\nlisen = 1\n")
    line = failure(vmd(data_dir, *command))
    assert f"{data_dir}/vmd.toml, line 2: http.lisen is not known here" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["token", "create", "x", "--user", "nobody"],
        ["token", "create", "x", "--user", "日本"],
        ["token", "create", "x", "--user", "a\nb"],
        ["token", "create", ""],
        ["token", "create", "x", "--expires", "1s"],
        ["token", "create", "x", "--workspace", "ws-0000000000"],
        ["token", "revoke", "tok-0000000000"],
        ["token", "revoke", "a b"],
        ["token", "revoke", "日本"],
        ["token", "revoke", ""],
        ["token", "revoke", "../users"],
        ["token", "revoke", "?"],
        ["user", "add", "Upper"],
        ["user", "add", "admin"],
        ["config", "--config", "/nonexistent.toml"],
        ["serve", "--listen", "nonsense"],
        ["serve", "--listen", "127.0.0.1:"],
        ["serve", "--listen", "unix:/nonexistent/vmd.sock"],
    ],
)
def test_a_command_that_cannot_be_done_says_why_in_one_line(data_dir: Path, arguments: list[str]) -> None:
    output(vmd(data_dir, "user", "list"))
    line = failure(vmd(data_dir, *arguments, VMD_LOG__LEVEL="error"))
    assert "does not answer" not in line


def test_a_port_that_there_is_not_is_refused(data_dir: Path) -> None:
    command = [sys.executable, "-m", "vmd", "serve", "--listen", "127.0.0.1:99999"]
    with subprocess.Popen(
        command, env=environment(data_dir), stderr=subprocess.PIPE, text=True, cwd=data_dir.parent
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "vmd is ready" in line:
                process.kill()
        process.wait(HANG_SECONDS)
    assert "vmd is ready" not in "".join(lines)
    assert process.returncode == 1


def test_a_database_that_cannot_be_used_is_told_in_one_line(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "vm.db").write_text("this is no database\n" * 100)
    assert f"{data_dir}/vm.db cannot be used" in failure(vmd(data_dir, "serve"))
    assert f"{data_dir}/vm.db cannot be used" in failure(vmd(data_dir, "user", "list"))


def test_a_directory_in_the_place_of_the_database_is_told_in_one_line(data_dir: Path) -> None:
    (data_dir / "vm.db").mkdir(parents=True)
    assert "vm.db" in failure(vmd(data_dir, "serve"))


def test_a_file_in_the_place_of_the_data_directory_is_told_in_one_line(data_dir: Path) -> None:
    data_dir.write_text("")
    assert str(data_dir) in failure(vmd(data_dir, "user", "list"))


# Tokens and users, whether the daemon runs or not.


def test_a_token_is_made_listed_and_revoked(either: Path) -> None:
    secret = output(vmd(either, "token", "create", "laptop", "--scope", "exec", "--expires", "30d"))
    assert secret.startswith("vmd_")
    assert secret.split() == [secret.removesuffix("\n")]
    listed = output(vmd(either, "token", "list"))
    mine, first = listed.splitlines()
    token_id, name, scopes, *expiry = mine.split()
    assert (name, scopes, expiry[0]) == ("laptop", "exec", "expires")
    assert expiry[1] != "never"
    assert first.split()[1:] == ["admin-token", "admin", "expires", "never"]
    assert secret.strip() not in listed
    assert output(vmd(either, "token", "revoke", token_id)) == ""
    assert output(vmd(either, "token", "list")).splitlines() == [first]
    assert token_id in failure(vmd(either, "token", "revoke", token_id))


def test_a_user_is_added_and_listed_and_has_tokens_of_their_own(either: Path) -> None:
    user_id = output(vmd(either, "user", "add", "ann")).strip()
    root_id = output(vmd(either, "user", "add", "root", "--role", "admin")).strip()
    assert output(vmd(either, "user", "list")).splitlines()[:2] == [
        f"{root_id}  root  admin",
        f"{user_id}  ann  member",
    ]
    assert "choose another name" in failure(vmd(either, "user", "add", "ann"))
    output(vmd(either, "token", "create", "hers", "--user", "ann"))
    assert "hers" in output(vmd(either, "token", "list", "--user", "ann"))
    assert "hers" not in output(vmd(either, "token", "list"))


def test_a_secret_that_was_made_while_the_daemon_was_stopped_works_when_it_runs(data_dir: Path) -> None:
    secret = output(vmd(data_dir, "token", "create", "x")).strip()
    with serve(data_dir) as running:
        assert running.call("GET", "/api/v1/me", secret)[0] == 200


def test_a_secret_works_at_once_and_no_longer_once_it_is_revoked(data_dir: Path) -> None:
    with serve(data_dir) as running:
        output(vmd(data_dir, "user", "add", "ann"))
        made = vmd(data_dir, "token", "create", "x", "--user", "ann", "--scope", "workspaces:read")
        secret = output(made).strip()
        status, me = running.call("GET", "/api/v1/me", secret)
        assert (status, me["name"], me["scopes"]) == (200, "ann", ["workspaces:read"])
        assert running.call("POST", "/api/v1/workspaces", secret, {})[0] == 403
        token_id = output(vmd(data_dir, "token", "list", "--user", "ann")).split()[0]
        output(vmd(data_dir, "token", "revoke", token_id, "--user", "ann"))
        status, problem = running.call("GET", "/api/v1/me", secret)
        assert (status, problem["code"]) == (401, "unauthenticated")


def test_a_token_that_was_revoked_while_the_daemon_was_stopped_is_refused(data_dir: Path) -> None:
    secret = output(vmd(data_dir, "token", "create", "x")).strip()
    token_id = output(vmd(data_dir, "token", "list")).split()[0]
    output(vmd(data_dir, "token", "revoke", token_id))
    with serve(data_dir) as running:
        assert running.call("GET", "/api/v1/me", secret)[0] == 401


def test_commands_that_run_together_are_all_done(either: Path) -> None:
    output(vmd(either, "user", "list"))
    command = [sys.executable, "-m", "vmd", "token", "create"]
    started = [
        subprocess.Popen(
            [*command, f"t{number}"],
            env=environment(either),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(6)
    ]
    ended = [(process.communicate(timeout=HANG_SECONDS)[1], process.returncode) for process in started]
    assert ended == [("", 0)] * 6
    assert len(output(vmd(either, "token", "list")).splitlines()) == 7


# The daemon and its files.


def test_nobody_else_can_read_the_data_directory_and_what_is_in_it(data_dir: Path) -> None:
    with serve(data_dir):
        assert mode(data_dir) == 0o700
        modes = {file.name: mode(file) for file in data_dir.iterdir()}
    assert {"admin-token", "vm.db", "control.sock", "vmd.lock"} <= set(modes)
    assert set(modes.values()) == {0o600}


def test_the_first_start_writes_the_administrators_token_and_says_where_but_never_what(
    data_dir: Path,
) -> None:
    done = vmd(data_dir, "serve", "--listen", "nonsense")
    secret = (data_dir / "admin-token").read_text()
    assert secret.startswith("vmd_")
    assert secret.endswith("\n")
    assert str(data_dir / "admin-token") in done.stderr
    assert secret.strip() not in done.stderr + done.stdout
    with serve(data_dir) as running:
        status, me = running.call("GET", "/api/v1/me", secret.strip())
        assert (status, me["name"], me["role"]) == (200, "admin", "admin")
    assert (data_dir / "admin-token").read_text() == secret


def test_a_second_daemon_on_a_data_directory_ends_and_says_so(data_dir: Path) -> None:
    with serve(data_dir) as running:
        line = failure(vmd(data_dir, "serve", "--listen", "127.0.0.1:0"))
        assert f"Another vmd uses {data_dir}" in line
        secret = (data_dir / "admin-token").read_text().strip()
        assert running.call("GET", "/api/v1/me", secret)[0] == 200


def test_a_port_that_is_taken_is_told_in_one_line(data_dir: Path, tmp_path: Path) -> None:
    output(vmd(tmp_path / "other", "user", "list"))
    with serve(data_dir) as running:
        line = failure(vmd(tmp_path / "other", "serve", "--listen", f"127.0.0.1:{running.port}"))
        assert f"cannot listen on 127.0.0.1:{running.port}" in line


def test_a_killed_daemon_leaves_nothing_that_keeps_the_next_one_out(data_dir: Path) -> None:
    command = [sys.executable, "-m", "vmd", "serve", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        command, env=environment(data_dir), stderr=subprocess.PIPE, text=True, cwd=data_dir.parent
    ) as process:
        assert process.stderr is not None
        assert any("vmd is ready" in line for line in process.stderr)
        process.kill()
    assert "admin" in output(vmd(data_dir, "user", "list"))
    with serve(data_dir) as running:
        secret = (data_dir / "admin-token").read_text().strip()
        assert running.call("GET", "/api/v1/me", secret)[0] == 200


# Doctor.


def test_doctor_finds_nothing_wrong_where_nothing_is(either: Path) -> None:
    for arguments in (["doctor"], ["doctor", "--fix"]):
        printed = output(vmd(either, *arguments))
        assert printed == "All is well: the books and the providers agree.\n"


def test_doctor_finds_nothing_wrong_with_a_workspace_that_runs(data_dir: Path) -> None:
    with serve(data_dir) as running:
        secret = (data_dir / "admin-token").read_text().strip()
        status, operation = running.call("POST", "/api/v1/workspaces", secret, {})
        assert status == 202
        wait = f"/api/v1/operations/{operation['id']}/wait?timeout=60"
        assert running.call("GET", wait, secret)[1]["status"] == "succeeded"
        assert output(vmd(data_dir, "doctor")) == "All is well: the books and the providers agree.\n"


def test_doctor_names_a_template_that_is_broken(data_dir: Path) -> None:
    (data_dir / "templates").mkdir(parents=True)
    (data_dir / "templates" / "bad.toml").write_text("nonsense = 1\n")
    done = vmd(data_dir, "doctor")
    assert done.returncode == 1
    assert done.stdout.startswith("broken-template: bad")
    assert done.stderr.splitlines()[-1].startswith("vmd: not all is well")
