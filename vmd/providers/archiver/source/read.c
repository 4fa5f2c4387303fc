/* An archive as write.c writes it, and nothing else: whatever differs is refused.

Every entry comes after the directory that it is in, in the order of the names. So no path can leave the tree,
lead through a link, or be there twice. */
#include "archiver.h"

struct level { /* a directory that is being read */
    struct entry entry;
    struct bytes last; /* the name in it that came last */
};

enum { BUCKETS = 1 << 16 };
struct name { /* of a file that a hard link may be made to */
    struct name *next;
    uint64_t hash;
};

static int archive = -1;
static unsigned char in[CHUNK];
static size_t filled, used;
static struct manifest *manifest;
static bool is_unpacking;
static struct entry entry;
static struct bytes records, map;
static struct level *levels;
static size_t depth, room;
static struct name *linkable[BUCKETS];

static _Noreturn void refuse(const char *why)
{
    fail("the archive is damaged or not one of this program's: %s (at the entry after %s)", why,
         depth && levels[depth - 1].last.size ? shown((char *)levels[depth - 1].last.data) : "its beginning");
}

static bool is_more(void)
{
    if (used == filled) {
        ssize_t size = read(archive, in, sizeof in);
        if (size < 0)
            fail("cannot read the archive: %m");
        filled = size;
        manifest->stored += size;
        used = 0;
    }
    return used < filled;
}

/* Return the next bytes, at most so many; their number is put into size. */
static const unsigned char *take(size_t *size)
{
    if (!is_more())
        refuse("it is cut off");
    const unsigned char *data = in + used;
    if (*size > filled - used)
        *size = filled - used;
    used += *size;
    return data;
}

static void get(void *to, size_t size)
{
    for (size_t part; size; size -= part, to = (char *)to + part) {
        part = size;
        const unsigned char *data = take(&part);
        memcpy(to, data, part);
    }
}

static void skip_padding(uint64_t size)
{
    unsigned char rest[TAR_BLOCK];
    if (size % TAR_BLOCK)
        get(rest, TAR_BLOCK - size % TAR_BLOCK);
}

/* Numbers and records. */

static uint64_t octal(const char *field, int digits)
{
    uint64_t value = 0;
    for (int i = 0; i < digits - 1; i++) {
        if (field[i] < '0' || field[i] > '7')
            refuse("a number is not octal");
        value = value * 8 + (field[i] - '0');
    }
    return value;
}

static uint64_t decimal(const char **text, uint64_t most)
{
    uint64_t value = 0;
    const char *at = *text;
    if (*at < '0' || *at > '9')
        refuse("a number is not decimal");
    for (; *at >= '0' && *at <= '9'; at++) {
        if (value > (most - (*at - '0')) / 10)
            refuse("a number is too large");
        value = value * 10 + (*at - '0');
    }
    *text = at;
    return value;
}

static uint64_t whole_number(const char *text, uint64_t most)
{
    uint64_t value = decimal(&text, most);
    if (*text)
        refuse("a number is followed by something");
    return value;
}

static void read_mtime(const char *text)
{
    bool is_negative = *text == '-';
    text += is_negative;
    int64_t seconds = decimal(&text, INT64_MAX / 2);
    uint32_t nanoseconds = 0;
    if (*text++ != '.' || strlen(text) != 9)
        refuse("a time is not in nanoseconds");
    nanoseconds = whole_number(text, 999999999);
    if (is_negative) {
        seconds = -seconds - (nanoseconds ? 1 : 0);
        nanoseconds = nanoseconds ? 1000000000 - nanoseconds : 0;
    }
    entry.seconds = seconds;
    entry.nanoseconds = nanoseconds;
}

struct record_state {
    bool has_path, has_link, has_mtime, has_uid, has_gid, has_size, has_major, has_minor;
    uint64_t size; /* of the data in the archive */
};

static void read_record(const char *key, const char *value, size_t size, struct record_state *r)
{
    if (!strncmp(key, "SCHILY.xattr.", 13)) {
        if (!key[13] || strlen(key + 13) > XATTR_NAME_MAX || size > XATTR_SIZE_MAX)
            refuse("an extended attribute is too large");
        if (entry.xattr_count && strcmp(entry.xattrs[entry.xattr_count - 1].name, key + 13) >= 0)
            refuse("extended attributes are not in order");
        add_xattr(&entry, key + 13, value, size);
        return;
    }
    if (strlen(value) != size)
        refuse("a record has a NUL in it");
    if (!strcmp(key, "path") || !strcmp(key, "GNU.sparse.name")) {
        set_text(&entry.path, value, size);
        r->has_path = true;
    } else if (!strcmp(key, "linkpath")) {
        set_text(&entry.link, value, size);
        r->has_link = true;
    } else if (!strcmp(key, "mtime")) {
        read_mtime(value);
        r->has_mtime = true;
    } else if (!strcmp(key, "uid")) {
        entry.uid = whole_number(value, UINT32_MAX);
        r->has_uid = true;
    } else if (!strcmp(key, "gid")) {
        entry.gid = whole_number(value, UINT32_MAX);
        r->has_gid = true;
    } else if (!strcmp(key, "size")) {
        r->size = whole_number(value, INT64_MAX);
        r->has_size = true;
    } else if (!strcmp(key, "GNU.sparse.major")) {
        r->has_major = !strcmp(value, "1");
    } else if (!strcmp(key, "GNU.sparse.minor")) {
        r->has_minor = !strcmp(value, "0");
    } else if (!strcmp(key, "GNU.sparse.realsize")) {
        entry.size = whole_number(value, INT64_MAX);
        entry.is_sparse = true;
    } else {
        refuse("it has a record of another kind");
    }
}

