"""Where machines come from: one file a kind, and the table of them."""

from collections.abc import Callable, Mapping

from vmd.providers.base import Provider
from vmd.providers.docker import DockerProvider
from vmd.providers.fake import FakeProvider

PROVIDERS: Mapping[str, Callable[..., Provider]] = {
    "docker": DockerProvider,
    "fake": FakeProvider,
}
