"""The daemon about itself: health, readiness, the specification and its page."""

from collections.abc import Callable
from importlib import resources
from typing import Any

from aiohttp import web
from attrs import frozen

from vmd import __version__
from vmd.http.openapi import docs, returns
from vmd.http.wire import respond

SWAGGER_FILES = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
_DOCS_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>vmd API</title>
<link rel="icon" href="/docs/favicon-32x32.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/page.js"></script>
</body>
</html>
"""
_DOCS_SCRIPT = """\
SwaggerUIBundle({url: "/api/v1/openapi.json", dom_id: "#page", deepLinking: true, validatorUrl: null});
"""
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'"
)


@frozen(kw_only=True)
class HealthView:
    """That the daemon runs."""

    status: str
    version: str


@frozen(kw_only=True)
class Readiness:
    """Whether the daemon can do its work, and what is missing if not."""

    status: str  # ready, or not-ready
    database: str  # ok
    providers: dict[str, str]  # name -> ok, unreachable, or unknown until it was tried
    recovery: str  # done, or running until every provider was looked at once


class ServiceHandlers:
    """The handlers of `/health`, `/docs` and the specification."""

    def __init__(
        self,
        provider_status: Callable[[], dict[str, bool | None]],
        specification: Callable[[], dict[str, Any]],
    ) -> None:
        self._provider_status = provider_status
        self._specification = specification

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, from the root."""
        return [
            web.get("/health", self.health, allow_head=False),
            web.get("/health/ready", self.ready, allow_head=False),
            web.get("/api/v1/openapi.json", self.openapi, allow_head=False),
            web.get("/docs", self.page, allow_head=False),
            web.get("/docs/{file}", self.file, allow_head=False),
        ]

    @docs(tags=["service"], summary="Whether the daemon runs")
    @returns(200, HealthView, "It runs.")
    async def health(self, request: web.Request) -> web.Response:
        """Say that the daemon runs."""
        return respond(HealthView(status="ok", version=__version__))

    @docs(tags=["service"], summary="Whether the daemon is ready")
    @returns(200, Readiness, "It is ready.")
    @returns(503, Readiness, "Something is missing; what can be done without it works.")
    async def ready(self, request: web.Request) -> web.Response:
        """Say whether everything that the daemon needs is there."""
        named = {None: "unknown", True: "ok", False: "unreachable"}
        reached = self._provider_status()
        is_ready = all(reached.values())
        readiness = Readiness(
            status="ready" if is_ready else "not-ready",
            database="ok",
            providers={name: named[state] for name, state in reached.items()},
            recovery="running" if None in reached.values() else "done",
        )
        return respond(readiness, 200 if is_ready else 503)

    @docs(tags=["service"], summary="This specification")
    @returns(200, dict[str, Any], "OpenAPI 3.1.")
    async def openapi(self, request: web.Request) -> web.Response:
        """Return the specification."""
        return respond(self._specification())

    async def page(self, request: web.Request) -> web.Response:
        """Return the page that shows the specification."""
        return web.Response(
            text=_DOCS_PAGE, content_type="text/html", headers={"Content-Security-Policy": _DOCS_POLICY}
        )

    async def file(self, request: web.Request) -> web.Response:
        """Return a file of the page: its script, or one of Swagger UI's."""
        name = request.match_info["file"]
        if name == "page.js":
            return web.Response(text=_DOCS_SCRIPT, content_type="text/javascript")
        if name not in SWAGGER_FILES:
            raise web.HTTPNotFound
        data = (resources.files("swagger_ui") / "static" / name).read_bytes()
        return web.Response(
            body=data, content_type=SWAGGER_FILES[name], headers={"Cache-Control": "private, max-age=86400"}
        )
