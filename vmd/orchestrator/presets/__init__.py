"""Presets: what a repository's files say about the machine it wants. The rules are data, beside this."""

from vmd.orchestrator.presets.composing import list_presets
from vmd.orchestrator.presets.detecting import (
    DEVCONTAINER,
    Candidate,
    Context,
    detect,
    repository_name,
    wanted_first,
    wanted_later,
)
from vmd.orchestrator.presets.rules import Rules, load_rules
from vmd.orchestrator.presets.tree import Tree, make_tree

__all__ = [
    "DEVCONTAINER",
    "Candidate",
    "Context",
    "Rules",
    "Tree",
    "detect",
    "list_presets",
    "load_rules",
    "make_tree",
    "repository_name",
    "wanted_first",
    "wanted_later",
]
