"""A user's view of vmd: what script/demo runs once everything is built. Standard library only."""

from __future__ import annotations

import argparse
import contextlib
import http.server
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

READY_SECONDS = 30
DELETE_SECONDS = 120
STOP_SECONDS = 30
CALL_TIMEOUT_SECONDS = 45
READY_POLL_SECONDS = 0.1
WAIT_SECONDS = 30  # how long the daemon holds one wait; below CALL_TIMEOUT_SECONDS
GIT_TIMEOUT_SECONDS = 60
LOG_LINES_SHOWN = 15
FINAL = ("succeeded", "failed", "cancelled")
FIND_LEFT = "for what in 'ps -a' 'volume ls' 'network ls'; do docker $what --filter label=vmd.workspace; done"
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

README = "# Hello\n\nA repository made for the demonstration of vmd.\n"
HELLO = """\
import os
import sys

machine = os.uname()
python = sys.version.split()[0]
print(f"Hello from {machine.nodename}: Python {python} on {machine.sysname}, user id {os.getuid()}")
"""
PROVISIONING = [
    "git log -1 --format='The last commit is %h: %s'",
    "if [ -e hello.py ]; then python3 hello.py; fi",
]
COMMAND = [
    "sh",
    "-c",
    "git status --short --branch && ls -l && if [ -e hello.py ]; then python3 hello.py; fi",
]

Json = dict[str, Any]


class Failed(Exception):
    """The demonstration cannot go on; the message says why."""


class DaemonFailed(Failed):
    """It cannot go on because of the daemon itself, whose log may say more."""


def main() -> int:
    """Run the demonstration, and take everything away again whatever happens in it."""
    parser = argparse.ArgumentParser(
        prog="script/demo", description="Show what vmd does; clean up on Ctrl-C."
    )
    parser.add_argument("archive", type=Path, help=argparse.SUPPRESS)  # script/demo gives it
    parser.add_argument(
        "repository", nargs="?", metavar="REPOSITORY_URL", help="default: one made on the spot"
    )
    parser.add_argument("--once", action="store_true", help="clean up right away, without waiting")
    options = parser.parse_intermixed_args()  # --once may stand before the URL

    on_stop(signal.default_int_handler)
    try:
        with contextlib.ExitStack() as undo:
            try:
                demonstrate(options.archive, options.repository, options.once, undo)
            finally:
                on_stop(signal.SIG_IGN)  # every step of cleaning up has a time limit
    except KeyboardInterrupt:
        return 130
    except Failed as failure:
        print(paint(f"demo: {failure}", "31"), file=sys.stderr)
        return 1
    return 0


def demonstrate(archive: Path, repository: str | None, once: bool, undo: contextlib.ExitStack) -> None:
    """Walk through the API once; undo learns how to leave nothing behind."""
    with stops_held_back():  # what is begun is also known to undo; each of these is quick
        directory = undo.enter_context(throw_away_directory())
        url = repository or undo.enter_context(served_repository(directory))
        daemon = undo.enter_context(running_daemon(archive, directory))
    client = Client(daemon)
    wait_until_ready(client)
    undo.enter_context(no_workspace_left(client))

    step(f"Ask for a workspace with {url}")
    request = {"name": "demo", "repo": {"url": url}, "provisioning": PROVISIONING}
    operation = follow(client, client.call("POST", "/api/v1/workspaces", request))
    if operation["status"] != "succeeded":
        raise Failed(
            f"making the workspace {operation['status']}: {(operation['error'] or {}).get('detail')}"
        )
    workspace = client.call("GET", f"/api/v1/workspaces/{operation['workspace_id']}")
    show_workspace(workspace)

    step("Run a command in it")
    run_in_workspace(client, workspace, COMMAND)
    if once:
        return

    show_what_next(client, workspace)
    with contextlib.suppress(KeyboardInterrupt):
        status = daemon.process.wait()
        raise DaemonFailed(f"the daemon ended with exit status {status}")
    tell("")


# --- the daemon and its API ----------------------------------------------------------------------


