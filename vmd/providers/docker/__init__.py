"""Machines as containers of a Docker Engine."""

from vmd.providers.docker.provider import DockerProvider

__all__ = ["DockerProvider"]
