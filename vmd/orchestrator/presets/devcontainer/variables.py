"""The variables that values of a devcontainer.json may have in them."""

import re
from collections.abc import Mapping

from attrs import field, frozen

from vmd.model.workspace import WORKDIR

MAX_VALUE_CHARACTERS = 32_768
MAX_VARIABLES = 100  # in one value
_VARIABLE = re.compile(r"\$\{([A-Za-z]+)(?::([^}:]*))?(?::([^}]*))?\}")


class Unresolvable(Exception):
    """A value needs something that is not known; the message says what."""


@frozen(kw_only=True)
class Variables:
    """Values by name, and notes on those that are not honoured."""

    repository: str  # the name of the repository's directory, were it cloned by hand
    identifier: str  # stable for the workspace
    env: Mapping[str, str] = field(factory=dict)  # containerEnv, for ${containerEnv:NAME}
    notes: list[str] = field(factory=list)

    def resolve(self, text: str, place: str) -> str:
        """Return a text with its variables' values; raise Unresolvable. Nothing of the host is ever told."""
        if len(_VARIABLE.findall(text)) > MAX_VARIABLES:
            raise Unresolvable(f"has more than {MAX_VARIABLES} variables")
        resolved = _VARIABLE.sub(lambda match: self._value(match, place), text)
        if len(resolved) > MAX_VALUE_CHARACTERS:
            raise Unresolvable(f"is longer than {MAX_VALUE_CHARACTERS} characters")
        return resolved

    def _value(self, match: re.Match[str], place: str) -> str:
        kind, name, default = match[1], match[2] or "", match[3]
        if kind in ("localEnv", "env"):
            self._note(
                f"{place}: ${{{kind}:{name}}} is not told; {'its default' if default else 'nothing'} is used."
            )
            return default or ""
        if kind == "containerEnv":
            if name in self.env:
                return self.env[name]
            if default is not None:
                return default
            raise Unresolvable(f"needs ${{containerEnv:{name}}}, which only the container knows")
        known = {
            "localWorkspaceFolder": WORKDIR,
            "containerWorkspaceFolder": WORKDIR,
            "localWorkspaceFolderBasename": self.repository,
            "containerWorkspaceFolderBasename": WORKDIR.strip("/"),
            "devcontainerId": self.identifier,
        }
        if kind not in known:
            self._note(f"{place}: ${{{kind}}} is not known, and left as it is.")
            return match[0]
        return known[kind]

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)
