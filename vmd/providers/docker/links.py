"""The way into a running container: one exec whose stream carries a supervisor's frames."""

import asyncio
import struct
from typing import Any

from aiodocker.exceptions import DockerError

from vmd.providers.base import ProviderError, ProviderUnavailable
from vmd.providers.docker.body import ENDING_FILE, RUN_DIRECTORY, STATE_DIRECTORY
from vmd.providers.docker.engine import ANSWER_SECONDS, READ_SECONDS, Engine, half_close
from vmd.providers.docker.stillness import Stillness
from vmd.providers.executables import SUPERVISOR, digest, find_executable
from vmd.providers.supervisor.client import OtherVersion, SupervisorClient

_NOT_INSTALLED = 42
_ENDING = 43
_CANNOT_RUN = (126, 127)
# The directory is root's alone, so what is in it was put there by us, or by somebody who is root in there.
_CONNECT = f"""
until [ -e {RUN_DIRECTORY}/ready ]; do sleep 0.02; done
[ -e {ENDING_FILE} ] && exit {_ENDING}
[ -x "$1" ] || exit {_NOT_INSTALLED}
exec "$1" connect {STATE_DIRECTORY}
"""
_INSTALL = f"""
umask 077; mkdir -p {STATE_DIRECTORY} && cd {STATE_DIRECTORY} || exit
for old in supervisor-*; do [ "$old" = "${{1##*/}}" ] || rm -f "$old"; done
cat >"$1.new" && chmod 0700 "$1.new" && mv "$1.new" "$1"
"""
# What the engine says of an exec in a machine that is just ending looks like an executable that cannot run.
_CHECK = f"[ ! -e {ENDING_FILE} ]"


class CannotSupervise(Exception):
    """The machine runs no supervisor of ours, and why."""


class Links:
    """Connects to the supervisors of containers, and puts them there."""

    def __init__(self, engine: Engine, stillness: Stillness) -> None:
        self._engine = engine
        self._stillness = stillness
        self._executable: bytes | None = None

    async def connect(self, ref: str) -> SupervisorClient:
        """Return a supervisor that listens, started if it was not; raise CannotSupervise."""
        executable = await self._find_executable()
        path = f"{STATE_DIRECTORY}/supervisor-{digest(executable)}"
        try:
            return await self._connect(ref, path)
        except _NotInstalled:
            await self._install(ref, path, executable)
        try:
            return await self._connect(ref, path)
        except _NotInstalled:
            raise CannotSupervise("it is not there although it was installed") from None

    async def require_well(self, ref: str) -> None:
        """Raise ProviderUnavailable for a machine that is about to end, or has."""
        run, stream = await self._begin(ref, _CHECK, "")
        if await self._finish(run, stream) != 0:
            raise ProviderUnavailable("The machine is stopping; start the workspace again.")

    async def _find_executable(self) -> bytes:
        if self._executable is None:
            machine = (await self._engine.call("version"))["Arch"]
            self._executable = find_executable(SUPERVISOR, machine)
            if self._executable is None:
                raise CannotSupervise(f"there is none for {machine}")
        return self._executable

    async def _connect(self, ref: str, path: str) -> SupervisorClient:
        run, stream = await self._begin(ref, _CONNECT, path)
        client = _attach(stream)
        try:
            await client.greet()
        except OtherVersion:
            raise CannotSupervise("an older or newer vmd began it; restart the workspace") from None
        except ProviderUnavailable:
            code = await self._find_exit_code(run)
            if code == _NOT_INSTALLED:
                raise _NotInstalled from None
            if code in _CANNOT_RUN:
                raise CannotSupervise(f"it ends with exit code {code}") from None
            raise  # the machine is stopping, or has no process or memory to spare just now
        except BaseException:
            client.lost()
            raise
        return client

    async def _install(self, ref: str, path: str, executable: bytes) -> None:
        run, stream = await self._begin(ref, _INSTALL, path)
        if await self._finish(run, stream, executable) != 0:
            raise CannotSupervise("it cannot be installed")

    async def _finish(self, run: Any, stream: Any, stdin: bytes = b"") -> int | None:
        """Give an exec its input, and return its exit code once it has ended."""
        with self._engine.translated():
            async with asyncio.timeout(ANSWER_SECONDS), stream:
                await stream.write_in(stdin)
                half_close(stream)
                while await stream.read_out() is not None:
                    pass
        return await self._find_exit_code(run)

    async def _find_exit_code(self, run: Any) -> int | None:
        found = await self._engine.find(f"exec/{run.id}/json")
        return None if found is None else found["ExitCode"]

    async def _begin(self, ref: str, script: str, path: str) -> tuple[Any, Any]:
        argv = ["/bin/sh", "-c", script, "vmd", path]
        try:
            with self._engine.translated():
                async with asyncio.timeout(READ_SECONDS), self._stillness.exec_begins(ref):
                    container = self._engine.streams.containers.container(ref)
                    run = await container.exec(argv, stdin=True, user="0:0", workdir="/")
                    stream = run.start()
                    await stream._init()
        except DockerError as error:
            raise ProviderError(f"The engine cannot reach into the machine: {error.message}.") from None
        return run, stream


class _NotInstalled(Exception):
    """The supervisor's executable is not in the machine yet."""


class _StreamParser:
    """Takes what an exec prints out of the engine's own frames (one byte of stream, four of size)."""

    _head = struct.Struct(">BxxxL")

    def __init__(self, client: SupervisorClient) -> None:
        self._client = client
        self._rest = b""
        self._left = 0  # bytes of the frame that is being read
        self._is_stdout = True

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Hand on what the supervisor sent, as it comes."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        at, size = 0, len(data)
        while at < size:
            if not self._left:
                if size - at < self._head.size:
                    self._rest = data[at:]
                    break
                stream, self._left = self._head.unpack_from(data, at)
                self._is_stdout = stream == 1
                at += self._head.size
                continue
            end = min(size, at + self._left)
            if self._is_stdout:
                self._client.feed(data[at:end])
            self._left -= end - at
            at = end
        return False, b""

    def feed_eof(self) -> None:
        """Note that the exec has ended."""
        self._client.lost()

    def set_exception(self, *_: object) -> None:
        """Note that the connection broke."""
        self._client.lost()

    def is_eof(self) -> bool:
        """Whether nothing more comes."""
        return not self._client.is_open


def _attach(stream: Any) -> SupervisorClient:
    """Return a client whose frames go over an exec's hijacked connection, of which it takes over all."""
    connection = stream._resp.connection
    transport = connection.transport

    def close() -> None:
        stream._closed = True
        stream._resp.close()

    client = SupervisorClient(transport.write, close)
    parser = _StreamParser(client)
    connection.protocol.set_parser(parser, parser)
    return client
