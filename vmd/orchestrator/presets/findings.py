"""What the contents of a project's files say: frameworks, versions, ports, how to install."""

import re
from collections.abc import Iterator

from attrs import frozen

from vmd.model.preset import DeclaredVersion, Evidence
from vmd.orchestrator.presets.documents import Documents
from vmd.orchestrator.presets.projects import Project, order
from vmd.orchestrator.presets.rules import Framework, Install, Place, VersionPlace
from vmd.orchestrator.presets.versions import is_met

FRAMEWORK_WEIGHT = 5
MAX_VERSIONS = 10
MAX_PORTS = 20
MAX_SHOWN_FILES = 4  # that are named as signs of one project
_MANAGER = re.compile(r"^([a-z]+)@(\d{1,5}(?:\.\d{1,5}){0,2})")
_PORT = re.compile(r"\b(\d{1,5})(?:/tcp)?(?=\s|$)")


@frozen(kw_only=True)
class Finding:
    """A project, and what its files say."""

    project: Project
    frameworks: tuple[Framework, ...]
    versions: tuple[DeclaredVersion, ...]
    ports: tuple[int, ...]
    command: str | None  # that installs its dependencies
    evidence: tuple[Evidence, ...]
    notes: tuple[str, ...]

    @property
    def id(self) -> str:
        """What a preset for it alone is called."""
        if self.frameworks:
            return self.frameworks[0].id
        ecosystem = self.project.ecosystem
        return ecosystem.id if ecosystem.is_hint else f"{ecosystem.id}-project"

    @property
    def name(self) -> str:
        """What it is, for people."""
        return self.frameworks[0].name if self.frameworks else self.project.ecosystem.name


def examine(project: Project, documents: Documents) -> Finding:
    """Return what the files of a project say, as far as they were read."""
    evidence = [Evidence(path=path, detail="is there") for path in project.files[:MAX_SHOWN_FILES]]
    frameworks = _frameworks(project, documents, evidence)
    versions, notes = _versions(project, documents, evidence)
    install = _install(project, documents)
    ports = dict.fromkeys(port for framework in frameworks for port in framework.ports)
    ports.update(dict.fromkeys(_said_ports(project, documents, evidence)))
    if project.ecosystem.note is not None:
        notes.append(project.ecosystem.note)
    return Finding(
        project=project,
        frameworks=frameworks,
        versions=tuple(versions),
        ports=tuple(ports)[:MAX_PORTS],
        command=None if install is None else _command(install, versions),
        evidence=tuple(evidence),
        notes=tuple(dict.fromkeys(notes)),
    )


def rank(finding: Finding) -> tuple[bool, float, str, str]:
    """Sort findings, the strongest first: what a framework was found in is more than a manifest."""
    is_hint, weight, directory, ecosystem = order(finding.project)
    return is_hint, weight - (FRAMEWORK_WEIGHT if finding.frameworks else 0), directory, ecosystem


def _frameworks(project: Project, documents: Documents, evidence: list[Evidence]) -> tuple[Framework, ...]:
    named: dict[str, str] = {}  # normal name -> the file that depends on it
    for directory in project.directories:
        for place in project.ecosystem.dependencies:
            for path, value in _said(directory, place, documents):
                named.setdefault(_normal(value), path)
    found = []
    for framework in project.ecosystem.frameworks:
        sign = _sign_of(framework, project, documents, named)
        if sign is not None:
            found.append(framework)
            evidence.append(sign)
    hidden = {name for framework in found for name in framework.instead_of}
    return tuple(framework for framework in found if framework.id not in hidden)


def _sign_of(
    framework: Framework, project: Project, documents: Documents, named: dict[str, str]
) -> Evidence | None:
    for dependency in framework.dependencies:
        if (path := named.get(_normal(dependency))) is not None:
            return Evidence(path=path, detail=f"depends on {dependency}")
    for directory in project.directories:
        for file in framework.files:
            for path in documents.tree.find(directory, file):
                return Evidence(path=path, detail=f"is a file of {framework.name}")
    return None


def _versions(
    project: Project, documents: Documents, evidence: list[Evidence]
) -> tuple[list[DeclaredVersion], list[str]]:
    """Return the declared versions, and what is to be said of those that the packages do not meet."""
    found: list[DeclaredVersion] = []
    notes: list[str] = []
    for place in project.ecosystem.versions:
        for path, value in _declared(project, place, documents):
            declared = DeclaredVersion(of=place.of, value=value, path=path)
            if not value or declared in found or len(found) >= MAX_VERSIONS:
                continue
            found.append(declared)
            evidence.append(Evidence(path=path, detail=f"asks for {place.of} {value}"))
            has = project.ecosystem.has.get(place.of)
            if has is not None and is_met(value, place.means, has) is not True:
                notes.append(_unmet(declared, has, is_met(value, place.means, has)))
    return found, notes


def _declared(project: Project, place: VersionPlace, documents: Documents) -> Iterator[tuple[str, str]]:
    yield from _said(project.directory, place, documents)
    if project.directory and place.is_inherited:
        yield from _said("", place, documents)


def _unmet(declared: DeclaredVersion, has: str, is_known: bool | None) -> str:
    asked = f"{declared.path} asks for {declared.of} {declared.value}"
    if is_known is None:
        return f"{asked}, which cannot be compared with {has}, the version of the built-in image."
    return (
        f"{asked}; the built-in image has {has}. Install what is asked for in the workspace, or ask for a "
        "template that has it."
    )


def _said_ports(project: Project, documents: Documents, evidence: list[Evidence]) -> Iterator[int]:
    for place in project.ecosystem.ports:
        for path, value in _said(project.directory, place, documents):
            for port in _PORT.findall(value):
                if 0 < int(port) < 65536:
                    evidence.append(Evidence(path=path, detail=f"exposes port {int(port)}"))
                    yield int(port)


def _install(project: Project, documents: Documents) -> Install | None:
    for install in project.ecosystem.installs:
        paths = [documents.tree.find(project.directory, file) for file in install.files]
        if all(paths) and (not install.at or documents.says(paths[0][0], install.at)):
            return install
    return None


def _command(install: Install, versions: list[DeclaredVersion]) -> str:
    """Return the command with the declared version of its package manager, which is digits and dots alone."""
    version = install.version
    for declared in versions:
        match = _MANAGER.match(declared.value)
        if match is not None and match[1] == install.manager:
            version = match[2]
    return install.command.replace("{version}", version)


def _said(directory: str, place: Place, documents: Documents) -> Iterator[tuple[str, str]]:
    """Yield (path, value) of all that files of a directory say at a rule's place."""
    for path in documents.tree.find(directory, place.file):
        for value in documents.values(path, place):
            yield path, value


def _normal(name: str) -> str:
    """Return a package's name as its ecosystem compares it: PEP 503's way, which hurts no other."""
    return re.sub(r"[-_.]+", "-", name).lower()
