"""Shells: terminals that go on when nobody is attached to them, for a while."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from attrs import evolve, frozen

from vmd.model.account import Actor, Scope
from vmd.model.errors import not_found
from vmd.model.event import EventType
from vmd.model.page import Page
from vmd.model.shell import Persistence, Shell, ShellStatus
from vmd.model.workspace import WORKDIR, Workspace
from vmd.orchestrator.outputs import TERMINAL_WINDOW_BYTES, Outputs
from vmd.orchestrator.permissions import get_running, get_workspace, require_scope
from vmd.orchestrator.refusals import refused_by_provider
from vmd.orchestrator.shell_ends import PREFIX, ShellEnds, ShellOptions, tell
from vmd.orchestrator.supervisors import Supervisors
from vmd.providers.base import ProviderError, ProviderUnavailable
from vmd.providers.process import (
    Chunk,
    Follower,
    ProcessReport,
    ProcessSpec,
    ProcessState,
    Stream,
    Supervisor,
    TerminalSize,
)
from vmd.store.database import Database, Transaction
from vmd.store.shells import (
    find_shell,
    insert_shell,
    list_shells,
    update_shell,
)
from vmd.store.workspaces import find_workspace, list_secrets


@frozen(kw_only=True)
class Beginning:
    """Where the output of an attachment begins."""

    offset: int
    replayed_bytes: int  # that are there already


class Attachment:
    """One connection to a shell. Iterate over its output, give it input, and detach it at the end."""

    def __init__(self, shells: "Shells", shell: Shell, beginning: Beginning, hold: Follower | None) -> None:
        self.shell = shell
        self.beginning = beginning
        self.taken_over = asyncio.Event()  # somebody else wants the shell alone
        self._shells = shells
        self._hold = hold

    async def output(self) -> AsyncGenerator[Chunk, None]:
        """Yield what the terminal shows, each byte once, until the shell has ended."""
        chunks = self._shells.read(self.shell, self.beginning.offset)
        async with aclosing(chunks):
            async for chunk in chunks:
                self._let_go()
                yield chunk

    async def write(self, data: bytes) -> None:
        """Give input; return when there may be more. Raises Refused."""
        await self._shells.ask(self.shell, lambda supervisor: supervisor.write(self.shell.id, data))

    async def resize(self, size: TerminalSize) -> None:
        """Change the terminal's size. Raises Refused."""
        await self._shells.ask(
            self.shell, lambda supervisor: _at_once(supervisor.resize, self.shell.id, size)
        )

    async def signal(self, name: str) -> None:
        """Send a signal to what runs in the foreground. Raises Refused."""
        number = signal.Signals[f"SIG{name}"]
        await self._shells.ask(
            self.shell, lambda supervisor: _at_once(supervisor.signal, self.shell.id, number)
        )

    async def exit_code(self) -> int | None:
        """Return how the shell ended, once its output did; None when it is lost."""
        return await self._shells.exit_code(self.shell)

    async def detach(self) -> None:
        """Leave; the shell goes on."""
        self._let_go()
        await self._shells.detach(self)

    def _let_go(self) -> None:
        if self._hold is not None:
            self._hold.close()
            self._hold = None


