/* calls.c: the system calls that change a file, under their names in libc. On
 * LP64 the plain and the 64 names are one function. A change is logged when it
 * is complete and a barrier before it begins, so that what precedes a barrier in
 * the log is covered by it. sync_file_range is left alone: it is no barrier. */

#define _GNU_SOURCE
#include "writelog.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

#define REALS(X)                                                                                   \
    X(write)                                                                                       \
    X(writev)                                                                                      \
    X(pwrite)                                                                                      \
    X(pwritev)                                                                                     \
    X(pwritev2)                                                                                    \
    X(ftruncate)                                                                                   \
    X(fallocate)                                                                                   \
    X(fsync)                                                                                       \
    X(fdatasync)                                                                                   \
    X(mmap)                                                                                        \
    X(copy_file_range)                                                                             \
    X(sendfile)                                                                                    \
    X(splice)

#define X(name) static __typeof__(name) *real_##name;
REALS(X)
#undef X

__attribute__((constructor)) static void resolve(void)
{
#define X(name) real_##name = (__typeof__(name) *)dlsym(RTLD_NEXT, #name);
    REALS(X)
#undef X
}

#define REAL(name) (real_##name ? real_##name : (resolve(), real_##name))

/* ---------------------------------------------------------------- the writes -- */

static uint32_t durability(int fd, int rwf_flags)
{
    const int flags = fcntl(fd, F_GETFL);
    const int durable = (flags & O_DSYNC) != 0 || (rwf_flags & (RWF_DSYNC | RWF_SYNC)) != 0;
    return durable ? RECORD_DURABLE : 0;
}

/* `offset` -1: where the file's position was before, which the call has moved on. */
static ssize_t wrote(int fd, const struct iovec *vector, int count, off_t offset, int rwf_flags,
                     ssize_t done)
{
    char name[NAME_ROOM];
    const uint64_t length = done > 0 ? writelog_name(fd, name) : 0;
    if (length == 0)
        return done;
    const off_t at = offset >= 0 ? offset : lseek(fd, 0, SEEK_CUR) - done;
    writelog_append(RECORD_WRITE, durability(fd, rwf_flags), (uint64_t)at, (uint64_t)done, name,
                    length, vector, count);
    return done;
}

static ssize_t wrote_one(int fd, const void *data, size_t n, off_t offset, ssize_t done)
{
    const struct iovec vector = {.iov_base = (void *)data, .iov_len = n};
    return wrote(fd, &vector, 1, offset, 0, done);
}

EXPORT ssize_t write(int fd, const void *data, size_t n)
{
    return wrote_one(fd, data, n, -1, REAL(write)(fd, data, n));
}

EXPORT ssize_t writev(int fd, const struct iovec *vector, int count)
{
    return wrote(fd, vector, count, -1, 0, REAL(writev)(fd, vector, count));
}

#define DEFINE_PWRITE(name)                                                                        \
    EXPORT ssize_t name(int fd, const void *data, size_t n, off_t offset)                          \
    {                                                                                              \
        return wrote_one(fd, data, n, offset, REAL(pwrite)(fd, data, n, offset));                  \
    }
DEFINE_PWRITE(pwrite)
DEFINE_PWRITE(pwrite64)

#define DEFINE_PWRITEV(name)                                                                       \
    EXPORT ssize_t name(int fd, const struct iovec *vector, int count, off_t offset)               \
    {                                                                                              \
        const ssize_t done = REAL(pwritev)(fd, vector, count, offset);                             \
        return wrote(fd, vector, count, offset, 0, done);                                          \
    }
DEFINE_PWRITEV(pwritev)
DEFINE_PWRITEV(pwritev64)

#define DEFINE_PWRITEV2(name)                                                                      \
    EXPORT ssize_t name(int fd, const struct iovec *vector, int count, off_t offset, int flags)    \
    {                                                                                              \
        const ssize_t done = REAL(pwritev2)(fd, vector, count, offset, flags);                     \
        return wrote(fd, vector, count, offset, flags, done);                                      \
    }
DEFINE_PWRITEV2(pwritev2)
DEFINE_PWRITEV2(pwritev64v2)

/* ----------------------------------------------------------------- the space -- */

