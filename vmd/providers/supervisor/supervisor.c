/* The resident supervisor of one machine: starts commands and terminals, keeps what they print, and outlives
 * whoever asked for them.
 *
 *   supervisor connect DIRECTORY
 *
 * finds the resident of this directory, or starts it, and hands it this process's stdin and stdout; from then
 * on those carry the frames of wire.py, where they are described, straight to the resident. Everything that a
 * process prints goes into segment files below DIRECTORY/p/ID, of which the oldest are removed; a process that
 * has ended leaves its end in the file `end` beside them. So a daemon that comes back finds every byte and
 * every exit code, and a machine that was stopped still holds what was written.
 *
 * One thread, one epoll loop, nothing ever waited for. Linked statically, since images differ.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <pwd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { VERSION = 1, ID_MAX = 64, CHUNK = 64 * 1024, FRAME_MAX = 4 * 1024 * 1024, OUT_HIGH = 256 * 1024 };
enum { INPUT_MAX = 8 * 1024 * 1024, GRACE_MS = 5000, TERMINAL_LAG = 256 * 1024, SEGMENTS = 4, MAX_GROUPS = 64 };
enum { OOM_SCORE_OF_CHILDREN = 200, CONNECT_TRIES = 2000, CONNECT_PAUSE_US = 2500 };

/* Frames to us, and from us. */
enum { HELLO = 1, START, INPUT, SIGNAL, RESIZE, FOLLOW, CREDIT, UNFOLLOW, FORGET, LIST, END, LOOK, CLOSE_INPUT };
enum { READY = 65, STARTED, REFUSED, DATA, FINISHED, TAKEN, REPORT, LISTED, UNKNOWN };
enum state { RUNNING, EXITED, LOST };

struct source { enum { SIGNALS, LISTENER, LINK_IN, LINK_OUT, LINK_SOCKET, PROCESS_OUT, PROCESS_IN } kind; void *of; };

struct stream {
    struct source source;
    struct process *process;
    const char *name;
    int fd;          /* what the process prints into; -1 once that has ended */
    int file;        /* the segment that is written to; -1 while there is none */
    bool is_read;    /* whether fd is in the epoll set */
    uint64_t first, end, segment; /* what is kept, and how much a segment holds */
};

struct process {
    struct process *next;
    char id[ID_MAX + 1];
    pid_t pid; /* also its session and process group; 0 for one that was found ended */
    enum state state;
    bool is_terminal, is_timed_out, is_input_closing;
    int code, signal;
    int64_t timeout_at, kill_at; /* monotonic milliseconds; 0 for never */
    struct stream streams[2];
    struct source input_source;
    int input; /* a pipe, or the terminal; -1 once closed */
    bool is_input_watched;
    unsigned char *pending; /* input that it has not taken yet */
    size_t pending_size;
};

struct follower {
    struct follower *next;
    uint32_t id;
    struct stream *stream;
    uint64_t sent, credit, until; /* until: where to stop, or UINT64_MAX for the end of the process */
    int file;
    uint64_t file_number;
};

struct buffer { unsigned char *data; size_t start, size, room; };

static int directory = -1, epoll = -1, listener = -1, signals = -1;
static int link_in = -1, link_out = -1, link_socket = -1;
static bool link_out_is_watched, is_ending;
static struct source signals_source = {SIGNALS, 0}, listener_source = {LISTENER, 0};
static struct source in_source = {LINK_IN, 0}, out_source = {LINK_OUT, 0}, socket_source = {LINK_SOCKET, 0};
static struct process *processes;
static struct follower *followers;
static struct buffer incoming, outgoing;
static unsigned char chunk[CHUNK]; /* what was read last, so that followers need not read it back */
static struct stream *chunk_of;
static uint64_t chunk_at;
static size_t chunk_size;

/* --- small things ---------------------------------------------------------------------------------------- */

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void *need(void *memory)
{
    if (!memory)
        abort(); /* out of memory: whoever comes next starts a new resident, which finds what is on disk */
    return memory;
}

static void watch(int fd, struct source *source, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = source};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

static void unwatch(int fd) { epoll_ctl(epoll, EPOLL_CTL_DEL, fd, 0); }

