"""Reads a repository inside a machine: the names of all its files, and what a few of them say.

Git is asked for what was committed, by the names it gives to contents: so no link is followed, no name of a
file is ever part of a command, and a clone without files does as well.
"""

import asyncio
from collections.abc import Iterable, Iterator

from vmd.orchestrator.presets.detecting import wanted_first, wanted_later
from vmd.orchestrator.presets.rules import Rules
from vmd.orchestrator.presets.tree import MAX_FILE_BYTES, Tree, make_tree
from vmd.providers.base import Execution, Provider

LIST = "list"
READ = "read"
MAX_LIST_BYTES = 32 * 1024 * 1024
MAX_READ_BYTES = 8 * 1024 * 1024  # of all files that are read at once
MAX_SAID_BYTES = 4096  # of what git says of a failure
_PLAIN_MODES = (b"100644", b"100755", b"100664")

# Prints `MODE TYPE BLOB<TAB>PATH<NUL>` for every committed file; nothing in an empty repository.
_LIST_SCRIPT = f"""
git rev-parse --quiet --verify HEAD >/dev/null || exit 0
git ls-tree -r -z --full-tree HEAD | head -c {MAX_LIST_BYTES}
"""
# Prints `BLOB blob SIZE<LF>CONTENTS<LF>` for each of its arguments, those that are too large left out. Where
# the clone has no contents, all are fetched in one go, as git itself would one by one.
_READ_SCRIPT = f"""
if [ -n "$VMD_FETCH" ]; then
    printf '%s\\n' "$@" | git -c fetch.negotiationAlgorithm=noop fetch --quiet --no-tags \
        --no-write-fetch-head --recurse-submodules=no --filter=blob:none --stdin origin || true
fi
printf '%s\\n' "$@" | git cat-file --batch-check='%(objectname) %(objecttype) %(objectsize)' |
    while read -r blob type size; do
        if [ "$type" = blob ] && [ "$size" -le {MAX_FILE_BYTES} ]; then echo "$blob"; fi
    done | git cat-file --batch | head -c {MAX_READ_BYTES}
"""


class CannotLook(Exception):
    """Git does not tell what is in the repository; the message is its own."""


async def look(
    provider: Provider, ref: str, rules: Rules, *, env: dict[str, str] | None = None, fetches: bool = False
) -> Tree:
    """Return the repository at a running machine's /workspace, with the contents that the rules ask for.

    `fetches` says that contents must come from the repository's server first; `env` is git's for that.
    Raises CannotLook, ProviderError or ProviderUnavailable.
    """
    git = {**(env or {}), "VMD_FETCH": "1" if fetches else ""}
    listed = await _run(provider, ref, LIST, _LIST_SCRIPT, (), git, MAX_LIST_BYTES)
    tree = await asyncio.to_thread(make_tree, _files(listed), is_cut=len(listed) >= MAX_LIST_BYTES)
    await _read(provider, ref, tree, await asyncio.to_thread(wanted_first, tree, rules), git)
    await _read(provider, ref, tree, await asyncio.to_thread(wanted_later, tree), git)
    return tree


async def _read(
    provider: Provider, ref: str, tree: Tree, paths: tuple[str, ...], env: dict[str, str]
) -> None:
    if not paths:
        return
    blobs = tuple(dict.fromkeys(tree.blobs[path] for path in paths))
    contents = dict(_contents(await _run(provider, ref, READ, _READ_SCRIPT, blobs, env, MAX_READ_BYTES)))
    for path in paths:
        if (content := contents.get(tree.blobs[path])) is None:
            tree.unread.add(path)
        else:
            tree.contents[path] = content


async def _run(
    provider: Provider,
    ref: str,
    kind: str,
    script: str,
    arguments: Iterable[str],
    env: dict[str, str],
    most: int,
) -> bytes:
    answer, said = bytearray(), bytearray()

    async def output(stream: str, data: bytes) -> None:
        if stream == "stdout":
            answer.extend(data[: most - len(answer)])
        else:
            said.extend(data[: MAX_SAID_BYTES - len(said)])

    argv = ("/bin/sh", "-c", script, "vmd", *arguments)
    code = await provider.execute(ref, Execution(argv=argv, env={**env, "VMD_LOOK": kind}), output)
    if code != 0:
        raise CannotLook(" ".join(said.decode("utf-8", "replace").split()) or f"exit code {code}")
    return bytes(answer)


def _files(listed: bytes) -> Iterator[tuple[bytes, str]]:
    """Yield (path, blob) of every plain file; links and submodules are none."""
    for entry in listed.split(b"\0")[:-1]:
        head, _, path = entry.partition(b"\t")
        words = head.split()
        if len(words) == 3 and words[0] in _PLAIN_MODES and words[2].isalnum():
            yield path, words[2].decode("ascii")


def _contents(answer: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (blob, contents) of what git prints in a batch; what is cut off is left out."""
    at = 0
    while (end := answer.find(b"\n", at)) >= 0:
        words = answer[at:end].split()
        if len(words) != 3 or not words[2].isdigit() or len(words[2]) > 9:
            return
        at = end + 1 + int(words[2])
        if at > len(answer):
            return
        yield words[0].decode("ascii", "replace"), answer[end + 1 : at]
        at += 1
