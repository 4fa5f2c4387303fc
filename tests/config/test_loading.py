import tomllib
from pathlib import Path
from typing import Any

import pytest

from vmd.config import ConfigError, Settings, load

LISTEN = ("http", "listen")


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "vmd.toml"
    file.write_text(text, "utf-8")
    return file


def refusal(file: Path | None, environment: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(file, environment or {}, {})
    message = str(caught.value)
    assert "\n" not in message
    return message


def lines(file: Path | None, environment: dict[str, str], flags: dict[tuple[str, ...], Any]) -> list[str]:
    return list(load(file, environment, flags).lines())


def test_without_anything_the_defaults_are_in_force() -> None:
    loaded = load(None, {}, {})
    assert loaded.settings == Settings()
    assert loaded.sources == {}


def test_a_file_is_stronger_than_the_defaults(tmp_path: Path) -> None:
    text = '[http]\nlisten = "a:1"\n[operations.deadlines]\ncreate = 5\n[quota]\ncpus = 2\n'
    settings = load(write(tmp_path, text), {}, {}).settings
    assert settings.http.listen == "a:1"
    assert (settings.operations.deadlines.create, settings.operations.deadlines.start) == (5.0, 120)
    assert settings.quota.cpus == 2.0


def test_a_variable_is_stronger_than_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, '[http]\nlisten = "a:1"\nhosts = ["h"]\n')
    settings = load(file, {"VMD_HTTP__LISTEN": "b:2"}, {}).settings
    assert (settings.http.listen, settings.http.hosts) == ("b:2", ("h",))


def test_a_flag_is_stronger_than_a_variable(tmp_path: Path) -> None:
    file = write(tmp_path, '[http]\nlisten = "a:1"\n')
    settings = load(file, {"VMD_HTTP__LISTEN": "b:2"}, {LISTEN: "c:3"}).settings
    assert settings.http.listen == "c:3"


@pytest.mark.parametrize(
    ("text", "line", "name"),
    [
        ("[http]\nlisten = 'a:1'\nlisen = 'b:2'\n", 3, "http.lisen"),
        ("# lisen = 1\n\n[http]\n  lisen = 1\n", 4, "http.lisen"),
        ("[http]\n[htp]\nlisten = 1\n", 2, "htp"),
        ("http.lisen = 1\n", 1, "http.lisen"),
        ("speed = 1\n", 1, "speed"),
        ("[providers.docker]\nurl = 'unix:///x'\nurls = 1\n", 3, "providers.docker.urls"),
        ("[providers]\ndocker.urls = 1\n", 2, "providers.docker.urls"),
        ("[log]\nlevel = 'info'\n[providers.dock]\nurl = 'x'\n", 3, "providers.dock"),
        ("[operations.deadlines]\nmake = 1\n", 2, "operations.deadlines.make"),
    ],
)
def test_an_unknown_key_is_named_with_its_line(tmp_path: Path, text: str, line: int, name: str) -> None:
    file = write(tmp_path, text)
    assert refusal(file).startswith(f"{file}, line {line}: {name} is not known here; known are ")


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("[http]\n\nlisten = 3121\n", 3, "http.listen must be a string"),
        ("[operations]\nconcurrency = 0\n", 2, "operations.concurrency must be at least 1"),
        ("[operations]\nconcurrency = '8'\n", 2, "operations.concurrency must be a whole number"),
        ("[log]\nlevel = 'loud'\n", 2, "log.level must match"),
        ("[providers.docker]\nenabled = 1\n", 2, "providers.docker.enabled must be true or false"),
        ("http = 5\n", 1, "http must be an object"),
        ("[janitor]\ninterval_seconds = nan\n", 2, "janitor.interval_seconds must be at least"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(tmp_path: Path, text: str, line: int, what: str) -> None:
    file = write(tmp_path, text)
    assert refusal(file).startswith(f"{file}, line {line}: {what}")


def test_a_file_that_is_no_toml_is_refused_with_the_place(tmp_path: Path) -> None:
    file = write(tmp_path, "[http]\nlisten =\n")
    message = refusal(file)
    assert message.startswith(f"{file}: ")
    assert "line 2" in message


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "missing.toml cannot be read" in refusal(tmp_path / "missing.toml")
    assert "cannot be read" in refusal(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# \xfc")
    assert "cannot be read" in refusal(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    "name", ["VMD_HTTP__LISEN", "VMD_SPEED", "VMD_", "VMD_HTTP__", "VMD_HTTP__LISTEN__X"]
)
def test_an_unknown_variable_is_named(name: str) -> None:
    assert refusal(None, {name: "x"}).startswith(f"{name}: ")


def test_a_wrong_value_of_a_variable_is_named_with_the_variable() -> None:
    message = refusal(None, {"VMD_OPERATIONS__CONCURRENCY": "many"})
    assert message == "VMD_OPERATIONS__CONCURRENCY: operations.concurrency must be a whole number"


def test_a_wrong_variable_is_named_and_not_the_file_that_it_overrides(tmp_path: Path) -> None:
    file = write(tmp_path, "[operations]\nconcurrency = 8\n")
    assert refusal(file, {"VMD_OPERATIONS__CONCURRENCY": "0"}).startswith("VMD_OPERATIONS__CONCURRENCY: ")


def test_a_variable_below_what_is_no_table_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "http = 5\n")
    assert refusal(file, {"VMD_HTTP__LISTEN": "x"}).startswith("VMD_HTTP__LISTEN: http.listen ")


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("0.0.0.0:80", "0.0.0.0:80"),
        ("[::1]:80", "[::1]:80"),
        ("unix:/run/vmd.sock", "unix:/run/vmd.sock"),
        ("word", "word"),
        ('"quoted # x"', "quoted # x"),
        ("'single'", "single"),
        ("two words", "two words"),
        ("", ""),
        ("ü", "ü"),
    ],
)
def test_a_bare_word_is_a_string(text: str, listen: str) -> None:
    assert load(None, {"VMD_HTTP__LISTEN": text}, {}).settings.http.listen == listen


