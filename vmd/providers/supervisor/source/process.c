/* The processes: their input and output, their signals, their ends. */
#include "supervisor.h"

enum { INPUT_MAX = 8 * 1024 * 1024, GRACE_MS = 5000 };

struct process *processes;
unsigned char chunk[CHUNK];
struct stream *chunk_of;
uint64_t chunk_at;
size_t chunk_size;

void report(const struct process *p)
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

struct process *find(const char *id)
{
    for (struct process *p = processes; p; p = p->next)
        if (!strcmp(p->id, id))
            return p;
    return 0;
}

struct process *add_process(const char *id, uint64_t segment)
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

void give_input(struct process *p)
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

void add_input(struct process *p, const unsigned char *data, size_t size)
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
bool take_output(struct stream *s)
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

void reap(void)
{
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        for (struct process *p = processes; p; p = p->next)
            if (p->pid == pid && p->state == RUNNING)
                ended(p, status);
}

int run_timers(void)
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

void send_signal(struct process *p, int number, bool whole_session)
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

/* Ask a session to end, and kill what is left of it a little later. */
void end_process(struct process *p, int number)
{
    if (p->state != RUNNING || p->kill_at)
        return;
    p->kill_at = now_ms() + GRACE_MS;
    signal_session(p->pid, number);
    signal_session(p->pid, SIGCONT);
}

void forget(struct process *p)
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
