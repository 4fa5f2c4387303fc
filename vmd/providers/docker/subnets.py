"""Networks for workspaces, from a pool of our own: the engine's default pool ends at some thirty."""

from collections.abc import Iterable
from ipaddress import IPv4Network

from vmd.providers.base import ProviderError

PREFIX_LENGTH = 28  # the gateway, the machine, and room for its services


class SubnetPool:
    """Hands out subnets that nobody uses, as far as is known."""

    def __init__(self, pool: str) -> None:
        self._pool = IPv4Network(pool)
        self._used: set[IPv4Network] = set()  # by networks that there are
        self._promised: set[IPv4Network] = set()  # to networks that are being made
        self._blocked: set[IPv4Network] = set()  # by something that the engine does not list

    def learn(self, used: Iterable[str]) -> None:
        """Take note of the subnets that all networks of the engine have, and forget what was known."""
        networks = (IPv4Network(text, strict=False) for text in used if ":" not in text)
        self._used = {network for network in networks if network.overlaps(self._pool)}

    def take(self) -> str:
        """Return a free subnet, promised to the caller until it is kept or given back."""
        taken = self._used | self._promised | self._blocked
        others = [network for network in taken if network.prefixlen != PREFIX_LENGTH]
        for network in self._pool.subnets(new_prefix=PREFIX_LENGTH):
            if network not in taken and not any(network.overlaps(other) for other in others):
                self._promised.add(network)
                return str(network)
        raise ProviderError(
            f"All subnets of providers.docker.subnet_pool ({self._pool}) are in use; give a larger pool."
        )

    def keep(self, subnet: str) -> None:
        """Note that a network was made on a promised subnet."""
        self._promised.discard(IPv4Network(subnet))
        self._used.add(IPv4Network(subnet))

    def block(self, subnet: str) -> None:
        """Note that no network can be made on a promised subnet."""
        self._promised.discard(IPv4Network(subnet))
        self._blocked.add(IPv4Network(subnet))

    def give_back(self, subnet: str) -> None:
        """Let a subnet be handed out again."""
        self._promised.discard(IPv4Network(subnet))
        self._used.discard(IPv4Network(subnet))
