"""A command that runs in a workspace as if it ran here: its streams, its signals, its exit code."""

import base64
import http.client
import json
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from queue import SimpleQueue
from types import FrameType
from typing import Any, NoReturn, TypeVar

from attrs import frozen

from vmd.cli.client import Endpoint, Refusal, lines, request
from vmd.cli.failure import Failure
from vmd.cli.patience import Patience
from vmd.cli.standard import STDERR, STDOUT, OutputGone, write_all
from vmd.http.app import MAX_BODY_BYTES
from vmd.http.commands import NDJSON

T = TypeVar("T")

TIMED_OUT = 124  # as timeout(1) has it
DETACH_SECONDS = 2.0  # within which a second Ctrl-C leaves the command alone
MAX_STDIN_BYTES = MAX_BODY_BYTES * 3 // 4  # in base64; how much there is room for depends on the rest
_DESCRIPTORS = {"stdout": STDOUT, "stderr": STDERR}


class Detached(Exception):
    """The user wants to leave, and the command to go on."""


@frozen(kw_only=True)
class Wanted:
    """What to run."""

    command: tuple[str, ...]
    cwd: str | None
    env: Mapping[str, str]
    user: str | None
    timeout_seconds: float | None
    stdin: bytes

    def body(self) -> dict[str, Any]:
        """Return the request for it; raise Failure if there is too much input."""
        members = {
            "command": self.command,
            "cwd": self.cwd,
            "env": self.env,
            "user": self.user,
            "timeout_seconds": self.timeout_seconds,
        }
        if self.stdin:
            members["stdin"] = base64.b64encode(self.stdin).decode()
            members["stdin_encoding"] = "base64"
        body = {name: value for name, value in members.items() if value is not None}
        if len(json.dumps(body)) > MAX_BODY_BYTES:
            raise Failure(
                "a command can be given about 700 KiB of input, with its arguments; write more to a file "
                "first, in pieces: split -b 500K --filter='vmd exec WORKSPACE -- sh -c \"cat >>FILE\"' INPUT"
            )
        return body


