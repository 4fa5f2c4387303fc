/* What was seen of a tree, as three numbers: entries, bytes, and a digest of everything that must survive.

The digest is of the entries in the order of their names, a directory before what is in it. Of a file's data
only the pages that are not zero count, each after its offset, so that holes and zeros are the same. */
#include "archiver.h"

static void add_number(struct blake *digest, uint64_t value) { blake_add(digest, &value, sizeof value); }

static void add_sized(struct blake *digest, const void *data, size_t size)
{
    add_number(digest, size);
    blake_add(digest, data, size);
}

void manifest_begin(struct manifest *m)
{
    memset(m, 0, sizeof *m);
    blake_begin(&m->digest);
}

void manifest_entry(struct manifest *m, const struct entry *e)
{
    struct blake *digest = &m->digest;
    m->entries++;
    m->bytes += e->type == '0' ? e->size : 0;
    add_number(digest, UINT64_MAX); /* no offset of a page, so it ends the data of the file before */
    add_number(digest, e->type);
    add_sized(digest, e->path.data, e->path.size);
    add_sized(digest, e->link.data, e->link.size);
    if (e->type == '1')
        return; /* everything else is its first name's */
    add_number(digest, e->mode);
    add_number(digest, (uint64_t)e->uid << 32 | e->gid);
    add_number(digest, e->seconds);
    add_number(digest, e->nanoseconds);
    add_number(digest, e->size);
    add_number(digest, e->xattr_count);
    for (size_t i = 0; i < e->xattr_count; i++) {
        add_sized(digest, e->xattrs[i].name, strlen(e->xattrs[i].name));
        add_sized(digest, e->xattrs[i].value.data, e->xattrs[i].value.size);
    }
}

static bool is_zero(const unsigned char *data, size_t size)
{
    return !size || (data[0] == 0 && !memcmp(data, data + 1, size - 1));
}

/* Add a part of a file that begins at a page and ends at one, or at the end of the file. */
void manifest_data(struct manifest *m, uint64_t offset, const unsigned char *data, size_t size)
{
    for (size_t at = 0; at < size; at += PAGE) {
        size_t part = size - at < PAGE ? size - at : PAGE;
        if (!is_zero(data + at, part)) {
            add_number(&m->digest, offset + at);
            blake_add(&m->digest, data + at, part);
        }
    }
}

void manifest_print(const char *title, struct manifest *m)
{
    unsigned char digest[32];
    blake_end(&m->digest, digest);
    printf("%s {\"entries\":%llu,\"bytes\":%llu,\"skipped\":%llu,\"stored\":%llu,\"digest\":\"", title,
           (unsigned long long)m->entries, (unsigned long long)m->bytes, (unsigned long long)m->skipped,
           (unsigned long long)m->stored);
    for (int i = 0; i < 32; i++)
        printf("%02x", digest[i]);
    printf("\"}\n");
    fflush(stdout);
}
