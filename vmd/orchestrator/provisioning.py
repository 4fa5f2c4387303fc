"""What is done inside a new machine: clone the repository, run the provisioning commands."""

from collections import deque

from vmd.model.errors import ErrorCode, Refused
from vmd.model.operation import Job, Phase
from vmd.model.workspace import Repo
from vmd.operations.report import Report
from vmd.providers.base import Execution, Machine, Provider
from vmd.providers.process import MACHINE_USER

TAIL_LINES = 5
TAIL_CHARACTERS = 1000

# The address and names come in variables and stand behind `--`, so none can be an option or shell.
# The clone is made aside, and moved in when it is whole; a try that was cut off goes on with it. Nothing but
# what such a try left aside is ever removed. A clone that was moved in is known by its operation. Prints the
# commit, or nothing in an empty repository.
_CLONE_SCRIPT = """
set -eu
command -v git >/dev/null || { echo "the image has no git; use one that has" >&2; exit 127; }
if [ ! -d .vmd-cloned ] && [ "$(git config --get vmd.operation)" = "$VMD_OPERATION" ]; then
    git rev-parse --quiet --verify HEAD || true
    exit 0
fi
is_there() { [ -e "$1" ] || [ -L "$1" ]; }
if [ ! -d .vmd-cloned ]; then
    rm -rf .vmd-clone
    for found in * .[!.]* ..?*; do
        if is_there "$found"; then
            echo "the workspace has files already; move them away and rebuild, or go on with them" >&2
            exit 1
        fi
    done
    if [ -n "${VMD_REPO_BRANCH:-}" ]; then
        git clone --branch="$VMD_REPO_BRANCH" -- "$VMD_REPO_URL" .vmd-clone >&2
    else
        git clone -- "$VMD_REPO_URL" .vmd-clone >&2
    fi
    if [ -n "${VMD_REPO_COMMIT:-}" ]; then
        cd .vmd-clone
        git cat-file -e "$VMD_REPO_COMMIT^{commit}" 2>/dev/null ||
            git fetch --quiet origin "$VMD_REPO_COMMIT" >&2
        if [ -n "${VMD_REPO_BRANCH:-}" ]; then
            git reset --quiet --hard "$VMD_REPO_COMMIT" >&2
        else
            git checkout --quiet --detach "$VMD_REPO_COMMIT" >&2
        fi
        cd ..
    fi
    git -C .vmd-clone config vmd.operation "$VMD_OPERATION"
    mv .vmd-clone .vmd-cloned
fi
cd .vmd-cloned
for found in * .[!.]* ..?*; do
    if is_there "$found"; then mv -- "$found" ../; fi
done
cd ..
rmdir .vmd-cloned
git rev-parse --quiet --verify HEAD || true
"""
GIT_ENV = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "http:https:ssh",
    "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oStrictHostKeyChecking=accept-new -oConnectTimeout=20",
    "GIT_HTTP_LOW_SPEED_LIMIT": "1000",
    "GIT_HTTP_LOW_SPEED_TIME": "60",
}


async def clone(provider: Provider, machine: Machine, repo: Repo, job: Job, report: Report) -> str | None:
    """Put the repository's files into the workspace and return the commit, None for an empty repository.

    Raises Refused with git's own reason.
    """
    await report.phase(Phase.CLONE, f"Cloning {repo.url}.")
    env = {
        "VMD_OPERATION": job.id,
        "VMD_REPO_URL": repo.url,
        "VMD_REPO_BRANCH": repo.branch or "",
        "VMD_REPO_COMMIT": repo.commit or "",
    }
    answer = bytearray()
    tail = Tail()

    async def output(stream: str, data: bytes) -> None:
        if stream == "stdout":
            answer.extend(data[:200])
        else:
            tail.add(data)
            await report.output(stream, data)

    execution = Execution(argv=("/bin/sh", "-c", _CLONE_SCRIPT), env={**GIT_ENV, **env})
    exit_code = await provider.execute(machine.ref, execution, output)
    if exit_code != 0:
        raise Refused(
            ErrorCode.PROVIDER_ERROR,
            f"Cloning {repo.url} failed (exit code {exit_code}): {report.redact(tail.text())} "
            "Delete the workspace, or mend the cause and rebuild it.",
        )
    return answer.decode("ascii", "replace").strip() or None


async def provision(
    provider: Provider,
    machine: Machine,
    commands: tuple[str, ...],
    job: Job,
    report: Report,
    user: str = MACHINE_USER,
) -> None:
    """Run the commands in order as a user of the machine, from the first that no earlier try finished.

    Raises Refused naming the one that failed.
    """
    done = int(job.checkpoint.get("provisioned", 0))
    for place, command in enumerate(commands):
        if place < done:
            continue
        title = f"Provisioning {place + 1} of {len(commands)}: {_short(command)}"
        await report.phase(Phase.PROVISION, title, percent=100 * place // len(commands), provisioned=place)
        tail = Tail()

        async def output(stream: str, data: bytes, tail: "Tail" = tail) -> None:
            tail.add(data)
            await report.output(stream, data)

        execution = Execution(argv=("/bin/sh", "-c", command), user=user)
        exit_code = await provider.execute(machine.ref, execution, output)
        if exit_code != 0:
            raise Refused(
                ErrorCode.PROVIDER_ERROR,
                f"Provisioning command {place + 1} of {len(commands)} failed with exit code {exit_code}: "
                f"{_short(command)} said: {report.redact(tail.text())} The operation's log has all of it. "
                "Start the workspace to look around in it, rebuild it, or delete it.",
            )


class Tail:
    """The last lines of an output."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque(maxlen=64)

    def add(self, data: bytes) -> None:
        """Take more of the output."""
        self._chunks.append(data[-TAIL_CHARACTERS:])

    def text(self) -> str:
        """Return the last lines as one."""
        lines = b"".join(self._chunks).decode("utf-8", "replace").split("\n")
        shown = " / ".join(line.strip() for line in [line for line in lines if line.strip()][-TAIL_LINES:])
        return (shown or "nothing")[-TAIL_CHARACTERS:].rstrip(".") + "."


def _short(command: str) -> str:
    line = " ".join(command.split())
    return f"`{line[:80]}…`" if len(line) > 80 else f"`{line}`"
