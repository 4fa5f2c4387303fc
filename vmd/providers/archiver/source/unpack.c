/* What is unpacked, always into the directory that was entered last. What a directory has of its own is set
when it is left, since what is put into it would change that. */
#include "archiver.h"

static int root = -1, current = -1;

static _Noreturn void cannot(const char *what, const struct entry *e)
{
    fail("cannot %s %s: %m", what, shown((char *)e->path.data));
}

static void set_times(int fd, const char *name, const struct entry *e)
{
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = e->seconds, .tv_nsec = e->nanoseconds}};
    if (name ? utimensat(fd, name, times, AT_SYMLINK_NOFOLLOW) : futimens(fd, times))
        cannot("set the time of", e);
}

/* The owner first, since that resets the mode and capabilities. */
static void set_all(int fd, const struct entry *e)
{
    if (fchown(fd, e->uid, e->gid))
        cannot("set the owner of", e);
    for (size_t i = 0; i < e->xattr_count; i++)
        if (fsetxattr(fd, e->xattrs[i].name, e->xattrs[i].value.data, e->xattrs[i].value.size, 0))
            cannot("set an extended attribute of", e);
    if (fchmod(fd, e->mode))
        cannot("set the mode of", e);
    set_times(fd, 0, e);
}

void unpack_begin(const char *path)
{
    root = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    current = root < 0 ? -1 : fcntl(root, F_DUPFD_CLOEXEC, 0);
    DIR *directory = current < 0 ? 0 : fdopendir(fcntl(root, F_DUPFD_CLOEXEC, 0));
    if (!directory)
        fail("cannot open %s: %m", path);
    struct dirent *found;
    while ((found = readdir(directory)))
        if (strcmp(found->d_name, ".") && strcmp(found->d_name, ".."))
            fail("%s is not empty", path);
    closedir(directory);
}

void unpack_directory(const char *name, const struct entry *e)
{
    if (mkdirat(current, name, 0700))
        cannot("make", e);
    int fd = openat(current, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        cannot("open", e);
    close(current);
    current = fd;
}

void unpack_leave(const struct entry *e)
{
    int parent = openat(current, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (parent < 0)
        cannot("leave", e);
    set_all(current, e);
    close(current);
    current = parent;
}

int unpack_file(const char *name, const struct entry *e)
{
    int fd = openat(current, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, e->size))
        cannot("make", e);
    return fd;
}

void unpack_data(int fd, uint64_t offset, const void *data, size_t size, const struct entry *e)
{
    for (size_t at = 0; at < size;) {
        ssize_t part = pwrite(fd, (const char *)data + at, size - at, offset + at);
        if (part < 0)
            cannot("write", e);
        at += part;
    }
}

void unpack_file_end(int fd, const struct entry *e)
{
    set_all(fd, e);
    if (close(fd))
        cannot("write", e);
}

/* Open the directory that a path is in, through directories alone. */
static int open_parent(const char *path, const char **name, const struct entry *e)
{
    char part[NAME_MAX + 1];
    int fd = fcntl(root, F_DUPFD_CLOEXEC, 0);
    for (const char *slash; fd >= 0 && (slash = strchr(path, '/')); path = slash + 1) {
        snprintf(part, sizeof part, "%.*s", (int)(slash - path), path);
        int next = openat(fd, part, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        close(fd);
        fd = next;
    }
    if (fd < 0)
        cannot("find what is linked by", e);
    *name = path;
    return fd;
}

/* Make a link or a FIFO. */
void unpack_other(const char *name, const struct entry *e)
{
    if (e->type == '1') {
        const char *target;
        int parent = open_parent((char *)e->link.data, &target, e);
        if (linkat(parent, target, current, name, 0))
            cannot("make the link", e);
        close(parent);
        return;
    }
    if (e->type == '2' ? symlinkat((char *)e->link.data, current, name) : mkfifoat(current, name, 0600))
        cannot("make", e);
    if (fchownat(current, name, e->uid, e->gid, AT_SYMLINK_NOFOLLOW))
        cannot("set the owner of", e);
    if (e->type == '6' && fchmodat(current, name, e->mode, 0))
        cannot("set the mode of", e);
    set_times(current, name, e);
}
