/* must.h: a program that is measured ends where anything fails. */
#ifndef FDSTASH_BENCH_MUST_H
#define FDSTASH_BENCH_MUST_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static inline void must(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s: %s\n", what, strerror(errno));
        exit(1);
    }
}

/* -errno, as the core has it. */
static inline int64_t check(int64_t rc, const char *what)
{
    if (rc < 0)
        errno = (int)-rc;
    must(rc >= 0, what);
    return rc;
}

#endif
