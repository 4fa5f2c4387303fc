"""Presets: templates that were found for a repository, with what in its files says so."""

from attrs import field, frozen

from vmd.model.template import Template, TemplateKind
from vmd.model.workspace import BranchName, RepoUrl


@frozen(kw_only=True)
class LookedAt:
    """The repository, and the branch of it, that is looked at."""

    url: RepoUrl
    branch: BranchName | None = None


@frozen(kw_only=True)
class DetectRequest:
    """Which repository presets are wanted for."""

    repo: LookedAt


@frozen(kw_only=True)
class Evidence:
    """A file of the repository, and what in it speaks for a preset."""

    path: str
    detail: str


@frozen(kw_only=True)
class DeclaredVersion:
    """A version that a file of the repository asks for."""

    of: str  # what of: Python, Node.js, …
    value: str
    path: str


@frozen(kw_only=True)
class PresetPart:
    """One project of the repository."""

    ecosystem: str
    directory: str  # "." is the repository's own
    frameworks: tuple[str, ...] = ()


@frozen(kw_only=True)
class Preset(Template):
    """A template for one repository."""

    kind: TemplateKind = TemplateKind.PRESET
    recipe: str | None = None  # what its image is built from
    template: str | None = None  # whose image it takes; None where it has one of its own
    parts: tuple[PresetPart, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    versions: tuple[DeclaredVersion, ...] = ()
    notes: tuple[str, ...] = field(default=())  # what its user should know, and what is not honoured


@frozen(kw_only=True)
class Detected:
    """The presets that fit, best first; none where nothing that is known was found."""

    items: tuple[Preset, ...]
