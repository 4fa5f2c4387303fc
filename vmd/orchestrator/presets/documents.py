"""Manifests as plain values. They come from strangers: whatever is wrong with one is said, and no more."""

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from xml.etree.ElementTree import Element

import pyjson5
import yaml
from attrs import frozen
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from vmd.orchestrator.presets.rules import Place, Take, compiled
from vmd.orchestrator.presets.tree import Tree

MAX_DEPTH = 100  # of a document
MAX_YAML_CHARACTERS = 64 * 1024  # the parser is slow
MAX_FOUND = 2000  # values of one place
MAX_VALUE_CHARACTERS = 200
MAX_LINE_CHARACTERS = 500  # so that no pattern takes long, whatever stands there
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9@][\w./@-]*)")


class Unreadable(Exception):
    """A document is not what its name says; the message says why."""


@frozen(kw_only=True)
class Documents:
    """Reads the documents of one tree, each once."""

    tree: Tree
    parsed: dict[str, Any]
    broken: dict[str, str]  # path -> why

    @classmethod
    def of(cls, tree: Tree) -> "Documents":
        """Return a reader that has read nothing yet."""
        return cls(tree=tree, parsed={}, broken={})

    def values(self, path: str, place: Place) -> Iterator[str]:
        """Yield what a file says at a rule's place, shortened; nothing if it cannot be read."""
        for count, value in enumerate(self._all_values(path, place)):
            if count >= MAX_FOUND:
                return
            yield f"{printable(value.strip()[:MAX_VALUE_CHARACTERS])}{place.append}"

    def _all_values(self, path: str, place: Place) -> Iterator[str]:
        text = self.tree.text(path)
        if text is None:
            return
        if place.pattern is not None:
            find = compiled(place.pattern).finditer
            for line in text.splitlines():
                yield from (found[1] for found in find(line[:MAX_LINE_CHARACTERS]))
        elif place.at:
            for value in _reach(self._document(path, text), place.at):
                yield from _taken(value, place.take)

    def says(self, path: str, at: tuple[str, ...]) -> bool:
        """Whether there is anything at these steps of a document."""
        text = self.tree.text(path)
        return text is not None and any(True for _ in _reach(self._document(path, text), at))

    def _document(self, path: str, text: str) -> Any:
        if path in self.broken:
            return None
        if path not in self.parsed:
            try:
                self.parsed[path] = parse(path, text)
            except Unreadable as error:
                self.broken[path] = str(error)
                return None
        return self.parsed[path]


def printable(text: str) -> str:
    """Return a text that a log and JSON can hold, whatever a stranger wrote."""
    return text if text.isprintable() else "".join(one if one.isprintable() else "?" for one in text)


def parse(path: str, text: str) -> Any:
    """Return a document as plain values, by the end of its name; raise Unreadable."""
    for ends, kind, parser in _PARSERS:
        if path.endswith(ends):
            try:
                return parser(text)
            except _WRONG as error:
                detail = " ".join(str(error).split())[:120] or type(error).__name__
                raise Unreadable(f"is not valid {kind}: {detail}") from None
            except RecursionError:
                raise Unreadable(f"is not valid {kind}: it is nested too deeply") from None
    raise Unreadable("is of a kind that is not known")


def parse_json_with_comments(text: str) -> Any:
    """Return JSON that may have comments and trailing commas; raise Unreadable."""
    try:
        return pyjson5.decode(text, maxdepth=MAX_DEPTH)
    except (pyjson5.Json5Exception, ValueError) as error:
        detail = " ".join(str(error.args[0] if error.args else error).split())[:120]
        raise Unreadable(f"is not valid JSON with comments: {detail}") from None


def _parse_yaml(text: str) -> Any:
    if len(text) > MAX_YAML_CHARACTERS:
        raise ValueError(f"it is longer than {MAX_YAML_CHARACTERS // 1024} KiB")
    return yaml.safe_load(text)


def _parse_xml(text: str) -> Any:
    root = ElementTree.fromstring(text, forbid_dtd=True)
    return {_local(root.tag): _plain(root, 0)}


def _plain(element: Element, depth: int) -> Any:
    """Return an element as its text, or as its attributes (@name) and children by name."""
    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    found: dict[str, list[Any]] = {f"@{_local(name)}": [value] for name, value in element.attrib.items()}
    for child in element:
        found.setdefault(_local(child.tag), []).append(_plain(child, depth + 1))
    return found or element.text or ""


def _local(tag: object) -> str:
    """Return a name without its namespace."""
    return str(tag).rpartition("}")[2]


_PARSERS: tuple[tuple[tuple[str, ...], str, Callable[[str], Any]], ...] = (
    ((".toml", "Pipfile", ".lock"), "TOML", tomllib.loads),
    ((".json",), "JSON", json.loads),
    ((".yaml", ".yml"), "YAML", _parse_yaml),
    ((".xml", ".csproj", ".fsproj", ".vbproj", ".props"), "XML", _parse_xml),
)
_WRONG = (ValueError, yaml.YAMLError, ElementTree.ParseError, DefusedXmlException)


def _reach(value: Any, at: tuple[str, ...], depth: int = 0) -> Iterator[Any]:
    """Yield what these steps lead to; lists are gone through on the way, and at the end."""
    if isinstance(value, list):
        if depth < MAX_DEPTH:
            for element in value[:MAX_FOUND]:
                yield from _reach(element, at, depth + 1)
    elif not at:
        yield value
    elif isinstance(value, Mapping):
        inner = list(value.values()) if at[0] == "*" else [value[at[0]]] if at[0] in value else []
        for element in inner[:MAX_FOUND]:
            yield from _reach(element, at[1:], depth)


def _taken(value: Any, take: Take) -> Iterator[str]:
    if take is Take.KEYS:
        yield from (key for key in value if isinstance(key, str)) if isinstance(value, Mapping) else ()
    elif isinstance(value, str):
        if take is Take.VALUES:
            yield value
        elif match := _REQUIREMENT.match(value):
            yield match[1]
    elif isinstance(value, int | float) and not isinstance(value, bool) and take is Take.VALUES:
        yield str(value)
