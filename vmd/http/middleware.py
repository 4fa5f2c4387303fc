"""Around every request: its id, who calls, whether its host may be called, and errors as problems."""

import base64
import binascii
import re
import time
from collections.abc import Collection
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import ip_address
from random import Random
from urllib.parse import unquote

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from vmd.http.wire import ACTOR, REQUEST_ID, respond_problem
from vmd.model.account import Actor
from vmd.model.errors import ErrorCode, Refused
from vmd.model.ids import IdFactory
from vmd.orchestrator.accounts import ADMIN_NAME, Accounts, unauthenticated
from vmd.orchestrator.tickets import Tickets

PUBLIC_PATHS = frozenset({"/health", "/health/ready"})
DOCS_PATHS = ("/docs", "/api/v1/openapi.json")  # a browser may open these with the token as password
SOCKET_PATHS = ("/ws/", "/api/v1/ws/")
ACT_AS_HEADER = "Vmd-Act-As"
NOT_READY_RETRY_SECONDS = 2
_HOST = re.compile(r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?$")
_ALWAYS_HOSTS = frozenset({"localhost"})

log = structlog.get_logger()


class Gate:
    """Lets requests in by their host and credential."""

    def __init__(
        self, accounts: Accounts, tickets: Tickets, *, hosts: Collection[str], control_path: str
    ) -> None:
        self._accounts = accounts
        self._tickets = tickets
        self._hosts = frozenset(hosts) | _ALWAYS_HOSTS
        self._control_path = control_path
        self.is_closing = False

    async def admit(self, request: web.Request) -> Actor | None:
        """Return who calls, None on public paths; raise Refused for everybody else."""
        if self.is_local(request):
            return await self._accounts.act_as(unquote(request.headers.get(ACT_AS_HEADER, ADMIN_NAME)))
        self._require_host(request)
        if request.path in PUBLIC_PATHS:
            return None
        if self.is_closing:
            raise Refused(
                ErrorCode.NOT_READY,
                "vmd is shutting down; try again soon.",
                retry_after_seconds=NOT_READY_RETRY_SECONDS,
            )
        if "ticket" in request.query and request.path.startswith(SOCKET_PATHS):
            return self._tickets.redeem(request.query["ticket"], request.path)
        return await self._accounts.authenticate(_secret(request), datetime.now(UTC))

    def is_local(self, request: web.Request) -> bool:
        """Whether the request came over the control socket, which only the daemon's own user can open."""
        transport = request.transport
        return transport is not None and transport.get_extra_info("sockname") == self._control_path

    def _require_host(self, request: web.Request) -> None:
        """Refuse a host that a foreign page could have had resolved to this daemon (DNS rebinding)."""
        match = _HOST.match(request.headers.get("Host", ""))
        host = "" if match is None else match[1].lower()
        if host in self._hosts:
            return
        if not _is_address(host):
            raise Refused(
                ErrorCode.FORBIDDEN,
                f"This daemon does not answer to '{host}'; an administrator can add it to http.hosts.",
            )


@lru_cache(maxsize=256)
def _is_address(host: str) -> bool:
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def make_middleware(gate: Gate) -> Middleware:
    """Return the one middleware, in the order in which its parts must go."""
    ids = IdFactory(randbelow=Random().randrange)  # noqa: S311 - request ids keep no secret, and are many

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        request_id = request[REQUEST_ID] = ids.new("req")
        started = time.monotonic()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            actor = await gate.admit(request)
            if actor is not None:
                request[ACTOR] = actor
            response = await handler(request)
        except Refused as error:
            response = _problem(request, error)
        except web.HTTPException as error:
            response = _problem(request, _refused_of(request, error))
        except ConnectionError:
            raise
        except Exception:
            log.exception("a request failed", method=request.method, path=request.path[:256])
            response = _problem(request, Refused(ErrorCode.INTERNAL, _INTERNAL))
        if request.method != "GET" or response.status >= 500:
            log.info(
                "request",
                method=request.method,
                path=request.path[:256],
                status=response.status,
                seconds=round(time.monotonic() - started, 4),
                actor=None if ACTOR not in request else request[ACTOR].name,
            )
        return response

    return middleware


async def mark_response(request: web.Request, response: web.StreamResponse) -> None:
    """Put the request's id and the headers that every answer has on a response."""
    response.headers["X-Request-Id"] = request.get(REQUEST_ID, "")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")


_INTERNAL = "vmd failed at this request; its log has the cause under the request id. Try again later."


def _secret(request: web.Request) -> str:
    header = request.headers.get("Authorization", "")
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer" and value and value.isascii():
        return value.strip()
    if scheme.lower() == "basic" and request.path.startswith(DOCS_PATHS) and request.method == "GET":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            pass
    raise unauthenticated("Send a token as 'Authorization: Bearer TOKEN'; `vmd token create` makes one.")


def _problem(request: web.Request, error: Refused) -> web.Response:
    headers = {}
    if error.code is ErrorCode.UNAUTHENTICATED:
        scheme = "Basic" if request.path.startswith(DOCS_PATHS) else "Bearer"
        headers["WWW-Authenticate"] = f'{scheme} realm="vmd"'
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if error.code is ErrorCode.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(sorted(request.match_info.http_exception.allowed_methods))  # type: ignore[union-attr]
    return respond_problem(error.problem(request.get(REQUEST_ID)), headers)


def _refused_of(request: web.Request, error: web.HTTPException) -> Refused:
    """Turn what aiohttp itself refuses into one of our codes."""
    if isinstance(error, web.HTTPNotFound):
        return Refused(ErrorCode.NOT_FOUND, f"There is nothing at {request.path[:256]}; see /docs.")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return Refused(
            ErrorCode.METHOD_NOT_ALLOWED, f"{request.method[:20]} is not allowed here; use {allowed}."
        )
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return Refused(ErrorCode.TOO_LARGE, "The body is larger than 1 MiB; send less.")
    if error.status < 500:
        return Refused(ErrorCode.MALFORMED_REQUEST, f"The request cannot be read: {error.reason}.")
    return Refused(ErrorCode.INTERNAL, _INTERNAL)
