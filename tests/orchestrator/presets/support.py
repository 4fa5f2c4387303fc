"""Trees out of plain files, and the templates that presets are made for."""

from collections.abc import Mapping
from hashlib import sha1

from vmd.model.template import Template
from vmd.model.workspace import Resources
from vmd.orchestrator.presets import Candidate, Context, Tree, detect, load_rules, make_tree
from vmd.orchestrator.presets.detecting import wanted_first, wanted_later
from vmd.orchestrator.presets.tree import MAX_FILE_BYTES

BASE = "vmd-base:bookworm"


def templates() -> dict[str, Template]:
    """Return the built-in templates, by what they are called."""
    names = ("python", "node", "go", "rust")
    made = {name: Template(id=name, name=name, image=f"vmd-template-{name}:1") for name in names}
    large = Resources(memory_mb=2048)
    made["java"] = Template(
        id="java", name="Java", image="vmd-template-java:1", resources=large, ports=(9999,)
    )
    return {"base": Template(id="base", name="Base", image=BASE), **made}


def read(files: Mapping[str, str | bytes]) -> Tree:
    """Return a tree in which what the rules ask for was read, and no more."""
    raw = {path.encode("utf-8", "surrogateescape"): text for path, text in files.items()}
    contents = {path: text if isinstance(text, bytes) else text.encode() for path, text in raw.items()}
    tree = make_tree((path, sha1(content).hexdigest()) for path, content in contents.items())
    _read(tree, wanted_first(tree, load_rules()), contents)
    _read(tree, wanted_later(tree), contents)
    return tree


def _read(tree: Tree, paths: tuple[str, ...], contents: Mapping[bytes, bytes]) -> None:
    for path in paths:
        content = contents[path.encode()]
        if len(content) > MAX_FILE_BYTES:
            tree.unread.add(path)
        else:
            tree.contents[path] = content


def found(files: Mapping[str, str | bytes], workspace_id: str | None = "ws-1") -> tuple[Candidate, ...]:
    """Return what is detected in these files."""
    context = Context(templates=templates(), repository="shop", workspace_id=workspace_id)
    return detect(read(files), load_rules(), context)
