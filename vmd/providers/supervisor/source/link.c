/* The one link to the daemon: two descriptors that somebody handed over. */
#include "supervisor.h"

enum { LINK_PIPE = 1024 * 1024 };

int link_out = -1;
struct buffer outgoing;
static int link_in = -1, link_socket = -1;
static bool link_out_is_watched;
static struct buffer incoming;
static struct source in_source = {LINK_IN, 0}, out_source = {LINK_OUT, 0}, socket_source = {LINK_SOCKET, 0};

void flush_link(void)
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

void drop_link(void)
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

void read_link(void)
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

bool is_root(int socket)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    return !getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) && peer.uid == geteuid();
}

/* Take over the descriptors of who connects; who was linked before is let go. */
void accept_link(void)
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
    fcntl(link_out, F_SETPIPE_SZ, LINK_PIPE); /* a third more output; where it is refused, less will do */
    watch(link_in, &in_source, EPOLLIN);
    watch(link_socket, &socket_source, EPOLLIN | EPOLLRDHUP);
}
