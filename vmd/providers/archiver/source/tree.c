/* A tree as it is on disk, in the order of the names. Links are never followed. */
#include "archiver.h"

struct first { /* where a file with several names was seen first */
    struct first *next;
    dev_t device;
    ino_t inode;
    char *path;
};

enum { BUCKETS = 1 << 16 };
static struct first *seen[BUCKETS];
static struct manifest *manifest;
static bool is_packing;
static struct entry entry;
static unsigned char chunk[CHUNK];

/* Return the path under which this file was seen before, or note this one. */
static const char *first_path(const struct stat *s, const char *path)
{
    struct first **bucket = &seen[(s->st_ino ^ s->st_dev * 31) % BUCKETS];
    for (struct first *f = *bucket; f; f = f->next)
        if (f->inode == s->st_ino && f->device == s->st_dev)
            return f->path;
    struct first *f = need(malloc(sizeof *f));
    *f = (struct first){*bucket, s->st_dev, s->st_ino, need(strdup(path))};
    *bucket = f;
    return 0;
}

static void read_xattrs(int fd)
{
    char names[XATTR_LIST_MAX], value[XATTR_SIZE_MAX];
    ssize_t size = flistxattr(fd, names, sizeof names);
    if (size < 0 && errno != ENOTSUP)
        fail("cannot list the extended attributes of %s: %m", shown((char *)entry.path.data));
    for (char *name = names; name < names + size; name += strlen(name) + 1) {
        ssize_t length = fgetxattr(fd, name, value, sizeof value);
        if (length < 0)
            fail("cannot read an extended attribute of %s: %m", shown((char *)entry.path.data));
        add_xattr(&entry, name, value, length);
    }
    sort_xattrs(&entry);
}

/* Find where a file has data, rounded to pages. */
static void find_extents(int fd)
{
    uint64_t end = 0;
    while (end < entry.size) {
        off_t from = lseek(fd, end, SEEK_DATA);
        if (from < 0 && errno == ENXIO)
            break;
        off_t to = from < 0 ? -1 : lseek(fd, from, SEEK_HOLE);
        uint64_t begin = from < 0 ? end : (uint64_t)from / PAGE * PAGE; /* a file system that knows no holes */
        uint64_t stop = to < 0 ? entry.size : ((uint64_t)to + PAGE - 1) / PAGE * PAGE;
        if (stop > entry.size)
            stop = entry.size;
        if (begin < end)
            begin = end;
        if (begin >= stop)
            break;
        if (entry.extent_count && begin == end)
            entry.extents[entry.extent_count - 1].size += stop - begin;
        else
            add_extent(&entry, begin, stop - begin);
        end = stop;
    }
    entry.is_sparse =
        entry.size && (entry.extent_count != 1 || entry.extents[0].offset || entry.extents[0].size != entry.size);
}

static void read_extent(int fd, uint64_t offset, uint64_t size)
{
    while (size) {
        size_t want = size < CHUNK ? size : CHUNK, got = 0;
        while (got < want) {
            ssize_t part = pread(fd, chunk + got, want - got, offset + got);
            if (part < 0)
                fail("cannot read %s: %m", shown((char *)entry.path.data));
            if (part == 0)
                fail("%s became shorter while it was read", shown((char *)entry.path.data));
            got += part;
        }
        manifest_data(manifest, offset, chunk, want);
        if (is_packing)
            write_data(chunk, want);
        offset += want;
        size -= want;
    }
}

static void tell(int fd)
{
    manifest_entry(manifest, &entry);
    if (is_packing)
        write_entry(&entry);
    for (size_t i = 0; i < entry.extent_count; i++)
        read_extent(fd, entry.extents[i].offset, entry.extents[i].size);
    if (is_packing)
        write_entry_end();
}

static void read_link(int parent, const char *name, size_t size)
{
    char *target = need(malloc(size + 2)); /* more than it is said to be, to see whether it is longer */
    ssize_t length = readlinkat(parent, name, target, size + 2);
    if (length < 0 || (size && (size_t)length > size))
        fail("cannot read the link %s", shown((char *)entry.path.data));
    set_text(&entry.link, target, length);
    free(target);
}

