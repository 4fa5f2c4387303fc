"""A repository's Dockerfile as a recipe: stages, arguments and images are settled before the engine sees it.

The engine of a daemon holds the images of everybody. So every image that is named must be one that the
repository may have, and what is read here must be what the engine reads: a recipe has one instruction a line.
"""

import re
from collections.abc import Collection, Mapping

from attrs import field, mutable

from vmd.orchestrator.presets.devcontainer.images import UnusableImage, image_reference

MAX_CHARACTERS = 64 * 1024
MAX_LINES = 2000
MAX_VALUE_CHARACTERS = 1000  # of an argument that names an image
_CONTINUED = re.compile(r"\\[ \t]*$")
_DIRECTIVE = re.compile(r"^#[ \t]*([A-Za-z]+)[ \t]*=[ \t]*(\S+)")
_FROM = re.compile(r"^FROM((?:\s+--\w+=\S+)*)\s+(\S+)(?:\s+AS\s+([A-Za-z0-9._-]+))?$", re.IGNORECASE)
_COPY_FROM = re.compile(r"^((?:ONBUILD\s+)?COPY\s.*?--from=)(\S+)", re.IGNORECASE)
_FLAG_FROM = re.compile(r"^\s*(?:ONBUILD\s+)?(?:RUN|ADD)\s+(?:--\S+\s+)*--(?:mount|from)\b", re.IGNORECASE)
_HEREDOC = re.compile(r"^\s*(?:ONBUILD\s+)?(?:RUN|COPY|ADD)\b.*<<-?[\"']?[A-Za-z_]", re.IGNORECASE)
_LABEL = re.compile(r"^(?:ONBUILD\s+)?LABEL\s", re.IGNORECASE)
_ARG = re.compile(r"^ARG\s+(.+)$", re.IGNORECASE)
_ARG_TOKEN = re.compile(r"([A-Za-z_]\w*)(?:=(\"(?:[^\"\\]|\\.)*\"|'[^']*'|\S*))?(?:\s+|$)")
_USE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?::-([^}]*))?\})")


class UnusableDockerfile(Exception):
    """A Dockerfile cannot be built here; the message says why."""


@mutable(kw_only=True)
class _Reading:
    """How far a Dockerfile is read."""

    given: Mapping[str, str]
    allowed: Collection[str]
    values: dict[str, str] = field(factory=dict)  # of the arguments before the first stage
    stages: list[str | None] = field(factory=list)
    lines: list[str] = field(factory=list)
    notes: list[str] = field(factory=list)


def make_recipe(
    text: str, arguments: Mapping[str, str], target: str | None, allowed: Collection[str]
) -> tuple[str, tuple[str, ...]]:
    """Return the recipe that builds a stage, the last one for None, and notes; raise UnusableDockerfile."""
    reading = _Reading(given=arguments, allowed=allowed)
    for line in _instructions(text):
        if _is_from(line):
            if target is not None and _names(reading, target):
                break
            _read_from(reading, line)
        elif _LABEL.match(line):
            reading.notes.append("LABEL is not honoured: labels say whose an image is.")
        else:
            reading.lines.append(_read_other(reading, line))
    if not reading.stages:
        raise UnusableDockerfile("it has no FROM")
    if target is not None and not _names(reading, target):
        raise UnusableDockerfile(f"it has no stage '{target[:100]}'")
    return "\n".join(reading.lines) + "\n", tuple(dict.fromkeys(reading.notes))


