/* What the parts of the supervisor share. What it does as a whole is said in main.c. */
#ifndef VMD_SUPERVISOR_H
#define VMD_SUPERVISOR_H

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
enum { SEGMENTS = 4 }; /* whole ones that are kept of a stream, besides the one that is written to */

/* Frames to us, and from us; wire.py says what is in them. */
enum { HELLO = 1, START, INPUT, SIGNAL, RESIZE, FOLLOW, CREDIT, UNFOLLOW, FORGET, LIST, END, LOOK, CLOSE_INPUT };
enum { READY = 65, STARTED, REFUSED, DATA, FINISHED, TAKEN, REPORT, LISTED, UNKNOWN };
enum state { RUNNING, EXITED, LOST };

/* What an epoll event is about. */
struct source {
    enum { SIGNALS, LISTENER, LINK_IN, LINK_OUT, LINK_SOCKET, PROCESS_OUT, PROCESS_IN } kind;
    void *of;
};

struct stream {
    struct source source;
    struct process *process;
    const char *name;
    int fd;                       /* what the process prints into; -1 once that has ended */
    int file;                     /* the segment that is written to; -1 while there is none */
    bool is_read;                 /* whether fd is in the epoll set */
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

struct buffer {
    unsigned char *data;
    size_t start, size, room;
};

extern int directory; /* where everything is kept */
extern int epoll;
extern int listener;
extern bool is_ending; /* the machine is */
extern int link_out;   /* to the daemon; -1 while there is no link */
extern struct buffer outgoing;
extern struct process *processes;
extern struct follower *followers;

/* What was read last, so that followers need not read it back. */
extern unsigned char chunk[CHUNK];
extern struct stream *chunk_of;
extern uint64_t chunk_at;
extern size_t chunk_size;

/* bytes.c */
int64_t now_ms(void);
void *need(void *memory);
void watch(int fd, struct source *source, uint32_t events);
void unwatch(int fd);
void set_nonblocking(int fd);
uint64_t number_at(const unsigned char *p, int bytes);
void append(struct buffer *b, const void *data, size_t size);
void consume(struct buffer *b, size_t size);
void append_number(struct buffer *b, uint64_t value, int bytes);
void begin_frame(int type, size_t size);
void append_id(const char *id);
void send_about(int type, const char *id, const char *text);

/* kept.c */
void path_of(char *path, const struct stream *s, uint64_t number);
void drop_before(struct stream *s, uint64_t offset);
void close_segment(struct stream *s);
void keep(struct stream *s, const unsigned char *data, size_t size);

/* found.c */
void find_processes(void);

/* process.c */
void report(const struct process *p);
struct process *find(const char *id);
struct process *add_process(const char *id, uint64_t segment);
void give_input(struct process *p);
void add_input(struct process *p, const unsigned char *data, size_t size);
bool take_output(struct stream *s);
void reap(void);
int run_timers(void);
void forget(struct process *p);
void send_signal(struct process *p, int number, bool whole_session);
void end_process(struct process *p, int number);

/* followers.c */
void drop_follower(struct follower *f);
void pace(struct stream *s);
void pump(void);
void read_follow(const unsigned char *data, size_t size);
void change_follower(int type, const unsigned char *data, size_t size);

/* start.c */
void read_start(const unsigned char *data, size_t size);

/* frames.c */
void read_frame(int type, const unsigned char *data, size_t size);

/* link.c */
void flush_link(void);
void drop_link(void);
void read_link(void);
bool is_root(int socket);
void accept_link(void);

#endif
