"""The application: all routes, behind the one middleware."""

from collections.abc import Callable, Collection
from functools import cache
from typing import Any

from aiohttp import web
from attrs import evolve, frozen

from vmd.http.accounts import AccountHandlers
from vmd.http.commands import CommandHandlers
from vmd.http.control import ControlHandlers
from vmd.http.detection import DetectionHandlers
from vmd.http.events import EventHandlers
from vmd.http.middleware import PUBLIC_PATHS, Gate, make_middleware, mark_response
from vmd.http.openapi import specification
from vmd.http.operations import OperationHandlers
from vmd.http.plugins import PluginHandlers
from vmd.http.service import ServiceHandlers
from vmd.http.shells import ShellHandlers
from vmd.http.snapshots import SnapshotHandlers
from vmd.http.sockets import Sockets
from vmd.http.streams import Streams
from vmd.http.templates import TemplateHandlers
from vmd.http.workspaces import WorkspaceHandlers
from vmd.orchestrator.accounts import Accounts
from vmd.orchestrator.commands import Commands
from vmd.orchestrator.doctor import Doctor
from vmd.orchestrator.happenings import Happenings
from vmd.orchestrator.lifetime import Lifetimes
from vmd.orchestrator.operations import Operations
from vmd.orchestrator.plugins import Plugins
from vmd.orchestrator.probing import Probes
from vmd.orchestrator.quota import Quotas
from vmd.orchestrator.shells import Shells
from vmd.orchestrator.snapshot_files import SnapshotFiles
from vmd.orchestrator.snapshots import Snapshots
from vmd.orchestrator.templates import Templates
from vmd.orchestrator.tickets import Tickets
from vmd.orchestrator.workspaces import Workspaces

BASE_PATH = "/api/v1"
MAX_BODY_BYTES = 1024 * 1024


@frozen(kw_only=True)
class UseCases:
    """Everything that the handlers call."""

    workspaces: Workspaces
    snapshots: Snapshots
    snapshot_files: SnapshotFiles
    probes: Probes
    templates: Templates
    operations: Operations
    commands: Commands
    shells: Shells
    lifetimes: Lifetimes
    accounts: Accounts
    quotas: Quotas
    plugins: Plugins
    happenings: Happenings
    doctor: Doctor
    tickets: Tickets
    provider_status: Callable[[], dict[str, bool | None]]


def make_app(
    use_cases: UseCases, *, hosts: Collection[str], origins: Collection[str], control_path: str
) -> web.Application:
    """Return the application; on shutdown it refuses new requests and closes its sockets."""
    gate = Gate(use_cases.accounts, use_cases.tickets, hosts=hosts, control_path=control_path)
    app = web.Application(middlewares=[make_middleware(gate)], client_max_size=MAX_BODY_BYTES)
    sockets = Sockets(frozenset(origins))
    streams = Streams()
    app.add_routes(_routes(use_cases, sockets, streams, lambda: gate.is_closing))
    app.add_routes(ControlHandlers(gate, use_cases.doctor).routes())
    app.on_response_prepare.append(mark_response)

    async def close(_: web.Application) -> None:
        gate.is_closing = True
        await streams.close_all()
        await sockets.close_all()

    app.on_shutdown.append(close)
    return app


@cache
def make_specification() -> dict[str, Any]:
    """Return the OpenAPI document of all routes; nothing is started for it."""
    nothing: Any = None
    use_cases = UseCases(
        workspaces=nothing,
        snapshots=nothing,
        snapshot_files=nothing,
        probes=nothing,
        templates=nothing,
        operations=nothing,
        commands=nothing,
        shells=nothing,
        lifetimes=nothing,
        accounts=nothing,
        quotas=nothing,
        plugins=nothing,
        happenings=nothing,
        doctor=nothing,
        tickets=nothing,
        provider_status=dict,
    )
    return specification(_routes(use_cases, Sockets(frozenset()), Streams()), PUBLIC_PATHS)


def _routes(
    use_cases: UseCases,
    sockets: Sockets,
    streams: Streams,
    is_closing: Callable[[], bool] = lambda: False,
) -> list[web.RouteDef]:
    shells = ShellHandlers(use_cases.shells, sockets)
    events = EventHandlers(use_cases.happenings, use_cases.tickets, sockets)
    socket_routes = [*events.socket_routes(), *shells.socket_routes()]
    below_base = [
        *WorkspaceHandlers(use_cases.workspaces, use_cases.lifetimes).routes(),
        *SnapshotHandlers(use_cases.snapshots, use_cases.snapshot_files, streams).routes(),
        *DetectionHandlers(use_cases.probes).routes(),
        *TemplateHandlers(use_cases.templates).routes(),
        *OperationHandlers(use_cases.operations, streams, is_closing).routes(),
        *CommandHandlers(use_cases.commands, streams).routes(),
        *shells.routes(),
        *AccountHandlers(use_cases.accounts, use_cases.quotas).routes(),
        *PluginHandlers(use_cases.plugins).routes(),
        *events.routes(),
        *socket_routes,
    ]
    return [
        *ServiceHandlers(use_cases.provider_status, make_specification).routes(),
        *(evolve(route, path=BASE_PATH + route.path) for route in below_base),
        *socket_routes,
    ]