def _instructions(text: str) -> list[str]:
    """Return each instruction on a line of its own, without comments, as the engine joins them."""
    if len(text) > MAX_CHARACTERS:
        raise UnusableDockerfile(f"it is longer than {MAX_CHARACTERS // 1024} KiB")
    if re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x85\u2028\u2029]", text):
        raise UnusableDockerfile("it has control characters")
    found: list[str] = []
    joined: str | None = None
    for line in text.replace("\r\n", "\n").split("\n"):
        directive = _DIRECTIVE.match(line)
        if directive is not None and directive[1].lower() == "escape" and directive[2] != "\\":
            raise UnusableDockerfile("it changes the escape character")
        if line.lstrip().startswith("#") or (joined is not None and not line.strip()):
            continue
        text_of_line = line if joined is not None else line.lstrip()
        whole = (joined or "") + text_of_line
        if _CONTINUED.search(text_of_line):
            joined = _CONTINUED.sub("", whole)
            continue
        joined = None
        if whole.strip():
            found.append(whole.strip())
    if joined and joined.strip():
        found.append(joined.strip())
    if len(found) > MAX_LINES:
        raise UnusableDockerfile(f"it has more than {MAX_LINES} instructions")
    if any(_CONTINUED.search(line) for line in found):
        raise UnusableDockerfile("a line ends in more than one backslash")
    return found


def _is_from(line: str) -> bool:
    return line.split(maxsplit=1)[0].upper() == "FROM"


def _names(reading: _Reading, target: str) -> bool:
    """Whether the stage that was read last is the target, given by its name or number."""
    if not reading.stages:
        return False
    name = reading.stages[-1]
    return target.lower() == name or target == str(len(reading.stages) - 1)


def _read_from(reading: _Reading, line: str) -> None:
    match = _FROM.match(line)
    if match is None:
        raise UnusableDockerfile(f"this cannot be understood: {line[:100]}")
    if match[1].strip():
        reading.notes.append(f"{match[1].strip()} of FROM is not honoured.")
    image = _image(reading, _expand(reading, match[2]))
    name = None if match[3] is None else match[3].lower()
    reading.lines.append(f"FROM {image}" if name is None else f"FROM {image} AS {name}")
    reading.stages.append(name)


def _read_other(reading: _Reading, line: str) -> str:
    if _HEREDOC.match(line):
        raise UnusableDockerfile("it has here-documents, which need BuildKit")
    if _FLAG_FROM.match(line):
        raise UnusableDockerfile("it has mounts, which need BuildKit")
    if (match := _ARG.match(line)) is not None:
        return _read_arguments(reading, match[1])
    if (match := _COPY_FROM.match(line)) is not None:
        if "--from=" in line[match.end() :]:
            raise UnusableDockerfile("a COPY has two --from")
        image = match[2] if match[2].isdigit() else _image(reading, match[2])
        return f"{match[1]}{image}{line[match.end() :]}"
    return line


def _read_arguments(reading: _Reading, text: str) -> str:
    """Return an ARG with the given values; note the values of those that stages may be made from."""
    shown = []
    at = 0
    while at < len(text):
        match = _ARG_TOKEN.match(text, at)
        if match is None or match.end() == at:
            raise UnusableDockerfile(f"this cannot be understood: ARG {text[:100]}")
        at = match.end()
        name, default = match[1], match[2]
        if name in reading.given:
            default = _quoted(reading.given[name])
        shown.append(name if default is None else f"{name}={default}")
        if not reading.stages and default is not None:
            reading.values[name] = _expand(reading, _unquoted(default))
    return f"ARG {' '.join(shown)}"


def _image(reading: _Reading, name: str) -> str:
    if name.lower() in (*filter(None, reading.stages), "scratch"):
        return name.lower()
    try:
        return image_reference(name, reading.allowed)
    except UnusableImage as error:
        raise UnusableDockerfile(str(error)) from None


def _expand(reading: _Reading, text: str) -> str:
    """Return a text with the values of arguments before the first stage; what is unknown is refused."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        found = reading.values.get(name) or match[3]
        if found is None:
            raise UnusableDockerfile(f"the argument {name[:100]} has no value")
        return found

    expanded = _USE.sub(value, text)
    if len(expanded) > MAX_VALUE_CHARACTERS or "$" in _USE.sub("", text):
        raise UnusableDockerfile(f"this cannot be understood: {text[:100]}")
    return expanded


def _quoted(value: str) -> str:
    return '"' + re.sub(r'(["\\$])', r"\\\1", value) + '"'


def _unquoted(text: str) -> str:
    if text[:1] == text[-1:] == "'" and len(text) > 1:
        return text[1:-1]
    if text[:1] == text[-1:] == '"' and len(text) > 1:
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text
