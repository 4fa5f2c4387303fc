"""Plugins: the built-in ones, those of the administrator, and what they add to a workspace.

A plugin is a folder with a `plugin.toml`; the folder's name is its id. One in the data directory takes the
place of a built-in one of the same id. Services have no passwords by default: the network that they are on is
the workspace's own, so whoever can reach them, besides the host, may use them anyway.
"""

from collections.abc import Iterable, Mapping, Sequence

from attrs import frozen

from vmd.model.account import Actor, Scope
from vmd.model.errors import Refused, invalid_value
from vmd.model.page import Page
from vmd.model.plugin import Plugin
from vmd.model.template import Template
from vmd.model.workspace import NewWorkspace, Service
from vmd.orchestrator.permissions import require_scope

MAX_SERVICES = 10  # of one workspace

_Asked = tuple[Plugin, str]  # with the pointer to what asks for it


@frozen(kw_only=True)
class Merged:
    """What a template, plugins and a request amount to; the later wins."""

    plugins: tuple[str, ...]  # their ids, the template's first
    env: dict[str, str]
    ports: tuple[int, ...]
    provisioning: tuple[str, ...]
    services: tuple[Service, ...]


class Plugins:
    """Plugins by id, and what is wrong with those that cannot be used."""

    def __init__(self, plugins: Mapping[str, Plugin], broken: Mapping[str, str]) -> None:
        self.plugins = plugins
        self.broken = broken  # id -> why

    @property
    def images(self) -> frozenset[str]:
        """The images of all services that workspaces may ask for."""
        return frozenset(service.image for plugin in self.plugins.values() for service in plugin.services)

    async def list(self, actor: Actor, after: str | None, limit: int) -> Page[Plugin]:
        """Return a page of the plugins that can be used, in the order of their ids."""
        require_scope(actor, Scope.READ)
        rows = [plugin for plugin_id, plugin in sorted(self.plugins.items()) if plugin_id > (after or "")]
        return Page.cut(rows, limit, lambda plugin: plugin.id)

    def merge(self, template: Template, wanted: NewWorkspace) -> Merged:
        """Return what a workspace gets, with the request before its plugins, and these before the template.

        Refuses unknown, broken and repeated plugins, and those that do not go together: two with a service of
        one name, or that set one variable to two values which the request does not set itself.
        """
        chosen = self._choose(template, wanted)
        plugins = [plugin for plugin, _ in chosen]
        env = _merge_env(chosen, wanted.env)
        ports = _each_once((template.ports, *(plugin.ports for plugin in plugins)))
        return Merged(
            plugins=tuple(plugin.id for plugin in plugins),
            env={**template.env, **env, **wanted.env},
            ports=ports if wanted.ports is None else wanted.ports,
            provisioning=(
                *template.provisioning,
                *(command for plugin in plugins for command in plugin.provisioning),
                *wanted.provisioning,
            ),
            services=_merge_services(chosen),
        )

    def _choose(self, template: Template, wanted: NewWorkspace) -> Sequence[_Asked]:
        """Return each plugin once, the template's first."""
        chosen: dict[str, _Asked] = {}
        for plugin_id in template.plugins:
            what = f"The template '{template.id}' wants the plugin '{plugin_id}', which"
            chosen[plugin_id] = (self._get(plugin_id, "/template", what), "/template")
        for place, plugin_id in enumerate(wanted.plugins):
            pointer = f"/plugins/{place}"
            if plugin_id in wanted.plugins[:place]:
                raise invalid_value(pointer, f"The plugin '{plugin_id}' is there twice; leave one out.")
            plugin = self._get(plugin_id, pointer, f"The plugin '{plugin_id}'")
            chosen.setdefault(plugin_id, (plugin, pointer))
        return tuple(chosen.values())

    def _get(self, plugin_id: str, pointer: str, what: str) -> Plugin:
        if plugin_id in self.plugins:
            return self.plugins[plugin_id]
        if plugin_id in self.broken:
            why = self.broken[plugin_id].rstrip(".")
            raise invalid_value(pointer, f"{what} is broken: {why}. Ask an administrator.")
        known = ", ".join(sorted(self.plugins)) or "none"
        raise invalid_value(pointer, f"{what} is unknown; there are: {known}.")


def _merge_env(chosen: Sequence[_Asked], given: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of all plugins; refuse two values for one that the request does not give."""
    values: dict[str, str] = {}
    setters: dict[str, str] = {}
    for plugin, pointer in chosen:
        for name, value in plugin.env.items():
            if name not in given and values.get(name, value) != value:
                other = setters[name]
                why = f"sets {name} to another value than '{other}' does; give {name} in env to decide."
                raise _clash(pointer, plugin, why)
            values[name] = value
            setters.setdefault(name, plugin.id)
    return values


def _merge_services(chosen: Sequence[_Asked]) -> tuple[Service, ...]:
    services: dict[str, tuple[Service, str]] = {}
    for plugin, pointer in chosen:
        for service in plugin.services:
            if service.name in services:
                other = services[service.name][1]
                raise _clash(
                    pointer, plugin, f"has a service '{service.name}', as '{other}' does; leave one out."
                )
            services[service.name] = (service, plugin.id)
    if len(services) > MAX_SERVICES:
        raise invalid_value("/plugins", f"They bring {len(services)} services; {MAX_SERVICES} are the most.")
    return tuple(service for service, _ in services.values())


def _clash(pointer: str, plugin: Plugin, why: str) -> Refused:
    return invalid_value(pointer, f"The plugin '{plugin.id}' {why}")


def _each_once(many: Iterable[Iterable[int]]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(number for numbers in many for number in numbers))
