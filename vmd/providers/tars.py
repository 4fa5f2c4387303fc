"""Tar archives as they come and go, never unpacked here.

Read for what is in them, or looked at while they pass by, by rules that do not trust who made them.
"""

import re
import tarfile
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from attrs import frozen

MAX_PIECE_BYTES = 64 * 1024
MAX_HEADER_BYTES = 1024 * 1024  # of an extended header
MAX_SIZE_DIGITS = 15
_EXTENDED = frozenset({b"x", b"g", b"L", b"K"})
_TERMINALS = frozenset({1, 4, 5})  # major numbers of the devices that every root file system may have
_RECORD = re.compile(rb"(\d+) ([^=\n]+)=")


class TarError(Exception):
    """An archive is damaged, or holds what it must not."""


class Reader(Protocol):
    """A source of bytes."""

    async def read(self, most: int) -> bytes:
        """Return at most so many bytes, none at the end."""

    async def readexactly(self, size: int) -> bytes:
        """Return so many bytes; raise EOFError (as asyncio does) when there are fewer."""


class Content:
    """One file's part of an archive."""

    def __init__(self, archive: Reader, size: int) -> None:
        self._archive = archive
        self._left = size
        self.on_read: Callable[[bytes], object] = lambda data: None  # told of every byte

    async def read(self, most: int) -> bytes:
        """Return at most so many bytes, none at the end of the file."""
        data = await self._archive.read(min(most, self._left)) if self._left else b""
        if self._left and not data:
            raise EOFError("it is cut off")
        self._left -= len(data)
        self.on_read(data)
        return data

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield what is left, piece by piece."""
        while data := await self.read(MAX_PIECE_BYTES):
            yield data

    async def read_all(self, most: int) -> bytes:
        """Return what is left, cut off after so many bytes."""
        data = b""
        while len(data) < most and (piece := await self.read(most - len(data))):
            data += piece
        return data

    async def skip(self) -> None:
        """Leave what is left."""
        while self._left:
            await self.read(MAX_PIECE_BYTES)


@frozen(kw_only=True)
class File:
    """A plain file in an archive."""

    name: str
    size: int
    content: Content


async def walk(archive: Reader, *, most: int, largest: int) -> AsyncIterator[File]:
    """Yield each plain file of an archive, up to `most` entries; what is not read of it is skipped.

    Raises tarfile.TarError, or EOFError when it is cut off.
    """
    for _ in range(most):
        head = await archive.readexactly(tarfile.BLOCKSIZE)
        if not head.strip(b"\0"):
            return
        entry = tarfile.TarInfo.frombuf(head, "utf-8", "replace")
        if not 0 <= entry.size <= largest:
            raise tarfile.TarError(f"a file of {entry.size} bytes")
        content = Content(archive, entry.size)
        if entry.isreg():
            yield File(name=entry.name, size=entry.size, content=content)
        await content.skip()
        if rest := entry.size % tarfile.BLOCKSIZE:
            await archive.readexactly(tarfile.BLOCKSIZE - rest)


class Guard:
    """Looks at the archive of a root file system while it passes: feed it every byte, then `finish`.

    It must be plain, since what is compressed may grow without bounds; no path may lead outside; and it must
    have an end. Raises TarError.
    """

    def __init__(self, *, max_entries: int, max_bytes: int) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._seen = 0
        self._entries = 0
        self._waiting = b""
        self._skip = 0  # bytes of data and padding that still belong to the last header
        self._extended: bytes | None = None  # the kind of the extended header that is being read
        self._wanted = tarfile.BLOCKSIZE
        self._names: dict[str, str] = {}
        self._is_over = False

    def feed(self, data: bytes) -> None:
        """Look at the next bytes."""
        self._seen += len(data)
        if self._seen > self._max_bytes:
            raise TarError(f"it is larger than {self._max_bytes} bytes")
        view = memoryview(data)
        while view:
            if self._is_over:
                return
            if self._skip:
                part = min(self._skip, len(view))
                self._skip -= part
                view = view[part:]
                continue
            part = self._wanted - len(self._waiting)
            self._waiting += bytes(view[:part])
            view = view[part:]
            if len(self._waiting) == self._wanted:
                self._take(self._waiting)

    def finish(self) -> None:
        """Say that nothing follows."""
        if not self._is_over:
            raise TarError("it is cut off")
        if not self._entries:
            raise TarError("it is empty")

    def _take(self, block: bytes) -> None:
        self._waiting = b""
        if self._extended is not None:
            self._read_extended(block)
            return
        if not block.strip(b"\0"):
            self._is_over = True
            return
        try:
            entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.TarError:
            raise TarError("it is no tar archive, or damaged") from None
        padded = -(-entry.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if entry.type in _EXTENDED:
            if not 0 < entry.size <= MAX_HEADER_BYTES:
                raise TarError("a header is too large")
            self._extended, self._wanted = entry.type, padded
            self._extended_size = entry.size
            return
        size = self._names.pop("size", None)
        if size is not None:
            if not size.isdecimal() or len(size) > MAX_SIZE_DIGITS:
                raise TarError("a file has no size")
            padded = -(-int(size) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        self._look_at(entry)
        self._skip = padded if entry.isreg() else 0

    def _read_extended(self, block: bytes) -> None:
        content, kind = block[: self._extended_size], self._extended
        self._extended, self._wanted = None, tarfile.BLOCKSIZE
        if kind in (b"L", b"K"):
            text = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            self._names["path" if kind == b"L" else "linkpath"] = text
            return
        if kind == b"g":
            raise TarError("it has a header for all its entries")
        at = 0
        while at < len(content):
            match = _RECORD.match(content, at)
            if match is None or not 0 < int(match[1]) <= len(content) - at:
                raise TarError("a header is damaged")
            value = content[match.end() : at + int(match[1]) - 1]
            key = match[2].decode("utf-8", "replace")
            if key.startswith("GNU.sparse"):
                raise TarError("a file is of a kind that no engine writes")
            self._names[key] = value.decode("utf-8", "surrogateescape")
            at += int(match[1])

    def _look_at(self, entry: tarfile.TarInfo) -> None:
        self._entries += 1
        if self._entries > self._max_entries:
            raise TarError(f"it has more than {self._max_entries} entries")
        names, self._names = self._names, {}
        path = names.get("path", entry.name)
        _require_inside(path)
        if entry.islnk():
            _require_inside(names.get("linkpath", entry.linkname))
        is_device = entry.isblk() or (entry.ischr() and entry.devmajor not in _TERMINALS)
        is_known = entry.isreg() or entry.isdir() or entry.islnk() or entry.issym() or entry.isdev()
        if is_device or entry.issparse() or not is_known:
            raise TarError(f"it has a device or something unknown at {path[:100]!r}")


def _require_inside(path: str) -> None:
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise TarError(f"a path leads outside: {path[:100]!r}")