def test_a_variable_is_toml() -> None:
    environment = {
        "VMD_OPERATIONS__CONCURRENCY": "3",
        "VMD_JANITOR__INTERVAL_SECONDS": "0.5",
        "VMD_PROVIDERS__DOCKER__ENABLED": "false",
        "VMD_HTTP__HOSTS": '["a", "b"]',
        "VMD_WORKSPACES__RESOURCES": "{cpus = 2, memory_mb = 64}",
        "VMD_PROVIDERS__DOCKER__BASE_IMAGE": "registry.local:5000/base:1",
    }
    settings = load(None, environment, {}).settings
    assert settings.operations.concurrency == 3
    assert settings.janitor.interval_seconds == 0.5
    assert settings.providers.docker.enabled is False
    assert settings.http.hosts == ("a", "b")
    assert (settings.workspaces.resources.cpus, settings.workspaces.resources.memory_mb) == (2.0, 64)
    assert settings.providers.docker.base_image == "registry.local:5000/base:1"


def test_a_variable_of_several_lines_is_no_way_to_hide_a_second_value() -> None:
    assert refusal(None, {"VMD_OPERATIONS__CONCURRENCY": "3\nother = 4"})


def test_variables_of_others_are_left_alone() -> None:
    environment = {
        "VMD_URL": "u",
        "VMD_TOKEN": "t",
        "VMD_CACHE_DIR": "c",
        "VMD_DATA_DIR": "d",
        "VMD_CONFIG": "f",
        "HOME": "/root",
        "vmd_http__listen": "x",
        "XVMD_HTTP__LISTEN": "x",
    }
    assert load(None, environment, {}).settings == Settings()


def test_every_setting_is_listed_with_where_it_came_from(tmp_path: Path) -> None:
    file = write(tmp_path, "[http]\nhosts = ['h']\n[log]\nlevel = 'debug'\n[providers.docker]\nsudo = true\n")
    shown = lines(
        file, {"VMD_OPERATIONS__CONCURRENCY": "3", "VMD_LOG__LEVEL": "error"}, {LISTEN: "127.0.0.1:0"}
    )
    assert 'http.listen = "127.0.0.1:0"  # command line' in shown
    assert f'http.hosts = ["h"]  # {file}' in shown
    assert 'log.level = "error"  # VMD_LOG__LEVEL' in shown
    assert "operations.concurrency = 3  # VMD_OPERATIONS__CONCURRENCY" in shown
    assert f"providers.docker.sudo = true  # {file}" in shown
    assert 'log.format = "auto"  # default' in shown
    assert "quota.cpus = unset  # default" in shown
    assert len(shown) == len({line.split(" = ")[0] for line in shown})


def test_a_table_that_a_variable_replaces_is_no_longer_the_files(tmp_path: Path) -> None:
    file = write(tmp_path, "[http]\nlisten = 'a:1'\n")
    shown = lines(file, {"VMD_HTTP": "{listen = 'b:2'}"}, {})
    assert 'http.listen = "b:2"  # VMD_HTTP' in shown


def test_what_is_shown_is_what_is_in_force(tmp_path: Path) -> None:
    text = (
        "[http]\nlisten = 'unix:/tmp/\"odd\\path'\nhosts = ['a', 'b']\n"
        "[quota]\ncpus = 1234567.25\nmemory_mb = 12345678\n[janitor]\ninterval_seconds = 0.05\n"
    )
    loaded = load(write(tmp_path, text), {}, {})
    shown = "\n".join(line for line in loaded.lines() if " = unset  # " not in line)
    assert load(write(tmp_path, shown), {}, {}).settings == loaded.settings
    assert tomllib.loads(shown)["http"]["hosts"] == ["a", "b"]