static void read_records(uint64_t size, struct record_state *r)
{
    if (!size || size > MAX_PAX)
        refuse("its records are too large");
    records.size = 0;
    add(&records, "", 0);
    while (records.size < size) {
        size_t part = size - records.size;
        const unsigned char *data = take(&part);
        add(&records, data, part);
    }
    skip_padding(size);
    char *at = (char *)records.data, *end = at + size;
    while (at < end) {
        const char *text = at;
        uint64_t length = decimal(&text, MAX_PAX);
        if (*text != ' ' || length > (uint64_t)(end - at) || at[length - 1] != '\n' || text >= at + length)
            refuse("a record has a wrong length");
        at[length - 1] = 0;
        char *key = (char *)text + 1, *equals = strchr(key, '=');
        if (!equals || equals >= at + length)
            refuse("a record has no value");
        *equals = 0;
        read_record(key, equals + 1, at + length - 1 - (equals + 1), r);
        at += length;
    }
}

/* Entries. */

static void check_sum(const char *header)
{
    uint64_t sum = 0;
    for (int i = 0; i < TAR_BLOCK; i++)
        sum += i >= 148 && i < 156 ? ' ' : (unsigned char)header[i];
    if (octal(header + 148, 7) != sum)
        refuse("a header has a wrong sum");
}

/* Read the next entry's headers; return false at the end of the archive. */
static bool read_headers(struct record_state *r)
{
    static const char zeros[TAR_BLOCK];
    char header[TAR_BLOCK];
    clear_entry(&entry);
    *r = (struct record_state){0};
    get(header, TAR_BLOCK);
    if (!memcmp(header, zeros, TAR_BLOCK)) {
        get(header, TAR_BLOCK);
        if (memcmp(header, zeros, TAR_BLOCK) || is_more())
            refuse("it goes on after its end");
        return false;
    }
    check_sum(header);
    if (memcmp(header + 257, "ustar\00000", 8))
        refuse("a header is of another format");
    if (header[156] == 'x') {
        read_records(octal(header + 124, 12), r);
        get(header, TAR_BLOCK);
        check_sum(header);
    }
    entry.type = header[156];
    entry.mode = octal(header + 100, 8);
    if (!r->has_uid)
        entry.uid = octal(header + 108, 8);
    if (!r->has_gid)
        entry.gid = octal(header + 116, 8);
    if (!r->has_size)
        r->size = octal(header + 124, 12);
    if (!r->has_mtime)
        entry.seconds = octal(header + 136, 12);
    if (!r->has_path)
        set_text(&entry.path, header, strnlen(header, 100));
    if (!r->has_link)
        set_text(&entry.link, header + 157, strnlen(header + 157, 100));
    if (entry.mode > 07777 || !entry.type || !strchr("01256", entry.type))
        refuse("an entry is of another kind");
    if (entry.is_sparse ? entry.type != '0' || !r->has_major || !r->has_minor : r->has_major || r->has_minor)
        refuse("a file with holes is of another format");
    if (entry.type == '0' ? !!entry.link.size : !!r->size)
        refuse("an entry has what it cannot have");
    if ((entry.type == '1' || entry.type == '2') && !entry.link.size)
        refuse("a link leads nowhere");
    return true;
}

/* Read where a file has data, and how much of the archive that took. */
static uint64_t read_map(uint64_t size)
{
    uint64_t numbers = 1, seen = 0, value = 0, offset = 0;
    bool has_digit = false;
    map.size = 0;
    for (uint64_t at = 0; seen < numbers; at++) {
        if (at == map.size) {
            char block[TAR_BLOCK];
            if (map.size + TAR_BLOCK > size)
                refuse("a map is cut off");
            get(block, TAR_BLOCK);
            add(&map, block, TAR_BLOCK);
        }
        char c = map.data[at];
        if (c >= '0' && c <= '9' && value <= (uint64_t)INT64_MAX / 10 - 1) {
            value = value * 10 + (c - '0');
            has_digit = true;
            continue;
        }
        if (c != '\n' || !has_digit)
            refuse("a map is not decimal");
        if (seen == 0) {
            if (value > size)
                refuse("a map is too long");
            numbers = 1 + 2 * value;
        } else if (seen % 2) {
            offset = value;
        } else {
            add_extent(&entry, offset, value);
        }
        seen++;
        value = 0;
        has_digit = false;
    }
    return map.size;
}

