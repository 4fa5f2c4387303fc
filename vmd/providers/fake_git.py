"""What git tells of the repositories of a fake host, as the real one prints it."""

from collections.abc import Mapping, Sequence
from hashlib import sha1

from vmd.providers.base import Output

README = {"README.md": "A repository\n"}


async def answer(kind: str, arguments: Sequence[str], tree: Mapping[str, str], output: Output) -> int:
    """Answer what detection asks of a clone: `list` and `read` it, `pack` a directory; users are known."""
    blobs = {sha1(text.encode(), usedforsecurity=False).hexdigest(): text for text in tree.values()}
    names = {path: sha1(text.encode(), usedforsecurity=False).hexdigest() for path, text in tree.items()}
    if kind == "list":
        await output("stdout", "".join(f"100644 blob {names[path]}\t{path}\0" for path in tree).encode())
    elif kind == "read":
        for blob in arguments:
            content = blobs[blob].encode()
            await output("stdout", f"{blob} blob {len(content)}\n".encode() + content + b"\n")
    elif kind == "pack":
        directory = arguments[0].removeprefix("/workspace/")
        packed = "".join(f"{path}\n" for path in tree if path.startswith(directory))
        await output("stdout", packed.encode())
    elif kind == "user":
        return 0 if arguments[0] in ("root", "vscode") else 1
    return 0
