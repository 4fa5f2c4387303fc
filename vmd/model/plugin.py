"""Plugins: what a workspace gets besides its template."""

from attrs import field, frozen

from vmd.model.workspace import Service

PLUGIN_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"


@frozen(kw_only=True)
class Plugin:
    """Commands, variables, ports and services that a workspace asks for by one name."""

    id: str
    name: str
    description: str = ""
    version: str = ""
    env: dict[str, str] = field(factory=dict)
    ports: tuple[int, ...] = ()
    provisioning: tuple[str, ...] = ()
    services: tuple[Service, ...] = ()
