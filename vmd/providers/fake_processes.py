"""A handful of commands, as processes of machines that exist in memory only."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vmd.providers.base import Output
from vmd.providers.process import ProcessSpec, Stream, TerminalSize, UnknownUser
from vmd.providers.supervisor.local import Output as ProcessOutput

if TYPE_CHECKING:
    from vmd.providers.fake import FakeHost


async def run_line(line: str, env: Mapping[str, str], files: dict[str, str], output: Output) -> int:
    """Run one of a handful of commands."""
    word, _, rest = line.partition(" ")
    if word == "echo":
        text = env.get(rest[1:], "") if rest.startswith("$") else rest
        await output("stdout", f"{text}\n".encode())
    elif word == "touch":
        files[rest] = ""
    elif word == "ls":
        await output("stdout", "".join(f"{name}\n" for name in sorted(files)).encode())
    elif word == "sleep":
        await asyncio.sleep(float(rest))
    elif word == "exit":
        return int(rest)
    elif word not in ("true", "cd", "{"):  # as the steps begin that install dependencies
        await output("stderr", f"sh: 1: {word}: not found\n".encode())
        return 127
    return 0


class FakeSpawner:
    """Runs the same handful of commands as processes, and `cat`, which prints what it is given."""

    def __init__(self, host: "FakeHost", ref: str) -> None:
        self._host = host
        self._ref = ref

    async def spawn(self, spec: ProcessSpec, output: ProcessOutput) -> "FakeProcess":
        """Start a process."""
        if spec.user.partition(":")[0] not in ("1000", "0", "root", "dev"):
            raise UnknownUser(f"The user {spec.user} is unknown in the machine.")
        machine = self._host.machines[self._ref]
        env = {**self._host.specs[self._ref].env, **spec.env}
        return FakeProcess(spec, env, self._host.files_of(machine), output)


class FakeProcess:
    """One process; a terminal without a command is a `cat`."""

    def __init__(
        self, spec: ProcessSpec, env: Mapping[str, str], files: dict[str, str], output: ProcessOutput
    ) -> None:
        self.size = spec.terminal
        self._output = output
        self._input: asyncio.Queue[bytes] = asyncio.Queue()
        line = spec.line or " ".join(spec.arguments) or "cat"
        self._running = asyncio.create_task(self._cat() if line == "cat" else self._run(line, env, files))
        self._killed_by: int | None = None

    async def _run(self, line: str, env: Mapping[str, str], files: dict[str, str]) -> int:
        async def output(stream: str, data: bytes) -> None:
            await self._output(Stream(stream), data)

        return await run_line(line, env, files, output)

    async def _cat(self) -> int:
        while data := await self._input.get():
            await self._output(Stream.STDOUT, data)
            if self.size is not None and b"exit" in data:
                return 7
        return 0

    async def write(self, data: bytes) -> None:
        """Give it input."""
        if data:
            self._input.put_nowait(data)

    async def close_input(self) -> None:
        """End its input."""
        self._input.put_nowait(b"")

    async def signal(self, number: int) -> None:
        """End it by any signal."""
        self._killed_by = number
        self._running.cancel()

    async def resize(self, size: TerminalSize) -> None:
        """Note the size."""
        self.size = size

    async def wait(self) -> int | None:
        """Return its exit code."""
        await asyncio.wait({self._running})
        return 128 + (self._killed_by or 0) if self._running.cancelled() else self._running.result()
