"""Detection: the files of a repository in, the presets that fit out, best first."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from posixpath import basename, dirname

from attrs import evolve, frozen

from vmd.model.preset import Evidence, Preset
from vmd.model.template import Template
from vmd.orchestrator.presets.composing import DEFAULT_TEMPLATE, compose, recipe_of
from vmd.orchestrator.presets.devcontainer import (
    Devcontainer,
    devcontainer_paths,
    dockerfile_paths,
    read_devcontainer,
)
from vmd.orchestrator.presets.devcontainer.variables import Variables
from vmd.orchestrator.presets.documents import Documents
from vmd.orchestrator.presets.findings import examine, rank
from vmd.orchestrator.presets.members import fold_members
from vmd.orchestrator.presets.projects import find_projects, wanted_paths
from vmd.orchestrator.presets.rules import Rules
from vmd.orchestrator.presets.tree import MAX_FILE_BYTES, MAX_FILES, MAX_PATHS, Tree

DEVCONTAINER = "devcontainer"
OWNER_LABEL = "vmd.workspace"  # by which a provider finds what goes with a workspace
MAX_BROKEN = 20  # documents that are named


@frozen(kw_only=True)
class Context:
    """What presets are made for."""

    templates: Mapping[str, Template]
    repository: str  # its name
    workspace_id: str | None = None  # None where nothing is made


@frozen(kw_only=True)
class Candidate:
    """A preset, and what of it no template has."""

    preset: Preset
    context: str | None = None  # the repository's directory that its recipe is built with
    user: str | None = None  # whom its provisioning runs as
    cpus: float | None = None  # at least
    memory_mb: int | None = None


def wanted_first(tree: Tree, rules: Rules) -> tuple[str, ...]:
    """Return the files to read before `wanted_later` is asked."""
    return tuple(dict.fromkeys((*devcontainer_paths(tree), *wanted_paths(tree, find_projects(tree, rules)))))[
        :MAX_FILES
    ]


def wanted_later(tree: Tree) -> tuple[str, ...]:
    """Return the files that those read first name, and that were not read yet."""
    return tuple(path for path in dockerfile_paths(tree) if path not in tree.contents)


def detect(tree: Tree, rules: Rules, context: Context) -> tuple[Candidate, ...]:
    """Return the presets that fit, best first; none where nothing is recognised."""
    documents = Documents.of(tree)
    projects = fold_members(find_projects(tree, rules), documents)
    findings = sorted((examine(project, documents) for project in projects), key=rank)
    notes = _notes(tree, documents)
    add_notes = partial(_with_notes, notes=notes)
    plain = [Candidate(preset=preset) for preset in map(add_notes, compose(findings, context.templates))]
    own = [
        _candidate(tree, devcontainer, plain[0].preset if plain else None, context)
        for devcontainer in _devcontainers(tree, context)
    ]
    usable = [candidate for candidate, is_broken in own if not is_broken]
    broken = [candidate for candidate, is_broken in own if is_broken]
    if broken and (usable or plain):
        said = [note for candidate in broken for note in candidate.preset.notes]
        return tuple(
            evolve(candidate, preset=_with_notes(candidate.preset, notes=said))
            for candidate in (*usable, *plain)
        )
    return (*usable, *plain, *broken)


def repository_name(url: str) -> str:
    """Return what a directory that a repository is cloned into is called."""
    return url.rstrip("/").replace(":", "/").rpartition("/")[2].removesuffix(".git") or "workspace"


def _devcontainers(tree: Tree, context: Context) -> Iterable[Devcontainer]:
    base = context.templates[DEFAULT_TEMPLATE]
    allowed = {base.image, *(template.image for template in context.templates.values())}
    for path in devcontainer_paths(tree):
        variables = Variables(
            repository=context.repository, identifier=context.workspace_id or context.repository
        )
        yield read_devcontainer(tree, path, variables, allowed)


def _candidate(
    tree: Tree, devcontainer: Devcontainer, below: Preset | None, context: Context
) -> tuple[Candidate, bool]:
    """Return the candidate of one devcontainer.json, and whether it is one in name only."""
    base = context.templates[DEFAULT_TEMPLATE]
    plain = Preset(
        id=base.id,
        name=base.name,
        image=base.image,
        recipe=recipe_of(base),
        template=base.id,
        resources=base.resources,
        env=base.env,
    )
    preset = below or plain
    if devcontainer.build is not None or devcontainer.image is not None:
        # An image of its own: what was found of the repository is told, but nothing is done for it.
        known = {name: getattr(preset, name) for name in ("parts", "evidence", "versions", "ports")}
        preset = evolve(plain, template=None, recipe=None, **known)
        if devcontainer.ports:
            preset = evolve(preset, ports=())
    notes = list(devcontainer.notes)
    if devcontainer.build is not None:
        recipe = devcontainer.build.recipe
        if context.workspace_id is not None:
            recipe += f'LABEL {OWNER_LABEL}="{context.workspace_id}"\n'
        image = _built_image(tree, recipe, devcontainer.build.context, context)
        preset = evolve(preset, image=image, recipe=recipe)
    elif devcontainer.image is not None:
        preset = evolve(preset, image=devcontainer.image)
    elif not devcontainer.is_broken:
        notes.append(f"{devcontainer.path} names no image that can be used; {preset.image} is taken.")
    preset = evolve(
        preset,
        id=_id(devcontainer.path),
        name=devcontainer.name or "Dev container",
        description=f"What {devcontainer.path} asks for.",
        env={**preset.env, **devcontainer.env},
        ports=tuple(dict.fromkeys((*devcontainer.ports, *preset.ports))),
        provisioning=devcontainer.commands or preset.provisioning,
        evidence=(Evidence(path=devcontainer.path, detail="is there"), *preset.evidence),
        notes=(*notes, *preset.notes),
    )
    candidate = Candidate(
        preset=preset,
        context=None if devcontainer.build is None else devcontainer.build.context,
        user=devcontainer.user,
        cpus=devcontainer.cpus,
        memory_mb=devcontainer.memory_mb,
    )
    return candidate, devcontainer.is_broken


def _built_image(tree: Tree, recipe: str, directory: str, context: Context) -> str:
    """Return a name that changes with the recipe and with the files that go into the image."""
    digest = sha256(recipe.encode())
    below = f"{directory}/" if directory else ""
    for path, blob in tree.blobs.items():
        if path.startswith(below):
            digest.update(f"{path}\0{blob}\n".encode())
    owner = f"{context.workspace_id}-" if context.workspace_id else ""
    return f"vmd-{DEVCONTAINER}:{owner}{digest.hexdigest()[:16]}"


def _id(path: str) -> str:
    """Return the preset's id: the directory's name tells several apart."""
    name = basename(dirname(path))
    if name in ("", ".devcontainer"):
        return DEVCONTAINER
    return f"{DEVCONTAINER}-{''.join(one if one.isalnum() else '-' for one in name)[:40]}"


def _notes(tree: Tree, documents: Documents) -> tuple[str, ...]:
    """Return what could not be looked at."""
    notes = [f"{path} {why}; it is not looked at." for path, why in sorted(documents.broken.items())]
    large = sorted(tree.unread)
    notes += [
        f"{path} is not looked at: it is larger than {MAX_FILE_BYTES // 1024} KiB, or cannot be read."
        for path in large
    ]
    notes = notes[:MAX_BROKEN]
    if tree.is_cut:
        notes.append(f"Only the first {MAX_PATHS} files of the repository are looked at.")
    if tree.unnamed:
        notes.append(f"{tree.unnamed} files are not looked at, because their names cannot be printed.")
    return tuple(notes)


def _with_notes(preset: Preset, notes: Sequence[str]) -> Preset:
    return evolve(preset, notes=tuple(dict.fromkeys((*preset.notes, *notes))))