/* A file's data must be in whole pages, in order, and just as much as the archive says. */
static void check_extents(uint64_t size)
{
    uint64_t end = 0, sum = 0;
    for (size_t i = 0; i < entry.extent_count; i++) {
        struct extent x = entry.extents[i];
        if (x.offset % PAGE || x.offset < end || !x.size || x.size > entry.size || x.offset > entry.size - x.size)
            refuse("the data of a file are in disorder");
        end = x.offset + x.size;
        if (end % PAGE && end != entry.size)
            refuse("the data of a file are no whole pages");
        sum += x.size;
    }
    if (sum != size)
        refuse("a file has another size than its map says");
}

static uint64_t hash_of(const char *path)
{
    uint64_t hash = 0xcbf29ce484222325;
    for (; *path; path++)
        hash = (hash ^ (unsigned char)*path) * 0x100000001b3;
    return hash;
}

static bool is_linkable(const char *path)
{
    uint64_t hash = hash_of(path);
    for (struct name *n = linkable[hash % BUCKETS]; n; n = n->next)
        if (n->hash == hash)
            return true;
    return false;
}

static void note_linkable(const char *path)
{
    uint64_t hash = hash_of(path);
    struct name *n = need(malloc(sizeof *n));
    *n = (struct name){linkable[hash % BUCKETS], hash};
    linkable[hash % BUCKETS] = n;
}

static void leave(void)
{
    struct level *l = &levels[--depth];
    if (is_unpacking)
        unpack_leave(&l->entry);
    free_entry(&l->entry);
}

static void enter(const char *name)
{
    if (depth == room) {
        room = room * 2 + 16;
        levels = need(realloc(levels, room * sizeof *levels));
        memset(levels + depth, 0, (room - depth) * sizeof *levels);
    }
    struct level *l = &levels[depth++];
    if (depth > MAX_DEPTH + 1)
        refuse("it has too many directories inside each other");
    copy_entry(&l->entry, &entry);
    set_text(&l->last, "", 0);
    if (is_unpacking && depth > 1)
        unpack_directory(name, &entry);
}

/* Leave what the entry is not in, and return its name in the directory that it is in. */
static const char *place(void)
{
    char *path = (char *)entry.path.data, *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    size_t length = slash ? (size_t)(slash - path) : 0;
    if (!*name || !strcmp(name, ".") || !strcmp(name, "..") || strlen(name) > NAME_MAX)
        refuse("a path leads elsewhere");
    for (; depth; leave()) {
        struct bytes *directory = &levels[depth - 1].entry.path;
        if (depth == 1 ? !slash : directory->size == length && !memcmp(directory->data, path, length))
            break;
    }
    if (!depth || strcmp(name, (char *)levels[depth - 1].last.data) <= 0)
        refuse("a path is out of order");
    set_text(&levels[depth - 1].last, name, strlen(name));
    return name;
}

static void read_data(int fd)
{
    for (size_t i = 0; i < entry.extent_count; i++) {
        static unsigned char part[CHUNK];
        uint64_t offset = entry.extents[i].offset, size = entry.extents[i].size;
        while (size) {
            size_t want = size < CHUNK ? size : CHUNK;
            get(part, want);
            manifest_data(manifest, offset, part, want);
            if (fd >= 0)
                unpack_data(fd, offset, part, want, &entry);
            offset += want;
            size -= want;
        }
    }
}

static void read_file(const char *name, uint64_t size)
{
    uint64_t data = size;
    if (entry.is_sparse) {
        data -= read_map(size);
    } else {
        entry.size = size;
        if (size)
            add_extent(&entry, 0, size);
    }
    check_extents(data);
    manifest_entry(manifest, &entry);
    int fd = is_unpacking ? unpack_file(name, &entry) : -1;
    read_data(fd);
    if (fd >= 0)
        unpack_file_end(fd, &entry);
    skip_padding(data);
}

static void read_entry(uint64_t size)
{
    if (!strcmp((char *)entry.path.data, ".")) {
        if (depth || manifest->entries || entry.type != '5')
            refuse("its first directory comes again");
        manifest_entry(manifest, &entry);
        enter("");
        return;
    }
    const char *name = place();
    if (entry.type == '0') {
        read_file(name, size);
    } else {
        if (entry.type == '1' && !is_linkable((char *)entry.link.data))
            refuse("a hard link leads to no file");
        manifest_entry(manifest, &entry);
        if (entry.type == '5')
            enter(name);
        else if (is_unpacking)
            unpack_other(name, &entry);
    }
    if (entry.type != '5' && entry.type != '1')
        note_linkable((char *)entry.path.data);
}

void read_archive(const char *path, struct manifest *m, bool is_unpacked)
{
    struct record_state r;
    manifest = m;
    is_unpacking = is_unpacked;
    archive = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (archive < 0)
        fail("cannot open the archive: %m");
    while (read_headers(&r))
        read_entry(r.size);
    if (!depth)
        refuse("it is empty");
    while (depth)
        leave();
    close(archive);
}
