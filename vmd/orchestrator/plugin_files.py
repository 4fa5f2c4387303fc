"""Plugins as they are written down: a folder each, with a `plugin.toml` in it."""

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Annotated

from attrs import field, frozen
from msgspec import Meta

from vmd.model.plugin import PLUGIN_ID_PATTERN, Plugin
from vmd.model.structuring import Unstructurable, structure
from vmd.model.workspace import (
    NO_NUL,
    NO_NUL_MEANING,
    Cpus,
    Description,
    Env,
    MemoryMb,
    Ports,
    Provisioning,
    Service,
    ShortName,
    WorkspaceName,
)
from vmd.orchestrator.plugins import MAX_SERVICES, Plugins

FILE_NAME = "plugin.toml"
MAX_FILE_BYTES = 256 * 1024
MAX_PLUGINS = 200
BASE_IMAGE_MARK = "{{base}}"  # in a recipe: the configured base image
_BUILT_IN = Path(__file__).with_name("builtin") / "plugins"
_TAG_CHARACTERS = 16


@frozen(kw_only=True)
class ServiceFile:
    """What a plugin's file may say of one service: `image` or `recipe`, and how it runs."""

    name: WorkspaceName
    image: ShortName | None = None
    recipe: (
        Annotated[str, Meta(min_length=1, max_length=65536, pattern=NO_NUL, description=NO_NUL_MEANING)]
        | None
    ) = None
    command: Annotated[
        tuple[Annotated[str, Meta(max_length=8192, pattern=NO_NUL, description=NO_NUL_MEANING)], ...],
        Meta(max_length=64),
    ] = ()
    env: Env = field(factory=dict)
    data: (
        Annotated[
            str,
            Meta(
                max_length=255,
                pattern=r"^(/(?!\.{1,2}(/|$))[A-Za-z0-9._-]+)+$",
                description="an absolute path of letters, digits and . _ -",
            ),
        ]
        | None
    ) = None
    memory_mb: MemoryMb = 256
    cpus: Cpus = 0.5
    ready: (
        Annotated[
            str, Meta(min_length=1, max_length=4096, pattern=NO_NUL, description="a shell command line")
        ]
        | None
    ) = None
    ready_seconds: Annotated[int, Meta(ge=1, le=600)] = 60


@frozen(kw_only=True)
class PluginFile:
    """What a plugin's file may say."""

    name: ShortName | None = None
    description: Description = ""
    version: Annotated[str, Meta(max_length=100, pattern=NO_NUL, description=NO_NUL_MEANING)] = ""
    env: Env = field(factory=dict)
    ports: Ports = ()
    provisioning: Provisioning = ()
    services: Annotated[tuple[ServiceFile, ...], Meta(max_length=MAX_SERVICES)] = ()


class Unusable(ValueError):
    """A file that can be read says what cannot be."""


def load_plugins(directory: Path, base_image: str) -> Plugins:
    """Return the built-in plugins with those in `directory`; a broken one breaks only itself."""
    plugins: dict[str, Plugin] = {}
    broken: dict[str, str] = {}
    for folder in (*_folders(_BUILT_IN), *_folders(directory)):
        plugins.pop(folder.name, None)  # a built-in one whose place is taken
        try:
            if len(plugins) >= MAX_PLUGINS:
                raise Unusable(f"there are more than {MAX_PLUGINS} plugins")
            plugins[folder.name] = _read(folder, base_image)
        except (OSError, ValueError, RecursionError, Unstructurable) as error:
            broken[folder.name] = f"{folder.name}/{FILE_NAME}: {error}"
    return Plugins(plugins, broken)


def _folders(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))


def _read(folder: Path, base_image: str) -> Plugin:
    if re.fullmatch(PLUGIN_ID_PATTERN, folder.name) is None:
        raise Unusable("the folder's name must be letters, digits and inner . _ -, at most 63")
    file = structure(tomllib.loads(_read_text(folder / FILE_NAME)), PluginFile)
    names = [service.name for service in file.services]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise Unusable(f"/services/{place}/name: '{name}' is there twice")
    return Plugin(
        id=folder.name,
        name=file.name or folder.name,
        description=file.description,
        version=file.version,
        env=dict(file.env),
        ports=file.ports,
        provisioning=file.provisioning,
        services=tuple(_service(place, service, base_image) for place, service in enumerate(file.services)),
    )


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise Unusable("there is no such file")
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise Unusable(f"it is larger than {MAX_FILE_BYTES} bytes")
    return content.decode("utf-8")


def _service(place: int, file: ServiceFile, base_image: str) -> Service:
    if (file.image is None) == (file.recipe is None):
        raise Unusable(f"/services/{place}: must have either image or recipe")
    recipe = None if file.recipe is None else file.recipe.replace(BASE_IMAGE_MARK, base_image)
    return Service(
        name=file.name,
        image=file.image or _image_of(file.name, recipe or ""),
        recipe=recipe,
        command=file.command,
        env=dict(file.env),
        data=file.data,
        memory_mb=file.memory_mb,
        cpus=file.cpus,
        ready=file.ready,
        ready_seconds=file.ready_seconds,
    )


def _image_of(name: str, recipe: str) -> str:
    """Return the name of the image that is built from a recipe, another one for another recipe."""
    return f"vmd-service-{name}:{hashlib.sha256(recipe.encode()).hexdigest()[:_TAG_CHARACTERS]}"
