"""What the rules say, and where they are read from: TOML files beside this one, one an ecosystem."""

import re
import tomllib
from enum import StrEnum
from functools import cache, cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable

from attrs import field, frozen

from vmd.model.structuring import structure

_PLACES_FILE = "places.toml"


class Take(StrEnum):
    """What is taken of a place in a document."""

    VALUES = "values"  # the text there, or of each element there
    KEYS = "keys"  # the names of the object there
    REQUIREMENTS = "requirements"  # the name at the beginning of each text there


class Meaning(StrEnum):
    """What a declared version asks for."""

    EXACTLY = "exactly"  # this one; "3.12" is met by every 3.12.x
    AT_LEAST = "at-least"
    RANGE = "range"  # as the ecosystem's own tool reads it
    MANAGER = "manager"  # NAME@VERSION of a package manager


@frozen(kw_only=True)
class Sign:
    """A file that says that a directory holds a project."""

    file: str  # its path in the directory; the name may have *
    weight: int


@frozen(kw_only=True)
class Place:
    """Where in a file something is said: steps into a document, or a pattern whose first group it is."""

    file: str
    at: tuple[str, ...] = ()  # keys from the root; * for any; lists are gone through
    pattern: str | None = None  # applied to every line
    take: Take = Take.VALUES
    append: str = ""  # added to what was found


@frozen(kw_only=True)
class VersionPlace(Place):
    """Where a version is declared."""

    of: str
    means: Meaning

    @property
    def is_inherited(self) -> bool:
        """Whether it holds for directories below too: its tool looks for the file upwards."""
        return (
            self.file.startswith(".") or self.file.startswith("rust-toolchain") or self.file == "global.json"
        )


@frozen(kw_only=True)
class Framework:
    """Something within an ecosystem, known by a dependency on it or by a file."""

    id: str
    name: str
    dependencies: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    env: dict[str, str] = field(factory=dict)
    instead_of: tuple[str, ...] = ()  # frameworks that need no mention beside it


@frozen(kw_only=True)
class Install:
    """A command that installs dependencies, where all these files are."""

    files: tuple[str, ...]
    at: tuple[str, ...] = ()  # the first file must say something here
    command: str
    manager: str | None = None  # whose version takes the place of {version}
    version: str = ""  # where none is declared


@frozen(kw_only=True)
class Ecosystem:
    """All that is known of one ecosystem."""

    id: str
    name: str
    template: str | None = None
    packages: tuple[str, ...] = ()  # Debian's, where there is no template, or where several come together
    has: dict[str, str] = field(factory=dict)  # the versions of those packages
    sources: tuple[str, ...] = ()  # how the names of its source files end
    env: dict[str, str] = field(factory=dict)
    note: str | None = None  # what its presets say to their users
    is_hint: bool = False  # adds to other presets, and is one of its own where there is no other
    signs: tuple[Sign, ...]
    versions: tuple[VersionPlace, ...] = ()
    dependencies: tuple[Place, ...] = ()
    workspaces: tuple[
        Place, ...
    ] = ()  # which directories belong to the project; all below where none is said
    ports: tuple[Place, ...] = ()
    installs: tuple[Install, ...] = ()  # the first that fits is run
    frameworks: tuple[Framework, ...] = ()

    @property
    def wanted_files(self) -> tuple[str, ...]:
        """The files whose contents are looked at, as paths in a project's directory."""
        places = (*self.versions, *self.dependencies, *self.workspaces, *self.ports)
        said = [place.file for place in places if place.at or place.pattern]
        conditions = [install.files[0] for install in self.installs if install.at]
        return tuple(dict.fromkeys((*said, *conditions)))


@frozen(kw_only=True)
class Places:
    """Which directories are not looked into, and which count less."""

    max_depth: int
    ignored: tuple[str, ...]
    lesser: tuple[str, ...]

    @cached_property
    def ignored_names(self) -> frozenset[str]:
        """The names of directories that are not looked into."""
        return frozenset(self.ignored)

    @cached_property
    def lesser_names(self) -> frozenset[str]:
        """The names of directories that count less."""
        return frozenset(self.lesser)


@frozen(kw_only=True)
class Rules:
    """Everything that detection goes by."""

    places: Places
    ecosystems: tuple[Ecosystem, ...]


@cache
def load_rules() -> Rules:
    """Return the rules that come with vmd."""
    directory = files(__package__) / "rules"
    found = sorted(directory.iterdir(), key=lambda file: file.name)
    return Rules(
        places=structure(_read(directory / _PLACES_FILE), Places),
        ecosystems=tuple(
            structure(_read(file), Ecosystem)
            for file in found
            if file.name.endswith(".toml") and file.name != _PLACES_FILE
        ),
    )


@cache
def compiled(pattern: str) -> re.Pattern[str]:
    """Return a rule's pattern."""
    return re.compile(pattern)


def _read(file: Traversable) -> dict[str, object]:
    return tomllib.loads(file.read_text("utf-8"))