static void set_nonblocking(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

static uint64_t number_at(const unsigned char *p, int bytes)
{
    uint64_t value = 0;
    for (int i = bytes - 1; i >= 0; i--)
        value = value << 8 | p[i];
    return value;
}

static void append(struct buffer *b, const void *data, size_t size)
{
    if (b->start + b->size + size > b->room) {
        if (b->start) {
            memmove(b->data, b->data + b->start, b->size);
            b->start = 0;
        }
        if (b->size + size > b->room) {
            b->room = (b->size + size) * 2;
            b->data = need(realloc(b->data, b->room));
        }
    }
    memcpy(b->data + b->start + b->size, data, size);
    b->size += size;
}

static void consume(struct buffer *b, size_t size)
{
    b->start += size;
    b->size -= size;
    if (!b->size) {
        b->start = 0;
        if (b->room > 2 * FRAME_MAX) { /* one large frame must not hold memory for good */
            free(b->data);
            b->data = 0;
            b->room = 0;
        }
    }
}

static void append_number(struct buffer *b, uint64_t value, int bytes)
{
    unsigned char data[8];
    for (int i = 0; i < bytes; i++, value >>= 8)
        data[i] = value & 255;
    append(b, data, bytes);
}

static void begin_frame(int type, size_t size)
{
    append_number(&outgoing, size + 1, 4);
    append_number(&outgoing, type, 1);
}

static void append_id(const char *id)
{
    append_number(&outgoing, strlen(id), 1);
    append(&outgoing, id, strlen(id));
}

static void send_about(int type, const char *id, const char *text)
{
    begin_frame(type, 1 + strlen(id) + strlen(text));
    append_id(id);
    append(&outgoing, text, strlen(text));
}

/* --- what is kept of a stream ---------------------------------------------------------------------------- */

static void path_of(char *path, const struct stream *s, uint64_t number)
{
    snprintf(path, PATH_MAX, "p/%s/%s.%010llu", s->process->id, s->name, (unsigned long long)number);
}

static void drop_before(struct stream *s, uint64_t offset)
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

static void close_segment(struct stream *s)
{
    if (s->file >= 0)
        close(s->file);
    s->file = -1;
}

/* Keep bytes; where the disk has no room, what is older makes some, and then these are counted but not kept. */
static void keep(struct stream *s, const unsigned char *data, size_t size)
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

/* --- reports --------------------------------------------------------------------------------------------- */

static void report(const struct process *p)
{
    begin_frame(REPORT, 1 + strlen(p->id) + 4 + 8 + 32);
    append_id(p->id);
    append_number(&outgoing, p->state, 1);
    append_number(&outgoing, p->is_terminal, 1);
    append_number(&outgoing, p->is_timed_out, 1);
    append_number(&outgoing, 0, 1);
    append_number(&outgoing, (uint32_t)p->code, 4);
    append_number(&outgoing, (uint32_t)p->signal, 4);
    for (int i = 0; i < 2; i++) {
        append_number(&outgoing, p->streams[i].first, 8);
        append_number(&outgoing, p->streams[i].end, 8);
    }
}

/* One line: how it ended, and how much it had printed by then. */
static void write_end(const struct process *p)
{
    char path[PATH_MAX], line[160];
    snprintf(path, sizeof path, "p/%s/end", p->id);
    int size = snprintf(line, sizeof line, "%d %d %d\n", p->code, p->signal, p->is_timed_out);
    int fd = openat(directory, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return;
    if (write(fd, line, size) < 0)
        unlinkat(directory, path, 0);
    close(fd);
}

static struct process *find(const char *id)
{
    for (struct process *p = processes; p; p = p->next)
        if (!strcmp(p->id, id))
            return p;
    return 0;
}

static struct process *add_process(const char *id, uint64_t segment)
{
    struct process *p = need(calloc(1, sizeof *p));
    strcpy(p->id, id);
    for (int i = 0; i < 2; i++) {
        struct stream *s = &p->streams[i];
        *s = (struct stream){.source = {PROCESS_OUT, s}, .process = p, .name = i ? "err" : "out", .fd = -1, .file = -1};
        s->segment = segment;
    }
    p->input = -1;
    p->input_source = (struct source){PROCESS_IN, p};
    p->next = processes;
    processes = p;
    return p;
}

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

static void find_processes(void)
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

/* --- followers ------------------------------------------------------------------------------------------- */

static void drop_follower(struct follower *f)
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
static void pace(struct stream *s)
{
    if (s->fd < 0)
        return;
    uint64_t least = UINT64_MAX;
    uint64_t limit = s->process->is_terminal ? TERMINAL_LAG : (SEGMENTS - 1) * s->segment - CHUNK;
    for (struct follower *f = followers; f; f = f->next)
        if (f->stream == s && f->until == UINT64_MAX && s->end - f->sent < least)
            least = s->end - f->sent;
    bool wanted = least == UINT64_MAX || least < limit;
    if (wanted && !s->is_read)
        watch(s->fd, &s->source, EPOLLIN);
    if (!wanted && s->is_read)
        unwatch(s->fd);
    s->is_read = wanted;
}

static void drop_link(void);

static void flush_link(void)
{
    while (link_out >= 0 && outgoing.size) {
        ssize_t written = write(link_out, outgoing.data + outgoing.start, outgoing.size);
        if (written < 0 && errno == EAGAIN)
            break;
        if (written <= 0) {
            drop_link();
            return;
        }
        consume(&outgoing, written);
    }
    bool wanted = link_out >= 0 && outgoing.size;
    if (wanted && !link_out_is_watched)
        watch(link_out, &out_source, EPOLLOUT);
    if (!wanted && link_out_is_watched)
        unwatch(link_out);
    link_out_is_watched = wanted;
}

/* Send all followers what they may have, in turn, for as long as the link takes it. */
static void pump(void)
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

static void drop_link(void)
{
    if (link_in >= 0) {
        unwatch(link_in);
        if (link_out_is_watched)
            unwatch(link_out);
        unwatch(link_socket);
        close(link_in);
        close(link_out);
        close(link_socket);
    }
    link_in = link_out = link_socket = -1;
    link_out_is_watched = false;
    incoming.size = incoming.start = outgoing.size = outgoing.start = 0;
    while (followers) {
        struct stream *s = followers->stream;
        drop_follower(followers);
        pace(s);
    }
}

/* --- the processes --------------------------------------------------------------------------------------- */

static void close_input(struct process *p)
{
    if (p->input >= 0) {
        if (p->is_input_watched)
            unwatch(p->input);
        close(p->input);
    }
    p->input = -1;
    p->is_input_watched = false;
    free(p->pending);
    p->pending = 0;
    p->pending_size = 0;
}

static void send_taken(const struct process *p, size_t size)
{
    if (link_out < 0)
        return;
    begin_frame(TAKEN, 1 + strlen(p->id) + 4);
    append_id(p->id);
    append_number(&outgoing, size, 4);
}

static void give_input(struct process *p)
{
    size_t taken = 0;
    while (p->input >= 0 && taken < p->pending_size) {
        ssize_t written = write(p->input, p->pending + taken, p->pending_size - taken);
        if (written < 0 && errno == EAGAIN)
            break;
        if (written <= 0) { /* it reads no more: what it does not want counts as taken */
            taken = p->pending_size;
            p->is_input_closing = !p->is_terminal;
            break;
        }
        taken += written;
    }
    if (p->input < 0)
        taken = p->pending_size;
    if (taken) {
        memmove(p->pending, p->pending + taken, p->pending_size - taken);
        p->pending_size -= taken;
        send_taken(p, taken);
    }
    if (p->is_input_closing && !p->pending_size && !p->is_terminal) {
        close_input(p);
        return;
    }
    bool wanted = p->input >= 0 && p->pending_size;
    if (wanted && !p->is_input_watched)
        watch(p->input, &p->input_source, EPOLLOUT);
    if (!wanted && p->is_input_watched)
        unwatch(p->input);
    p->is_input_watched = wanted;
}

static void add_input(struct process *p, const unsigned char *data, size_t size)
{
    if (p->input < 0 || p->pending_size + size > INPUT_MAX) {
        send_taken(p, size); /* it is gone, and whoever sent it must not wait for that */
        return;
    }
    p->pending = need(realloc(p->pending, p->pending_size + size + 1));
    memcpy(p->pending + p->pending_size, data, size);
    p->pending_size += size;
    give_input(p);
}

static void close_stream(struct stream *s)
{
    if (s->fd < 0)
        return;
    if (s->is_read)
        unwatch(s->fd);
    close(s->fd);
    s->fd = -1;
    s->is_read = false;
    close_segment(s);
}

/* Take what a process has printed; false when there is nothing more for now. A terminal gives 4 KiB a time. */
static bool take_output(struct stream *s)
{
    size_t size = 0;
    bool is_at_end = false;
    chunk_of = 0;
    while (size < CHUNK) {
        ssize_t got = read(s->fd, chunk + size, CHUNK - size);
        if (got <= 0) {
            is_at_end = !(got < 0 && (errno == EAGAIN || errno == EINTR));
            break;
        }
        size += got;
        if (!s->process->is_terminal)
            break;
    }
    if (size) {
        chunk_of = s;
        chunk_at = s->end;
        chunk_size = size;
        keep(s, chunk, size);
    }
    if (is_at_end)
        close_stream(s);
    return size > 0;
}

static void signal_session(pid_t session, int number)
{
    DIR *entries = opendir("/proc");
    if (!entries)
        return;
    for (struct dirent *entry; (entry = readdir(entries));) {
        char path[PATH_MAX], line[512];
        pid_t pid = atoi(entry->d_name);
        if (pid <= 0)
            continue;
        snprintf(path, sizeof path, "/proc/%d/stat", pid);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        ssize_t size = read(fd, line, sizeof line - 1);
        close(fd);
        if (size <= 0)
            continue;
        line[size] = 0;
        char *after = strrchr(line, ')'); /* the name before it may hold anything */
        int parent, group, found;
        if (after && sscanf(after + 1, " %*c %d %d %d", &parent, &group, &found) == 3 && found == session)
            kill(pid, number);
    }
    closedir(entries);
}

static void ended(struct process *p, int status)
{
    p->code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    p->signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    p->timeout_at = p->kill_at = 0;
    for (int i = 0; i < 2; i++) {
        struct stream *s = &p->streams[i];
        /* What a pipe or terminal can hold at most was printed before the end; others may print on. */
        for (int reads = 0; reads < 64 && s->fd >= 0 && take_output(s); reads++)
            ;
    }
    close_input(p);
    if (p->is_terminal)
        close_stream(&p->streams[0]); /* hangs up on whoever is left on it */
    if (is_ending) { /* the machine ends, and it with it: that is no end of its own */
        p->state = LOST;
        return;
    }
    p->state = EXITED;
    write_end(p);
    for (int i = 0; i < 2; i++)
        pace(&p->streams[i]);
    if (link_out >= 0)
        report(p);
}

static void reap(void)
{
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        for (struct process *p = processes; p; p = p->next)
            if (p->pid == pid && p->state == RUNNING)
                ended(p, status);
}

static int run_timers(void)
{
    int64_t now = now_ms(), next = INT64_MAX;
    for (struct process *p = processes; p; p = p->next) {
        if (p->state != RUNNING)
            continue;
        if (p->timeout_at && p->timeout_at <= now) {
            p->timeout_at = 0;
            p->kill_at = now + GRACE_MS;
            p->is_timed_out = true;
            kill(-p->pid, SIGTERM);
            kill(-p->pid, SIGCONT);
        }
        if (p->kill_at && p->kill_at <= now) {
            p->kill_at = now + GRACE_MS;
            signal_session(p->pid, SIGKILL);
        }
        if (p->timeout_at && p->timeout_at < next)
            next = p->timeout_at;
        if (p->kill_at && p->kill_at < next)
            next = p->kill_at;
    }
    if (next == INT64_MAX)
        return -1;
    return next - now > INT_MAX ? INT_MAX : (int)(next - now);
}

/* --- starting -------------------------------------------------------------------------------------------- */

struct wish {
    char id[ID_MAX + 1];
    char *arguments[4097], *environment[4097];
    int argument_count, environment_count;
    char *line, *directory, *user;
    bool is_terminal, has_input;
    uint16_t rows, columns;
    uint64_t timeout_ms, kept;
    const unsigned char *input;
    size_t input_size;
};

struct account {
    uid_t uid;
    gid_t gid, groups[MAX_GROUPS];
    int group_count;
    char name[256], home[PATH_MAX], shell[PATH_MAX];
};

/* Look up NAME, UID, NAME:GROUP or UID:GID in the machine's own files. */
static bool look_up(const char *user, struct account *account)
{
    char wanted[160], *end;
    snprintf(wanted, sizeof wanted, "%s", user);
    char *group = strchr(wanted, ':');
    if (group)
        *group++ = 0;
    unsigned long uid = strtoul(wanted, &end, 10);
    bool is_number = *wanted && !*end && uid < UINT32_MAX;
    bool is_known = is_number;
    *account = (struct account){.uid = uid, .gid = is_number ? uid : 0, .home = "/", .shell = "/bin/sh"};
    snprintf(account->name, sizeof account->name, "%s", wanted);
    FILE *file = fopen("/etc/passwd", "re");
    for (struct passwd *p; file && (p = fgetpwent(file));)
        if (is_number ? p->pw_uid == uid : !strcmp(p->pw_name, wanted)) {
            account->uid = p->pw_uid;
            account->gid = p->pw_gid;
            snprintf(account->name, sizeof account->name, "%s", p->pw_name);
            snprintf(account->home, sizeof account->home, "%s", p->pw_dir);
            if (*p->pw_shell && !access(p->pw_shell, X_OK))
                snprintf(account->shell, sizeof account->shell, "%s", p->pw_shell);
            is_known = true;
            break;
        }
    if (file)
        fclose(file);
    unsigned long gid = group ? strtoul(group, &end, 10) : 0;
    bool has_group = !group || (*group && !*end);
    if (group && has_group)
        account->gid = gid;
    file = fopen("/etc/group", "re");
    for (struct group *g; file && (g = fgetgrent(file));) {
        if (group && !has_group && !strcmp(g->gr_name, group)) {
            account->gid = g->gr_gid;
            has_group = true;
        }
        for (char **member = g->gr_mem; !group && *member; member++)
            if (!strcmp(*member, account->name) && account->group_count < MAX_GROUPS - 1)
                account->groups[account->group_count++] = g->gr_gid;
    }
    if (file)
        fclose(file);
    account->groups[account->group_count++] = account->gid;
    return is_known && has_group;
}

/* Directories of PATH that may not be searched must not make a missing program look like a forbidden one. */
static bool is_found(const char *program)
{
    char path[PATH_MAX];
    if (strchr(program, '/'))
        return true;
    for (const char *at = getenv("PATH"); at && *at;) {
        int size = strcspn(at, ":");
        snprintf(path, sizeof path, "%.*s/%s", size, at, program);
        if (!access(path, F_OK))
            return true;
        at += size + (at[size] == ':');
    }
    return false;
}

static void complain(const char *what, const char *of)
{
    dprintf(2, "vmd: %s: %s\n", of, what);
}

static void put(const char *name, const char *value, bool overwrite)
{
    setenv(name, value, overwrite);
}

static void become(struct wish *w, struct account *a, int in, int out, int err)
{
    sigset_t none;
    sigemptyset(&none);
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, 0);
    setsid();
    if (w->is_terminal)
        ioctl(in, TIOCSCTTY, 0);
    dup2(in, 0);
    dup2(out, 1);
    dup2(err, 2);
    int score = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (score >= 0)
        dprintf(score, "%d", OOM_SCORE_OF_CHILDREN); /* when memory runs out, they go before their supervisor */
    umask(022);
    unsetenv("VMD_SUDO");
    put("HOME", a->home, true);
    put("USER", a->name, true);
    put("LOGNAME", a->name, true);
    put("SHELL", a->shell, true);
    put("LANG", "C.UTF-8", false);
    if (w->is_terminal)
        put("TERM", "xterm-256color", true);
    for (int i = 0; i < w->environment_count; i++)
        putenv(w->environment[i]);
    if (setgroups(a->group_count, a->groups) || setgid(a->gid) || setuid(a->uid)) {
        complain(strerror(errno), "cannot become the user");
        _exit(126);
    }
    if (chdir(w->directory)) {
        complain(strerror(errno), w->directory);
        _exit(126);
    }
    put("PWD", w->directory, true);
    char login[PATH_MAX], *base = strrchr(a->shell, '/');
    char *of_shell[] = {a->shell, w->is_terminal ? "-l" : "-c", w->is_terminal ? "-c" : w->line, w->line, 0};
    if (w->line && !w->is_terminal)
        of_shell[3] = 0;
    if (w->argument_count) {
        execvp(w->arguments[0], w->arguments);
        bool is_missing = errno == ENOENT || (errno == EACCES && !is_found(w->arguments[0]));
        complain(is_missing ? "not found" : strerror(errno), w->arguments[0]);
        _exit(is_missing ? 127 : 126);
    }
    if (!w->line) {
        snprintf(login, sizeof login, "-%s", base ? base + 1 : a->shell);
        char *alone[] = {login, 0};
        execv(a->shell, alone);
    } else {
        execv(a->shell, of_shell);
    }
    complain(strerror(errno), a->shell);
    _exit(126);
}

static int open_terminal(struct wish *w, struct account *a, int *slave)
{
    struct winsize size = {.ws_row = w->rows, .ws_col = w->columns};
    struct termios modes;
    int unlock = 0, number = 0;
    char path[64];
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master < 0)
        return -1;
    if (ioctl(master, TIOCSPTLCK, &unlock) || ioctl(master, TIOCGPTN, &number)) {
        close(master);
        return -1;
    }
    snprintf(path, sizeof path, "/dev/pts/%d", number);
    *slave = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (*slave < 0) {
        close(master);
        return -1;
    }
    if (!fchown(*slave, a->uid, -1)) /* else it is usable through the descriptor all the same */
        fchmod(*slave, 0620);
    if (!tcgetattr(*slave, &modes)) {
        modes.c_iflag |= IUTF8;
        tcsetattr(*slave, TCSANOW, &modes);
    }
    ioctl(master, TIOCSWINSZ, &size);
    return master;
}

