"""The life-cycle commands of a devcontainer.json as shell lines."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from vmd.orchestrator.presets.devcontainer.variables import Unresolvable, Variables

HONOURED = ("onCreateCommand", "updateContentCommand", "postCreateCommand")  # in the order they are run
MAX_COMMANDS = 20
MAX_COMMAND_CHARACTERS = 8000


def read_commands(
    properties: Mapping[str, Any], variables: Variables
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the shell lines to run once, one after another, and notes on what is left out."""
    commands: list[str] = []
    notes: list[str] = []
    for key in HONOURED:
        for place, value in _each(key, properties.get(key)):
            try:
                line = _line(value, place, variables)
            except Unresolvable as error:
                notes.append(f"{place} is left out: it {error}.")
                continue
            if line is None:
                notes.append(f"{place} is left out: it is neither a shell line nor a list of words.")
            elif len(commands) >= MAX_COMMANDS or len(line) > MAX_COMMAND_CHARACTERS:
                notes.append(f"{place} is left out: it is too long, or there are too many.")
            elif line:
                commands.append(line)
    return tuple(commands), tuple(notes)


def _each(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield a command, or each one of an object, which other tools run side by side."""
    if isinstance(value, dict):
        for number, command in enumerate(list(value.values())[: MAX_COMMANDS + 1]):
            yield f"{key} {number + 1}", command
    elif value is not None:
        yield key, value


def _line(value: Any, place: str, variables: Variables) -> str | None:
    if isinstance(value, str):
        line = variables.resolve(value, place).strip()
    elif isinstance(value, list) and value and all(isinstance(word, str) for word in value[:1000]):
        line = shlex.join(variables.resolve(word, place) for word in value[:1000])
    else:
        return None
    return None if "\0" in line else line