class Shells:
    """The use cases of shells."""

    def __init__(
        self,
        database: Database,
        supervisors: Supervisors,
        outputs: Outputs,
        options: ShellOptions,
        touch: Callable[[str], None],
    ) -> None:
        """Take `touch`, which is told the workspace of every shell that something goes through."""
        self._database = database
        self._supervisors = supervisors
        self._outputs = outputs
        self._options = options
        self._touch = touch
        self._attached: dict[str, set[Attachment]] = {}
        self.ends = ShellEnds(database, supervisors, options, self._attached.__contains__)

    # What is asked.

    async def require_possible(self, actor: Actor, workspace_id: str, shell_id: str | None) -> None:
        """Refuse what `create`, or `attach` to a shell, would refuse."""
        require_scope(actor, Scope.EXEC)
        if shell_id is None:
            await self._database.read(lambda tx: get_running(tx, actor, workspace_id, "run shells"))
        else:
            await self._database.read(lambda tx: _get_attachable(tx, actor, workspace_id, shell_id))

    async def create(
        self, actor: Actor, workspace_id: str, command: str | None, size: TerminalSize
    ) -> Attachment:
        """Begin a shell, a login shell unless there is a command, and attach to it."""
        require_scope(actor, Scope.EXEC)

        def unit(tx: Transaction) -> tuple[Workspace, Shell, dict[str, str]]:
            workspace = get_running(tx, actor, workspace_id, "run shells")
            shell = Shell(
                id=tx.new_id(PREFIX),
                workspace_id=workspace.id,
                actor=actor.name,
                command=command,
                persistence=Persistence.MACHINE,
                status=ShellStatus.RUNNING,
                exit_code=None,
                created_at=tx.now,
                detached_at=None,
                finished_at=None,
            )
            self.ends.beginning.add(shell.id)
            insert_shell(tx, shell)
            tell(tx, EventType.SHELL_STARTED, workspace.owner_id, shell, command=command)
            return workspace, shell, list_secrets(tx, workspace.id)

        workspace, shell, secrets = await self._database.write(unit)
        spec = ProcessSpec(
            id=shell.id,
            line=command,
            cwd=WORKDIR,
            env=secrets,
            terminal=size,
            kept_bytes=self._options.output_bytes,
        )
        try:
            supervisor = await self._supervisors.of(workspace)
            await supervisor.start(spec)
        except (ProviderError, ProviderUnavailable) as error:
            await self.ends.write(shell, None)
            raise refused_by_provider(error) from None
        finally:
            self.ends.beginning.discard(shell.id)
        if supervisor.persistence is not shell.persistence:
            shell = evolve(shell, persistence=supervisor.persistence)
            await self._database.write(lambda tx: update_shell(tx, shell))
        self._touch(workspace_id)
        return self._attach(shell, Beginning(offset=0, replayed_bytes=0), None)

    async def attach(
        self,
        actor: Actor,
        workspace_id: str,
        shell_id: str,
        *,
        offset: int | None,
        size: TerminalSize | None,
        takeover: bool,
    ) -> Attachment:
        """Attach to a shell, from `offset` on or from the first byte that is kept.

        `size` is None for one who only looks on.
        """
        require_scope(actor, Scope.EXEC)
        workspace, shell = await self._database.read(
            lambda tx: _get_attachable(tx, actor, workspace_id, shell_id)
        )
        try:
            supervisor = await self._supervisors.of(workspace)
            # A reader that takes nothing: what is kept now stays until its first bytes are read.
            hold = supervisor.follow(shell_id, Stream.STDOUT, offset or 0, live=True, window=0)
            try:
                report = await supervisor.look(shell_id)
            except BaseException:
                hold.close()
                raise
        except (ProviderError, ProviderUnavailable) as error:
            raise refused_by_provider(error) from None
        if report is None:
            hold.close()
            raise not_found("shell", shell_id)
        beginning = _beginning(report, offset)
        if takeover:
            for other in self._attached.get(shell_id, ()):
                other.taken_over.set()
        attachment = self._attach(shell, beginning, hold)
        try:
            await self._mark_attached(workspace, shell_id)
            if size is not None:
                if beginning.offset > (offset or 0):  # what was drawn before is unknown: have it drawn again
                    shorter = TerminalSize(columns=size.columns, rows=max(1, size.rows - 1))
                    supervisor.resize(shell_id, shorter)
                supervisor.resize(shell_id, size)
        except ProviderUnavailable as error:
            await attachment.detach()
            raise refused_by_provider(error) from None
        except BaseException:
            await attachment.detach()
            raise
        return attachment

    async def list(self, actor: Actor, workspace_id: str, after: str | None, limit: int) -> Page[Shell]:
        """Return a page of a workspace's shells."""
        require_scope(actor, Scope.EXEC)

        def unit(tx: Transaction) -> Page[Shell]:
            workspace = get_workspace(tx, actor, workspace_id)
            rows = list_shells(tx, workspace.id, after, limit + 1)
            return Page.cut(rows, limit, lambda shell: shell.id)

        return await self._database.read(unit)

    async def end(self, actor: Actor, workspace_id: str, shell_id: str) -> None:
        """Hang up on a shell, and have killed what does not end by that."""
        require_scope(actor, Scope.EXEC)

        def unit(tx: Transaction) -> tuple[Workspace, Shell]:
            workspace = get_workspace(tx, actor, workspace_id)
            return workspace, _get_shell(tx, workspace, shell_id)

        workspace, shell = await self._database.read(unit)
        if shell.status is ShellStatus.RUNNING:
            try:
                (await self._supervisors.of(workspace)).end(shell_id, signal.SIGHUP)
            except (ProviderError, ProviderUnavailable) as error:
                raise refused_by_provider(error) from None

    def count_attached(self, shell_id: str) -> int:
        """Return how many are attached to a shell now."""
        return len(self._attached.get(shell_id, ()))

    # For attachments.

    async def read(self, shell: Shell, offset: int) -> AsyncGenerator[Chunk, None]:
        """Yield a terminal's output from `offset` on."""
        chunks = self._outputs.read(
            shell.workspace_id, shell.id, Stream.STDOUT, offset, live=True, window=TERMINAL_WINDOW_BYTES
        )
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    self._touch(shell.workspace_id)
                    yield chunk
        except (ProviderError, ProviderUnavailable) as error:
            raise refused_by_provider(error) from None

    async def ask(self, shell: Shell, what: Callable[[Supervisor], Any]) -> None:
        """Ask something of a shell's supervisor."""
        self._touch(shell.workspace_id)
        try:
            await what(await self._supervisors.reach(shell.workspace_id))
        except (ProviderError, ProviderUnavailable) as error:
            raise refused_by_provider(error) from None

    async def exit_code(self, shell: Shell) -> int | None:
        """Return how a shell whose output has ended did; the books know it by then."""
        with contextlib.suppress(ProviderError, ProviderUnavailable):
            report = await (await self._supervisors.reach(shell.workspace_id)).look(shell.id)
            if report is not None and report.state is not ProcessState.RUNNING:
                await self.ends.write(shell, report.exit_code)
        latest = await self._database.read(lambda tx: find_shell(tx, shell.workspace_id, shell.id))
        return None if latest is None else latest.exit_code

    async def detach(self, attachment: Attachment) -> None:
        """Take an attachment away; the last one starts the time after which the shell ends."""
        others = self._attached.get(attachment.shell.id, set())
        others.discard(attachment)
        if others:
            return
        self._attached.pop(attachment.shell.id, None)

        def unit(tx: Transaction) -> None:
            shell = find_shell(tx, attachment.shell.workspace_id, attachment.shell.id)
            workspace = find_workspace(tx, attachment.shell.workspace_id)
            if shell is not None and workspace is not None and shell.detached_at is None:
                update_shell(tx, evolve(shell, detached_at=tx.now))
                tell(tx, EventType.SHELL_DETACHED, workspace.owner_id, shell)

        await self._database.write(unit)

    def _attach(self, shell: Shell, beginning: Beginning, hold: Follower | None) -> Attachment:
        attachment = Attachment(self, shell, beginning, hold)
        self._attached.setdefault(shell.id, set()).add(attachment)
        return attachment

    async def _mark_attached(self, workspace: Workspace, shell_id: str) -> None:
        def unit(tx: Transaction) -> None:
            shell = find_shell(tx, workspace.id, shell_id)
            if shell is not None and shell.status is ShellStatus.RUNNING:
                update_shell(tx, evolve(shell, detached_at=None))
                tell(tx, EventType.SHELL_ATTACHED, workspace.owner_id, shell)

        await self._database.write(unit)


def _get_attachable(
    tx: Transaction, actor: Actor, workspace_id: str, shell_id: str
) -> tuple[Workspace, Shell]:
    workspace = get_running(tx, actor, workspace_id, "run shells")
    return workspace, _get_shell(tx, workspace, shell_id)


def _get_shell(tx: Transaction, workspace: Workspace, shell_id: str) -> Shell:
    shell = find_shell(tx, workspace.id, shell_id)
    if shell is None:
        raise not_found("shell", shell_id)
    return shell


def _beginning(report: ProcessReport, offset: int | None) -> Beginning:
    kept = report.stdout
    at = min(max(offset or 0, kept.first), kept.end)
    return Beginning(offset=at, replayed_bytes=kept.end - at)


async def _at_once(call: Callable[..., None], *arguments: Any) -> None:
    call(*arguments)