static void begin_entry(const struct stat *s, const struct bytes *path)
{
    clear_entry(&entry);
    set_text(&entry.path, (char *)path->data, path->size);
    entry.mode = s->st_mode & 07777;
    entry.uid = s->st_uid;
    entry.gid = s->st_gid;
    entry.seconds = s->st_mtim.tv_sec;
    entry.nanoseconds = s->st_mtim.tv_nsec;
}

/* Tell of whatever is no directory. */
static void tell_leaf(int parent, const char *name, const struct stat *s, const struct bytes *path)
{
    int fd = -1;
    begin_entry(s, path);
    const char *first = s->st_nlink > 1 && (S_ISREG(s->st_mode) || S_ISLNK(s->st_mode) || S_ISFIFO(s->st_mode))
                            ? first_path(s, (char *)path->data)
                            : 0;
    if (first) {
        entry.type = '1';
        set_text(&entry.link, first, strlen(first));
    } else if (S_ISREG(s->st_mode)) {
        entry.type = '0';
        entry.size = s->st_size;
        fd = openat(parent, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        if (fd < 0)
            fail("cannot open %s: %m", shown((char *)path->data));
        read_xattrs(fd);
        find_extents(fd);
    } else if (S_ISLNK(s->st_mode)) {
        entry.type = '2';
        read_link(parent, name, s->st_size);
    } else if (S_ISFIFO(s->st_mode)) {
        entry.type = '6';
    } else {
        manifest->skipped++;
        return;
    }
    tell(fd);
    if (fd >= 0)
        close(fd);
}

static int by_bytes(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* Return the names in a directory, sorted, with a null at the end. */
static char **read_names(int fd, const char *path)
{
    DIR *directory = fdopendir(dup(fd));
    if (!directory)
        fail("cannot read the directory %s: %m", shown(path));
    char **names = 0;
    size_t count = 0;
    struct dirent *found;
    while (errno = 0, (found = readdir(directory))) {
        if (!strcmp(found->d_name, ".") || !strcmp(found->d_name, ".."))
            continue;
        if (count % 64 == 0)
            names = need(realloc(names, (count + 65) * sizeof *names));
        names[count++] = need(strdup(found->d_name));
    }
    if (errno)
        fail("cannot read the directory %s: %m", shown(path));
    closedir(directory);
    if (!names)
        names = need(malloc(sizeof *names));
    if (count)
        qsort(names, count, sizeof *names, by_bytes);
    names[count] = 0;
    return names;
}

/* Tell of a directory and of all that is in it; fd, which is closed, is its own.

Return its parent, opened anew for a directory that is not the tree itself: so that depth costs no descriptors. */
static int walk(int fd, struct bytes *path, int depth)
{
    struct stat s, above;
    if (depth > MAX_DEPTH)
        fail("there are more than %d directories inside each other", MAX_DEPTH);
    if (fstat(fd, &s))
        fail("cannot look at %s: %m", shown((char *)path->data));
    begin_entry(&s, path);
    entry.type = '5';
    read_xattrs(fd);
    tell(-1);
    char **names = read_names(fd, (char *)path->data);
    for (char **name = names; *name; name++) {
        struct stat of;
        size_t length = path->size;
        if (depth)
            add_text(path, "/");
        else
            path->size = 0;
        add_text(path, *name);
        if (fstatat(fd, *name, &of, AT_SYMLINK_NOFOLLOW))
            fail("cannot look at %s: %m", shown((char *)path->data));
        if (S_ISDIR(of.st_mode)) {
            int child = openat(fd, *name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (child < 0)
                fail("cannot open the directory %s: %m", shown((char *)path->data));
            close(fd);
            fd = walk(child, path, depth + 1);
            if (fstat(fd, &above) || above.st_ino != s.st_ino || above.st_dev != s.st_dev)
                fail("%s was moved while it was read", shown((char *)path->data));
        } else {
            tell_leaf(fd, *name, &of, path);
        }
        path->size = length;
        path->data[length] = 0;
        if (!depth)
            path->data[0] = '.';
        free(*name);
    }
    free(names);
    int parent = depth ? openat(fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (depth && parent < 0)
        fail("cannot go back from %s: %m", shown((char *)path->data));
    close(fd);
    return parent;
}

void walk_tree(const char *path, struct manifest *m, bool is_packed)
{
    struct bytes relative = {0};
    manifest = m;
    is_packing = is_packed;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        fail("cannot open %s: %m", path);
    set_text(&relative, ".", 1);
    walk(fd, &relative, 0);
    free(relative.data);
}
