"""Which directories of a repository hold projects, of which ecosystem, and how sure that is."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache

from attrs import evolve, frozen

from vmd.orchestrator.presets.rules import Ecosystem, Rules
from vmd.orchestrator.presets.tree import MAX_FILES, Tree, is_ignored, is_lesser, level

MAX_PROJECTS = 50  # that are looked at
SOURCES_WEIGHT = 30  # of a repository whose source files are all of one project
REAL_WEIGHT = 4  # of a sign that makes a project by itself
LEVEL_WEIGHT = 2  # taken for every directory on the way
_Key = tuple[str, str]  # ecosystem, directory


@frozen(kw_only=True)
class Project:
    """A directory that holds a project."""

    ecosystem: Ecosystem
    directory: str  # '' is the root
    files: tuple[str, ...]  # the paths that say so, the strongest first
    weight: float
    is_real: bool  # has more than a lock or version file
    share: float = 0.0  # of the source files that count
    members: tuple[str, ...] = ()  # directories of the projects that belong to it

    @property
    def directories(self) -> tuple[str, ...]:
        """Its own directory and those of its members."""
        return (self.directory, *self.members)


@frozen(kw_only=True)
class _Sign:
    """A rule's sign, taken apart for the look at every file."""

    ecosystem: Ecosystem
    weight: int
    parent: str  # the directory within the project
    name: str
    end: str  # how a name ends that may fit

    def place(self, directory: str, name: str) -> str | None:
        """Return the directory of the project that a file speaks of, None if it does not."""
        if not name.endswith(self.end) or not fnmatchcase(name, self.name):
            return None
        if not self.parent:
            return directory
        if directory == self.parent:
            return ""
        return directory.removesuffix(f"/{self.parent}") if directory.endswith(f"/{self.parent}") else None


def find_projects(tree: Tree, rules: Rules) -> tuple[Project, ...]:
    """Return every project by the names of files alone, the strongest first."""
    ecosystems = {ecosystem.id: ecosystem for ecosystem in rules.ecosystems}
    found = {
        key: Project(
            ecosystem=ecosystems[key[0]],
            directory=key[1],
            files=tuple(dict.fromkeys(path for _, path in sorted(said, key=lambda one: (-one[0], one[1])))),
            weight=max(weight for weight, _ in said) - LEVEL_WEIGHT * level(key[1]),
            is_real=any(weight >= REAL_WEIGHT for weight, _ in said),
        )
        for key, said in _signs(tree, rules).items()
    }
    firm = {key: one for key, one in found.items() if not is_lesser(one.directory, rules.places)} or found
    firm = _without_hints(firm)
    shares = _shares(tree, rules, firm)
    weighed = (
        evolve(one, weight=one.weight + SOURCES_WEIGHT * shares[key], share=shares[key])
        for key, one in firm.items()
    )
    return tuple(sorted(weighed, key=order))[:MAX_PROJECTS]


def wanted_paths(tree: Tree, projects: Iterable[Project]) -> tuple[str, ...]:
    """Return the files whose contents decide, those of the most important projects first."""
    paths: dict[str, None] = {}
    for project in projects:
        for file in project.ecosystem.wanted_files:
            paths.update(dict.fromkeys(tree.find(project.directory, file)))
        for place in project.ecosystem.versions:
            if place.is_inherited:
                paths.update(dict.fromkeys(tree.find("", place.file)))
    return tuple(paths)[:MAX_FILES]


def _without_hints(found: Mapping[_Key, Project]) -> dict[_Key, Project]:
    """Leave out what has a lock or version file alone, where its ecosystem has a real project elsewhere."""
    real = {ecosystem for (ecosystem, _), one in found.items() if one.is_real}
    return {key: one for key, one in found.items() if one.is_real or key[0] not in real}


def order(project: Project) -> tuple[bool, float, str, str]:
    """Sort projects, the strongest first; what only hints at something comes last."""
    return project.ecosystem.is_hint, -project.weight, project.directory, project.ecosystem.id


def _signs(tree: Tree, rules: Rules) -> dict[_Key, list[tuple[int, str]]]:
    """Return the files that say something, with their weights, by ecosystem and directory."""
    plain: dict[str, list[_Sign]] = {}
    patterns: list[_Sign] = []
    for sign in _all_signs(rules):
        if sign.parent or "*" in sign.name:
            patterns.append(sign)
        else:
            plain.setdefault(sign.name, []).append(sign)
    found: dict[_Key, list[tuple[int, str]]] = {}
    for path in tree.blobs:
        directory, _, name = path.rpartition("/")
        said = [(sign, directory) for sign in plain.get(name, ())]
        said += [(sign, place) for sign in patterns if (place := sign.place(directory, name)) is not None]
        if said and not is_ignored(directory, rules.places):
            for sign, place in said:
                if level(place) <= rules.places.max_depth:
                    found.setdefault((sign.ecosystem.id, place), []).append((sign.weight, path))
    return found


def _all_signs(rules: Rules) -> Iterator[_Sign]:
    for ecosystem in rules.ecosystems:
        for sign in ecosystem.signs:
            parent, _, name = sign.file.rpartition("/")
            yield _Sign(
                ecosystem=ecosystem,
                weight=sign.weight,
                parent=parent,
                name=name,
                end=name.rpartition("*")[2],
            )


def _shares(tree: Tree, rules: Rules, found: Mapping[_Key, Project]) -> dict[_Key, float]:
    """Return which part of the repository's source files lies in each project, its nearest one."""
    by_end = {end: ecosystem.id for ecosystem in rules.ecosystems for end in ecosystem.sources}
    counts: Counter[_Key] = Counter()

    @cache
    def owner(ecosystem: str, directory: str) -> _Key | None:
        """Return the nearest project at or above a directory."""
        while (ecosystem, directory) not in found:
            if not directory:
                return None
            directory = directory.rpartition("/")[0]
        return ecosystem, directory

    total = 0
    for directory, names in tree.directories.items():
        if is_ignored(directory, rules.places):
            continue
        for name in names:
            ecosystem = by_end.get(name[name.rfind(".") :]) if "." in name else None
            if ecosystem is not None:
                total += 1
                key = owner(ecosystem, directory)
                if key is not None:
                    counts[key] += 1
    return {key: counts[key] / total if total else 0.0 for key in found}
