"""Templates: what a workspace is made from when its request does not say."""

from enum import StrEnum

from attrs import field, frozen

from vmd.model.parameter import Parameter
from vmd.model.workspace import Resources


class TemplateKind(StrEnum):
    """Where a template comes from."""

    TEMPLATE = "template"
    PRESET = "preset"


@frozen(kw_only=True)
class Template:
    """A named starting point."""

    id: str
    kind: TemplateKind = TemplateKind.TEMPLATE
    name: str
    description: str = ""
    image: str  # of one with a recipe, what the defaults of its parameters make of it
    recipe: str | None = None  # what the image is built from where it is not there
    resources: Resources = field(factory=Resources)
    env: dict[str, str] = field(factory=dict)
    ports: tuple[int, ...] = ()
    provisioning: tuple[str, ...] = ()
    parameters: dict[str, Parameter] = field(factory=dict)
    ttl_seconds: int | None = None
    idle_timeout_seconds: int | None = None
    plugins: tuple[str, ...] = ()
