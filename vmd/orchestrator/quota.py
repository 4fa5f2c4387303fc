"""What an owner may use, checked in the transaction that reserves it.

Use is summed up from the workspaces themselves, so it is reserved by writing one, and given back once, by
whatever write switches its machine off or takes it away: a failure, a cancel, a stop, the end of a deletion.
"""

from attrs import frozen

from vmd.model.account import Actor, Scope
from vmd.model.errors import ErrorCode, Refused, invalid_value, not_found
from vmd.model.quota import CPU_DIGITS, Demand, Limits, OwnLimits, demand_of
from vmd.model.workspace import POWERED, Workspace
from vmd.orchestrator.hosts import HostQuota, Hosts
from vmd.orchestrator.permissions import require_admin, require_scope
from vmd.store.accounts import find_user
from vmd.store.database import Database, Transaction
from vmd.store.quotas import count_snapshots, find_own_limits, sum_use, update_own_limits

_ASK = "or ask an administrator for more"
_LESS_ON = f"Stop a workspace, ask for less, {_ASK}."
_LESS_KEPT = f"Delete a workspace (those in trash count too), {_ASK}."


@frozen(kw_only=True)
class QuotaUse:
    """What an owner uses of each limit; a workspace whose machine is off uses no processors or memory."""

    workspaces: int
    running: int
    cpus: float
    memory_mb: int
    disk_mb: int
    snapshots: int = 0


@frozen(kw_only=True)
class Quota:
    """Limits, None for none, and present use."""

    limits: Limits
    use: QuotaUse


@frozen(kw_only=True)
class QuotaReport(Quota):
    """A user's quota: which limits are their own, and for administrators what the hosts have promised."""

    owner: str
    own: OwnLimits
    hosts: tuple[HostQuota, ...] | None