class Execution:
    """Begins a command and follows it to its end, over as many connections as that takes."""

    def __init__(self, endpoint: Endpoint, workspace_id: str, wanted: Wanted) -> None:
        self._endpoint = endpoint
        self._commands = f"/api/v1/workspaces/{workspace_id}/commands"
        self._wanted = wanted
        self._body = wanted.body()
        self._once = {"Accept": NDJSON, "Idempotency-Key": secrets.token_hex(16)}
        self._begun: dict[str, Any] | None = None
        self._offsets = dict.fromkeys(_DESCRIPTORS, 0)  # of the next byte to write
        self._signals = _Signals(self._send_signal)

    def run(self) -> int:
        """Return the exit status that the command ended with, once all it printed is written."""
        try:
            self._signals.forward()
            return self._finish(self._follow())
        except Detached:
            self._say(f"left; {self._whereabouts()}")
            return 128 + signal.SIGINT
        except OutputGone:
            self._hang_up()
            raise BrokenPipeError from None

    # Following.

    def _follow(self) -> Any:
        """Write what the command prints, each byte once; return the line that tells of its end."""
        patience, error = Patience(), "the connection broke"
        while True:
            before = dict(self._offsets)
            try:
                for line in self._open():
                    if line["type"] == "exit":
                        return line
                    self._take(line, patience)
            except (OSError, http.client.HTTPException) as broken:
                error = str(broken)
            except Refusal as refused:
                if not refused.may_pass or (self._begun is None and refused.code != "not-ready"):
                    raise
                error = str(refused)
            patience.broken(had_news=self._offsets != before)
            self._wait(patience, error)

    def _open(self) -> Iterator[Any]:
        if self._begun is None:
            return lines(self._endpoint, self._commands, self._body, self._once)
        at = "&".join(f"{stream}_offset={offset}" for stream, offset in self._offsets.items())
        return lines(self._endpoint, f"{self._path()}/stream?{at}")

    def _take(self, line: Any, patience: Patience) -> None:
        kind = line["type"]
        if kind == "start":
            self._begun = line
            self._signals.begin()
            patience.connected()
        elif kind == "dropped":
            self._say(f"{line['bytes']} bytes of {line['stream']} are no longer kept, and are missing here")
            self._offsets[line["stream"]] = line["offset"] + line["bytes"]
        elif kind in _DESCRIPTORS:
            is_text = line.get("encoding") is None
            data = line["data"].encode() if is_text else base64.b64decode(line["data"])
            known = max(0, self._offsets[kind] - line["offset"])
            write_all(_DESCRIPTORS[kind], data[known:])
            self._offsets[kind] = max(self._offsets[kind], line["offset"] + len(data))

    def _finish(self, end: Any) -> int:
        """Return the exit status for the command's end; raise Failure if it is lost."""
        if end["exit_code"] is None:
            assert self._begun is not None
            path = f"/api/v1/operations/{self._begun['operation_id']}"
            error = self._insist(lambda: request(self._endpoint, "GET", path))["error"]
            raise Failure("the command is lost" + (f": {error['detail']}" if error else ""))
        if self._wanted.timeout_seconds is not None:
            command = self._insist(lambda: request(self._endpoint, "GET", self._path()))
            if command["status"] == "timed_out":
                self._say(f"the command was stopped after {self._wanted.timeout_seconds:g} s")
                return TIMED_OUT
        return int(end["exit_code"])

    def _insist(self, ask: Callable[[], T]) -> T:
        """Return an answer, asking again for as long as the daemon may only be away."""
        patience = Patience()
        while True:
            try:
                return ask()
            except (OSError, http.client.HTTPException) as broken:
                error = str(broken)
            except Refusal as refused:
                if not refused.may_pass:
                    raise
                error = str(refused)
            patience.broken(had_news=False)
            self._wait(patience, error)

    def _wait(self, patience: Patience, error: str) -> None:
        pause = patience.next_pause()
        if pause is None:
            raise Failure(f"{self._endpoint.name} does not come back: {error}; {self._whereabouts()}")
        time.sleep(pause)

    # Signals, and leaving.

    def _send_signal(self, name: str) -> None:
        try:
            self._insist(lambda: request(self._endpoint, "POST", f"{self._path()}/signal", {"signal": name}))
        except Refusal as refused:
            if refused.code != "invalid-state":  # it has ended
                self._say(f"the command did not get SIG{name}: {refused}")
        except Failure:
            return  # the daemon does not come back, which whoever follows the command says

    def _hang_up(self) -> None:
        """Tell a command that nobody reads any more, as a broken pipe would."""
        if self._begun is not None:
            with suppress(OSError, http.client.HTTPException, Failure):
                request(self._endpoint, "POST", f"{self._path()}/signal", {"signal": "HUP"})

    def _path(self) -> str:
        assert self._begun is not None
        return f"{self._commands}/{self._begun['command_id']}"

    def _whereabouts(self) -> str:
        if self._begun is None:
            return f"if the command has begun, GET {self._commands} lists it"
        return f"the command goes on, and GET {self._path()}/output?follow=true has what it prints"

    @staticmethod
    def _say(text: str) -> None:
        with suppress(OutputGone):
            write_all(STDERR, f"vmd: {text}\n".encode())


class _Signals:
    """Passes this process's signals on, beside the thread that writes what the command prints."""

    def __init__(self, send: Callable[[str], None]) -> None:
        self._send = send
        self._names: SimpleQueue[str] = SimpleQueue()
        self._has_begun = threading.Event()
        self._interrupted_at: float | None = None

    def begin(self) -> None:
        """Take note that there is a command to pass them to."""
        self._has_begun.set()

    def forward(self) -> None:
        """Forward SIGINT and SIGTERM for as long as the process lives; raise Detached at a second SIGINT."""
        threading.Thread(target=self._pass_on, daemon=True).start()
        signal.signal(signal.SIGINT, self._interrupt)
        signal.signal(signal.SIGTERM, lambda *_: self._names.put("TERM"))

    def _interrupt(self, _: int, __: FrameType | None) -> None:
        now, before = time.monotonic(), self._interrupted_at
        self._interrupted_at = now
        if before is not None and now - before < DETACH_SECONDS:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a third one is not to disturb the leaving
            raise Detached
        self._names.put("INT")

    def _pass_on(self) -> NoReturn:
        self._has_begun.wait()
        while True:
            self._send(self._names.get())
