"""Plugins over HTTP."""

from aiohttp import web
from attrs import frozen

from vmd.http.accounts import PageQuery
from vmd.http.openapi import docs, returns, takes
from vmd.http.wire import ACTOR, read_cursor_of, read_query, respond_page
from vmd.model.plugin import PLUGIN_ID_PATTERN
from vmd.orchestrator.plugins import Plugins


@frozen(kw_only=True)
class PluginView:
    """A plugin that workspaces may ask for."""

    id: str
    name: str
    description: str
    version: str


@frozen(kw_only=True)
class PluginPage:
    """Plugins, in the order of their ids."""

    items: tuple[PluginView, ...]
    next_cursor: str | None


class PluginHandlers:
    """The handler of `/plugins`."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins

    def routes(self) -> list[web.RouteDef]:
        """Return the routes below the base path."""
        return [web.get("/plugins", self.list_plugins, allow_head=False)]

    @docs(
        tags=["plugins"],
        summary="List plugins",
        description="What `plugins` of a new workspace may name. A plugin brings provisioning commands, "
        "variables, ports, and services that run beside the machine, each under a host name of its own; the "
        "variables say how they are reached. What the request says wins over its plugins, and these win over "
        "the template. Two plugins that have a service of the same name are refused, and two that set the "
        "same variable to different values unless the request sets it too. One that is broken is not listed; "
        "`vmd doctor` names it.",
    )
    @takes(query=PageQuery)
    @returns(200, PluginPage, "A page, in the order of the ids.")
    async def list_plugins(self, request: web.Request) -> web.Response:
        """Return a page of plugins."""
        query = read_query(request, PageQuery)
        after = read_cursor_of(query.cursor, PLUGIN_ID_PATTERN)
        page = await self._plugins.list(request[ACTOR], after, query.limit)
        shown = tuple(
            PluginView(id=found.id, name=found.name, description=found.description, version=found.version)
            for found in page.items
        )
        return respond_page(shown, page)