/* A pipe whose ends the user may open again by name, as /dev/stdout does. */
static bool open_pipe(int ends[2], struct account *a)
{
    if (pipe2(ends, O_CLOEXEC))
        return false;
    if (fchown(ends[0], a->uid, a->gid))
        return false;
    fcntl(ends[0], F_SETPIPE_SZ, 256 * 1024);
    return true;
}

static const char *start(struct wish *w)
{
    struct account account;
    char path[PATH_MAX];
    if (!look_up(w->user, &account))
        return "user: is unknown in the machine";
    mkdirat(directory, "p", 0700);
    snprintf(path, sizeof path, "p/%s", w->id);
    if (mkdirat(directory, path, 0700) && errno != EEXIST)
        return strerror(errno);
    int in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1}, slave = -1;
    if (w->is_terminal) {
        if ((in[1] = open_terminal(w, &account, &slave)) < 0)
            return strerror(errno);
        in[0] = out[1] = err[1] = slave;
        out[0] = in[1];
    } else if (!open_pipe(in, &account) || !open_pipe(out, &account) || !open_pipe(err, &account)) {
        return strerror(errno); /* descriptors are as good as out, and what is open dies with the resident */
    }
    snprintf(path, sizeof path, "p/%s/begin", w->id);
    int begin = openat(directory, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    uint64_t segment = w->kept / (SEGMENTS + 1); /* so many whole ones, and the one that is written to */
    if (segment < CHUNK)
        segment = CHUNK;
    if (begin >= 0) {
        dprintf(begin, "%llu %d\n", (unsigned long long)segment, w->is_terminal);
        close(begin);
    }
    pid_t pid = begin < 0 ? -1 : fork();
    if (pid == 0)
        become(w, &account, in[0], out[1], err[1]);
    int failure = errno;
    if (w->is_terminal) {
        close(slave);
    } else {
        close(in[0]);
        close(out[1]);
        close(err[1]);
    }
    if (pid < 0) {
        close(in[1]);
        if (!w->is_terminal) {
            close(out[0]);
            close(err[0]);
        }
        return strerror(failure);
    }
    struct process *p = add_process(w->id, segment);
    p->pid = pid;
    p->is_terminal = w->is_terminal;
    p->timeout_at = w->timeout_ms ? now_ms() + (int64_t)w->timeout_ms : 0;
    p->input = w->is_terminal ? dup(in[1]) : in[1];
    fcntl(p->input, F_SETFD, FD_CLOEXEC);
    p->is_input_closing = !w->is_terminal && !w->has_input;
    set_nonblocking(p->input);
    for (int i = 0; i < (w->is_terminal ? 1 : 2); i++) {
        p->streams[i].fd = i ? err[0] : out[0];
        set_nonblocking(p->streams[i].fd);
        pace(&p->streams[i]);
    }
    add_input(p, w->input, w->input_size);
    return 0;
}

