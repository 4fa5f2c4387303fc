"""What an owner may use, checked in the transaction that reserves it."""

from attrs import frozen

from vmd.model.account import Actor, Scope
from vmd.model.errors import ErrorCode, Refused, invalid_value
from vmd.model.workspace import POWERED, Resources
from vmd.orchestrator.permissions import require_scope
from vmd.store.database import Database, Transaction
from vmd.store.workspaces import sum_use


@frozen(kw_only=True)
class Limits:
    """The most one owner may use; None sets no limit."""

    workspaces: int | None = 50
    running: int | None = 20
    cpus: float | None = None
    memory_mb: int | None = None
    disk_mb: int | None = None
    snapshots: int | None = None
    max_ttl_seconds: int | None = None


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


class Quotas:
    """Answers what an owner may still have, and refuses the rest."""

    def __init__(self, database: Database, limits: Limits) -> None:
        self._database = database
        self._limits = limits

    async def get(self, actor: Actor) -> Quota:
        """Return the actor's own quota."""
        require_scope(actor, Scope.READ)
        return await self._database.read(lambda tx: self.of_owner(tx, actor.user_id))

    def of_owner(self, tx: Transaction, owner_id: str) -> Quota:
        """Return an owner's quota as it is in this transaction."""
        use = sum_use(tx, owner_id, POWERED)
        return Quota(
            limits=self._limits,
            use=QuotaUse(
                workspaces=use.workspaces,
                running=use.running,
                cpus=round(use.cpus, 2),
                memory_mb=use.memory_mb,
                disk_mb=use.disk_mb,
            ),
        )

    def require_another(self, tx: Transaction, owner_id: str, resources: Resources) -> None:
        """Refuse a new workspace of this size when it would exceed a limit."""
        use = self.of_owner(tx, owner_id).use
        self._require("workspaces", use.workspaces, 1, self._limits.workspaces)
        if resources.disk_mb is not None:
            self._require("disk_mb", use.disk_mb, resources.disk_mb, self._limits.disk_mb)
        self._require_power(use, resources)

    def require_power(self, tx: Transaction, owner_id: str, resources: Resources) -> None:
        """Refuse to switch on another machine of this size when it would exceed a limit."""
        self._require_power(self.of_owner(tx, owner_id).use, resources)

    def _require_power(self, use: QuotaUse, resources: Resources) -> None:
        self._require("running", use.running, 1, self._limits.running)
        self._require("cpus", use.cpus, resources.cpus, self._limits.cpus)
        self._require("memory_mb", use.memory_mb, resources.memory_mb, self._limits.memory_mb)

    def require_snapshot(self, tx: Transaction, owner_id: str) -> None:
        """Refuse another snapshot when it would exceed the limit."""
        self._require("snapshots", self.of_owner(tx, owner_id).use.snapshots, 1, self._limits.snapshots)

    @property
    def longest_ttl(self) -> int | None:
        """The longest lifetime that is allowed, None for one without end."""
        return self._limits.max_ttl_seconds

    def require_ttl(self, ttl_seconds: int | None) -> None:
        """Refuse a lifetime, None for no end, that is longer than allowed."""
        longest = self._limits.max_ttl_seconds
        if longest is None or (ttl_seconds is not None and ttl_seconds <= longest):
            return
        raise invalid_value(
            "/ttl_seconds", f"must be at most {longest}, which the quota max_ttl_seconds sets"
        )

    @staticmethod
    def _require(name: str, used: float, more: float, limit: float | None) -> None:
        if limit is not None and used + more > limit:
            raise Refused(
                ErrorCode.QUOTA_EXCEEDED,
                f"The quota '{name}' is {limit:g}; {used:g} are in use and this would take {more:g} more. "
                "Stop or delete a workspace, or ask an administrator for more.",
            )
