"""The archiver by itself: what it packs it unpacks, and what it would not write it does not read."""

import json
import os
import random
import subprocess
import sys
import tarfile
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from tests.support.trees import LIST, MAKE
from vmd.providers.executables import ARCHIVER, find_executable

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners are set by root alone")


@pytest.fixture(scope="module")
def archiver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    executable = find_executable(ARCHIVER, os.uname().machine)
    assert executable is not None
    path = tmp_path_factory.mktemp("archiver") / "archiver"
    path.write_bytes(executable)
    path.chmod(0o755)
    return path


def run(archiver: Path, *argv: str | Path) -> list[tuple[str, Any]]:
    """Return what it says, as titles with their manifests."""
    done = subprocess.run([archiver, *argv], check=True, capture_output=True, text=True)
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    return [(title, json.loads(manifest)) for title, _, manifest in lines]


def refusal(archiver: Path, *argv: str | Path) -> str:
    done = subprocess.run([archiver, *argv], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, ""), done
    return done.stderr


def looks(tree: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", LIST, tree], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    subprocess.run([sys.executable, "-c", MAKE, tree], check=True)
    return tree


def test_a_hostile_tree_comes_out_as_it_went_in(archiver: Path, hostile: Path, tmp_path: Path) -> None:
    archive, copy = tmp_path / "a.tar", tmp_path / "copy"
    copy.mkdir()
    (packed, checked) = run(archiver, "snapshot", hostile, archive)
    assert (packed[0], checked[0]) == ("packed", "checked")
    assert packed[1] == checked[1]
    assert packed[1]["stored"] == archive.stat().st_size
    (unpacked,) = run(archiver, "unpack", archive, copy)
    assert unpacked[1]["digest"] == packed[1]["digest"]
    assert run(archiver, "list", copy)[0][1]["digest"] == packed[1]["digest"]
    assert looks(copy) == looks(hostile)


def test_common_tools_read_the_archive(archiver: Path, tmp_path: Path) -> None:
    tree, archive = tmp_path / "tree", tmp_path / "a.tar"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / ("long" * 40)).write_text("content")
    with (tree / "sparse").open("wb") as file:
        file.truncate(1_000_000)
    run(archiver, "snapshot", tree, archive)
    with tarfile.open(archive) as opened:
        assert opened.getnames() == [".", "sparse", "sub", "sub/" + "long" * 40]
        content = opened.extractfile("sub/" + "long" * 40)
        assert content is not None
        assert content.read() == b"content"
        assert opened.getmember("sparse").size == 1_000_000


def test_sockets_are_left_out_and_counted(archiver: Path, tmp_path: Path) -> None:
    tree = tmp_path / "t"
    tree.mkdir()
    os.mknod(tree / "socket", 0o140600)
    ((_, packed), _) = run(archiver, "snapshot", tree, tmp_path / "a.tar")
    assert (packed["entries"], packed["skipped"]) == (1, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text("other"),
        lambda path: path.chmod(0o640),
        lambda path: os.utime(path, ns=(1, 1)),
        lambda path: os.chown(path, 1, 1),
        lambda path: os.setxattr(path, "user.k", b"v"),
        lambda path: path.rename(path.with_name("renamed")),
        lambda path: os.link(path, path.with_name("linked")),
    ],
    ids=["content", "mode", "time", "owner", "attribute", "name", "link"],
)
def test_a_digest_tells_every_change(archiver: Path, tmp_path: Path, change: Any) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("first")
    times = tree.stat()
    before = run(archiver, "list", tree)[0][1]["digest"]
    change(tree / "file")
    os.utime(tree, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert run(archiver, "list", tree)[0][1]["digest"] != before


def test_its_digest_is_blake2b(archiver: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    tree.chmod(0o755)  # whatever the umask is
    os.utime(tree, ns=(0, 1_000_000_002))

    def number(value: int) -> bytes:
        return value.to_bytes(8, "little")

    expected = blake2b(digest_size=32)
    for part in ((1 << 64) - 1, ord("5"), 1, b".", 0, 0o755, 0, 1, 2, 0, 0):
        expected.update(part if isinstance(part, bytes) else number(part))
    assert run(archiver, "list", tree)[0][1]["digest"] == expected.hexdigest()


def test_what_is_there_is_not_written_over(archiver: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    run(archiver, "snapshot", tree, tmp_path / "a.tar")
    (tree / "there").write_text("")
    assert "is not empty" in refusal(archiver, "unpack", tmp_path / "a.tar", tree)


def entry(name: str, kind: bytes = tarfile.REGTYPE, **values: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    data = values.pop("data", b"")
    info.size = values.pop("size", len(data))
    info.mode = 0o755
    for key, value in values.items():
        setattr(info, key, value)
    return info, data


ROOT = entry(".", tarfile.DIRTYPE)
BAD = {
    "no root": [entry("a")],
    "parent": [ROOT, entry("../a")],
    "inner parent": [ROOT, entry("a", tarfile.DIRTYPE), entry("a/../b")],
    "absolute": [ROOT, entry("/etc/passwd")],
    "through a link": [ROOT, entry("a", tarfile.SYMTYPE, linkname="/etc"), entry("a/passwd")],
    "twice": [ROOT, entry("a"), entry("a")],
    "out of order": [ROOT, entry("b"), entry("a")],
    "no directory": [ROOT, entry("a/b")],
    "hard link outside": [ROOT, entry("a", tarfile.LNKTYPE, linkname="../../etc/passwd")],
    "hard link to what comes later": [ROOT, entry("a", tarfile.LNKTYPE, linkname="b"), entry("b")],
    "device": [ROOT, entry("a", tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "two roots": [ROOT, ROOT],
    "dot": [ROOT, entry("./a")],
    "empty name": [ROOT, entry("a", tarfile.DIRTYPE), entry("a/")],
    "link with content": [ROOT, entry("a", tarfile.SYMTYPE, linkname="b", size=5)],
    "link to nothing": [ROOT, entry("a", tarfile.SYMTYPE)],
}


@pytest.mark.parametrize("name", BAD)
def test_what_it_would_not_write_is_refused(archiver: Path, tmp_path: Path, name: str) -> None:
    archive, tree = tmp_path / "bad.tar", tmp_path / "tree"
    tree.mkdir()
    blocks = [info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512) for info, data in BAD[name]]
    archive.write_bytes(b"".join(blocks) + bytes(1024))
    assert "damaged or not one of this program's" in refusal(archiver, "check", archive)
    assert "damaged or not one of this program's" in refusal(archiver, "unpack", archive, tree)


def test_whatever_is_changed_or_cut_off_is_noticed(archiver: Path, hostile: Path, tmp_path: Path) -> None:
    archive, changed = tmp_path / "a.tar", tmp_path / "changed.tar"
    ((_, packed), _) = run(archiver, "snapshot", hostile, archive)
    data = archive.read_bytes()
    expected, chosen = looks(hostile), random.Random(11)
    for number in range(200):
        at = chosen.randrange(len(data))
        damaged = bytearray(data)
        if chosen.random() < 0.3:
            del damaged[at:]
        else:
            damaged[at] ^= 1 << chosen.randrange(8)
        changed.write_bytes(damaged)
        done = subprocess.run([archiver, "check", changed], capture_output=True, text=True)
        assert done.returncode in (0, 1), done  # never by a signal
        if done.returncode == 0 and json.loads(done.stdout.partition(" ")[2])["digest"] == packed["digest"]:
            copy = tmp_path / f"copy-{number}"  # only what says nothing was changed, such as padding
            copy.mkdir()
            run(archiver, "unpack", changed, copy)
            assert looks(copy) == expected