/* --- frames ---------------------------------------------------------------------------------------------- */

static char *copy_text(const unsigned char *data, size_t size)
{
    char *text = need(malloc(size + 1));
    memcpy(text, data, size);
    text[size] = 0;
    return text;
}

static bool is_id(const char *id)
{
    if (!*id)
        return false;
    for (; *id; id++)
        if (!(*id >= 'a' && *id <= 'z') && !(*id >= '0' && *id <= '9') && *id != '-')
            return false;
    return true;
}

/* Fields of a tag, a size and that many bytes. */
static void read_start(const unsigned char *data, size_t size)
{
    struct wish *w = need(calloc(1, sizeof *w));
    const char *refusal = "the request is damaged";
    w->directory = w->user = "";
    while (size >= 5) {
        unsigned tag = data[0];
        size_t length = number_at(data + 1, 4);
        if (length > size - 5)
            goto answer;
        const unsigned char *value = data + 5;
        data += 5 + length;
        size -= 5 + length;
        switch (tag) {
        case 'i':
            if (length <= ID_MAX)
                memcpy(w->id, value, length);
            break;
        case 'a':
            if (w->argument_count < 4096)
                w->arguments[w->argument_count++] = copy_text(value, length);
            break;
        case 'e':
            if (w->environment_count < 4096)
                w->environment[w->environment_count++] = copy_text(value, length);
            break;
        case 'l': w->line = copy_text(value, length); break;
        case 'c': w->directory = copy_text(value, length); break;
        case 'u': w->user = copy_text(value, length); break;
        case 'T':
            w->is_terminal = length == 4;
            if (w->is_terminal) {
                w->rows = number_at(value, 2);
                w->columns = number_at(value + 2, 2);
            }
            break;
        case 't': w->timeout_ms = length == 8 ? number_at(value, 8) : 0; break;
        case 'k': w->kept = length == 8 ? number_at(value, 8) : 0; break;
        case 'o': w->has_input = true; break;
        case 'd':
            w->input = value;
            w->input_size = length;
            break;
        }
    }
    if (is_id(w->id) && !find(w->id))
        refusal = is_ending ? "the machine is stopping" : start(w);
    else if (is_id(w->id))
        refusal = 0; /* started before, and asked for again */
answer:
    send_about(refusal ? REFUSED : STARTED, w->id, refusal ? refusal : "");
    for (int i = 0; i < w->argument_count; i++)
        free(w->arguments[i]);
    for (int i = 0; i < w->environment_count; i++)
        free(w->environment[i]);
    free(w->line);
    if (*w->directory)
        free(w->directory);
    if (*w->user)
        free(w->user);
    free(w);
}

