"""Looks into machines for work that would be lost with them: few at once, and none waits for another long."""

import asyncio
from collections.abc import Callable

import structlog
from attrs import evolve

from vmd.model.workspace import GitState, Workspace
from vmd.orchestrator.activity import Signs
from vmd.orchestrator.git_script import LOOK, LOOK_SECONDS, MAX_ANSWER_BYTES, read_answer
from vmd.orchestrator.machines import Machines
from vmd.providers.base import ProviderError, ProviderUnavailable
from vmd.store.database import Database, Transaction
from vmd.store.workspaces import find_workspace, update_workspace

MAX_LOOKS_AT_ONCE = 16
ANSWER_SECONDS = LOOK_SECONDS + 2  # for an engine that lets the machine's own end of a look go by
TURN_SECONDS = 60  # that one waits behind others before it is given up

log = structlog.get_logger()

# Called in the transaction that writes what was found, None where the machine could not be looked at.
Found = Callable[[Transaction, str, GitState | None], None]


class GitLooks:
    """Looks at the repositories of running machines, and writes down what they have that no remote has."""

    def __init__(self, database: Database, machines: Machines, signs: Signs) -> None:
        self._database = database
        self._machines = machines
        self._signs = signs
        self._turns = asyncio.Semaphore(MAX_LOOKS_AT_ONCE)
        self._under_way: dict[str, asyncio.Task[None]] = {}

    @property
    def under_way(self) -> frozenset[str]:
        """The workspaces that are being looked at for somebody who was not kept waiting."""
        return frozenset(self._under_way)

    def begin(self, workspace: Workspace, found: Found) -> None:
        """Look at a workspace in the background, unless that is under way, and call `found` at the end."""
        if workspace.id not in self._under_way:
            task = asyncio.create_task(self._attend(workspace, found), name=f"look at {workspace.id}")
            self._under_way[workspace.id] = task

    async def wait(self) -> None:
        """Return once all looks that are under way have ended."""
        while self._under_way:
            await asyncio.wait(tuple(self._under_way.values()))

    async def close(self) -> None:
        """Give up all looks."""
        tasks = tuple(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def look(self, workspace: Workspace) -> GitState | None:
        """Return what a running machine has that no remote has, and write it down.

        None where it cannot be looked at in time. It does not count as use of the workspace.
        """
        return await self._look(workspace, lambda tx, workspace_id, state: None)

    async def _attend(self, workspace: Workspace, found: Found) -> None:
        try:
            await self._look(workspace, found)
        except Exception:
            log.exception("a look at a workspace failed", workspace=workspace.id)
            await self._database.write(lambda tx: found(tx, workspace.id, None))
        finally:
            del self._under_way[workspace.id]

    async def _look(self, workspace: Workspace, found: Found) -> GitState | None:
        answer = await self._ask(workspace)

        def unit(tx: Transaction) -> GitState | None:
            state = read_answer(answer, tx.now)
            latest = find_workspace(tx, workspace.id)
            if state is not None and latest is not None and latest.provider_ref == workspace.provider_ref:
                update_workspace(tx, evolve(latest, git=state))
            found(tx, workspace.id, state)
            return state

        return await self._database.write(unit)

    async def _ask(self, workspace: Workspace) -> bytes:
        """Return what the machine answers, nothing where it does not."""
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            return b""
        try:
            with self._signs.disregarded(workspace.id):
                return await self._execute(workspace)
        finally:
            self._turns.release()

    async def _execute(self, workspace: Workspace) -> bytes:
        answer = bytearray()

        async def output(stream: str, data: bytes) -> None:
            if stream == "stdout":
                answer.extend(data[: MAX_ANSWER_BYTES - len(answer)])

        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                provider = self._machines.provider(workspace.provider)
                await provider.execute(workspace.provider_ref or "", LOOK, output)
        except (ProviderError, ProviderUnavailable, TimeoutError) as error:
            log.info("a workspace cannot be looked at", workspace=workspace.id, why=str(error) or "no answer")
        return bytes(answer)