class Daemon:
    """A running vmd, where it listens and where it keeps its things."""

    def __init__(self, archive: Path, directory: Path) -> None:
        self.archive = archive.resolve()
        self.data_directory = directory / "data"
        self.log = directory / "vmd.log"
        address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{address}"
        command = [
            sys.executable,
            str(archive),
            "serve",
            "--data-dir",
            str(self.data_directory),
            "--listen",
            address,
        ]
        with self.log.open("wb") as log:  # in a session of its own, so that Ctrl-C does not reach it
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    @property
    def token(self) -> str:
        """Return the administrator's token, which the first start makes."""
        return (self.data_directory / "admin-token").read_text().strip()


class Client:
    """Calls a daemon as its administrator."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine

    def call(self, method: str, path: str, body: Json | None = None) -> Json:
        """Return the answer's JSON."""
        with self.open(method, path, body) as answer:
            decoded: Json = json.load(answer)
        return decoded

    def open(
        self, method: str, path: str, body: Json | None = None, timeout: float | None = CALL_TIMEOUT_SECONDS
    ) -> Any:
        """Return the answer, to be read as it comes; Failed says what the daemon has against the request."""
        request = urllib.request.Request(self.daemon.url + path, method=method)
        request.add_header("Authorization", f"Bearer {self.daemon.token}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        try:
            return self._opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            kind = DaemonFailed if error.code >= 500 else Failed
            raise kind(f"{method} {path} answered {error.code}: {problem_detail(error)}") from error
        except OSError as error:
            raise DaemonFailed(f"{method} {path}: {error}") from error

    def is_ready(self) -> bool:
        """Ask the daemon whether it can work."""
        try:
            with self._opener.open(f"{self.daemon.url}/health/ready", timeout=5):
                return True
        except OSError:
            return False


def problem_detail(error: urllib.error.HTTPError) -> str:
    """Return what a problem document says."""
    body = error.read().decode(errors="replace")
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return body[:300]


def wait_until_ready(client: Client) -> None:
    """Wait for the first sign that the daemon can work."""
    deadline = time.monotonic() + READY_SECONDS
    while not client.is_ready():
        if (status := client.daemon.process.poll()) is not None:
            raise DaemonFailed(f"the daemon ended with exit status {status}")
        if time.monotonic() > deadline:
            raise DaemonFailed(f"the daemon was not ready within {READY_SECONDS} s")
        time.sleep(READY_POLL_SECONDS)


def follow(client: Client, operation: Json) -> Json:
    """Show an operation's log while it runs, and return the operation as it ended."""
    path = f"/api/v1/operations/{operation['id']}/logs?follow=true"
    with client.open("GET", path, timeout=None) as lines:
        for line in lines:
            note(json.loads(line)["message"])
    return wait_for(client, operation)


def wait_for(client: Client, operation: Json, within_seconds: float = float("inf")) -> Json:
    """Return the operation once it is final."""
    deadline = time.monotonic() + within_seconds
    while operation["status"] not in FINAL:
        if time.monotonic() > deadline:
            raise Failed(
                f"operation {operation['id']} is still {operation['status']} after {within_seconds} s"
            )
        operation = client.call("GET", f"/api/v1/operations/{operation['id']}/wait?timeout={WAIT_SECONDS}")
    return operation


# --- the workspace -------------------------------------------------------------------------------


def show_workspace(workspace: Json) -> None:
    """Print what a user wants to know first."""
    step(f"The workspace {workspace['name']} is {workspace['status']}")
    repo, resources = workspace["repo"] or {}, workspace["resources"] or {}
    for label, value in (
        ("id", workspace["id"]),
        ("template", workspace["template"]),
        ("commit", repo.get("commit")),
        (
            "limits",
            f"{resources.get('cpus')} CPUs, {resources.get('memory_mb')} MiB, "
            f"{resources.get('pids')} processes",
        ),
        ("expires at", workspace["expires_at"] or "never"),
        ("may now", ", ".join(workspace["allowed_actions"])),
    ):
        if value:
            note(f"{label:<12}{value}")


def run_in_workspace(client: Client, workspace: Json, command: list[str]) -> None:
    """Run a command as the workspace's user in its directory, and show what it prints."""
    path = f"/api/v1/workspaces/{workspace['id']}/commands"
    operation = wait_for(client, client.call("POST", path, {"command": command}))
    for stream in ("stdout", "stderr"):
        with client.open("GET", f"{path}/{operation['command_id']}/output?stream={stream}") as printed:
            for line in printed.read().decode(errors="replace").splitlines():
                note(line)
    exit_code = (operation["result"] or {}).get("exit_code")
    if exit_code != 0:
        raise Failed(f"the command ended with exit code {exit_code}")


def show_what_next(client: Client, workspace: Json) -> None:
    """Print the lines to go on with in another terminal."""
    url = client.daemon.url
    one = f"{url}/api/v1/workspaces/{workspace['id']}"
    curl = 'curl -sS -H "Authorization: Bearer $TOKEN"'
    step("Go on from another terminal")
    for what, line in (
        ("who you are", f"TOKEN=$(cat {client.daemon.data_directory}/admin-token)"),
        (
            "a terminal in it; ~. leaves it",
            f"VMD_URL={url} VMD_TOKEN=$TOKEN {client.daemon.archive} attach demo",
        ),
        ("a command in it", f"VMD_URL={url} VMD_TOKEN=$TOKEN {client.daemon.archive} exec demo -- ls -la"),
        ("look at it", f"{curl} {one}"),
        ("stop it", f"{curl} -X POST {one}/actions/stop"),
        ("start it", f"{curl} -X POST {one}/actions/start"),
        ("delete it", f"{curl} -X DELETE {one}"),
        ("what was done", f"{curl} {url}/api/v1/operations"),
        ("events, first the past ones", f"{curl} -N '{url}/api/v1/events?after=0'"),
        ("the API, in a browser; any name, and the token as password", f"{url}/docs"),
    ):
        tell(paint(f"  # {what}", "2"))
        tell(f"  {line}")
    step("Press Ctrl-C to take everything away again")


# --- what is set up, and taken away again --------------------------------------------------------


@contextlib.contextmanager
def throw_away_directory() -> Iterator[Path]:
    """Make a directory for everything that the demonstration writes; remove it at the end."""
    directory = Path(tempfile.mkdtemp(prefix="vmd-demo."))
    try:
        yield directory
    finally:
        step(f"Remove {directory}")
        shutil.rmtree(directory)


@contextlib.contextmanager
def running_daemon(archive: Path, directory: Path) -> Iterator[Daemon]:
    """Start a daemon; stop it at the end, and show the end of its log if it failed."""
    daemon = Daemon(archive, directory)
    try:
        step(f"Start vmd at {daemon.url}, with its data in {daemon.data_directory}")
        yield daemon
    except DaemonFailed:
        tell(paint(f"The end of {daemon.log}:", "31"))
        for line in daemon.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]:
            note(line)
        raise
    finally:
        step("Stop vmd")
        daemon.process.terminate()
        try:
            daemon.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            note(f"it did not stop within {STOP_SECONDS} s and is killed")
            daemon.process.kill()
            daemon.process.wait()


