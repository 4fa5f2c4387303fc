"""What the command line asks of a running daemon, over the socket in its data directory alone."""

from aiohttp import web
from attrs import frozen

from vmd.http.middleware import Gate
from vmd.http.wire import ACTOR, read_query, respond
from vmd.orchestrator.doctor import Doctor


@frozen(kw_only=True)
class DoctorQuery:
    """The query of an examination."""

    fix: bool = False


class ControlHandlers:
    """The handlers below `/control`; elsewhere than on the control socket there is nothing."""

    def __init__(self, gate: Gate, doctor: Doctor) -> None:
        self._gate = gate
        self._doctor = doctor

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, from the root."""
        return [web.post("/control/doctor", self.examine)]

    async def examine(self, request: web.Request) -> web.Response:
        """Compare the books with what the providers hold."""
        if not self._gate.is_local(request):
            raise web.HTTPNotFound
        query = read_query(request, DoctorQuery)
        return respond({"findings": await self._doctor.examine(request[ACTOR], fix=query.fix)})
