"""Processes as plain execs of the engine, for containers that run no supervisor."""

import asyncio
from typing import Any

from aiodocker.exceptions import DockerError

from vmd.providers.base import ProviderError
from vmd.providers.docker.body import RUN_DIRECTORY
from vmd.providers.docker.engine import READ_SECONDS, Engine, half_close
from vmd.providers.docker.stillness import Stillness
from vmd.providers.process import ProcessSpec, Stream, TerminalSize, UnknownUser
from vmd.providers.supervisor.local import Output

# $1 is the file for the process's number, $2 what is run: arguments, a line of the user's shell, or a login.
_RUN = f"""
until [ -e {RUN_DIRECTORY}/ready ]; do sleep 0.02; done
{{ echo $$ >"$1"; }} 2>/dev/null
what=$2
shift 2
[ "$what" = arguments ] && exec "$@"
me=$(id -u) SHELL=/bin/sh
while IFS=: read -r _ _ uid _ _ home shell; do
    [ "$uid" = "$me" ] && [ -x "$shell" ] && SHELL=$shell HOME=$home
done </etc/passwd
export SHELL HOME LANG="${{LANG:-C.UTF-8}}"
[ "$what" = line ] && exec "$SHELL" -c "$1"
exec "$SHELL" -l ${{1:+-c "$1"}}
"""
# It may have begun a moment ago, and not have written its number yet.
_SIGNAL = """
for _ in 1 2 3 4 5 6 7 8 9 10; do [ -s "$1" ] && break; sleep 0.05; done
read -r pid <"$1" && { kill -s "$2" -- "-$pid" || kill -s "$2" "$pid"; }
"""
# The engine says that a user is unknown as if the process had, so that is found out first.
_KNOWS = """
knows() {
    case $1 in *[!0-9]*) ;; *) return 0 ;; esac
    while IFS=: read -r name _; do [ "$name" = "$1" ] && return 0; done <"$2"
    return 1
}
knows "${1%%:*}" /etc/passwd && case $1 in *:*) knows "${1#*:}" /etc/group ;; esac
"""
# What the engine takes for a wish to detach: by default Ctrl-P Ctrl-Q, which shells need; nobody types this.
_DETACH_KEYS = "ctrl-@," + ",".join("vmd-never-detaches")


class ExecSpawner:
    """Starts execs in one container. They cannot be found again once the connection is gone."""

    def __init__(self, engine: Engine, stillness: Stillness, ref: str) -> None:
        self._engine = engine
        self._stillness = stillness
        self._ref = ref

    async def spawn(self, spec: ProcessSpec, output: Output) -> "SpawnedExec":
        """Start an exec and read its output as it comes."""
        file = f"{RUN_DIRECTORY}/{spec.id}.pid"
        argv = ["/bin/sh", "-c", _RUN, "vmd", file, *_what(spec)]
        environment = dict(spec.env)
        if spec.terminal is not None:
            environment.setdefault("TERM", "xterm-256color")
        container = self._engine.streams.containers.container(self._ref)
        try:
            await self._require_user(spec.user)
            with self._engine.translated():
                async with asyncio.timeout(READ_SECONDS), self._stillness.exec_begins(self._ref):
                    run = await container.exec(
                        argv,
                        stdin=True,
                        tty=spec.terminal is not None,
                        user=spec.user,
                        environment=environment,
                        workdir=spec.cwd,
                        detach_keys=_DETACH_KEYS,
                    )
                    stream = run.start()
                    await stream._init()
        except DockerError as error:
            raise ProviderError(f"The engine cannot run it in the machine: {error.message}.") from None
        spawned = SpawnedExec(self._engine, self._ref, file, run, stream, output)
        if spec.terminal is not None:
            await spawned.resize(spec.terminal)
        return spawned

    async def _require_user(self, user: str) -> None:
        is_number = user.replace(":", "").isdecimal()
        if not is_number and await _run_as_root(self._engine, self._ref, _KNOWS, user) == 1:
            raise UnknownUser(f"The user {user} is unknown in the machine.")


class SpawnedExec:
    """One exec that runs."""

    def __init__(self, engine: Engine, ref: str, file: str, run: Any, stream: Any, output: Output) -> None:
        self._engine = engine
        self._ref = ref
        self._file = file
        self._run = run
        self._stream = stream
        self._reading = asyncio.create_task(self._read(output))

    async def _read(self, output: Output) -> None:
        with self._engine.translated():
            async with self._stream:
                while (message := await self._stream.read_out()) is not None:
                    await output(Stream.STDERR if message.stream == 2 else Stream.STDOUT, message.data)

    async def write(self, data: bytes) -> None:
        """Give it input, unless it has ended."""
        if not self._reading.done() and data:
            with self._engine.translated():
                await self._stream.write_in(data)

    async def close_input(self) -> None:
        """End its input."""
        if not self._reading.done():
            half_close(self._stream)

    async def signal(self, number: int) -> None:
        """Send it and its group a signal, with an exec of its own."""
        await _run_as_root(self._engine, self._ref, _SIGNAL, self._file, str(number))

    async def resize(self, size: TerminalSize) -> None:
        """Change the size of its terminal; the engine refuses that once it has ended."""
        params = {"h": size.rows, "w": size.columns}
        try:
            await self._engine.call(f"exec/{self._run.id}/resize", "POST", params=params)
        except (DockerError, ProviderError):
            return

    async def wait(self) -> int | None:
        """Return its exit code once its output has ended."""
        await self._reading
        found = await self._engine.find(f"exec/{self._run.id}/json")
        return None if found is None else found["ExitCode"]


async def _run_as_root(engine: Engine, ref: str, script: str, *arguments: str) -> int | None:
    """Run a script of ours and return its exit code."""
    container = engine.streams.containers.container(ref)
    argv = ["/bin/sh", "-c", script, "vmd", *arguments]
    with engine.translated():
        async with asyncio.timeout(READ_SECONDS):
            run = await container.exec(argv, user="0:0", workdir="/")
            async with run.start() as stream:
                while await stream.read_out() is not None:
                    pass
    found = await engine.find(f"exec/{run.id}/json")
    return None if found is None else found["ExitCode"]


def _what(spec: ProcessSpec) -> list[str]:
    if spec.arguments:
        return ["arguments", *spec.arguments]
    if spec.terminal is not None:
        return ["login", *([spec.line] if spec.line else [])]
    return ["line", spec.line or ""]
