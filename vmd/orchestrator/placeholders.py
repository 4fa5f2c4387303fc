"""Placeholders: where the values of a template's parameters go.

`{{name}}` stands for the value of the parameter `name`:
- in the value of an env variable for its text, whatever it is, since no shell reads that;
- in a recipe for its text too, of which `require_plain` has kept out what could mean something there;
- in a provisioning line for the variable `VMD_PARAM_NAME`, which the machine has in its environment. A shell
  never reads what a variable holds as part of its line, so that a text stays one, quotes, `$(…)` and all,
  unless the line itself gives it to something that does, such as `eval`. It is put in double quotes, unless
  it stands in some, so that it stays one word as well.

In a recipe `{{base}}` is the base image. Whatever else looks like a placeholder makes the template unusable.
"""

import re
from collections.abc import Collection, Mapping

from vmd.model.parameter import PARAMETER_NAME_PATTERN

BASE = "base"  # no parameter has this name
VARIABLE_PREFIX = "VMD_PARAM_"

_PLACEHOLDER = re.compile(r"\{\{ *([A-Za-z_][A-Za-z0-9_-]*) *\}\}")


class Misplaced(Exception):
    """A placeholder cannot stand where it stands; the message says why."""


def names_in(text: str) -> frozenset[str]:
    """Return the names of a text's placeholders."""
    return frozenset(match[1] for match in _PLACEHOLDER.finditer(text))


def require_known(text: str, known: Collection[str]) -> None:
    """Raise Misplaced for a placeholder that stands for nothing."""
    for name in sorted(names_in(text) - set(known)):
        listed = ", ".join(f"{{{{{one}}}}}" for one in sorted(known)) or "none"
        raise Misplaced(f"has {{{{{name}}}}}, which stands for nothing; known here are: {listed}")


def replace(text: str, values: Mapping[str, str]) -> str:
    """Return a text with values instead of their placeholders; the others stay."""
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text)


def variable_of(name: str) -> str:
    """Return the environment variable that has the value of a parameter."""
    return VARIABLE_PREFIX + name.upper()


def shell_line(line: str) -> str:
    """Return a line of shell with variables for its placeholders; raise Misplaced for single quotes."""
    return _ShellLine(line).with_variables()


class _ShellLine:
    """A line of shell, read just well enough to know what is quoted.

    Where it is read wrongly, as in a here-document, a value may be split into words or get quotes around it;
    it is never read as part of the line.
    """

    def __init__(self, line: str) -> None:
        self._line = line
        self._inside: list[str] = []  # the quotes, parentheses and backticks that are open

    def with_variables(self) -> str:
        pieces = []
        place = 0
        while place < len(self._line):
            if match := _PLACEHOLDER.match(self._line, place):
                pieces.append(self._variable(match[1]))
                place = match.end()
            else:
                end = self._skip(place)
                pieces.append(self._line[place:end])
                place = end
        return "".join(pieces)

    def _variable(self, name: str) -> str:
        reference = f"${{{variable_of(name)}}}"
        innermost = self._inside[-1] if self._inside else ""
        if innermost == "'":
            raise Misplaced(
                f"has {{{{{name}}}}} in single quotes, in which a shell takes nothing for a variable; "
                "use double quotes, or none"
            )
        return reference if innermost == '"' else f'"{reference}"'

    def _skip(self, place: int) -> int:
        """Return where the piece that begins here ends, having noted what it opens or closes."""
        line, inside = self._line, self._inside
        character = line[place]
        innermost = inside[-1] if inside else ""
        if innermost == "'":
            if character == "'":
                inside.pop()
        elif character == "\\":
            return place + 2
        elif (character == innermost and character in '"`') or (character == ")" and innermost == "("):
            inside.pop()
        elif line.startswith("$(", place):
            inside.append("(")
            return place + 2
        elif character in '"`' or (character in "'(" and innermost != '"'):
            inside.append(character)
        elif character == "#" and innermost != '"' and (place == 0 or line[place - 1] in " \t\n;&|("):
            return self._after_comment(place)
        return place + 1

    def _after_comment(self, place: int) -> int:
        end = self._line.find("\n", place)
        return len(self._line) if end < 0 else end


def may_be_name(name: str) -> bool:
    """Whether a parameter may have this name."""
    return name != BASE and re.fullmatch(PARAMETER_NAME_PATTERN, name) is not None
