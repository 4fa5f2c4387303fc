"""Networks for workspaces, from a pool of our own: the engine's default pool ends at some thirty."""

from collections.abc import Iterable
from ipaddress import IPv4Network

from vmd.providers.base import ProviderError

PREFIX_LENGTH = 28  # the gateway, the machine, and room for its services


class SubnetPool:
    """Hands out subnets that nobody uses, as far as is known."""

    def __init__(self, pool: str) -> None:
        self._pool = IPv4Network(pool)
        self._taken: set[IPv4Network] = set()
        self._others: list[IPv4Network] = []

    def learn(self, used: Iterable[str]) -> None:
        """Take note of every subnet that the engine has."""
        for text in used:
            if ":" in text:
                continue
            network = IPv4Network(text, strict=False)
            if network.prefixlen == PREFIX_LENGTH:
                self._taken.add(network)
            elif network.overlaps(self._pool):
                self._others.append(network)

    def take(self) -> str:
        """Return a free subnet, which is taken from now on."""
        for network in self._pool.subnets(new_prefix=PREFIX_LENGTH):
            if network not in self._taken and not any(network.overlaps(other) for other in self._others):
                self._taken.add(network)
                return str(network)
        raise ProviderError(
            f"All subnets of providers.docker.subnet_pool ({self._pool}) are in use; give a larger pool."
        )

    def give_back(self, subnet: str) -> None:
        """Let a subnet be handed out again."""
        self._taken.discard(IPv4Network(subnet))
