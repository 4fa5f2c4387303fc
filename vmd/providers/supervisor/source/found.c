/* What an earlier resident left on disk. */
#include "supervisor.h"

/* Take up what an earlier resident left: what it saw end has ended, the rest is lost. */
static void find_process(const char *id)
{
    char path[PATH_MAX], line[64] = "";
    unsigned long long segment = 0;
    int is_terminal = 0, timed_out = 0;
    snprintf(path, sizeof path, "p/%s/begin", id);
    int fd = openat(directory, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, line, sizeof line - 1) <= 0 || sscanf(line, "%llu %d", &segment, &is_terminal) != 2)
        segment = 0;
    if (fd >= 0)
        close(fd);
    if (!segment)
        return;
    struct process *p = add_process(id, segment);
    p->is_terminal = is_terminal;
    p->state = LOST;
    snprintf(path, sizeof path, "p/%s/end", id);
    memset(line, 0, sizeof line);
    if ((fd = openat(directory, path, O_RDONLY | O_CLOEXEC)) >= 0) {
        if (read(fd, line, sizeof line - 1) > 0 && sscanf(line, "%d %d %d", &p->code, &p->signal, &timed_out) == 3)
            p->state = EXITED;
        p->is_timed_out = timed_out;
        close(fd);
    }
    snprintf(path, sizeof path, "p/%s", id);
    fd = openat(directory, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = fd < 0 ? 0 : fdopendir(fd);
    if (!entries)
        return;
    uint64_t lowest[2] = {UINT64_MAX, UINT64_MAX};
    for (struct dirent *entry; (entry = readdir(entries));) {
        int i = !strncmp(entry->d_name, "err.", 4);
        if (!i && strncmp(entry->d_name, "out.", 4))
            continue;
        uint64_t at = strtoull(entry->d_name + 4, 0, 10) * segment;
        struct stat found;
        if (fstatat(fd, entry->d_name, &found, 0))
            continue;
        if (at < lowest[i])
            lowest[i] = p->streams[i].first = at;
        if (at + found.st_size > p->streams[i].end)
            p->streams[i].end = at + found.st_size;
    }
    closedir(entries);
}

void find_processes(void)
{
    int fd = openat(directory, "p", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = fd < 0 ? 0 : fdopendir(fd);
    if (!entries)
        return;
    for (struct dirent *entry; (entry = readdir(entries));)
        if (entry->d_name[0] != '.' && strlen(entry->d_name) <= ID_MAX)
            find_process(entry->d_name);
    closedir(entries);
}