class Quotas:
    """Answers what an owner may still have, and refuses the rest."""

    def __init__(self, database: Database, usual: Limits, hosts: Hosts) -> None:
        self._database = database
        self._usual = usual
        self._hosts = hosts

    # Looking at them, and setting them.

    async def get(self, actor: Actor, owner: str | None = None) -> QuotaReport:
        """Return the actor's own quota, or to an administrator that of the user called `owner`."""
        require_scope(actor, Scope.READ)
        if owner not in (None, actor.name) and not actor.is_admin:
            raise Refused(ErrorCode.FORBIDDEN, "Only an administrator may see the quota of others.")
        return await self._database.read(lambda tx: self._report(tx, actor, owner or actor.name))

    async def set(self, actor: Actor, owner: str, own: OwnLimits) -> QuotaReport:
        """Replace the limits of a user that are not the usual ones; what is in use already stays."""
        require_admin(actor)

        def unit(tx: Transaction) -> QuotaReport:
            update_own_limits(tx, _owner_id(tx, owner), own)
            return self._report(tx, actor, owner)

        return await self._database.write(unit)

    def _report(self, tx: Transaction, actor: Actor, owner: str) -> QuotaReport:
        owner_id = _owner_id(tx, owner)
        quota = self.of_owner(tx, owner_id)
        return QuotaReport(
            owner=owner,
            limits=quota.limits,
            own=find_own_limits(tx, owner_id),
            use=quota.use,
            hosts=self._hosts.list(tx) if actor.is_admin else None,
        )

    def of_owner(self, tx: Transaction, owner_id: str, apart_from: str | None = None) -> Quota:
        """Return an owner's quota as it is in this transaction, the workspace `apart_from` not counted."""
        use = sum_use(tx, owner_id, POWERED, apart_from)
        return Quota(
            limits=find_own_limits(tx, owner_id).over(self._usual),
            use=QuotaUse(
                workspaces=use.workspaces,
                running=use.running,
                cpus=round(use.cpus, CPU_DIGITS),
                memory_mb=use.memory_mb,
                disk_mb=use.disk_mb,
                snapshots=count_snapshots(tx, owner_id),
            ),
        )

    # What a use case requires, in the transaction that takes it.

    def require_another(self, tx: Transaction, owner_id: str, wanted: Demand) -> None:
        """Refuse a new workspace, which will be switched on, when it would exceed a limit."""
        self._require_kept(self.of_owner(tx, owner_id), wanted)
        self._require_power(tx, owner_id, wanted, None)

    def require_power(self, tx: Transaction, workspace: Workspace) -> None:
        """Refuse to switch a workspace on when its owner or its host would exceed a limit."""
        self._require_power(tx, workspace.owner_id, demand_of(workspace), workspace.id)

    def require_change(self, tx: Transaction, workspace: Workspace) -> None:
        """Refuse what a workspace that is on would become, such as a bigger one, in place of what it is."""
        self._require_kept(self.of_owner(tx, workspace.owner_id, workspace.id), demand_of(workspace))
        self._require_power(tx, workspace.owner_id, demand_of(workspace), workspace.id)

    def require_undelete(self, tx: Transaction, workspace: Workspace) -> None:
        """Refuse to take a workspace out of trash when its owner has too much even with it in there."""
        self._require_kept(self.of_owner(tx, workspace.owner_id, workspace.id), demand_of(workspace))

    def require_snapshot(self, tx: Transaction, owner_id: str) -> None:
        """Refuse one more snapshot when it would exceed the limit."""
        quota = self.of_owner(tx, owner_id)
        _require("snapshots", quota.use.snapshots, 1, quota.limits.snapshots, f"Delete a snapshot, {_ASK}.")

    def longest_ttl(self, tx: Transaction, owner_id: str) -> int | None:
        """Return the longest lifetime that an owner's workspaces may have, None for one without end."""
        return find_own_limits(tx, owner_id).over(self._usual).max_ttl_seconds

    def shorten_ttl(self, tx: Transaction, owner_id: str, ttl_seconds: int | None) -> int | None:
        """Return a lifetime that nobody asked for, None for no end, as long of it as is allowed."""
        longest = self.longest_ttl(tx, owner_id)
        return min((ttl for ttl in (ttl_seconds, longest) if ttl is not None), default=None)

    def require_ttl(self, tx: Transaction, owner_id: str, ttl_seconds: int | None) -> None:
        """Refuse a lifetime, None for no end, that is longer than allowed."""
        longest = self.longest_ttl(tx, owner_id)
        if longest is None or (ttl_seconds is not None and ttl_seconds <= longest):
            return
        raise invalid_value(
            "/ttl_seconds", f"must be at most {longest}, which the quota max_ttl_seconds sets"
        )

    @staticmethod
    def _require_kept(quota: Quota, wanted: Demand) -> None:
        limits, use = quota.limits, quota.use
        _require("workspaces", use.workspaces, 1, limits.workspaces, _LESS_KEPT)
        if wanted.disk_mb is not None:
            _require("disk_mb", use.disk_mb, wanted.disk_mb, limits.disk_mb, _LESS_KEPT)

    def _require_power(self, tx: Transaction, owner_id: str, wanted: Demand, apart_from: str | None) -> None:
        quota = self.of_owner(tx, owner_id, apart_from)
        limits, use = quota.limits, quota.use
        _require("running", use.running, 1, limits.running, f"Stop a workspace, {_ASK}.")
        _require("cpus", use.cpus, wanted.cpus, limits.cpus, _LESS_ON)
        _require("memory_mb", use.memory_mb, wanted.memory_mb, limits.memory_mb, _LESS_ON)
        self._hosts.require_room(tx, wanted, apart_from)


def _require(name: str, used: float, more: float, limit: float | None, advice: str) -> None:
    if limit is not None and round(used + more, CPU_DIGITS) > limit:
        raise Refused(
            ErrorCode.QUOTA_EXCEEDED,
            f"The quota '{name}' is {limit:g}; {used:g} are in use and this would take {more:g} more. "
            f"{advice}",
        )


def _owner_id(tx: Transaction, owner: str) -> str:
    user = find_user(tx, owner)
    if user is None:
        raise not_found("user", owner)
    return user.id