static void forget(struct process *p)
{
    char path[PATH_MAX];
    if (p->state == RUNNING)
        return;
    for (struct follower *f = followers, *next; f; f = next) {
        next = f->next;
        if (f->stream->process == p)
            drop_follower(f);
    }
    for (int i = 0; i < 2; i++) {
        close_stream(&p->streams[i]);
        if (chunk_of == &p->streams[i])
            chunk_of = 0;
        drop_before(&p->streams[i], p->streams[i].end + p->streams[i].segment);
    }
    snprintf(path, sizeof path, "p/%s/end", p->id);
    unlinkat(directory, path, 0);
    snprintf(path, sizeof path, "p/%s/begin", p->id);
    unlinkat(directory, path, 0);
    snprintf(path, sizeof path, "p/%s", p->id);
    unlinkat(directory, path, AT_REMOVEDIR);
    for (struct process **at = &processes; *at; at = &(*at)->next)
        if (*at == p) {
            *at = p->next;
            break;
        }
    free(p);
}

static void send_signal(struct process *p, int number, bool whole_session)
{
    pid_t group = 0;
    if (p->state != RUNNING)
        return;
    if (whole_session) {
        signal_session(p->pid, number);
        return;
    }
    if (p->is_terminal && !ioctl(p->streams[0].fd, TIOCGPGRP, &group) && group > 0 && kill(-group, number) == 0)
        return;
    kill(-p->pid, number);
}