@contextlib.contextmanager
def no_workspace_left(client: Client) -> Iterator[None]:
    """Delete all workspaces at the end, also those that were made by hand in the meantime."""
    try:
        yield
    finally:
        try:
            for workspace in client.call("GET", "/api/v1/workspaces?limit=200")["items"]:
                step(f"Delete the workspace {workspace['name']}")
                deletion = client.call("DELETE", f"/api/v1/workspaces/{workspace['id']}")
                deletion = wait_for(client, deletion, DELETE_SECONDS)
                if deletion["status"] != "succeeded":
                    raise Failed(f"deleting {deletion['status']}: {(deletion['error'] or {}).get('detail')}")
        except Failed as failure:
            raise type(failure)(f"{failure}; find what is left with: {FIND_LEFT}") from failure


@contextlib.contextmanager
def served_repository(directory: Path) -> Iterator[str]:
    """Serve a small git repository over HTTP where workspaces can reach it; give its URL."""
    make_repository(directory)
    host = bridge_address()
    GitHandler.root = directory / "git"
    try:
        server = http.server.ThreadingHTTPServer((host, 0), GitHandler)
    except OSError as error:
        raise Failed(
            f"cannot serve a repository at the engine's bridge {host}: {error}; name a REPOSITORY_URL"
        ) from error
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://{host}:{server.server_port}/hello.git"
    step(f"Serve a small git repository at {url}")
    try:
        yield url
    finally:
        step("Stop the git server")
        server.shutdown()
        server.server_close()


