"""The network of each workspace, on a subnet that nobody else has."""

from collections.abc import Mapping
from typing import Any

from aiodocker.exceptions import DockerError

from vmd.providers.base import ProviderError
from vmd.providers.docker.engine import CONFLICT, Engine, require_ours
from vmd.providers.docker.subnets import SubnetPool

MAX_SUBNET_TRIES = 20


class Networks:
    """Makes and removes networks, keeping account of the subnets that are taken."""

    def __init__(self, engine: Engine, instance: str, subnets: SubnetPool) -> None:
        self._engine = engine
        self._instance = instance
        self._subnets = subnets
        self._is_informed = False

    def forget(self) -> None:
        """Look at the engine's networks again before the next one is made."""
        self._is_informed = False

    async def create(self, name: str, labels: Mapping[str, str]) -> None:
        """Make a network, or find the one that an earlier try made."""
        for _ in range(MAX_SUBNET_TRIES):
            if not self._is_informed:
                await self._learn()
            subnet = self._subnets.take()
            body = {
                "Name": name,
                "Driver": "bridge",
                "CheckDuplicate": True,
                "Labels": labels,
                "IPAM": {"Config": [{"Subnet": subnet}]},
            }
            try:
                await self._engine.call("networks/create", "POST", data=body)
                self._subnets.keep(subnet)
                return
            except DockerError as error:
                self._subnets.give_back(subnet)
                if error.status != CONFLICT:
                    raise ProviderError(f"The engine cannot make the network: {error.message}.") from None
                require_ours(self._instance, await self._engine.find(f"networks/{name}"), "network", name)
                return
            except ProviderError as error:
                if "overlap" not in str(error).lower():
                    self._subnets.give_back(subnet)
                    raise
                # Somebody else's network lies there, or a bridge that is none; others may be new as well.
                self._subnets.block(subnet)
                await self._learn()
            except BaseException:
                self._subnets.give_back(subnet)
                raise
        raise ProviderError("No free subnet was found for the workspace; check providers.docker.subnet_pool.")

    async def _learn(self) -> None:
        networks = await self._engine.call("networks")
        for network in networks:
            configs = (network.get("IPAM") or {}).get("Config") or []
            self._subnets.learn(config["Subnet"] for config in configs if config.get("Subnet"))
        self._is_informed = True

    async def remove(self, network: Mapping[str, Any]) -> None:
        """Remove a network as the engine lists it."""
        await self._engine.remove(f"networks/{network['Id']}")
        for config in (network.get("IPAM") or {}).get("Config") or []:
            if config.get("Subnet"):
                self._subnets.give_back(config["Subnet"])
