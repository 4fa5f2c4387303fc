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
#include "supervisor.h"

enum { CONNECT_TRIES = 2000, CONNECT_PAUSE_US = 2500, TRIES_BEFORE_ANOTHER_START = 200 };

int directory = -1, epoll = -1, listener = -1;
bool is_ending;
static int signals = -1;
static struct source signals_source = {SIGNALS, 0}, listener_source = {LISTENER, 0};

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
        if (tries % TRIES_BEFORE_ANOTHER_START == 0) {
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
