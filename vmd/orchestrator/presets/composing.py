"""Presets out of findings: which image, what to run in it, and how it is called."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, TypeVar

from attrs import evolve, frozen

from vmd.model.preset import Evidence, Preset, PresetPart
from vmd.model.template import Template
from vmd.orchestrator.presets.findings import Finding
from vmd.orchestrator.presets.rules import Ecosystem, Rules

T = TypeVar("T")

DEFAULT_TEMPLATE = "base"
MAX_PARTS = 8  # projects of one preset
MAX_NAMED_PARTS = 4  # of its id
MAX_EVIDENCE = 60
MIN_SHARE = 0.02  # of the source files, below which a project without a framework is left out
_RECIPE = """FROM {base}
RUN export DEBIAN_FRONTEND=noninteractive \\
    && apt-get update -q && apt-get install -q -y --no-install-recommends {packages} \\
    && rm -rf /var/lib/apt/lists/*
"""


@frozen(kw_only=True)
class Basis:
    """What a preset's machine is made from."""

    template: Template  # whose settings hold where the preset says nothing
    image: str
    recipe: str | None
    template_id: str | None


def compose(findings: Sequence[Finding], templates: Mapping[str, Template]) -> tuple[Preset, ...]:
    """Return the presets for these findings, best first: for all together, then for each alone."""
    hints = [one for one in findings if one.project.ecosystem.is_hint]
    real = [one for one in findings if not one.project.ecosystem.is_hint]
    if not real:
        return tuple(_preset([hint], (), templates) for hint in hints[:1])
    together = [one for one in real if _counts(one, real)]
    presets = [_preset(together[:MAX_PARTS], hints, templates)] if len(together) > 1 else []
    presets += [_preset([one], hints, templates) for one in real]
    if len(together) > MAX_PARTS:
        note = f"{len(together) - MAX_PARTS} more projects are left out; at most {MAX_PARTS} come together."
        presets[0] = evolve(presets[0], notes=(*presets[0].notes, note))
    return tuple(presets)


def list_presets(rules: Rules, templates: Mapping[str, Template]) -> tuple[Preset, ...]:
    """Return every preset that a repository with one project may get, without what depends on its files."""
    presets = []
    for ecosystem in rules.ecosystems:
        if ecosystem.is_hint:
            continue
        plain = Preset(
            id=f"{ecosystem.id}-project",
            name=ecosystem.name,
            description=_described(ecosystem.name),
            notes=() if ecosystem.note is None else (ecosystem.note,),
            **_values(_basis([ecosystem], templates), [ecosystem]),
        )
        presets.append(plain)
        presets += [
            evolve(
                plain,
                id=framework.id,
                name=framework.name,
                description=_described(framework.name),
                env={**plain.env, **framework.env},
                ports=framework.ports or plain.ports,
            )
            for framework in ecosystem.frameworks
        ]
    return tuple(presets)


def _described(name: str) -> str:
    return f"What a repository with {name} gets where its request names no template."


def _counts(finding: Finding, others: Sequence[Finding]) -> bool:
    """Whether a project takes part in the whole, or only helps there."""
    first = others[0]
    if finding is first or finding.frameworks:
        return True
    if any(other.project.share for other in others):
        return finding.project.share >= MIN_SHARE
    return finding.project.is_real and finding.project.directory != first.project.directory


def _preset(
    findings: Sequence[Finding], hints: Iterable[Finding], templates: Mapping[str, Template]
) -> Preset:
    ecosystems = _distinct(finding.project.ecosystem.id for finding in findings)
    known = [
        next(one.project.ecosystem for one in findings if one.project.ecosystem.id == ecosystem)
        for ecosystem in ecosystems
    ]
    basis = _basis(known, templates)
    values = _values(basis, known)
    directories = {directory for finding in findings for directory in finding.project.directories}
    near = [hint for hint in hints if hint.project.directory in directories]
    said = [*findings, *near]
    ids = _distinct(finding.id for finding in findings)
    env = {name: text for finding in findings for one in finding.frameworks for name, text in one.env.items()}
    values |= {
        "env": {**values["env"], **env},
        "ports": _distinct(port for finding in said for port in finding.ports) or values["ports"],
        "provisioning": (*values["provisioning"], *map(_step, (one for one in findings if one.command))),
    }
    return Preset(
        id="+".join((*ids[:MAX_NAMED_PARTS], *(("more",) if len(ids) > MAX_NAMED_PARTS else ()))),
        name=" and ".join(_distinct(finding.name for finding in findings)),
        description=_describe(findings),
        parts=tuple(_part(finding) for finding in findings),
        evidence=_evidence(said),
        versions=_distinct(version for finding in findings for version in finding.versions),
        notes=_distinct(note for finding in findings for note in finding.notes),
        **values,
    )


def _basis(ecosystems: Sequence[Ecosystem], templates: Mapping[str, Template]) -> Basis:
    """Return the one template that fits, or an image of our own with the packages of all."""
    base = templates[DEFAULT_TEMPLATE]
    wanted = [ecosystem for ecosystem in ecosystems if ecosystem.template or ecosystem.packages]
    if not wanted:
        return Basis(template=base, image=base.image, recipe=recipe_of(base), template_id=base.id)
    template = templates.get(wanted[0].template or "")
    if len(wanted) == 1 and template is not None:
        image, recipe = template.image, recipe_of(template)
        return Basis(template=template, image=image, recipe=recipe, template_id=template.id)
    for ecosystem in wanted:
        base = _as_large(base, templates.get(ecosystem.template or ""))
    packages = sorted({package for ecosystem in wanted for package in ecosystem.packages})
    recipe = _RECIPE.format(base=base.image, packages=" ".join(packages))
    digest = sha256(recipe.encode()).hexdigest()[:16]
    return Basis(template=base, image=f"vmd-preset:{digest}", recipe=recipe, template_id=None)


def _as_large(template: Template, other: Template | None) -> Template:
    """Return a template with at least the processors and memory of another one."""
    if other is None:
        return template
    ours, theirs = template.resources, other.resources
    most = evolve(ours, cpus=max(ours.cpus, theirs.cpus), memory_mb=max(ours.memory_mb, theirs.memory_mb))
    return evolve(template, resources=most)


def recipe_of(template: Template) -> str | None:
    """Return what a template's image is built from, None where it is pulled or there."""
    recipe: str | None = getattr(template, "recipe", None)
    return recipe


def _values(basis: Basis, ecosystems: Iterable[Ecosystem]) -> dict[str, Any]:
    """Return the fields that a preset has from its basis."""
    template = basis.template
    return {
        "image": basis.image,
        "recipe": basis.recipe,
        "template": basis.template_id,
        "resources": template.resources,
        "env": {**template.env, **{name: text for one in ecosystems for name, text in one.env.items()}},
        "ports": template.ports,
        "provisioning": template.provisioning,
        "ttl_seconds": template.ttl_seconds,
        "idle_timeout_seconds": template.idle_timeout_seconds,
        "plugins": template.plugins,
    }


def _step(finding: Finding) -> str:
    """Return the line that installs a project's dependencies; its failure costs nobody the workspace."""
    directory, command = finding.project.directory, finding.command
    place = f"cd -- {shlex.quote(directory)} && " if directory else ""
    failed = f"Installing the dependencies of {directory or 'the repository'} failed; do it by hand."
    return f"{place}{{ {command}; }} || echo {shlex.quote(failed)} >&2"


def _part(finding: Finding) -> PresetPart:
    return PresetPart(
        ecosystem=finding.project.ecosystem.id,
        directory=finding.project.directory or ".",
        frameworks=tuple(framework.id for framework in finding.frameworks),
    )


def _describe(findings: Sequence[Finding]) -> str:
    places = (f"{finding.name} in {finding.project.directory or 'the root'}" for finding in findings)
    return f"Found {', '.join(places)}."[:1000]


def _evidence(findings: Iterable[Finding]) -> tuple[Evidence, ...]:
    return _distinct(one for finding in findings for one in finding.evidence)[:MAX_EVIDENCE]


def _distinct(items: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(items))
