"""The command line: arguments to settings to a daemon, or to a request to one."""

import argparse
import sys
from collections.abc import Callable, Sequence

from vmd import __version__
from vmd.cli import administration, operating, serving, working
from vmd.cli.failure import Failure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 after one line on stderr, 2 for wrong usage."""
    parser = _parser()
    given = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int | None] = given.run
    try:
        return run(given) or 0
    except Failure as error:
        print("vmd:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vmd", description="Transient development workspaces for a team, over REST and WebSockets."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    serving.add_commands(commands)
    administration.add_commands(commands)
    operating.add_commands(commands)
    working.add_commands(commands)
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run=lambda _: print(__version__))
    return parser
