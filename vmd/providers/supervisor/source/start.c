/* Starting a process: the user, the terminal or the pipes, and what is run. */
#include "supervisor.h"

enum { PIPE_MAX = 256 * 1024, MAX_GROUPS = 64, OOM_SCORE_OF_CHILDREN = 200 };

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

static void become(struct wish *w, struct account *a, int in, int out, int err, int born)
{
    sigset_t none;
    sigemptyset(&none);
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, 0);
    setsid();
    if (w->is_terminal)
        ioctl(in, TIOCSCTTY, 0);
    close(born);
    dup2(in, 0);
    dup2(out, 1);
    dup2(err, 2);
    int score = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (score >= 0)
        dprintf(score, "%d", OOM_SCORE_OF_CHILDREN); /* when memory runs out, they go before their supervisor */
    umask(022);
    unsetenv("VMD_SUDO");
    setenv("HOME", a->home, true);
    setenv("USER", a->name, true);
    setenv("LOGNAME", a->name, true);
    setenv("SHELL", a->shell, true);
    setenv("LANG", "C.UTF-8", false);
    if (w->is_terminal)
        setenv("TERM", "xterm-256color", true);
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
    setenv("PWD", w->directory, true);
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

/* A pipe whose ends the user may open again by name, as /dev/stdout does. What it holds at the end of a process
 * that was held up is kept at once, so that must be no more than a segment. */
static bool open_pipe(int ends[2], struct account *a, uint64_t segment)
{
    int size = PIPE_MAX;
    if (pipe2(ends, O_CLOEXEC))
        return false;
    if (fchown(ends[0], a->uid, a->gid))
        return false;
    while ((uint64_t)size > segment)
        size /= 2;
    fcntl(ends[0], F_SETPIPE_SZ, size);
    return true;
}

/* Wait until a child takes signals in a session of its own: what was sent before that would be lost. */
static void wait_for_birth(int born[2])
{
    char byte;
    close(born[1]);
    while (read(born[0], &byte, 1) < 0 && errno == EINTR)
        ;
    close(born[0]);
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
    uint64_t segment = w->kept / (SEGMENTS + 1); /* so many whole ones, and the one that is written to */
    if (segment < CHUNK)
        segment = CHUNK;
    int in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1}, slave = -1;
    if (w->is_terminal) {
        if ((in[1] = open_terminal(w, &account, &slave)) < 0)
            return strerror(errno);
        in[0] = out[1] = err[1] = slave;
        out[0] = in[1];
    } else if (!open_pipe(in, &account, segment) || !open_pipe(out, &account, segment)
        || !open_pipe(err, &account, segment)) {
        return strerror(errno); /* descriptors are as good as out, and what is open dies with the resident */
    }
    snprintf(path, sizeof path, "p/%s/begin", w->id);
    int begin = openat(directory, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (begin >= 0) {
        dprintf(begin, "%llu %d\n", (unsigned long long)segment, w->is_terminal);
        close(begin);
    }
    int born[2] = {-1, -1};
    pid_t pid = begin < 0 || pipe2(born, O_CLOEXEC) ? -1 : fork();
    if (pid == 0)
        become(w, &account, in[0], out[1], err[1], born[1]);
    int failure = errno;
    wait_for_birth(born);
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
void read_start(const unsigned char *data, size_t size)
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
