"""A tree of hostile and ordinary files, and what is to be seen of one: both run as programs in a machine."""

# As root, in the directory that is its first argument.
MAKE = r"""
import os, sys
os.chdir(sys.argv[1])
def write(path, data=b"x", mode=0o644):
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, mode)
for name in (b"plain.txt", b"new\nline", b"-rf", b"\xff\xfe not utf-8", b"n" * 255, b"a.txt", b"a b",
             b"tab\t", b"* $(x) `y` 'q' \" \\", b" ", b"...", b"\xe2\x82", b".hidden", b"GNUSparseFile.0"):
    write(name)
write(b"empty", b"")
os.makedirs(b"a/b/c")
write(b"a/b/c/d")
write(b"a-b")
os.makedirs(b"empty directory")
os.symlink(b"/etc/passwd", b"absolute")
os.symlink(b"loop", b"loop")
os.symlink(b"../../outside", b"outside")
os.symlink(b"t" * 4000, b"long link")
os.symlink(b"a", b"to a directory")
os.link(b"plain.txt", b"z hard link")
os.link(b"absolute", b"z hard link to a link", follow_symlinks=False)
os.link(b"z hard link", b"a/b/another")
os.mkfifo(b"fifo", 0o640)
os.link(b"fifo", b"z fifo")
write(b"setuid", b"s", 0o4755)
write(b"setgid", b"s", 0o2755)
write(b"none", b"unreadable", 0)
os.makedirs(b"sticky")
os.chmod(b"sticky", 0o3777)
os.makedirs(b"locked/in")
write(b"locked/in/f")
os.chmod(b"locked/in", 0)
os.chmod(b"locked", 0o100)
with open(b"sparse", "wb") as file:
    file.seek(10_000_000)
    file.write(b"middle")
    file.truncate(5_000_000_000)
with open(b"hole", "wb") as file:
    file.truncate(1 << 40)
with open(b"tail", "wb") as file:
    file.write(os.urandom(5000))
    file.truncate(123_457)
write(b"zeros", bytes(1_000_000))
write(b"random", os.urandom(1_234_567))
os.setxattr(b"plain.txt", b"user.k", b"v\0\n=\xff" * 10)
os.setxattr(b"a", b"user.directory", b"")
os.utime(b"a.txt", ns=(0, -1_500_000_000))
os.utime(b"random", ns=(0, -2_000_000_000))
os.utime(b"empty", ns=(0, 5_000_000_000_123_456_789))
os.utime(b"absolute", ns=(1, 123_456_789), follow_symlinks=False)
os.chown(b"random", 4_000_000_000, 3_000_000_000)
os.chown(b"absolute", 12, 34, follow_symlinks=False)
directory = os.open(b".", os.O_RDONLY)
for number in range(300):  # deeper than a path may be long
    name = b"d%03d-" % number + b"y" * 20
    os.mkdir(name, dir_fd=directory)
    inner = os.open(name, os.O_RDONLY, dir_fd=directory)
    os.close(directory)
    directory = inner
os.close(os.open(b"deep", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
os.utime(b"a/b", ns=(5, 7))
"""

# Prints how many entries there are, and a digest of all that is to survive; shares nothing with the archiver.
LIST = r"""
import hashlib, os, stat, sys
seen, digest, count = {}, hashlib.sha256(), 0
def content(fd, size):
    found, at = hashlib.sha256(), 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        os.lseek(fd, at, os.SEEK_SET)
        end = os.lseek(fd, at, os.SEEK_HOLE)
        os.lseek(fd, at, os.SEEK_SET)
        while at < end:
            data = os.read(fd, min(1 << 20, end - at))
            if data.strip(b"\0"):
                found.update(b"%d:" % at + data)
            at += len(data)
    return found.hexdigest()
def visit(parent, name, place):
    global count
    s = os.stat(name, dir_fd=parent, follow_symlinks=False)
    said = [place, stat.S_IFMT(s.st_mode), stat.S_IMODE(s.st_mode), s.st_uid, s.st_gid, s.st_mtime_ns]
    if not stat.S_ISDIR(s.st_mode):
        said += [s.st_size, s.st_nlink, seen.setdefault(s.st_ino, place)]
    if stat.S_ISLNK(s.st_mode):
        said.append(os.readlink(name, dir_fd=parent))
    fd = None
    if stat.S_ISREG(s.st_mode) or stat.S_ISDIR(s.st_mode):
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=parent)
        said += [(key, os.getxattr(fd, key)) for key in sorted(os.listxattr(fd))]
    if stat.S_ISREG(s.st_mode):
        said.append(content(fd, s.st_size))
        said.append(s.st_blocks * 512 < s.st_size)
    count += 1
    digest.update(repr(said).encode())
    if stat.S_ISDIR(s.st_mode):
        for inner in sorted(os.listdir(fd), key=os.fsencode):
            visit(fd, inner, place + "/" + inner)
    if fd is not None:
        os.close(fd)
sys.setrecursionlimit(5000)
visit(os.open(sys.argv[1], os.O_RDONLY), ".", ".")
print(count, digest.hexdigest())
"""
