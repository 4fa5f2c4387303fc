"""Warnings of clocks: each with a look at the work that may be lost; none waits for a machine that hangs."""

from datetime import datetime, timedelta

from attrs import frozen

from vmd.model.event import EventType
from vmd.model.workspace import GitState, Status, Workspace
from vmd.orchestrator.expiry import describe, known_state, needs_final
from vmd.orchestrator.git_looks import GitLooks
from vmd.store.clocks import Clock, Firing, list_unwarned, list_unwarned_of, mark_warned
from vmd.store.database import Transaction
from vmd.store.workspaces import find_workspace

MAX_WARNINGS_PER_SWEEP = 100
LEADS_TO = {Clock.IDLE: "stop", Clock.TTL: "trash", Clock.TRASH: "delete"}
EXPLANATIONS = {
    Clock.IDLE: "It has not been in use for a while and stops at {at}; its files are kept.",
    Clock.TTL: "Its time is over: it goes to trash at {at}.",
    Clock.TRASH: "It is deleted from trash at {at}, with its files.",
}


@frozen(kw_only=True)
class WarningTimes:
    """When clocks are warned of."""

    warning_seconds: int
    ahead_seconds: float  # how long before that the last sweep comes by which can warn
    grace_seconds: int


class Announcer:
    """Warns of clocks that fire soon, once for each time that one is set to."""

    def __init__(self, looks: GitLooks, times: WarningTimes) -> None:
        self._looks = looks
        self._times = times

    def warn(self, tx: Transaction) -> list[Workspace]:
        """Warn of what cannot be looked at, and return the workspaces to look at first, for `look_at`."""
        to_look_at = {}
        firings = list_unwarned(
            tx,
            self._until(tx),
            self._times.warning_seconds,
            self._times.grace_seconds,
            MAX_WARNINGS_PER_SWEEP,
            apart_from=self._looks.under_way,
        )
        for firing in firings:
            workspace = find_workspace(tx, firing.workspace_id)
            if workspace is None:
                continue
            if workspace.status is Status.RUNNING and workspace.provider_ref is not None:
                to_look_at[workspace.id] = workspace
            else:
                self._warn(tx, firing, workspace, None)
        return list(to_look_at.values())

    def look_at(self, workspaces: list[Workspace]) -> None:
        """Look at these in the background, and warn of their clocks then."""
        for workspace in workspaces:
            self._looks.begin(workspace, self._found)

    def _found(self, tx: Transaction, workspace_id: str, state: GitState | None) -> None:
        """Warn of the clocks of a workspace that was looked at, as they are by now."""
        workspace = find_workspace(tx, workspace_id)
        times = self._times
        firings = list_unwarned_of(
            tx, workspace_id, self._until(tx), times.warning_seconds, times.grace_seconds
        )
        for firing in firings:
            if workspace is not None:
                self._warn(tx, firing, workspace, state)

    def _warn(self, tx: Transaction, firing: Firing, workspace: Workspace, seen: GitState | None) -> None:
        state = seen or known_state(workspace)
        at = max(firing.at, tx.now + firing.notice)
        keeps = firing.clock is Clock.TTL and needs_final(workspace, state)
        sentences = [EXPLANATIONS[firing.clock].format(at=f"{at:%Y-%m-%d %H:%M} UTC")]
        sentences.append(describe(workspace, state, is_fresh=seen is not None))
        if keeps:
            sentences.append("A final snapshot is kept.")
        mark_warned(tx, firing)
        tx.emit(
            EventType.WORKSPACE_EXPIRING,
            actor="system",
            owner_id=firing.owner_id,
            workspace_id=firing.workspace_id,
            clock=firing.clock,
            at=at,
            leads_to=LEADS_TO[firing.clock],
            git=seen or workspace.git,
            is_looked_at=seen is not None,
            final_snapshot=keeps,
            message=" ".join(sentences),
        )

    def _until(self, tx: Transaction) -> datetime:
        return tx.now + timedelta(seconds=self._times.warning_seconds + self._times.ahead_seconds)
