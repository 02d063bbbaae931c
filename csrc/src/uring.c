/* uring.c: what this build and this kernel give of io_uring, and the version. */
#include "fdstash.h"

#ifdef FDSTASH_HAVE_LIBURING
#include <liburing.h>
#endif

#ifndef FDSTASH_VERSION
#define FDSTASH_VERSION "0"
#endif

int fdstash_uring_probe(int *error)
{
    *error = 0;
#ifdef FDSTASH_HAVE_LIBURING
    struct io_uring ring;
    int rc = io_uring_queue_init(2, &ring, 0);
    if (rc < 0) {
        *error = -rc;
        return FDSTASH_URING_REFUSED;
    }
    io_uring_queue_exit(&ring);
    return FDSTASH_URING_USABLE;
#else
    return FDSTASH_URING_NOT_BUILT;
#endif
}

const char *fdstash_version(void)
{
    return FDSTASH_VERSION;
}
