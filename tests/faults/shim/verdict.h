/* verdict.h: what becomes of a call. The calls ask, verdict.c decides. */

#ifndef FAULTSHIM_VERDICT_H
#define FAULTSHIM_VERDICT_H

#include "faultshim.h"

#include <stdint.h>

_Static_assert(sizeof(long) == 8 && sizeof(void *) == 8, "LP64 only");

#define EXPORT __attribute__((visibility("default")))

#define KINDS(X)                                                                                   \
    X(OPENAT, "openat")                                                                            \
    X(DUP, "dup")                                                                                  \
    X(DUPFD, "F_DUPFD")                                                                            \
    X(DUP3, "dup3")                                                                                \
    X(GETFL, "F_GETFL")                                                                            \
    X(SETFL, "F_SETFL")                                                                            \
    X(GETLK, "F_GETLK")                                                                            \
    X(SETLK, "F_SETLK")                                                                            \
    X(FCNTL, "F_OTHER")                                                                            \
    X(FSTAT, "fstat")                                                                              \
    X(STATX, "statx")                                                                              \
    X(FSTATFS, "fstatfs")                                                                          \
    X(LSEEK, "lseek")                                                                              \
    X(PREAD, "pread")                                                                              \
    X(PWRITE, "pwrite")                                                                            \
    X(MMAP, "mmap")                                                                                \
    X(MEMALIGN, "posix_memalign")                                                                  \
    X(MALLOC, "malloc")                                                                            \
    X(FSYNC, "fsync")                                                                              \
    X(FDATASYNC, "fdatasync")                                                                      \
    X(SYNC_RANGE, "sync_file_range")                                                               \
    X(CLOSE, "close")                                                                              \
    X(FTRUNCATE, "ftruncate")                                                                      \
    X(FALLOCATE, "fallocate")                                                                      \
    X(IOCTL, "ioctl")                                                                              \
    X(GETRLIMIT, "getrlimit")                                                                      \
    X(THREAD, "pthread_create")                                                                    \
    X(URING, "io_uring")

enum kind {
#define X(id, name) KIND_##id,
    KINDS(X)
#undef X
        KIND_COUNT
};

#define BIT(kind) (UINT64_C(1) << (kind))
#define ALL_KINDS (BIT(KIND_COUNT) - 1)
#define FCNTL_KINDS                                                                                \
    (BIT(KIND_DUPFD) | BIT(KIND_GETFL) | BIT(KIND_SETFL) | BIT(KIND_GETLK) | BIT(KIND_SETLK) |     \
     BIT(KIND_FCNTL))
#define MEMORY_KINDS (BIT(KIND_MMAP) | BIT(KIND_MEMALIGN) | BIT(KIND_MALLOC))
#define TRANSFER_KINDS (BIT(KIND_PREAD) | BIT(KIND_PWRITE))

extern __thread int faultshim_armed;

int faultshim_judge(enum kind kind);
int faultshim_judge_memory(enum kind kind, const void *caller);

/* 0: the call is made; an errno; or FAULTSHIM_SHORT or FAULTSHIM_EOF. */
static inline int verdict(enum kind kind)
{
    return faultshim_armed ? faultshim_judge(kind) : 0;
}

static inline int memory_verdict(enum kind kind, const void *caller)
{
    return faultshim_armed ? faultshim_judge_memory(kind, caller) : 0;
}

/* The same for an open, which also obeys the rules by path. */
int open_verdict(const char *path);

#endif