static void read_follow(const unsigned char *data, size_t size)
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
    if (f->sent > f->stream->end)
        f->sent = f->stream->end;
    while (*last)
        last = &(*last)->next;
    *last = f;
    pace(f->stream);
}

static void change_follower(int type, const unsigned char *data, size_t size)
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

static void read_frame(int type, const unsigned char *data, size_t size)
{
    if (type == HELLO) {
        begin_frame(READY, 4);
        append_number(&outgoing, VERSION, 4);
        return;
    }
    if (type == LIST) {
        for (struct process *p = processes; p; p = p->next)
            report(p);
        begin_frame(LISTED, 0);
        return;
    }
    if (type == START) {
        read_start(data, size);
        return;
    }
    if (type == FOLLOW) {
        read_follow(data, size);
        return;
    }
    if (type == CREDIT || type == UNFOLLOW) {
        change_follower(type, data, size);
        return;
    }
    /* All others begin with an id. */
    char id[ID_MAX + 1] = "";
    if (!size || data[0] > ID_MAX || data[0] > size - 1)
        return;
    memcpy(id, data + 1, data[0]);
    struct process *p = find(id);
    size_t head = 1 + data[0];
    data += head;
    size -= head;
    if (!p) {
        send_about(UNKNOWN, id, "");
        return;
    }
    switch (type) {
    case INPUT: add_input(p, data, size); break;
    case CLOSE_INPUT:
        p->is_input_closing = true;
        give_input(p);
        break;
    case SIGNAL:
        if (size == 2 && data[0] > 0 && data[0] < NSIG)
            send_signal(p, data[0], data[1]);
        break;
    case RESIZE:
        if (size == 4 && p->is_terminal && p->streams[0].fd >= 0) {
            struct winsize wanted = {.ws_row = number_at(data, 2), .ws_col = number_at(data + 2, 2)};
            ioctl(p->streams[0].fd, TIOCSWINSZ, &wanted);
        }
        break;
    case END:
        if (p->state == RUNNING && !p->kill_at && size == 1 && data[0] > 0 && data[0] < NSIG) {
            p->kill_at = now_ms() + GRACE_MS;
            signal_session(p->pid, data[0]);
            signal_session(p->pid, SIGCONT);
        }
        break;
    case LOOK: report(p); break;
    case FORGET: forget(p); break;
    }
}

