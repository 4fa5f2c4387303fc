"""The commands that work in a workspace: exec and attach."""

import argparse
import http.client
import os
from collections.abc import Callable
from typing import Any, TypeVar

from vmd.cli import execution
from vmd.cli.client import Endpoint, find_workspace, local_endpoint, remote_endpoint
from vmd.cli.failure import Failure
from vmd.cli.local import no_answer
from vmd.cli.settings import add_arguments, data_dir_of
from vmd.cli.standard import open_all, read_input

T = TypeVar("T")

_WHERE = """\
The daemon is that of VMD_URL, asked with VMD_TOKEN, or else the one that runs
on the data directory. WORKSPACE is a name or an id."""

_EXEC = f"""\
Run a command in a workspace, as if it ran here: what it prints comes as it is
printed, byte for byte, and SIGINT and SIGTERM are passed on to it. No shell
looks at it, unless it is one: vmd exec WORKSPACE -- sh -c 'LINE'.

{_WHERE}

Standard input, unless it is a terminal, is read to its end and given to the
command, some 700 KiB at most; </dev/null gives none. A connection that breaks
is made again for a minute; the command goes on meanwhile, even if the daemon
is restarted. A second Ctrl-C within two seconds leaves it running, and says
where to find it."""

_EXEC_STATUS = """\
exit status: that of the command, so 128 and the signal's number when a signal
ended it, and 127 when there is no such program; 124 when --timeout stopped it,
as with timeout(1); 1 when it is lost or could not be run, with one line that
says why; 2 for wrong usage; 130 when a second Ctrl-C left it running."""

_ATTACH = f"""\
Be at a terminal in a workspace: in a new login shell, in a new one that runs
--command, or in a --session that goes on.

{_WHERE}

After a new line, ~. detaches (the shell goes on, and it is said how to come
back), ~? shows this help, and ~~ types a ~. With --readonly, Ctrl-C detaches
too. A connection that breaks is made again for a minute, and what the shell
printed meanwhile is shown; keys that were on their way may be lost. Input that
is no terminal is typed into the shell as it comes, and its end does not end
the shell: let it end with exit."""

_ATTACH_STATUS = """\
exit status: that of the shell; 0 when you detach; 1 for a failure, with one
line that says what to do; 2 for wrong usage; 128 and the signal's number when
a signal ended vmd itself, which leaves the shell running."""


def add_commands(commands: Any) -> None:
    """Add exec and attach."""
    run = _command(commands, "exec", "run a command in a workspace", _EXEC, _EXEC_STATUS)
    run.usage = "vmd exec [-u USER] [-w DIR] [-e NAME=VALUE] [--timeout SECONDS] WORKSPACE -- COMMAND …"
    run.add_argument("-u", "--user", metavar="USER", help="whom it runs as: NAME, UID, NAME:GROUP or UID:GID")
    run.add_argument("-w", "--workdir", metavar="DIR", help="where it runs (default: /workspace)")
    run.add_argument("-e", "--env", action="append", type=_variable, default=[], metavar="NAME=VALUE")
    run.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="stop it when it takes longer")
    run.add_argument("workspace", metavar="WORKSPACE")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    run.set_defaults(run=lambda given: _exec(run, given))

    attach = _command(commands, "attach", "be at a terminal in a workspace", _ATTACH, _ATTACH_STATUS)
    attach.add_argument("--session", metavar="ID", help="a shell that goes on, instead of a new one")
    attach.add_argument("--readonly", action="store_true", help="look on; needs --session")
    attach.add_argument("--takeover", action="store_true", help="close the others; needs --session")
    attach.add_argument("--command", metavar="LINE", help="what to run instead of a login shell")
    attach.add_argument("workspace", metavar="WORKSPACE")
    attach.set_defaults(run=lambda given: _attach(attach, given))


def _command(commands: Any, name: str, text: str, description: str, status: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=description,
        epilog=status,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    return parser


def _exec(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    open_all()
    command = given.command
    if not command or command[0].startswith("-"):
        parser.error("give options, then WORKSPACE, then -- and the command")
    endpoint, workspace_id = _find(given)
    wanted = execution.Wanted(
        command=tuple(command),
        cwd=given.workdir,
        env=dict(given.env),
        user=given.user,
        timeout_seconds=given.timeout,
        stdin=read_input(execution.MAX_STDIN_BYTES),
    )
    return execution.Execution(endpoint, workspace_id, wanted).run()


def _attach(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    if given.session is None and (given.readonly or given.takeover):
        parser.error("--readonly and --takeover need a --session")
    if given.session is not None and given.command is not None:
        parser.error("a --session has its command already; give no --command")
    open_all()
    from vmd.cli import attachment  # it needs websockets, which nothing else does

    endpoint, workspace_id = _find(given)
    wanted = attachment.Wanted(
        workspace=given.workspace,
        workspace_id=workspace_id,
        session=given.session,
        command=given.command,
        is_readonly=given.readonly,
        takeover=given.takeover,
    )
    return _answered(endpoint, lambda: attachment.attach(endpoint, wanted))


def _find(given: argparse.Namespace) -> tuple[Endpoint, str]:
    """Return the daemon that the user means, which must run, and the id of the workspace."""
    endpoint = remote_endpoint(os.environ) or local_endpoint(data_dir_of(given), "admin")
    return endpoint, _answered(endpoint, lambda: find_workspace(endpoint, given.workspace))


def _answered(endpoint: Endpoint, ask: Callable[[], T]) -> T:
    """Return what `ask` returns; raise Failure if nobody answers."""
    try:
        return ask()
    except BrokenPipeError:
        raise
    except (FileNotFoundError, ConnectionRefusedError) as error:
        if endpoint.data_dir is None:
            raise no_answer(endpoint, error) from None
        raise Failure(f"no daemon runs on {endpoint.data_dir}; start it with `vmd serve`") from None
    except (OSError, http.client.HTTPException) as error:
        raise no_answer(endpoint, error) from None


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE")
    return name, value


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds")
    return seconds
