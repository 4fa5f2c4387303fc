"""devcontainer.json: what of it is honoured, and what is said of the rest."""

from vmd.orchestrator.presets.devcontainer.reading import (
    Devcontainer,
    DockerfileBuild,
    devcontainer_paths,
    dockerfile_paths,
    read_devcontainer,
)

__all__ = [
    "Devcontainer",
    "DockerfileBuild",
    "devcontainer_paths",
    "dockerfile_paths",
    "read_devcontainer",
]