static int changed(int fd, enum record_kind kind, off_t offset, off_t n, int result)
{
    char name[NAME_ROOM];
    const uint64_t length = result == 0 ? writelog_name(fd, name) : 0;
    if (length > 0)
        writelog_append(kind, 0, (uint64_t)offset, (uint64_t)n, name, length, NULL, 0);
    return result;
}

#define DEFINE_FTRUNCATE(name)                                                                     \
    EXPORT int name(int fd, off_t size)                                                            \
    {                                                                                              \
        return changed(fd, RECORD_SIZE, 0, size, REAL(ftruncate)(fd, size));                       \
    }
DEFINE_FTRUNCATE(ftruncate)
DEFINE_FTRUNCATE(ftruncate64)

static int do_fallocate(int fd, int mode, off_t offset, off_t n)
{
    const int zeroing = mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE);
    const int result = REAL(fallocate)(fd, mode, offset, n);
    char name[NAME_ROOM];
    if ((mode & ~(FALLOC_FL_KEEP_SIZE | zeroing)) != 0 && result == 0 && writelog_name(fd, name))
        writelog_refuse("fallocate with a mode that is not known");
    if (!(mode & FALLOC_FL_KEEP_SIZE))
        changed(fd, RECORD_GROW, 0, offset + n, result);
    return zeroing ? changed(fd, RECORD_ZERO, offset, n, result) : result;
}

#define DEFINE_FALLOCATE(name)                                                                     \
    EXPORT int name(int fd, int mode, off_t offset, off_t n)                                       \
    {                                                                                              \
        return do_fallocate(fd, mode, offset, n);                                                  \
    }
DEFINE_FALLOCATE(fallocate)
DEFINE_FALLOCATE(fallocate64)

/* -------------------------------------------------------------- the barriers -- */

static atomic_ulong barriers;

#define DEFINE_BARRIER(call)                                                                       \
    EXPORT int call(int fd)                                                                        \
    {                                                                                              \
        char name[NAME_ROOM];                                                                      \
        const uint64_t length = writelog_name(fd, name);                                           \
        if (length == 0)                                                                           \
            return REAL(call)(fd);                                                                 \
        const uint64_t number = atomic_fetch_add(&barriers, 1);                                    \
        writelog_append(RECORD_SYNC_BEGIN, 0, number, 0, name, length, NULL, 0);                   \
        const int result = REAL(call)(fd);                                                         \
        if (result == 0)                                                                           \
            writelog_append(RECORD_SYNC_END, 0, number, 0, name, length, NULL, 0);                 \
        return result;                                                                             \
    }
DEFINE_BARRIER(fsync)
DEFINE_BARRIER(fdatasync)

/* ------------------------------------------ changes that could not be logged -- */

static void must_not_change(int fd, const char *what)
{
    char name[NAME_ROOM];
    if (writelog_name(fd, name) > 0)
        writelog_refuse(what);
}

#define DEFINE_MMAP(name)                                                                          \
    EXPORT void *name(void *at, size_t n, int protection, int flags, int fd, off_t offset)         \
    {                                                                                              \
        if (fd >= 0 && (protection & PROT_WRITE) != 0 && (flags & MAP_SHARED) != 0)                \
            must_not_change(fd, "mmap");                                                           \
        return REAL(mmap)(at, n, protection, flags, fd, offset);                                   \
    }
DEFINE_MMAP(mmap)
DEFINE_MMAP(mmap64)

EXPORT ssize_t copy_file_range(int from, off64_t *from_offset, int to, off64_t *to_offset, size_t n,
                               unsigned flags)
{
    must_not_change(to, "copy_file_range");
    return REAL(copy_file_range)(from, from_offset, to, to_offset, n, flags);
}

EXPORT ssize_t sendfile(int to, int from, off_t *offset, size_t n)
{
    must_not_change(to, "sendfile");
    return REAL(sendfile)(to, from, offset, n);
}

EXPORT ssize_t splice(int from, off64_t *from_offset, int to, off64_t *to_offset, size_t n,
                      unsigned flags)
{
    must_not_change(to, "splice");
    return REAL(splice)(from, from_offset, to, to_offset, n, flags);
}
