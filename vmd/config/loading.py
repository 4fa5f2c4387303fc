"""From files, variables and flags to settings, remembering where each value came from."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import fields, frozen, has

from vmd.config.settings import Settings
from vmd.model.structuring import Unstructurable, structure

PREFIX = "VMD_"
# Variables of the command line, of clients and of the archive, which are no settings.
RESERVED = frozenset({"VMD_URL", "VMD_TOKEN", "VMD_CACHE_DIR", "VMD_DATA_DIR", "VMD_CONFIG"})
_SECRET = re.compile(r"secret|password|token", re.IGNORECASE)
_MASK = "********"

Path_ = tuple[str, ...]


class ConfigError(Exception):
    """The settings cannot be used; the message says which and where."""


@frozen(kw_only=True)
class Loaded:
    """Settings, and where each that is not the default came from."""

    settings: Settings
    sources: Mapping[Path_, str]

    def lines(self) -> Iterator[str]:
        """Yield each setting in force with where it came from, secrets masked."""
        for path, value in _leaves(self.settings):
            source = _source(self.sources, path) or "default"
            shown = _MASK if _SECRET.search(path[-1]) and value else _toml(value)
            yield f"{'.'.join(path)} = {shown}  # {source}"


def load(file: Path | None, environment: Mapping[str, str], flags: Mapping[Path_, Any]) -> Loaded:
    """Return the settings in force; raise ConfigError for whatever is unknown or wrong."""
    data: dict[str, Any] = {}
    sources: dict[Path_, str] = {}
    text = ""
    if file is not None:
        text = _read(file)
        data = _parse(text, file)
        sources.update((path, str(file)) for path in _paths(data))
    for name, value in environment.items():
        if name.startswith(PREFIX) and name not in RESERVED:
            path = tuple(name.removeprefix(PREFIX).lower().split("__"))
            _put(data, sources, path, _value(value), name)
    for path, value in flags.items():
        _put(data, sources, path, value, "command line")
    try:
        return Loaded(settings=structure(data, Settings), sources=sources)
    except Unstructurable as error:
        first = error.errors[0]
        path = tuple(first.pointer.strip("/").split("/"))
        below = (source for known, source in sources.items() if known[: len(path)] == path)
        where = _source(sources, path) or next(below, "the settings")
        if file is not None and where == str(file):
            where = f"{file}, line {_line_of(text, path)}"
        raise ConfigError(f"{where}: {'.'.join(path)} {first.detail}") from None


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None


def _parse(text: str, file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {error}") from None


def _value(text: str) -> Any:
    """Return a variable's value as TOML; what is none, such as a bare word, is a string."""
    try:
        data = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return data["value"] if len(data) == 1 else text


def _put(data: dict[str, Any], sources: dict[Path_, str], path: Path_, value: Any, source: str) -> None:
    """Set one value, a whole table too, and remember its source instead of what was below it."""
    for step in path[:-1]:
        data = data.setdefault(step, {})
        if not isinstance(data, dict):
            raise ConfigError(f"{source}: {'.'.join(path)} is not a setting")
    data[path[-1]] = value
    for known in [known for known in sources if known[: len(path)] == path]:
        del sources[known]
    sources[path] = source


def _source(sources: Mapping[Path_, str], path: Path_) -> str | None:
    """Return where a setting, or the table it was set with, came from."""
    return next((sources[path[:end]] for end in range(len(path), 0, -1) if path[:end] in sources), None)


def _paths(data: Mapping[str, Any], base: Path_ = ()) -> Iterator[Path_]:
    """Yield the paths of values; an empty table counts as one."""
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from _paths(value, (*base, key))
        else:
            yield (*base, key)


def _leaves(settings: Any, base: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    for attribute in fields(type(settings)):
        value = getattr(settings, attribute.name)
        if has(type(value)):
            yield from _leaves(value, (*base, attribute.name))
        else:
            yield (*base, attribute.name), value


def _line_of(text: str, path: Path_) -> int:
    """Return the number of the line that sets this path, or of the table nearest to it."""
    table: Path_ = ()
    nearest = 1
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line):
            table = tuple(part.strip(" \"'") for part in header[1].split("."))
            if table == path[: len(table)]:
                nearest = number
        elif pair := re.match(r"\s*([^=#]+?)\s*=", line):
            key = (*table, *(part.strip(" \"'") for part in pair[1].split(".")))
            if key == path[: len(key)]:
                return number
    return nearest


def _toml(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