static void read_link(void)
{
    static unsigned char data[CHUNK];
    ssize_t got = read(link_in, data, sizeof data);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        drop_link();
        return;
    }
    append(&incoming, data, got);
    while (incoming.size >= 5) {
        unsigned char *frame = incoming.data + incoming.start;
        size_t size = number_at(frame, 4);
        if (size < 1 || size > FRAME_MAX) {
            drop_link();
            return;
        }
        if (incoming.size < 4 + size)
            break;
        read_frame(frame[4], frame + 5, size - 1);
        if (link_in < 0)
            return;
        consume(&incoming, 4 + size);
    }
}

/* --- links ----------------------------------------------------------------------------------------------- */

static bool is_root(int socket)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    return !getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) && peer.uid == geteuid();
}

/* Take over the descriptors of who connects; who was linked before is let go. */
static void accept_link(void)
{
    int ends[2];
    char byte, control[CMSG_SPACE(sizeof ends)];
    struct iovec vector = {&byte, 1};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control};
    message.msg_controllen = sizeof control;
    int accepted = accept4(listener, 0, 0, SOCK_CLOEXEC);
    struct timeval patience = {.tv_sec = 1};
    if (accepted < 0)
        return;
    setsockopt(accepted, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    ssize_t got = is_root(accepted) ? recvmsg(accepted, &message, MSG_CMSG_CLOEXEC) : -1;
    struct cmsghdr *head = got == 1 ? CMSG_FIRSTHDR(&message) : 0;
    if (!head || head->cmsg_type != SCM_RIGHTS || head->cmsg_len != CMSG_LEN(sizeof ends)) {
        close(accepted);
        return;
    }
    memcpy(ends, CMSG_DATA(head), sizeof ends);
    drop_link();
    link_in = ends[0];
    link_out = ends[1];
    link_socket = accepted;
    set_nonblocking(link_in);
    set_nonblocking(link_out);
    watch(link_in, &in_source, EPOLLIN);
    watch(link_socket, &socket_source, EPOLLIN | EPOLLRDHUP);
}

