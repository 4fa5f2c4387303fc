"""Templates and presets over HTTP."""

import base64
import binascii
import re
from typing import Annotated, Any

from aiohttp import web
from attrs import frozen
from msgspec import Meta

from vmd.http.openapi import docs, returns, takes
from vmd.http.wire import ACTOR, DEFAULT_LIMIT, Cursor, Limit, malformed, read_query, respond, respond_page
from vmd.model.parameter import json_schema
from vmd.model.template import Template, TemplateKind
from vmd.model.workspace import Resources
from vmd.orchestrator.placeholders import names_in
from vmd.orchestrator.templates import Templates

_TAGS = ["templates"]
_ID = re.compile(r"[!-~]{1,100}")


@frozen(kw_only=True)
class TemplatesQuery:
    """The query of the list."""

    limit: Limit = DEFAULT_LIMIT
    cursor: Cursor | None = None
    kind: TemplateKind | None = None


@frozen(kw_only=True)
class NoQuery:
    """No parameters."""


@frozen(kw_only=True)
class TemplateView:
    """A template or preset."""

    id: str
    kind: TemplateKind
    name: str
    description: str
    image: Annotated[
        str | None, Meta(description="null where it depends on parameters that have no defaults")
    ]
    resources: Resources
    env: Annotated[dict[str, str], Meta(description="`{{name}}` stands for a parameter's value")]
    ports: tuple[int, ...]
    provisioning: Annotated[tuple[str, ...], Meta(description="`{{name}}` stands for a parameter's value")]
    parameters: Annotated[
        dict[str, Any], Meta(description="a JSON Schema (2020-12) of the `parameters` that a create gives")
    ]
    ttl_seconds: int | None
    idle_timeout_seconds: int | None
    plugins: tuple[str, ...]


@frozen(kw_only=True)
class TemplatePage:
    """Templates and then presets, each by id."""

    items: tuple[TemplateView, ...]
    next_cursor: str | None


class TemplateHandlers:
    """The handlers of `/templates`."""

    def __init__(self, templates: Templates) -> None:
        self._templates = templates

    def routes(self) -> list[web.RouteDef]:
        """Return the routes below the base path."""
        return [
            web.get("/templates", self.list, allow_head=False),
            web.get("/templates/{id}", self.get, allow_head=False),
        ]

    @docs(
        tags=_TAGS,
        summary="List templates and presets",
        description="What a create may name as its `template`. A broken template is not among them.",
    )
    @takes(query=TemplatesQuery)
    @returns(200, TemplatePage, "A page: templates, then presets, each by id.")
    async def list(self, request: web.Request) -> web.Response:
        """Return a page of templates and presets."""
        query = read_query(request, TemplatesQuery)
        after = _read_cursor(query.cursor)
        page = await self._templates.list(request[ACTOR], after, query.limit, query.kind)
        return respond_page(tuple(_view(template) for template in page.items), page)

    @docs(tags=_TAGS, summary="Get a template or preset")
    @takes(query=NoQuery)
    @returns(200, TemplateView, "The template or preset.")
    async def get(self, request: web.Request) -> web.Response:
        """Return one template or preset."""
        read_query(request, NoQuery)
        return respond(_view(await self._templates.get(request[ACTOR], request.match_info["id"])))


def _view(template: Template) -> TemplateView:
    missing = [name for name, parameter in template.parameters.items() if parameter.is_required]
    is_open = not names_in(template.recipe or "").isdisjoint(missing)
    return TemplateView(
        id=template.id,
        kind=template.kind,
        name=template.name,
        description=template.description,
        image=None if is_open else template.image,
        resources=template.resources,
        env=template.env,
        ports=template.ports,
        provisioning=template.provisioning,
        parameters=json_schema(template.parameters),
        ttl_seconds=template.ttl_seconds,
        idle_timeout_seconds=template.idle_timeout_seconds,
        plugins=template.plugins,
    )


def _read_cursor(cursor: str | None) -> str | None:
    """Return the id to go on after; ids of templates are names, which no other list has."""
    if cursor is None:
        return None
    try:
        after = base64.urlsafe_b64decode(cursor.encode("ascii") + b"==").decode("ascii")
    except (binascii.Error, ValueError):
        after = ""
    if _ID.fullmatch(after) is None:
        raise malformed("This cursor is not from this list; take next_cursor of the page before.")
    return after
