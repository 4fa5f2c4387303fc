"""What a host may promise to its workspaces, counted in the transaction that promises it."""

from collections.abc import Callable, Sequence

from attrs import frozen

from vmd.model.errors import ErrorCode, Refused
from vmd.model.quota import CPU_DIGITS, Demand
from vmd.model.workspace import POWERED
from vmd.providers.base import Capacity
from vmd.store.database import Transaction
from vmd.store.quotas import sum_promised


@frozen(kw_only=True)
class Overcommit:
    """How many times what a host has may be promised: hardly any machine uses all that it may."""

    cpus: float
    memory: float


@frozen(kw_only=True)
class HostAmount:
    """Processors and memory of a host."""

    cpus: float
    memory_mb: int


@frozen(kw_only=True)
class HostQuota:
    """What a host may promise, and has promised; no limits are known of one that was not reached yet."""

    provider: str
    node: str
    limits: HostAmount | None
    use: HostAmount


class Hosts:
    """Refuses what a host cannot promise any more."""

    def __init__(
        self,
        nodes: Sequence[tuple[str, str]],
        capacity: Callable[[str], Capacity | None],
        overcommit: Overcommit,
    ) -> None:
        """Take the (provider, node) pairs there are, and what tells of a provider's capacity if known."""
        self._nodes = nodes
        self._capacity = capacity
        self._overcommit = overcommit

    def list(self, tx: Transaction) -> tuple[HostQuota, ...]:
        """Return every host as it is in this transaction."""
        return tuple(self._host(tx, provider, node, None) for provider, node in self._nodes)

    def require_room(self, tx: Transaction, wanted: Demand, apart_from: str | None = None) -> None:
        """Refuse to switch on what would have the host promise too much; `apart_from` is not counted."""
        host = self._host(tx, wanted.provider, wanted.node, apart_from)
        if host.limits is None:
            return
        found = self._capacity(wanted.provider)
        assert found is not None
        self._require(
            host, "CPUs", host.use.cpus, wanted.cpus, host.limits.cpus, found.cpus, "cpu_overcommit"
        )
        self._require(
            host,
            "MiB of memory",
            host.use.memory_mb,
            wanted.memory_mb,
            host.limits.memory_mb,
            found.memory_mb,
            "memory_overcommit",
        )

    def _host(self, tx: Transaction, provider: str, node: str, apart_from: str | None) -> HostQuota:
        capacity = self._capacity(provider)
        promised = sum_promised(tx, provider, node, POWERED, apart_from)
        limits = None
        if capacity is not None:
            limits = HostAmount(
                cpus=round(capacity.cpus * self._overcommit.cpus, CPU_DIGITS),
                memory_mb=int(capacity.memory_mb * self._overcommit.memory),
            )
        use = HostAmount(cpus=round(promised.cpus, CPU_DIGITS), memory_mb=promised.memory_mb)
        return HostQuota(provider=provider, node=node, limits=limits, use=use)

    @staticmethod
    def _require(
        host: HostQuota, what: str, used: float, more: float, limit: float, there: float, setting: str
    ) -> None:
        if round(used + more, CPU_DIGITS) > limit:
            raise Refused(
                ErrorCode.QUOTA_EXCEEDED,
                f"The host '{host.node}' of {host.provider} may promise {limit:g} {what} (it has {there:g}, "
                f"times workspaces.{setting}); {used:g} are promised and this would take {more:g} more. "
                "Stop a workspace or ask for less, or have an administrator raise the setting.",
            )
