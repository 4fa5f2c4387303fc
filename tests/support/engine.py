"""An engine of a test's own, in its own network, that can be frozen, killed and started again."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import mkdtemp

from tests.conftest import BASE_IMAGE

START_SECONDS = 30


class PrivateEngine:
    """A dockerd that shares no network with the host's, whose docker0 it would take away."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._socket = directory / "docker.sock"
        self._dockerd: subprocess.Popen[bytes] | None = None
        self._namespaces = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", "ip link set lo up; exec sleep infinity"]
        )
        self.url = f"unix://{self._socket}"

    async def start(self) -> None:
        """Run it until it answers."""
        await self._until_apart()
        directory = self._directory
        # Where nothing reaps orphans, a killed engine's containerd stays as a zombie that counts as running.
        for pid_file in (directory / "pid", directory / "exec" / "containerd" / "containerd.pid"):
            pid_file.unlink(missing_ok=True)
        with (directory / "log").open("ab") as log:
            self._dockerd = subprocess.Popen(
                [
                    *("nsenter", "--target", str(self._namespaces.pid), "--net", "--mount", "dockerd"),
                    *("--data-root", directory / "data", "--exec-root", directory / "exec"),
                    *("--pidfile", directory / "pid", "-H", self.url),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        async with asyncio.timeout(START_SECONDS):
            while self.docker("version", check=False).returncode != 0:
                assert self._dockerd.poll() is None, (directory / "log").read_text()
                await asyncio.sleep(0.1)

    async def _until_apart(self) -> None:
        """Wait until the namespaces are its own: an engine that ran in the host's would undo its network."""
        async with asyncio.timeout(START_SECONDS):
            for kind in ("net", "mnt"):
                ours = f"/proc/self/ns/{kind}"
                while os.path.samefile(f"/proc/{self._namespaces.pid}/ns/{kind}", ours):  # noqa: ASYNC240
                    await asyncio.sleep(0.01)

    def docker(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the engine's command line."""
        return subprocess.run(
            ["docker", "-H", self.url, *arguments], check=check, capture_output=True, text=True
        )

    def load_image(self) -> None:
        """Give it the base image of the host's engine."""
        load = f"docker save {BASE_IMAGE} | docker -H {self.url} load"
        subprocess.run(["bash", "-o", "pipefail", "-c", load], check=True, capture_output=True)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the engine alone, as a crash would; its machines' processes live on until it is back."""
        self._signal(signal.SIGKILL)
        assert self._dockerd is not None
        self._dockerd.wait()

    async def end(self) -> None:
        """Stop it with all that it runs."""
        if self._dockerd is None or self._dockerd.poll() is not None:
            await self.start()
        self.thaw()
        for container in self.docker("ps", "-aq").stdout.split():
            self.docker("rm", "-f", container, check=False)
        self._signal(signal.SIGTERM)
        assert self._dockerd is not None
        self._dockerd.wait(timeout=30)
        self._namespaces.kill()
        self._namespaces.wait()

    def _signal(self, number: signal.Signals) -> None:
        assert self._dockerd is not None
        os.kill(self._dockerd.pid, number)


@asynccontextmanager
async def private_engine(disk_mb: int | None = None) -> AsyncIterator[PrivateEngine]:
    """Yield a running engine that has the base image, on a disk of this size."""
    directory = Path(mkdtemp(prefix="vmd-"))  # not pytest's, whose names are too long for its sockets
    if disk_mb is not None:
        (directory / "data").mkdir()
        options = ["-t", "tmpfs", "-o", f"size={disk_mb}m", "tmpfs", str(directory / "data")]
        subprocess.run(["mount", *options], check=True)
    engine = PrivateEngine(directory)
    try:
        await engine.start()
        engine.load_image()
        try:
            yield engine
        finally:
            await engine.end()
    finally:
        if disk_mb is not None:
            subprocess.run(["umount", "--lazy", directory / "data"], check=True)
        shutil.rmtree(directory, ignore_errors=True)
