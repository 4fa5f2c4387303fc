/* Memory, and the one way to give up. */
#include "archiver.h"

void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

void *need(void *memory)
{
    if (!memory)
        fail("out of memory");
    return memory;
}

void add(struct bytes *b, const void *data, size_t size)
{
    if (b->size + size + 1 > b->room) {
        b->room = (b->size + size + 1) * 2;
        b->data = need(realloc(b->data, b->room));
    }
    if (size)
        memcpy(b->data + b->size, data, size);
    b->size += size;
    b->data[b->size] = 0; /* not counted, so that it may be used as a string */
}

void add_text(struct bytes *b, const char *text) { add(b, text, strlen(text)); }

void set_text(struct bytes *b, const char *text, size_t size)
{
    b->size = 0;
    add(b, text, size);
}

/* Return a path fit for a message: one line, not too long. */
const char *shown(const char *path)
{
    static char text[300];
    size_t size = 0;
    for (; *path && size < sizeof text - 4; path++)
        text[size++] = (unsigned char)*path < ' ' || *path == 127 ? '?' : *path;
    strcpy(text + size, *path ? "..." : "");
    return text;
}

void clear_entry(struct entry *e)
{
    for (size_t i = 0; i < e->xattr_count; i++) {
        free(e->xattrs[i].name);
        free(e->xattrs[i].value.data);
    }
    struct entry empty = {.path = e->path, .link = e->link, .xattrs = e->xattrs, .extents = e->extents};
    *e = empty;
    e->path.size = e->link.size = 0;
    add(&e->path, "", 0);
    add(&e->link, "", 0);
}

void add_xattr(struct entry *e, const char *name, const void *value, size_t size)
{
    e->xattrs = need(realloc(e->xattrs, (e->xattr_count + 1) * sizeof *e->xattrs));
    struct xattr *x = &e->xattrs[e->xattr_count++];
    memset(x, 0, sizeof *x);
    x->name = need(strdup(name));
    add(&x->value, value, size);
}

/* Copy what a directory has besides its extents and data. */
void copy_entry(struct entry *to, const struct entry *from)
{
    *to = *from;
    to->path = to->link = (struct bytes){0};
    to->xattrs = 0;
    to->extents = 0;
    to->xattr_count = to->extent_count = 0;
    set_text(&to->path, (char *)from->path.data, from->path.size);
    for (size_t i = 0; i < from->xattr_count; i++)
        add_xattr(to, from->xattrs[i].name, from->xattrs[i].value.data, from->xattrs[i].value.size);
}

void free_entry(struct entry *e)
{
    clear_entry(e);
    free(e->path.data);
    free(e->link.data);
    free(e->xattrs);
    free(e->extents);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct xattr *)a)->name, ((const struct xattr *)b)->name);
}

void sort_xattrs(struct entry *e)
{
    if (e->xattr_count)
        qsort(e->xattrs, e->xattr_count, sizeof *e->xattrs, by_name);
}

void add_extent(struct entry *e, uint64_t offset, uint64_t size)
{
    if (e->extent_count % 64 == 0)
        e->extents = need(realloc(e->extents, (e->extent_count + 64) * sizeof *e->extents));
    e->extents[e->extent_count++] = (struct extent){offset, size};
}
