"""Workspaces of package managers: the projects that belong to another one."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from posixpath import normpath

from attrs import evolve, field, frozen

from vmd.orchestrator.presets.documents import Documents
from vmd.orchestrator.presets.projects import Project, order
from vmd.orchestrator.presets.tree import level

MAX_PATTERNS = 50  # with wildcards, of one project
_ALL_BELOW = "**"


@frozen(kw_only=True)
class _Members:
    """Which directories below its own a project takes in."""

    names: frozenset[str] = frozenset()
    patterns: tuple[tuple[str, ...], ...] = field(default=())
    without: tuple[tuple[str, ...], ...] = ()

    def has(self, directory: str) -> bool:
        steps = directory.split("/")
        if any(_fits(steps, pattern) for pattern in self.without):
            return False
        return directory in self.names or any(_fits(steps, pattern) for pattern in self.patterns)


def fold_members(projects: tuple[Project, ...], documents: Documents) -> tuple[Project, ...]:
    """Return the projects without those that belong to another one, whose members they become."""
    kept = {(one.ecosystem.id, one.directory): one for one in projects}
    for owner in sorted(projects, key=lambda project: -level(project.directory)):
        wanted = _members(owner, documents)
        below = f"{owner.directory}/" if owner.directory else ""
        members = [
            one
            for (ecosystem, directory), one in kept.items()
            if ecosystem == owner.ecosystem.id
            and directory != owner.directory
            and directory.startswith(below)
            and wanted.has(directory[len(below) :])
        ]
        if members:
            for member in members:
                del kept[member.ecosystem.id, member.directory]
            kept[owner.ecosystem.id, owner.directory] = evolve(
                owner,
                members=tuple(sorted(directory for one in members for directory in one.directories)),
                weight=max(owner.weight, *(one.weight for one in members)),
                share=owner.share + sum(one.share for one in members),
            )
    return tuple(sorted(kept.values(), key=order))


def _members(project: Project, documents: Documents) -> _Members:
    said: list[str] = []
    for place in project.ecosystem.workspaces:
        for path in documents.tree.find(project.directory, place.file):
            if not place.at and place.pattern is None:
                return _Members(patterns=((_ALL_BELOW,),))
            said += documents.values(path, place)
    wanted = [normpath(one.replace("\\", "/")) for one in said if not one.startswith("!")]
    return _Members(
        names=frozenset(one for one in wanted if "*" not in one),
        patterns=_patterns(one for one in wanted if "*" in one),
        without=_patterns(normpath(one[1:]) for one in said if one.startswith("!")),
    )


def _patterns(said: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(one.split("/")) for one in list(said)[:MAX_PATTERNS])


def _fits(steps: list[str], pattern: tuple[str, ...]) -> bool:
    """Match a directory with a pattern in which * stays within one name; in time that is bounded by both."""
    places = {0}  # how many of the steps may be matched so far
    for part in pattern:
        if part == _ALL_BELOW:
            places = set(range(min(places), len(steps) + 1)) if places else places
        else:
            places = {at + 1 for at in places if at < len(steps) and fnmatchcase(steps[at], part)}
    return len(steps) in places
