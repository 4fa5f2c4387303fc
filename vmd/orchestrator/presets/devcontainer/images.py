"""Names of images that a repository may ask for."""

import re
from collections.abc import Collection

MAX_CHARACTERS = 255
OWN_PREFIX = "vmd"  # the images of this daemon are named so, and hold other workspaces' files
_DIGESTS = ("sha256", "sha384", "sha512")  # with a colon: an image's id
_REFERENCE = re.compile(
    r"(?P<name>(?:(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::[0-9]{1,5})?/)?"
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*)"
    r"(?P<tag>:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
    r"(?P<digest>@sha256:[0-9a-f]{64})?"
)


class UnusableImage(Exception):
    """A repository asks for an image that it cannot have; the message says why."""


def image_reference(text: str, allowed: Collection[str]) -> str:
    """Return the name of an image with its tag, so that it can never be taken for an image's id.

    `allowed` are names of this daemon's own images that anybody may use.
    """
    match = _REFERENCE.fullmatch(text) if len(text) <= MAX_CHARACTERS else None
    if match is None or match["name"] in _DIGESTS:
        raise UnusableImage(f"'{text[:100]}' is not the name of an image")
    whole = text if match["tag"] or match["digest"] else f"{text}:latest"
    if whole in allowed or text in allowed:
        return whole
    # However its registry is written, the engine may take the name for a local image's.
    if any(step.startswith(OWN_PREFIX) for step in match["name"].lower().split("/")):
        raise UnusableImage(f"'{text[:100]}' is one of the daemon's own images")
    return whole