def make_repository(directory: Path) -> None:
    """Make git/hello.git with one commit, whatever the user's own settings of git are."""
    tree, bare = directory / "hello", directory / "git" / "hello.git"
    tree.mkdir()
    (tree / "README.md").write_text(README)
    (tree / "hello.py").write_text(HELLO)
    who = {
        f"GIT_{role}_{part}": value
        for role in ("AUTHOR", "COMMITTER")
        for part, value in (("NAME", "vmd demo"), ("EMAIL", "demo@example.com"))
    }
    environment = os.environ | who | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    for command in (
        ("init", "--quiet", "--initial-branch=main"),
        ("add", "."),
        ("commit", "--quiet", "--message=Say hello"),
        ("clone", "--quiet", "--bare", ".", str(bare)),
    ):
        subprocess.run(["git", *command], cwd=tree, env=environment, check=True, start_new_session=True)


class GitHandler(http.server.BaseHTTPRequestHandler):
    """Git's smart HTTP: hands each request to `git http-backend`, which speaks CGI."""

    root: Path

    def do_GET(self) -> None:
        """Answer with what the backend prints."""
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        environment = os.environ | {
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REQUEST_METHOD": self.command,
            "PATH_INFO": urllib.parse.unquote(path),
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "REMOTE_ADDR": self.client_address[0],
        }
        backend = subprocess.run(
            ["git", "http-backend"],
            input=body,
            env=environment,
            capture_output=True,
            check=False,
            timeout=GIT_TIMEOUT_SECONDS,
        )
        head, _, content = backend.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
        self.send_response_only(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET  # noqa: N815 - the names are the standard library's

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


def bridge_address() -> str:
    """Return the host's address on the engine's own bridge."""
    for settings in json.loads(docker("network", "inspect", "bridge"))[0]["IPAM"]["Config"]:
        network = ipaddress.ip_network(settings["Subnet"])
        if network.version == 4:
            return str(settings.get("Gateway") or network[1])
    raise Failed("the engine's bridge has no IPv4 network to serve a repository on; name a REPOSITORY_URL")


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def docker(*arguments: str) -> str:
    """Call the engine's command line, and return what it prints."""
    done = subprocess.run(  # in a session of its own, as everything that Ctrl-C is not for
        ["docker", *arguments], capture_output=True, text=True, check=False, start_new_session=True
    )
    if done.returncode != 0:
        raise Failed(f"docker {arguments[0]} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


# --- stopping ------------------------------------------------------------------------------------


def on_stop(handler: Any) -> None:
    """Let handler be called for whatever asks this process to stop."""
    for number in STOPS:
        signal.signal(number, handler)


@contextlib.contextmanager
def stops_held_back() -> Iterator[None]:
    """Let the block end before a request to stop is followed."""
    held: list[int] = []
    on_stop(lambda number, _: held.append(number))
    try:
        yield
    finally:
        on_stop(signal.default_int_handler)
    if held:
        raise KeyboardInterrupt


# --- telling -------------------------------------------------------------------------------------


def step(text: str) -> None:
    """Say what happens next."""
    tell(paint(f"==> {text}", "1"))


def note(text: str) -> None:
    """Show a line of what something else said."""
    tell(paint("  | ", "2") + text.rstrip("\r\n"))


def tell(text: str) -> None:
    """Print a line; when nobody can read it any more, that is a request to stop."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        signal.raise_signal(signal.SIGINT)  # without effect while everything is taken away


def paint(text: str, code: str) -> str:
    """Return the text in a colour (an ECMA-48 SGR code) where somebody looks at it."""
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


if __name__ == "__main__":
    sys.exit(main())
