"""A real git server: `git http-backend` behind aiohttp, on the address that machines can reach."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

IDENTITY = ("-c", "user.name=Test", "-c", "user.email=test@example.test", "-c", "commit.gpgsign=false")


def run_git(directory: Path, *arguments: str) -> str:
    """Return what git prints."""
    command = ["git", *IDENTITY, *arguments]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"}
    done = subprocess.run(command, cwd=directory, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def make_repository(root: Path, name: str = "hello") -> str:
    """Make root/NAME.git with two commits on main and one on the branch topic; return main's commit."""
    source = root / f"{name}-source"
    source.mkdir(parents=True)
    run_git(source, "init", "-q", "-b", "main")
    (source / "hello.txt").write_text("one\n")
    run_git(source, "add", ".")
    run_git(source, "commit", "-q", "-m", "one")
    run_git(source, "switch", "-q", "-c", "topic")
    (source / "topic.txt").write_text("topic\n")
    run_git(source, "add", ".")
    run_git(source, "commit", "-q", "-m", "topic")
    run_git(source, "switch", "-q", "main")
    (source / "hello.txt").write_text("two\n")
    run_git(source, "commit", "-q", "-a", "-m", "two")
    run_git(root, "clone", "-q", "--bare", str(source), f"{name}.git")
    return run_git(source, "rev-parse", "main")


def make_repository_of(root: Path, name: str, files: Mapping[str, str], *, is_partial: bool = True) -> None:
    """Make root/NAME.git with these files on main; whether clones may leave out contents is said."""
    source = root / f"{name}-source"
    for path, text in files.items():
        place = source / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    run_git(source, "init", "-q", "-b", "main")
    run_git(source, "add", "--force", ".")
    run_git(source, "commit", "-q", "-m", "all")
    run_git(root, "clone", "-q", "--bare", str(source), f"{name}.git")
    run_git(root / f"{name}.git", "config", "uploadpack.allowFilter", str(is_partial).lower())


@asynccontextmanager
async def serve_git(root: Path, address: str) -> AsyncIterator[str]:
    """Serve the repositories below `root` over smart HTTP; yield the base URL."""

    async def handle(request: web.Request) -> web.Response:
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": request.method,
            "PATH_INFO": request.path,
            "QUERY_STRING": request.query_string,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        }
        backend = await asyncio.create_subprocess_exec(
            "git", "http-backend", stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        output, _ = await backend.communicate(await request.read())
        head, _, body = output.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        status = int(headers.pop("Status", "200").split()[0])
        return web.Response(status=status, headers=headers, body=body)

    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, address, 0)
    await site.start()
    try:
        port = runner.addresses[0][1]
        yield f"http://{address}:{port}"
    finally:
        await runner.cleanup()