static void read_signals(void)
{
    struct signalfd_siginfo info;
    while (read(signals, &info, sizeof info) == sizeof info)
        if (info.ssi_signo == SIGTERM)
            is_ending = true;
    reap();
}

static bool has_running(void)
{
    for (struct process *p = processes; p; p = p->next)
        if (p->state == RUNNING)
            return true;
    return false;
}

static void handle(struct source *source)
{
    struct stream *s;
    switch (source->kind) {
    case SIGNALS: read_signals(); break;
    case LISTENER: accept_link(); break;
    case LINK_IN: read_link(); break;
    case LINK_OUT: flush_link(); break;
    case LINK_SOCKET: drop_link(); break;
    case PROCESS_IN: give_input(source->of); break;
    case PROCESS_OUT:
        s = source->of;
        if (s->fd >= 0 && s->is_read && take_output(s))
            pace(s);
        break;
    }
}

static void serve(void)
{
    while (!is_ending || has_running()) {
        struct epoll_event events[1]; /* one, since handling it may take away what the next is about */
        int timeout = run_timers();
        int count = epoll_wait(epoll, events, 1, timeout);
        if (count == 1)
            handle(events[0].data.ptr);
        pump();
    }
}

static void reside(const struct sockaddr_un *address)
{
    sigset_t handled;
    int lock = openat(directory, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (lock < 0 || flock(lock, LOCK_EX | LOCK_NB))
        _exit(0); /* another is about to listen */
    int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
    dup2(nothing, 0);
    dup2(nothing, 1);
    dup2(nothing, 2);
    if (chdir("/"))
        _exit(1);
    prctl(PR_SET_NAME, "vmd-supervisor");
    umask(077);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    sigemptyset(&handled);
    sigaddset(&handled, SIGCHLD);
    sigaddset(&handled, SIGTERM);
    sigprocmask(SIG_BLOCK, &handled, 0);
    signals = signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    find_processes();
    unlinkat(directory, "socket", 0);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fchdir(directory) || bind(listener, (const struct sockaddr *)address, sizeof *address) || listen(listener, 8))
        _exit(1);
    if (chdir("/"))
        _exit(1);
    watch(signals, &signals_source, EPOLLIN);
    watch(listener, &listener_source, EPOLLIN);
    serve();
    _exit(0);
}

static int find_resident(const struct sockaddr_un *address)
{
    for (int tries = 0; tries < CONNECT_TRIES; tries++) {
        int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (!connect(connection, (const struct sockaddr *)address, sizeof *address)) {
            if (is_root(connection))
                return connection;
            fprintf(stderr, "vmd: the socket is somebody else's\n");
            return -1;
        }
        close(connection);
        if (tries % 200 == 0) {
            pid_t pid = fork();
            if (pid == 0) {
                setsid();
                if (fork() == 0)
                    reside(address);
                _exit(0);
            }
            waitpid(pid, 0, 0);
        }
        usleep(CONNECT_PAUSE_US);
    }
    fprintf(stderr, "vmd: the supervisor does not start\n");
    return -1;
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "socket"};
    if (argc != 3 || strcmp(argv[1], "connect")) {
        fprintf(stderr, "usage: supervisor connect DIRECTORY\n");
        return 2;
    }
    directory = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0 || fchdir(directory)) {
        perror(argv[2]);
        return 1;
    }
    int connection = find_resident(&address);
    if (connection < 0)
        return 1;
    int ends[2] = {0, 1};
    char byte = 0, control[CMSG_SPACE(sizeof ends)] = {0};
    struct iovec vector = {&byte, 1};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control};
    message.msg_controllen = sizeof control;
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof ends);
    memcpy(CMSG_DATA(head), ends, sizeof ends);
    if (sendmsg(connection, &message, 0) != 1) {
        perror("vmd: the supervisor does not listen");
        return 1;
    }
    return read(connection, &byte, 1) == 0 ? 0 : 1; /* until the resident lets go */
}
