/* What the parts of the archiver share. What it does as a whole is said in main.c. */
#ifndef VMD_ARCHIVER_H
#define VMD_ARCHIVER_H

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { TAR_BLOCK = 512, PAGE = 4096, CHUNK = 256 * 1024 };
enum { MAX_DEPTH = 10000, MAX_PAX = 16 * 1024 * 1024 };

/* A growing array of bytes. */
struct bytes {
    unsigned char *data;
    size_t size, room;
};

struct xattr {
    char *name;
    struct bytes value;
};

struct extent {
    uint64_t offset, size;
};

/* One file, directory, link or FIFO, as it is in a tree or in an archive. */
struct entry {
    char type; /* as in tar: 0 file, 1 hard link, 2 symbolic link, 5 directory, 6 FIFO */
    struct bytes path, link; /* relative to the tree, "." for the tree itself; both end with a NUL */
    uint32_t mode, uid, gid, nanoseconds;
    int64_t seconds;
    uint64_t size;
    struct xattr *xattrs; /* by name */
    size_t xattr_count;
    struct extent *extents; /* of a file: where it has data; the rest is holes */
    size_t extent_count;
    bool is_sparse;
};

/* BLAKE2b with 32 bytes, RFC 7693. */
struct blake {
    uint64_t state[8], length;
    unsigned char block[128];
    size_t filled;
};

/* What was seen of a tree: the same for a tree, its archive, and what was unpacked from it. */
struct manifest {
    uint64_t entries, bytes, skipped, stored; /* skipped: sockets and devices; stored: the archive's own size */
    struct blake digest;
};

/* bytes.c */
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
void *need(void *memory);
void add(struct bytes *b, const void *data, size_t size);
void add_text(struct bytes *b, const char *text);
void set_text(struct bytes *b, const char *text, size_t size);
const char *shown(const char *path);
void clear_entry(struct entry *e);
void copy_entry(struct entry *to, const struct entry *from);
void free_entry(struct entry *e);
void add_xattr(struct entry *e, const char *name, const void *value, size_t size);
void add_extent(struct entry *e, uint64_t offset, uint64_t size);
void sort_xattrs(struct entry *e);

/* blake.c */
void blake_begin(struct blake *b);
void blake_add(struct blake *b, const void *data, size_t size);
void blake_end(struct blake *b, unsigned char digest[32]);

/* manifest.c */
void manifest_begin(struct manifest *m);
void manifest_entry(struct manifest *m, const struct entry *e);
void manifest_data(struct manifest *m, uint64_t offset, const unsigned char *data, size_t size);
void manifest_print(const char *title, struct manifest *m);

/* write.c */
void write_begin(const char *path);
void write_entry(const struct entry *e);
void write_data(const void *data, size_t size);
void write_entry_end(void);
uint64_t write_end(void);

/* tree.c */
void walk_tree(const char *path, struct manifest *m, bool is_packed);

/* read.c */
void read_archive(const char *path, struct manifest *m, bool is_unpacked);

/* unpack.c: into the directory that was entered last */
void unpack_begin(const char *path);
void unpack_directory(const char *name, const struct entry *e);
void unpack_leave(const struct entry *e);
int unpack_file(const char *name, const struct entry *e);
void unpack_data(int fd, uint64_t offset, const void *data, size_t size, const struct entry *e);
void unpack_file_end(int fd, const struct entry *e);
void unpack_other(const char *name, const struct entry *e);

#endif
