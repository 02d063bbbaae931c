/* iov.h: a position in a list of buffers. A leaf. */
#ifndef FDSTASH_IOV_H
#define FDSTASH_IOV_H

#include <string.h>
#include <sys/uio.h>

#include "fdstash.h"

_Static_assert(sizeof(fdstash_iovec) == sizeof(struct iovec), "fdstash_iovec is struct iovec");
_Static_assert(offsetof(fdstash_iovec, base) == offsetof(struct iovec, iov_base), "base");
_Static_assert(offsetof(fdstash_iovec, length) == offsetof(struct iovec, iov_len), "length");

/* How many buffers one system call gets; below IOV_MAX, on the stack. */
#define IOV_BATCH 64

struct iov_cursor {
    const fdstash_iovec *iov;
    int count;   /* buffers left, the current one included */
    size_t skip; /* bytes of the current one already used */
};

/* The next at most `length` bytes as at most IOV_BATCH buffers. */
static inline int iov_take(const struct iov_cursor *at, uint64_t length, struct iovec *out,
                           uint64_t *taken)
{
    size_t skip = at->skip;
    int made = 0;
    *taken = 0;
    for (int i = 0; i < at->count && made < IOV_BATCH && *taken < length; i++) {
        size_t part = at->iov[i].length - skip;
        if (part > length - *taken)
            part = (size_t)(length - *taken);
        if (part > 0) {
            out[made].iov_base = (char *)at->iov[i].base + skip;
            out[made].iov_len = part;
            *taken += part;
            made++;
        }
        skip = 0;
    }
    return made;
}

static inline void iov_advance(struct iov_cursor *at, uint64_t bytes)
{
    while (at->count > 0 && bytes >= at->iov->length - at->skip) {
        bytes -= at->iov->length - at->skip;
        at->iov++;
        at->count--;
        at->skip = 0;
    }
    at->skip += (size_t)bytes;
}

enum iov_direction { IOV_FROM_MEMORY, IOV_TO_MEMORY, IOV_ZERO };

/* Copies between flat memory and the buffers, or zeroes them, and advances. */
static inline void iov_copy(struct iov_cursor *at, void *flat, uint64_t length,
                            enum iov_direction direction)
{
    char *memory = flat;
    while (length > 0 && at->count > 0) {
        size_t part = at->iov->length - at->skip;
        char *here = (char *)at->iov->base + at->skip;
        if (part > length)
            part = (size_t)length;
        if (direction == IOV_ZERO)
            memset(here, 0, part);
        else if (direction == IOV_TO_MEMORY)
            memcpy(memory, here, part);
        else
            memcpy(here, memory, part);
        if (direction != IOV_ZERO)
            memory += part;
        length -= part;
        iov_advance(at, part);
    }
}

static inline int iov_is_aligned(const struct iovec *iov, int count, uint32_t memory,
                                 uint32_t length)
{
    for (int i = 0; i < count; i++)
        if (((uintptr_t)iov[i].iov_base & (memory - 1)) || (iov[i].iov_len & (length - 1)))
            return 0;
    return 1;
}

#endif
