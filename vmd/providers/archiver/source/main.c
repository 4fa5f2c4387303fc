/* The archiver: puts a tree of files into one archive and takes it out again, with all that makes a file.

It runs as root in a container of its own that has no network, and the tree and the archive in volumes. The
archive is a tar in pax format, with extended attributes as star writes them and holes as GNU tar does (sparse
format 1.0), so common tools can read it. Reading is strict: whatever this program would not write is refused.

usage: archiver snapshot TREE ARCHIVE   pack, then read the archive back; print "packed" and "checked"
       archiver check ARCHIVE           read an archive, write nothing; print "checked"
       archiver unpack ARCHIVE TREE     into a tree that is empty; print "unpacked"
       archiver list TREE               print "listed"
Each is printed with a manifest as JSON: entries, bytes, skipped, stored, digest. Ends with 1 and a reason on stderr. */
#include "archiver.h"

static void check(const char *archive)
{
    struct manifest m;
    manifest_begin(&m);
    read_archive(archive, &m, false);
    manifest_print("checked", &m);
}

static void snapshot(const char *tree, const char *archive)
{
    struct manifest m;
    manifest_begin(&m);
    write_begin(archive);
    walk_tree(tree, &m, true);
    m.stored = write_end();
    manifest_print("packed", &m);
    check(archive);
}

static void unpack(const char *archive, const char *tree)
{
    struct manifest m;
    manifest_begin(&m);
    unpack_begin(tree);
    read_archive(archive, &m, true);
    manifest_print("unpacked", &m);
}

static void list(const char *tree)
{
    struct manifest m;
    manifest_begin(&m);
    walk_tree(tree, &m, false);
    manifest_print("listed", &m);
}

int main(int count, char **arguments)
{
    umask(0);
    if (count == 4 && !strcmp(arguments[1], "snapshot"))
        snapshot(arguments[2], arguments[3]);
    else if (count == 3 && !strcmp(arguments[1], "check"))
        check(arguments[2]);
    else if (count == 4 && !strcmp(arguments[1], "unpack"))
        unpack(arguments[2], arguments[3]);
    else if (count == 3 && !strcmp(arguments[1], "list"))
        list(arguments[2]);
    else
        fail("usage: archiver snapshot TREE ARCHIVE | check ARCHIVE | unpack ARCHIVE TREE | list TREE");
    return 0;
}
