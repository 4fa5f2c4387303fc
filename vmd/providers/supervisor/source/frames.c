/* What is asked, frame by frame. */
#include "supervisor.h"

void read_frame(int type, const unsigned char *data, size_t size)
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
        if (size == 1 && data[0] > 0 && data[0] < NSIG)
            end_process(p, data[0]);
        break;
    case LOOK: report(p); break;
    case FORGET: forget(p); break;
    }
}
