/* Memory, descriptors, and frames that wait to be sent. */
#include "supervisor.h"

int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void *need(void *memory)
{
    if (!memory)
        abort(); /* out of memory: whoever comes next starts a new resident, which finds what is on disk */
    return memory;
}

void watch(int fd, struct source *source, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = source};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

void unwatch(int fd) { epoll_ctl(epoll, EPOLL_CTL_DEL, fd, 0); }

void set_nonblocking(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

uint64_t number_at(const unsigned char *p, int bytes)
{
    uint64_t value = 0;
    for (int i = bytes - 1; i >= 0; i--)
        value = value << 8 | p[i];
    return value;
}

void append(struct buffer *b, const void *data, size_t size)
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

void consume(struct buffer *b, size_t size)
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

void append_number(struct buffer *b, uint64_t value, int bytes)
{
    unsigned char data[8];
    for (int i = 0; i < bytes; i++, value >>= 8)
        data[i] = value & 255;
    append(b, data, bytes);
}

void begin_frame(int type, size_t size)
{
    append_number(&outgoing, size + 1, 4);
    append_number(&outgoing, type, 1);
}

void append_id(const char *id)
{
    append_number(&outgoing, strlen(id), 1);
    append(&outgoing, id, strlen(id));
}

void send_about(int type, const char *id, const char *text)
{
    begin_frame(type, 1 + strlen(id) + strlen(text));
    append_id(id);
    append(&outgoing, text, strlen(text));
}
