"""The files of a repository as far as detection knows them: all their paths, and what a few of them say."""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cached_property

from attrs import define, field, frozen

from vmd.orchestrator.presets.rules import Places

MAX_PATHS = 100_000  # that are looked at
MAX_PATH_BYTES = 4096
MAX_FILE_BYTES = 256 * 1024  # of a file that is read
MAX_FILES = 200  # that are read
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@frozen(kw_only=True)
class TreeFile:
    """One file: what git calls its contents, and where it is."""

    path: str
    blob: str


@define(eq=False, slots=False)
class Tree:
    """Paths to blobs. Those whose names no shell line can hold are counted, and left out."""

    blobs: Mapping[str, str]
    unnamed: int = 0  # left out because of their names
    is_cut: bool = False  # there were more than MAX_PATHS
    contents: dict[str, bytes] = field(factory=dict)  # by path, of those that were read
    unread: set[str] = field(factory=set)  # were asked for and are too large, or are not there

    @cached_property
    def directories(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the files in each directory; the root is ''."""
        found: dict[str, list[str]] = {}
        for path in self.blobs:
            directory, _, name = path.rpartition("/")
            found.setdefault(directory, []).append(name)
        return {directory: tuple(names) for directory, names in found.items()}

    def find(self, directory: str, file: str) -> tuple[str, ...]:
        """Return the paths of a rule's file in a directory; its name may have a *."""
        place = join(directory, file)
        if "*" not in file:
            return (place,) if place in self.blobs else ()
        parent, _, pattern = place.rpartition("/")
        names = self.directories.get(parent, ())
        return tuple(join(parent, name) for name in sorted(names) if fnmatchcase(name, pattern))

    def text(self, path: str) -> str | None:
        """Return what a file says, None if it was not read; bytes that are not UTF-8 are replaced."""
        content = self.contents.get(path)
        return None if content is None else content.decode("utf-8-sig", "replace")


def make_tree(files: Iterable[tuple[bytes, str]], *, is_cut: bool = False) -> Tree:
    """Return the tree of these raw paths and blobs."""
    blobs: dict[str, str] = {}
    unnamed = 0
    for raw, blob in files:
        if len(blobs) >= MAX_PATHS:
            is_cut = True
            break
        path = raw.decode("utf-8", "surrogateescape")
        if len(raw) > MAX_PATH_BYTES or _UNPRINTABLE.search(path):
            unnamed += 1
        else:
            blobs[path] = blob
    return Tree(blobs, unnamed=unnamed, is_cut=is_cut)


def join(directory: str, name: str) -> str:
    """Return a path below a directory; the root is ''."""
    return f"{directory}/{name}" if directory else name


def is_ignored(directory: str, places: Places) -> bool:
    """Whether nothing is looked for in a directory."""
    return not places.ignored_names.isdisjoint(directory.split("/"))


def is_lesser(directory: str, places: Places) -> bool:
    """Whether a directory counts only where there is no other."""
    return not places.lesser_names.isdisjoint(directory.split("/"))


def level(directory: str) -> int:
    """Return how many directories below the root one is."""
    return directory.count("/") + 1 if directory else 0
