"""The templates there are: the built-in one, and those of the administrator."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen

from vmd.model.errors import invalid_value
from vmd.model.structuring import Unstructurable, structure
from vmd.model.template import Template
from vmd.model.workspace import (
    Description,
    Env,
    NewResources,
    Ports,
    Provisioning,
    Resources,
    ShortName,
    TtlSeconds,
)

DEFAULT_TEMPLATE = "base"


@frozen(kw_only=True)
class TemplateFile:
    """What a template's TOML file may say; the file's name is the template's id."""

    name: ShortName | None = None
    description: Description = ""
    image: ShortName | None = None  # the base image where absent
    resources: NewResources = field(factory=NewResources)
    env: Env = field(factory=dict)
    ports: Ports = ()
    provisioning: Provisioning = ()
    ttl_seconds: TtlSeconds | None = None
    idle_timeout_seconds: TtlSeconds | None = None


class Catalogue:
    """Templates by id, and what is wrong with those that cannot be used."""

    def __init__(self, templates: Mapping[str, Template], broken: Mapping[str, str]) -> None:
        self.templates = templates
        self.broken = broken  # id -> why

    def resolve(self, template_id: str | None) -> Template:
        """Return a template, the default one for None; refuse an unknown or broken one."""
        wanted = template_id or DEFAULT_TEMPLATE
        if wanted in self.templates:
            return self.templates[wanted]
        if wanted in self.broken:
            raise invalid_value("/template", f"is broken: {self.broken[wanted]}; ask an administrator")
        raise invalid_value("/template", f"is unknown; there are {', '.join(sorted(self.templates))}")


def load_catalogue(directory: Path, base_image: str, resources: Resources) -> Catalogue:
    """Return the built-in template with those in `directory`; a broken file breaks only itself."""
    base = Template(
        id=DEFAULT_TEMPLATE,
        name="Base",
        description="A plain machine with git.",
        image=base_image,
        resources=resources,
    )
    templates, broken = {base.id: base}, {}
    for path in sorted(directory.glob("*.toml")):
        try:
            templates[path.stem] = _read(path, base)
        except (OSError, ValueError, Unstructurable) as error:
            broken[path.stem] = f"{path.name}: {error}"
    return Catalogue(templates, broken)


def _read(path: Path, base: Template) -> Template:
    file = structure(tomllib.loads(path.read_text("utf-8")), TemplateFile)
    return Template(
        id=path.stem,
        name=file.name or path.stem,
        description=file.description,
        image=file.image or base.image,
        resources=merge_resources(base.resources, file.resources),
        env=dict(file.env),
        ports=file.ports,
        provisioning=file.provisioning,
        ttl_seconds=file.ttl_seconds,
        idle_timeout_seconds=file.idle_timeout_seconds,
    )


def merge_resources(given: Resources, wanted: NewResources | None) -> Resources:
    """Return the wanted resources, with the given ones where it says nothing."""
    if wanted is None:
        return given
    return Resources(
        cpus=given.cpus if wanted.cpus is None else wanted.cpus,
        memory_mb=given.memory_mb if wanted.memory_mb is None else wanted.memory_mb,
        disk_mb=given.disk_mb if wanted.disk_mb is None else wanted.disk_mb,
        pids=given.pids if wanted.pids is None else wanted.pids,
    )
