"""What is used of quotas and hosts, summed up from the rows themselves, and the limits of single users.

Nothing is counted beside the rows, so what a workspace takes is given back by the very write that ends it.
"""

from attrs import frozen

from vmd.model.quota import OwnLimits
from vmd.model.workspace import Status
from vmd.store.database import Transaction
from vmd.store.rows import decoder, encode

_OWN_LIMITS = decoder(OwnLimits)

_IS_ON = "w.status IN (SELECT value FROM json_each(:powered))"
_CPUS = """json_extract(w.resources, '$.cpus')
    + (SELECT total(json_extract(s.value, '$.cpus')) FROM json_each(w.services) s)"""
_MEMORY_MB = """json_extract(w.resources, '$.memory_mb')
    + (SELECT coalesce(sum(json_extract(s.value, '$.memory_mb')), 0) FROM json_each(w.services) s)"""

SUM_USE = f"""
SELECT count(*) AS workspaces,
    coalesce(sum({_IS_ON}), 0) AS running,
    total(CASE WHEN {_IS_ON} THEN {_CPUS} END) AS cpus,
    coalesce(sum(CASE WHEN {_IS_ON} THEN {_MEMORY_MB} END), 0) AS memory_mb,
    coalesce(sum(json_extract(w.resources, '$.disk_mb')), 0) AS disk_mb
FROM workspaces w WHERE w.owner_id = :owner_id AND w.deleted_at IS NULL AND w.id IS NOT :apart_from
"""
SUM_PROMISED = f"""
SELECT total({_CPUS}) AS cpus, coalesce(sum({_MEMORY_MB}), 0) AS memory_mb
FROM workspaces w WHERE {_IS_ON} AND w.provider = :provider AND w.node = :node AND w.deleted_at IS NULL
    AND w.id IS NOT :apart_from
"""
COUNT_SNAPSHOTS = "SELECT count(*) AS count FROM snapshots WHERE owner_id = :owner_id AND status <> 'failed'"
FIND_OWN_LIMITS = "SELECT quota FROM users WHERE id = :id"
UPDATE_OWN_LIMITS = "UPDATE users SET quota = :quota WHERE id = :id"


@frozen(kw_only=True)
class Use:
    """What an owner's workspaces use."""

    workspaces: int
    running: int
    cpus: float
    memory_mb: int
    disk_mb: int


@frozen(kw_only=True)
class Promised:
    """What the workspaces of a host may use at once."""

    cpus: float
    memory_mb: int


def sum_use(tx: Transaction, owner_id: str, powered: frozenset[Status], apart_from: str | None = None) -> Use:
    """Return what an owner's workspaces use; `powered` are the statuses in which they use processors."""
    values = {"owner_id": owner_id, "powered": encode(sorted(powered)), "apart_from": apart_from}
    return Use(**dict(tx.execute(SUM_USE, values).fetchone()))


def sum_promised(
    tx: Transaction, provider: str, node: str, powered: frozenset[Status], apart_from: str | None = None
) -> Promised:
    """Return what the workspaces of all owners that are on may use of a host."""
    values = {
        "provider": provider,
        "node": node,
        "powered": encode(sorted(powered)),
        "apart_from": apart_from,
    }
    return Promised(**dict(tx.execute(SUM_PROMISED, values).fetchone()))


def count_snapshots(tx: Transaction, owner_id: str) -> int:
    """Return how many snapshots an owner has, with those that are being made."""
    return int(tx.execute(COUNT_SNAPSHOTS, {"owner_id": owner_id}).fetchone()["count"])


def find_own_limits(tx: Transaction, owner_id: str) -> OwnLimits:
    """Return the limits of a user that are not the usual ones; none for one who is not there."""
    row = tx.execute(FIND_OWN_LIMITS, {"id": owner_id}).fetchone()
    own: OwnLimits = OwnLimits() if row is None else _OWN_LIMITS(row["quota"])
    return own


def update_own_limits(tx: Transaction, owner_id: str, own: OwnLimits) -> None:
    """Write all limits of a user that are not the usual ones."""
    tx.execute(UPDATE_OWN_LIMITS, {"id": owner_id, "quota": encode(own)})
