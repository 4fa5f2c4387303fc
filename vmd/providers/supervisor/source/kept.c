/* What is kept of a stream: segment files, of which the oldest are removed. */
#include "supervisor.h"

void path_of(char *path, const struct stream *s, uint64_t number)
{
    snprintf(path, PATH_MAX, "p/%s/%s.%010llu", s->process->id, s->name, (unsigned long long)number);
}

void drop_before(struct stream *s, uint64_t offset)
{
    char path[PATH_MAX];
    for (uint64_t number = s->first / s->segment; (number + 1) * s->segment <= offset; number++) {
        path_of(path, s, number);
        unlinkat(directory, path, 0);
        s->first = (number + 1) * s->segment;
    }
}

static bool write_segment(struct stream *s, const unsigned char *data, size_t size)
{
    if (s->file < 0) {
        char path[PATH_MAX];
        path_of(path, s, s->end / s->segment);
        s->file = openat(directory, path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (s->file < 0)
            return false;
    }
    while (size) {
        ssize_t written = pwrite(s->file, data, size, s->end % s->segment);
        if (written <= 0)
            return false;
        data += written;
        size -= written;
        s->end += written;
    }
    return true;
}

void close_segment(struct stream *s)
{
    if (s->file >= 0)
        close(s->file);
    s->file = -1;
}

/* Keep bytes; where the disk has no room, what is older makes some, and then these are counted but not kept. */
void keep(struct stream *s, const unsigned char *data, size_t size)
{
    uint64_t goal = s->end + size;
    while (s->end < goal) {
        uint64_t room = s->segment - s->end % s->segment;
        size_t part = goal - s->end < room ? goal - s->end : room;
        const unsigned char *from = data + (size - (goal - s->end));
        uint64_t before = s->end;
        if (!write_segment(s, from, part)) {
            part -= s->end - before;
            from += s->end - before;
            drop_before(s, s->end / s->segment * s->segment);
            if (!write_segment(s, from, part)) {
                close_segment(s);
                drop_before(s, (s->end / s->segment + 1) * s->segment);
                s->end = goal;
                s->first = goal;
                return;
            }
        }
        if (s->end % s->segment == 0)
            close_segment(s);
        if (s->end > SEGMENTS * s->segment)
            drop_before(s, s->end - SEGMENTS * s->segment);
    }
}
