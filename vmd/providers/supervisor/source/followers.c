/* Those who read on: what they get, and that nobody prints over what they still could. */
#include "supervisor.h"

enum { TERMINAL_LAG = 256 * 1024 };

struct follower *followers;

void drop_follower(struct follower *f)
{
    for (struct follower **at = &followers; *at; at = &(*at)->next)
        if (*at == f) {
            *at = f->next;
            break;
        }
    if (f->file >= 0)
        close(f->file);
    free(f);
}

/* Open the segment that a follower is at; false where it is gone. */
static bool open_at(struct follower *f)
{
    char path[PATH_MAX];
    uint64_t number = f->sent / f->stream->segment;
    if (f->file >= 0 && f->file_number == number)
        return true;
    if (f->file >= 0)
        close(f->file);
    path_of(path, f->stream, number);
    f->file = openat(directory, path, O_RDONLY | O_CLOEXEC);
    f->file_number = number;
    return f->file >= 0;
}

/* Read what a follower is to get next; segments that are gone are skipped. */
static size_t fetch(struct follower *f, unsigned char **data, size_t most)
{
    static unsigned char read_back[CHUNK];
    struct stream *s = f->stream;
    uint64_t end = f->until < s->end ? f->until : s->end;
    if (f->sent < s->first)
        f->sent = s->first;
    while (f->sent < end) {
        uint64_t inside = f->sent % s->segment, left = s->segment - inside;
        if (left > end - f->sent)
            left = end - f->sent;
        size_t size = left < most ? left : most;
        if (chunk_of == s && f->sent >= chunk_at && f->sent < chunk_at + chunk_size) {
            size_t skip = f->sent - chunk_at;
            *data = chunk + skip;
            return size < chunk_size - skip ? size : chunk_size - skip;
        }
        ssize_t got = open_at(f) ? pread(f->file, read_back, size, inside) : 0;
        *data = read_back;
        if (got > 0)
            return got;
        f->sent += left;
    }
    return 0;
}

static bool is_over(const struct stream *s)
{
    return s->process->state != RUNNING;
}

/* Send a follower a chunk if there is one, it may have it, and the link has room. */
static bool feed(struct follower *f)
{
    unsigned char *data;
    struct stream *s = f->stream;
    if (f->credit) {
        size_t size = fetch(f, &data, f->credit < CHUNK ? f->credit : CHUNK);
        if (size) {
            begin_frame(DATA, 4 + 8 + size);
            append_number(&outgoing, f->id, 4);
            append_number(&outgoing, f->sent, 8);
            append(&outgoing, data, size);
            f->sent += size;
            f->credit -= size;
            return true;
        }
    }
    if (f->sent >= (f->until < s->end ? f->until : s->end) && (f->until != UINT64_MAX || is_over(s))) {
        begin_frame(FINISHED, 4 + 8);
        append_number(&outgoing, f->id, 4);
        append_number(&outgoing, f->sent, 8);
        drop_follower(f);
    }
    return false;
}

/* A process is held up while nobody who reads it keeps up, so that nothing they could still get is dropped. */
void pace(struct stream *s)
{
    if (s->fd < 0)
        return;
    uint64_t least = UINT64_MAX;
    uint64_t limit = s->process->is_terminal ? TERMINAL_LAG : (SEGMENTS - 1) * s->segment - CHUNK;
    for (struct follower *f = followers; f; f = f->next)
        if (f->stream == s && f->until == UINT64_MAX) {
            uint64_t lag = s->end > f->sent ? s->end - f->sent : 0; /* one may wait for what is yet to come */
            least = lag < least ? lag : least;
        }
    bool wanted = least == UINT64_MAX || least < limit;
    if (wanted && !s->is_read)
        watch(s->fd, &s->source, EPOLLIN);
    if (!wanted && s->is_read)
        unwatch(s->fd);
    s->is_read = wanted;
}

/* Send all followers what they may have, in turn, for as long as the link takes it. */
void pump(void)
{
    for (bool is_going_on = true; is_going_on;) {
        flush_link();
        if (link_out < 0 || outgoing.size >= OUT_HIGH)
            return; /* it is watched, so this goes on when it has room */
        is_going_on = false;
        for (struct follower *f = followers, *next; f && outgoing.size < OUT_HIGH; f = next) {
            next = f->next;
            struct stream *s = f->stream;
            if (feed(f)) {
                is_going_on = true;
                pace(s);
            }
        }
    }
    flush_link();
}

void read_follow(const unsigned char *data, size_t size)
{
    /* number, id, stream, offset, window, whether to go on until the process ends */
    size_t length = size > 4 ? data[4] : 0;
    if (size != 5 + length + 18 || length > ID_MAX)
        return;
    char id[ID_MAX + 1] = "";
    memcpy(id, data + 5, length);
    struct process *p = find(id);
    const unsigned char *rest = data + 5 + length;
    uint32_t number = number_at(data, 4);
    if (!p || rest[0] > 1) {
        begin_frame(FINISHED, 4 + 8);
        append_number(&outgoing, number, 4);
        append_number(&outgoing, 0, 8);
        return;
    }
    struct follower *f = need(calloc(1, sizeof *f)), **last = &followers;
    f->id = number;
    f->stream = &p->streams[rest[0]];
    f->sent = number_at(rest + 1, 8);
    f->credit = number_at(rest + 9, 8);
    f->until = rest[17] ? UINT64_MAX : f->stream->end;
    f->file = -1;
    while (*last)
        last = &(*last)->next;
    *last = f;
    pace(f->stream);
}

void change_follower(int type, const unsigned char *data, size_t size)
{
    for (struct follower *f = followers; f && size >= 4; f = f->next)
        if (f->id == number_at(data, 4)) {
            struct stream *s = f->stream;
            if (type == CREDIT && size == 12)
                f->credit += number_at(data + 4, 8);
            if (type == UNFOLLOW)
                drop_follower(f);
            pace(s);
            return;
        }
}
