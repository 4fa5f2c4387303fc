"""The templates there are: the built-in ones, those of the team, and the presets."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib.resources import as_file, files
from pathlib import Path

import structlog
from attrs import field, frozen

from vmd.model.account import Actor, Scope
from vmd.model.errors import invalid_value, not_found
from vmd.model.page import Page
from vmd.model.template import Template, TemplateKind
from vmd.model.workspace import Resources
from vmd.orchestrator.parameters import with_defaults
from vmd.orchestrator.permissions import require_scope
from vmd.orchestrator.template_files import BrokenTemplate, merge_resources, read_template

__all__ = ["DEFAULT_TEMPLATE", "Catalogue", "Templates", "merge_resources"]

DEFAULT_TEMPLATE = "base"
BUILT_IN = "builtin/templates"

_Stamp = tuple[tuple[str, int, int, int], ...]  # name, inode, size and time of each file

log = structlog.get_logger()


@frozen(kw_only=True)
class _Contents:
    """What a catalogue has at one moment."""

    offered: Mapping[str, Template] = field(factory=dict)  # by id: what a create may name
    broken: Mapping[str, str] = field(factory=dict)  # by id: why
    usable: Mapping[str, Template] = field(factory=dict)


class Catalogue:
    """Templates by id, read anew when their files have changed.

    A team's template takes the place of a built-in one of its id, and any template that of a preset. A broken
    one breaks only itself: what it would replace is not offered in its place.
    """

    def __init__(
        self,
        directory: Path,
        base_image: str,
        resources: Resources,
        *,
        known_plugins: Collection[str] | None = None,
        presets: Callable[[Mapping[str, Template]], Iterable[Template]] = lambda templates: (),
    ) -> None:
        """Prepare; nothing is read before `refresh`.

        `presets` makes the presets out of the templates; `known_plugins` is None where all ids are.
        """
        self._directory = directory
        self._base_image = base_image
        self._resources = resources
        self._known_plugins = known_plugins
        self._presets = presets
        self._stamp: _Stamp | None = None
        self._contents = _Contents()

    @property
    def templates(self) -> Mapping[str, Template]:
        """The templates that others build on, as they are without parameters.

        Where a team's template is broken or needs parameters, this is the built-in one of its id.
        """
        return self._contents.usable

    @property
    def broken(self) -> Mapping[str, str]:
        """Why each template that cannot be used cannot be, by id."""
        return self._contents.broken

    @property
    def images(self) -> frozenset[str]:
        """The images of all templates that are offered or built on."""
        contents = self._contents
        return frozenset(
            template.image for source in (contents.offered, contents.usable) for template in source.values()
        )

    async def refresh(self) -> None:
        """Read the templates if a file of them was added, changed or taken away since they were read."""
        stamp = await asyncio.to_thread(_stamp_of, self._directory)
        if stamp == self._stamp:
            return
        before = self._contents
        self._contents = await asyncio.to_thread(self._load)
        self._stamp = stamp
        for template, why in self._contents.broken.items():
            if before.broken.get(template) != why:
                log.warning("a template is broken", template=template, why=why)

    def resolve(self, template_id: str | None) -> Template:
        """Return a template, the default one for None; refuse an unknown or broken one."""
        wanted = template_id or DEFAULT_TEMPLATE
        contents = self._contents
        if wanted in contents.offered:
            return contents.offered[wanted]
        if wanted in contents.broken:
            raise invalid_value("/template", f"is broken: {contents.broken[wanted]}; ask an administrator")
        own = sorted(name for name, found in contents.offered.items() if found.kind is TemplateKind.TEMPLATE)
        raise invalid_value(
            "/template", f"is unknown; there are {', '.join(own)}, and presets, which GET /templates lists"
        )

    def find(self, template_id: str) -> Template | None:
        """Return a template or preset, None where there is none or it is broken."""
        return self._contents.offered.get(template_id)

    def list_after(self, after: str | None, limit: int, kind: TemplateKind | None = None) -> list[Template]:
        """Return up to `limit` templates and then presets, each by id, beginning after one."""
        offered = self._contents.offered
        begin = None if after is None else _place(offered.get(after), after)
        found = sorted(offered.values(), key=lambda template: _place(template, template.id))
        return [
            template
            for template in found
            if (kind is None or template.kind is kind)
            and (begin is None or _place(template, template.id) > begin)
        ][:limit]

    def _load(self) -> _Contents:
        with as_file(files("vmd.orchestrator") / BUILT_IN) as directory:
            built_in, flaws = self._read_all(directory)
        assert not flaws, flaws
        ours, broken = self._read_all(self._directory)
        usable = {**built_in}
        for template in ours.values():
            if (plain := with_defaults(template)) is not None:
                usable[template.id] = plain
        templates = {**built_in, **ours}
        presets = {preset.id: preset for preset in self._presets(usable)}
        offered = {
            name: template for name, template in {**presets, **templates}.items() if name not in broken
        }
        return _Contents(offered=offered, broken=broken, usable=usable)

    def _read_all(self, directory: Path) -> tuple[dict[str, Template], dict[str, str]]:
        templates, broken = {}, {}
        for path in _paths_in(directory):
            try:
                template = read_template(path, self._base_image, self._resources, self._known_plugins)
            except BrokenTemplate as error:
                broken[path.stem] = f"{path.name}: {error}"
            else:
                templates[template.id] = template
        return templates, broken


class Templates:
    """The use cases of templates."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    async def list(
        self, actor: Actor, after: str | None, limit: int, kind: TemplateKind | None = None
    ) -> Page[Template]:
        """Return a page of the templates and presets that a create may name, templates first, each by id."""
        require_scope(actor, Scope.READ)
        await self._catalogue.refresh()
        rows = self._catalogue.list_after(after, limit + 1, kind)
        return Page.cut(rows, limit, lambda template: template.id)

    async def get(self, actor: Actor, template_id: str) -> Template:
        """Return one template or preset."""
        require_scope(actor, Scope.READ)
        await self._catalogue.refresh()
        template = self._catalogue.find(template_id)
        if template is None:
            raise not_found("template", template_id)
        return template


def _place(template: Template | None, template_id: str) -> tuple[bool, str]:
    """Return where a template stands in a list; one that is gone meanwhile stands where it would as one."""
    return (template is not None and template.kind is TemplateKind.PRESET, template_id)


def _paths_in(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.toml"))


def _stamp_of(directory: Path) -> _Stamp:
    stamps = []
    for path in _paths_in(directory):
        try:
            found = path.stat()
        except OSError:  # a link that leads nowhere, or a file that is gone by now
            stamps.append((path.name, 0, 0, 0))
        else:
            stamps.append((path.name, found.st_ino, found.st_size, found.st_mtime_ns))
    return tuple(stamps)
