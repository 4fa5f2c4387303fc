/* BLAKE2b-256 as in RFC 7693, without a key. */
#include "archiver.h"

static const uint64_t START[8] = {
    0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
    0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179,
};
static const unsigned char ORDER[12][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
    {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
    {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
    {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
    {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
};

static inline uint64_t turn(uint64_t x, int bits) { return x >> bits | x << (64 - bits); }

#define MIX(a, b, c, d, x, y)                                                                                \
    do {                                                                                                     \
        v[a] += v[b] + x;                                                                                    \
        v[d] = turn(v[d] ^ v[a], 32);                                                                        \
        v[c] += v[d];                                                                                        \
        v[b] = turn(v[b] ^ v[c], 24);                                                                        \
        v[a] += v[b] + y;                                                                                    \
        v[d] = turn(v[d] ^ v[a], 16);                                                                        \
        v[c] += v[d];                                                                                        \
        v[b] = turn(v[b] ^ v[c], 63);                                                                        \
    } while (0)

static void compress(struct blake *b, const unsigned char *block, bool is_last)
{
    uint64_t v[16], m[16];
    memcpy(m, block, sizeof m); /* little-endian, as every machine is that this is compiled for */
    memcpy(v, b->state, sizeof b->state);
    memcpy(v + 8, START, sizeof START);
    v[12] ^= b->length;
    if (is_last)
        v[14] = ~v[14];
#pragma clang loop unroll(full)
    for (int round = 0; round < 12; round++) {
        const unsigned char *s = ORDER[round];
        MIX(0, 4, 8, 12, m[s[0]], m[s[1]]);
        MIX(1, 5, 9, 13, m[s[2]], m[s[3]]);
        MIX(2, 6, 10, 14, m[s[4]], m[s[5]]);
        MIX(3, 7, 11, 15, m[s[6]], m[s[7]]);
        MIX(0, 5, 10, 15, m[s[8]], m[s[9]]);
        MIX(1, 6, 11, 12, m[s[10]], m[s[11]]);
        MIX(2, 7, 8, 13, m[s[12]], m[s[13]]);
        MIX(3, 4, 9, 14, m[s[14]], m[s[15]]);
    }
    for (int i = 0; i < 8; i++)
        b->state[i] ^= v[i] ^ v[i + 8];
}

void blake_begin(struct blake *b)
{
    memset(b, 0, sizeof *b);
    memcpy(b->state, START, sizeof START);
    b->state[0] ^= 0x01010000 ^ 32;
}

void blake_add(struct blake *b, const void *data, size_t size)
{
    const unsigned char *from = data;
    while (size) {
        if (b->filled == sizeof b->block) { /* the last block is compressed at the end only */
            b->length += sizeof b->block;
            compress(b, b->block, false);
            b->filled = 0;
        }
        if (!b->filled) {
            for (; size > sizeof b->block; size -= sizeof b->block, from += sizeof b->block) {
                b->length += sizeof b->block;
                compress(b, from, false);
            }
        }
        size_t part = sizeof b->block - b->filled < size ? sizeof b->block - b->filled : size;
        memcpy(b->block + b->filled, from, part);
        b->filled += part;
        from += part;
        size -= part;
    }
}

void blake_end(struct blake *b, unsigned char digest[32])
{
    b->length += b->filled;
    memset(b->block + b->filled, 0, sizeof b->block - b->filled);
    compress(b, b->block, true);
    memcpy(digest, b->state, 32);
}
