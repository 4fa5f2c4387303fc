"""The command line as its users run it: a process, at a terminal of its own or at pipes."""

import asyncio
import contextlib
import fcntl
import os
import pty
import struct
import sys
import termios
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from attrs import frozen

HANG_SECONDS = 60  # after which a command counts as hung, however slow the machine is
_COMMAND = (sys.executable, "-m", "vmd")


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("VMD_")}
    return {**own, "PYTHONPATH": str(Path(__file__).parents[2]), **variables}


@frozen
class Ended:
    """How a command ended."""

    status: int | None
    out: bytes
    err: str

    @property
    def line(self) -> str:
        """What is wrong, in the one line that says so."""
        assert (self.status, self.out) == (1, b""), self
        (line,) = self.err.splitlines()
        assert line.startswith("vmd: ")
        return line


async def start(variables: Mapping[str, str], *arguments: str) -> asyncio.subprocess.Process:
    """Return a command at three pipes."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *(*_COMMAND, *arguments), stdin=pipe, stdout=pipe, stderr=pipe, env=environment(variables)
    )


async def finish(process: asyncio.subprocess.Process, stdin: bytes = b"") -> Ended:
    """Give a command its input, and return how it ended."""
    async with asyncio.timeout(HANG_SECONDS):
        out, err = await process.communicate(stdin)
    return Ended(process.returncode, out, err.decode())


async def run(variables: Mapping[str, str], *arguments: str, stdin: bytes = b"") -> Ended:
    """Return how a command ended, at pipes."""
    return await finish(await start(variables, *arguments), stdin)


async def pipeline(variables: Mapping[str, str], *arguments: str, into: str) -> bytes:
    """Return what a shell line prints that a command is piped into."""
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", f'"$@" </dev/null | {into}', "sh", *_COMMAND, *arguments),
        stdout=asyncio.subprocess.PIPE,
        env=environment(variables),
    )
    async with asyncio.timeout(HANG_SECONDS):
        return (await process.communicate())[0]


class Typed:
    """A command at a terminal: type, and wait for what is shown."""

    def __init__(self, keyboard: int, terminal: int) -> None:
        self.shown = b""
        self.process: asyncio.subprocess.Process
        self._keyboard = keyboard
        self._terminal = terminal
        self._news = asyncio.Event()
        self._modes = termios.tcgetattr(terminal)

    async def start(self, variables: Mapping[str, str], arguments: tuple[str, ...]) -> None:
        """Run the command in a session of its own, which the terminal controls."""
        os.set_blocking(self._keyboard, False)
        asyncio.get_running_loop().add_reader(self._keyboard, self._read)
        self.process = await asyncio.create_subprocess_exec(
            *("setsid", "--ctty", *_COMMAND, *arguments),
            stdin=self._terminal,
            stdout=self._terminal,
            stderr=self._terminal,
            env=environment(variables),
        )

    async def type(self, keys: bytes) -> None:
        """Press these keys, once the command takes them."""
        await self.until_raw()
        self.press(keys)

    def press(self, keys: bytes) -> None:
        os.write(self._keyboard, keys)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    async def until(self, text: bytes) -> None:
        """Wait until this is shown."""
        async with asyncio.timeout(HANG_SECONDS):
            while text not in self.shown:
                self._news.clear()
                await self._news.wait()

    async def until_raw(self) -> None:
        """Wait until the command has taken the terminal."""
        async with asyncio.timeout(HANG_SECONDS):
            while termios.tcgetattr(self._terminal) == self._modes:
                await asyncio.sleep(0.01)
        assert not termios.tcgetattr(self._terminal)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    async def ended(self) -> int | None:
        """Return the exit status, once the terminal was left as it was found."""
        async with asyncio.timeout(HANG_SECONDS):
            status = await self.process.wait()
        assert termios.tcgetattr(self._terminal) == self._modes
        self._read()
        return status

    def hang_up(self) -> None:
        """Close the window."""
        self.close()

    def close(self) -> None:
        if self._keyboard >= 0:
            asyncio.get_running_loop().remove_reader(self._keyboard)
            os.close(self._keyboard)
            self._keyboard = -1

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            while data := os.read(self._keyboard, 65536):
                self.shown += data
        self._news.set()


@asynccontextmanager
async def typed(
    variables: Mapping[str, str], *arguments: str, size: tuple[int, int] = (100, 30)
) -> AsyncIterator[Typed]:
    """Run a command at a terminal of this size in columns and rows, until the end of the block."""
    keyboard, terminal = pty.openpty()
    command = Typed(keyboard, terminal)
    try:
        command.resize(*size)
        await command.start(variables, arguments)
        yield command
    finally:
        if command.process.returncode is None:
            command.process.kill()
            await command.process.wait()
        command.close()
        os.close(terminal)
