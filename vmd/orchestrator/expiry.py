"""What would be lost with a workspace, in plain words, and what is kept of it before it expires."""

from collections.abc import Awaitable, Callable

from attrs import evolve

from vmd.model.operation import Job, Phase
from vmd.model.workspace import GitState, Status, Workspace
from vmd.operations.report import Report
from vmd.orchestrator.git_looks import GitLooks

# Makes a final snapshot of a workspace that expires, before its machine is stopped. May be called again after
# a crash, so it records its steps; where it raises, the expiry fails and the workspace stays as it is, to be
# warned of and tried again.
KeepFinal = Callable[[Job, Report, Workspace], Awaitable[None]]


def known_state(workspace: Workspace) -> GitState | None:
    """Return what is known of a workspace's repositories; None where it was in use since, or never seen."""
    state = workspace.git
    return None if state is None or state.looked_at < workspace.last_activity_at else state


def needs_final(workspace: Workspace, state: GitState | None) -> bool:
    """Whether a final snapshot is due, given what is known; there must be a machine to take it of."""
    return workspace.provider_ref is not None and (state is None or not state.is_clean)


def unsaved(state: GitState) -> str:
    """Return what no remote has, for a person to read: nothing for an empty text."""
    counts = [
        (state.uncommitted, "file changed or new", "files changed or new"),
        (state.unpushed, "commit not pushed", "commits not pushed"),
        (state.stashes, "stash", "stashes"),
        (state.loose, "file outside any repository", "files outside any repository"),
        (state.unreadable, "repository that cannot be read", "repositories that cannot be read"),
    ]
    return ", ".join(f"{count} {one if count == 1 else many}" for count, one, many in counts if count)


def describe(workspace: Workspace, state: GitState | None, *, is_fresh: bool) -> str:
    """Return in a sentence what would be lost; `is_fresh` where that was just looked at."""
    last = workspace.git if state is None else state
    if is_fresh and state is not None:
        return f"No remote has: {unsaved(state)}." if unsaved(state) else "Nothing in it is without a remote."
    why = "its machine is off" if workspace.status is not Status.RUNNING else "its machine does not answer"
    if last is None:
        return f"It cannot be looked at ({why}), so it may hold work that no remote has."
    found = f"no remote had: {unsaved(last)}" if unsaved(last) else "nothing in it was without a remote"
    since = "" if state is not None else ", but it was in use since then"
    return f"It cannot be looked at ({why}); at {last.looked_at:%Y-%m-%d %H:%M} UTC {found}{since}."


class Expiry:
    """Looks at a workspace that expires once more, and has a final snapshot made if work would be lost."""

    def __init__(self, looks: GitLooks, keep: KeepFinal) -> None:
        """Take what makes final snapshots."""
        self._looks = looks
        self._keep = keep

    async def prepare(self, job: Job, report: Report, workspace: Workspace) -> None:
        """Keep what would be lost; done once, whatever is tried again."""
        if job.checkpoint.get("is_kept"):
            return
        is_on = workspace.status is Status.STOPPING  # as it is called before that is done
        state = await self._looks.look(workspace) if is_on else None
        if state is None:
            state = known_state(workspace)
        else:
            workspace = evolve(workspace, git=state)
        if needs_final(workspace, state):
            found = "it is not known" if state is None else unsaved(state)
            await report.phase(Phase.SNAPSHOT, f"Keeping a final snapshot of what no remote has: {found}.")
            await self._keep(job, report, workspace)
        elif workspace.provider_ref is None:
            report.log(
                "There is no machine to take a final snapshot of; its files stay in trash for a while."
            )
        else:
            report.log("Nothing in it is without a remote, so no final snapshot is made.")
        await report.checkpoint(is_kept=True)
