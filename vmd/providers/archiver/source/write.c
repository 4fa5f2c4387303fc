/* The archive as it is written: each entry with a pax header where a plain one does not hold it all. */
#include "archiver.h"

static int archive = -1;
static unsigned char out[CHUNK];
static size_t filled;
static uint64_t written, stored; /* of the data of this entry; of the archive */
static struct bytes records, map;

static void flush(void)
{
    for (size_t at = 0; at < filled;) {
        ssize_t part = write(archive, out + at, filled - at);
        if (part < 0)
            fail("cannot write the archive: %m");
        at += part;
    }
    stored += filled;
    filled = 0;
}

static void put(const void *data, size_t size)
{
    const unsigned char *from = data;
    while (size) {
        size_t part = sizeof out - filled < size ? sizeof out - filled : size;
        memcpy(out + filled, from, part);
        filled += part;
        from += part;
        size -= part;
        if (filled == sizeof out)
            flush();
    }
}

static void pad(uint64_t size)
{
    static const unsigned char zeros[TAR_BLOCK];
    if (size % TAR_BLOCK)
        put(zeros, TAR_BLOCK - size % TAR_BLOCK);
}

/* Add "LENGTH KEY=VALUE\n", where the length counts itself. */
static void add_record(const char *key, const void *value, size_t size)
{
    char length[24];
    size_t rest = 1 + strlen(key) + 1 + size + 1, digits = 1;
    while ((size_t)snprintf(length, sizeof length, "%zu", rest + digits) != digits)
        digits++;
    add_text(&records, length);
    add_text(&records, " ");
    add_text(&records, key);
    add_text(&records, "=");
    add(&records, value, size);
    add_text(&records, "\n");
}

static void add_number_record(const char *key, unsigned long long value)
{
    char text[24];
    add_record(key, text, snprintf(text, sizeof text, "%llu", value));
}

static bool fits(unsigned long long value, int digits) { return value < 1ULL << 3 * (digits - 1); }

static void put_octal(char *field, int digits, unsigned long long value)
{
    snprintf(field, digits, "%0*llo", digits - 1, fits(value, digits) ? value : 0);
}

static void put_header(char type, const char *name, size_t name_size, const struct entry *e, uint64_t size)
{
    char header[TAR_BLOCK] = {0};
    unsigned sum = 0;
    memcpy(header, name, name_size < 100 ? name_size : 100);
    put_octal(header + 100, 8, e->mode);
    put_octal(header + 108, 8, e->uid);
    put_octal(header + 116, 8, e->gid);
    put_octal(header + 124, 12, size);
    put_octal(header + 136, 12, e->seconds < 0 ? 0 : e->seconds);
    memset(header + 148, ' ', 8);
    header[156] = type;
    if (type == '1' || type == '2')
        memcpy(header + 157, e->link.data, e->link.size < 100 ? e->link.size : 100);
    memcpy(header + 257, "ustar\00000", 8);
    for (int i = 0; i < TAR_BLOCK; i++)
        sum += (unsigned char)header[i];
    snprintf(header + 148, 8, "%06o", sum);
    put(header, sizeof header);
}

static void add_mtime(const struct entry *e)
{
    char text[40];
    /* A time before 1970 is its seconds, rounded down, plus the rest; in decimal that is a smaller number. */
    bool is_negative = e->seconds < 0 && e->nanoseconds;
    long long seconds = is_negative ? e->seconds + 1 : e->seconds;
    unsigned nanoseconds = is_negative ? 1000000000 - e->nanoseconds : e->nanoseconds;
    const char *sign = is_negative && !seconds ? "-" : "";
    add_record("mtime", text, snprintf(text, sizeof text, "%s%lld.%09u", sign, seconds, nanoseconds));
}

static void add_map(const struct entry *e)
{
    char line[48];
    map.size = 0;
    add(&map, line, snprintf(line, sizeof line, "%zu\n", e->extent_count));
    for (size_t i = 0; i < e->extent_count; i++)
        add(&map, line,
            snprintf(line, sizeof line, "%llu\n%llu\n", (unsigned long long)e->extents[i].offset,
                     (unsigned long long)e->extents[i].size));
    while (map.size % TAR_BLOCK)
        add(&map, "\0", 1);
}

void write_begin(const char *path)
{
    archive = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (archive < 0)
        fail("cannot make the archive: %m");
}

void write_entry(const struct entry *e)
{
    uint64_t size = 0;
    for (size_t i = 0; i < e->extent_count; i++)
        size += e->extents[i].size;
    records.size = map.size = 0;
    if (e->is_sparse) {
        add_map(e);
        size += map.size;
        add_record("GNU.sparse.major", "1", 1);
        add_record("GNU.sparse.minor", "0", 1);
        add_record("GNU.sparse.name", e->path.data, e->path.size);
        add_number_record("GNU.sparse.realsize", e->size);
    } else if (e->path.size > 100) {
        add_record("path", e->path.data, e->path.size);
    }
    if (e->link.size > 100)
        add_record("linkpath", e->link.data, e->link.size);
    if (!fits(e->uid, 8))
        add_number_record("uid", e->uid);
    if (!fits(e->gid, 8))
        add_number_record("gid", e->gid);
    if (!fits(size, 12))
        add_number_record("size", size);
    if (e->nanoseconds || e->seconds < 0 || !fits(e->seconds, 12))
        add_mtime(e);
    for (size_t i = 0; i < e->xattr_count; i++) {
        char key[XATTR_NAME_MAX + 32];
        snprintf(key, sizeof key, "SCHILY.xattr.%s", e->xattrs[i].name);
        add_record(key, e->xattrs[i].value.data, e->xattrs[i].value.size);
    }
    if (records.size) {
        struct entry plain = {.mode = 0644};
        put_header('x', "pax", 3, &plain, records.size);
        put(records.data, records.size);
        pad(records.size);
    }
    put_header(e->type, (char *)e->path.data, e->path.size, e, size);
    put(map.data, map.size);
    written = 0;
}

void write_data(const void *data, size_t size)
{
    put(data, size);
    written += size;
}

void write_entry_end(void) { pad(written); }

/* Return the size of the archive. */
uint64_t write_end(void)
{
    static const unsigned char zeros[2 * TAR_BLOCK];
    put(zeros, sizeof zeros);
    flush();
    if (close(archive))
        fail("cannot write the archive: %m");
    return stored;
}
