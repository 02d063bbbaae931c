/* calls.c: the system calls under their names in libc. On LP64 the plain and the
 * 64 names are one function. None calls another interposed name: with a
 * sanitizer in front that would come back here. */

#define _GNU_SOURCE
#include "verdict.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_IOV 1024

/* What builds against a glibc before 2.33 call, manylinux_2_28 among them, and
 * ThreadSanitizer's own fstat. */
int __fxstat(int version, int fd, struct stat *out);
int __fxstat64(int version, int fd, struct stat64 *out);

/* -------------------------------------------------------- the real functions -- */

#define REALS(X)                                                                                   \
    X(openat)                                                                                      \
    X(dup)                                                                                         \
    X(dup2)                                                                                        \
    X(dup3)                                                                                        \
    X(fcntl)                                                                                       \
    X(fstat)                                                                                       \
    X(__fxstat)                                                                                    \
    X(statx)                                                                                       \
    X(fstatfs)                                                                                     \
    X(lseek)                                                                                       \
    X(pread)                                                                                       \
    X(pwrite)                                                                                      \
    X(preadv)                                                                                      \
    X(pwritev)                                                                                     \
    X(preadv2)                                                                                     \
    X(pwritev2)                                                                                    \
    X(fsync)                                                                                       \
    X(fdatasync)                                                                                   \
    X(sync_file_range)                                                                             \
    X(close)                                                                                       \
    X(ftruncate)                                                                                   \
    X(fallocate)                                                                                   \
    X(ioctl)                                                                                       \
    X(getrlimit)                                                                                   \
    X(prlimit)                                                                                     \
    X(syscall)

#define X(name) static __typeof__(name) *real_##name;
REALS(X)
#undef X

/* As a constructor, and on demand for those that call before it ran, such as
 * the start of a sanitizer's runtime. */
__attribute__((constructor)) static void resolve(void)
{
#define X(name) real_##name = (__typeof__(name) *)dlsym(RTLD_NEXT, #name);
    REALS(X)
#undef X
}

#define REAL(name) (real_##name ? real_##name : (resolve(), real_##name))

/* ---------------------------------------------------------------- the calls -- */

static int fail(int error)
{
    errno = error;
    return -1;
}

static mode_t mode_of(int flags, va_list *arguments)
{
    const int has_mode = (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE;
    return has_mode ? (mode_t)va_arg(*arguments, int) : 0;
}

static int do_open(int dirfd, const char *path, int flags, mode_t mode)
{
    const int error = open_verdict(path);
    return error ? fail(error) : REAL(openat)(dirfd, path, flags, mode);
}

#define DEFINE_OPEN(name)                                                                          \
    EXPORT int name(const char *path, int flags, ...)                                              \
    {                                                                                              \
        va_list arguments;                                                                         \
        va_start(arguments, flags);                                                                \
        const mode_t mode = mode_of(flags, &arguments);                                            \
        va_end(arguments);                                                                         \
        return do_open(AT_FDCWD, path, flags, mode);                                               \
    }
#define DEFINE_OPENAT(name)                                                                        \
    EXPORT int name(int dirfd, const char *path, int flags, ...)                                   \
    {                                                                                              \
        va_list arguments;                                                                         \
        va_start(arguments, flags);                                                                \
        const mode_t mode = mode_of(flags, &arguments);                                            \
        va_end(arguments);                                                                         \
        return do_open(dirfd, path, flags, mode);                                                  \
    }
DEFINE_OPEN(open)
DEFINE_OPEN(open64)
DEFINE_OPENAT(openat)
DEFINE_OPENAT(openat64)

/* What _FORTIFY_SOURCE makes of calls whose flags it cannot see. */
#define DEFINE_OPEN_2(name)                                                                        \
    int name(const char *path, int flags);                                                         \
    EXPORT int name(const char *path, int flags)                                                   \
    {                                                                                              \
        return do_open(AT_FDCWD, path, flags, 0);                                                  \
    }
#define DEFINE_OPENAT_2(name)                                                                      \
    int name(int dirfd, const char *path, int flags);                                              \
    EXPORT int name(int dirfd, const char *path, int flags)                                        \
    {                                                                                              \
        return do_open(dirfd, path, flags, 0);                                                     \
    }
DEFINE_OPEN_2(__open_2)
DEFINE_OPEN_2(__open64_2)
DEFINE_OPENAT_2(__openat_2)
DEFINE_OPENAT_2(__openat64_2)

/* A call that is simply not made when it is to fail. */
#define DEFINE(kind, name, real, parameters, arguments)                                            \
    EXPORT int name parameters                                                                     \
    {                                                                                              \
        const int error = verdict(kind);                                                           \
        return error ? fail(error) : (int)REAL(real) arguments;                                    \
    }
DEFINE(KIND_DUP, dup, dup, (int fd), (fd))
DEFINE(KIND_DUP3, dup2, dup2, (int fd, int target), (fd, target))
DEFINE(KIND_DUP3, dup3, dup3, (int fd, int target, int flags), (fd, target, flags))
DEFINE(KIND_FSTAT, fstat, fstat, (int fd, struct stat *out), (fd, out))
DEFINE(KIND_FSTAT, fstat64, fstat, (int fd, struct stat64 *out), (fd, (struct stat *)out))
DEFINE(KIND_STATX, statx, statx,
       (int dirfd, const char *restrict path, int flags, unsigned mask, struct statx *restrict out),
       (dirfd, path, flags, mask, out))
DEFINE(KIND_FSTATFS, fstatfs, fstatfs, (int fd, struct statfs *out), (fd, out))
DEFINE(KIND_FSTATFS, fstatfs64, fstatfs, (int fd, struct statfs64 *out), (fd, (struct statfs *)out))
DEFINE(KIND_FSYNC, fsync, fsync, (int fd), (fd))
DEFINE(KIND_FDATASYNC, fdatasync, fdatasync, (int fd), (fd))
DEFINE(KIND_SYNC_RANGE, sync_file_range, sync_file_range,
       (int fd, off64_t offset, off64_t length, unsigned flags), (fd, offset, length, flags))
DEFINE(KIND_FTRUNCATE, ftruncate, ftruncate, (int fd, off_t size), (fd, size))
DEFINE(KIND_FTRUNCATE, ftruncate64, ftruncate, (int fd, off64_t size), (fd, size))
DEFINE(KIND_FALLOCATE, fallocate, fallocate, (int fd, int mode, off_t offset, off_t length),
       (fd, mode, offset, length))
DEFINE(KIND_FALLOCATE, fallocate64, fallocate, (int fd, int mode, off64_t offset, off64_t length),
       (fd, mode, offset, length))
DEFINE(KIND_GETRLIMIT, getrlimit, getrlimit, (__rlimit_resource_t resource, struct rlimit *out),
       (resource, out))
DEFINE(KIND_GETRLIMIT, getrlimit64, getrlimit, (__rlimit_resource_t resource, struct rlimit64 *out),
       (resource, (struct rlimit *)out))
DEFINE(KIND_GETRLIMIT, prlimit, prlimit,
       (pid_t pid, enum __rlimit_resource resource, const struct rlimit *new, struct rlimit *old),
       (pid, resource, new, old))
DEFINE(KIND_GETRLIMIT, prlimit64, prlimit,
       (pid_t pid, enum __rlimit_resource resource, const struct rlimit64 *new,
        struct rlimit64 *old),
       (pid, resource, (const struct rlimit *)new, (struct rlimit *)old))

DEFINE(KIND_FSTAT, __fxstat, __fxstat, (int version, int fd, struct stat *out), (version, fd, out))
DEFINE(KIND_FSTAT, __fxstat64, __fxstat, (int version, int fd, struct stat64 *out),
       (version, fd, (struct stat *)out))

#define DEFINE_LSEEK(name)                                                                         \
    EXPORT off_t name(int fd, off_t offset, int whence)                                            \
    {                                                                                              \
        const int error = verdict(KIND_LSEEK);                                                     \
        return error ? fail(error) : REAL(lseek)(fd, offset, whence);                              \
    }
DEFINE_LSEEK(lseek)
DEFINE_LSEEK(lseek64)

static enum kind kind_of_fcntl(int command)
{
    switch (command) {
    case F_DUPFD:
    case F_DUPFD_CLOEXEC:
        return KIND_DUPFD;
    case F_GETFL:
        return KIND_GETFL;
    case F_SETFL:
        return KIND_SETFL;
    case F_GETLK:
    case F_OFD_GETLK:
        return KIND_GETLK;
    case F_SETLK:
    case F_SETLKW:
    case F_OFD_SETLK:
    case F_OFD_SETLKW:
        return KIND_SETLK;
    default:
        return KIND_FCNTL;
    }
}

#define DEFINE_FCNTL(name)                                                                         \
    EXPORT int name(int fd, int command, ...)                                                      \
    {                                                                                              \
        va_list arguments;                                                                         \
        va_start(arguments, command);                                                              \
        void *argument = va_arg(arguments, void *);                                                \
        va_end(arguments);                                                                         \
        const int error = verdict(kind_of_fcntl(command));                                         \
        return error ? fail(error) : REAL(fcntl)(fd, command, argument);                           \
    }
DEFINE_FCNTL(fcntl)
DEFINE_FCNTL(fcntl64)

EXPORT int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    const int error = verdict(KIND_IOCTL);
    return error ? fail(error) : REAL(ioctl)(fd, request, argument);
}

/* As Linux does it: the descriptor is gone whatever close says. Anything else
 * would be a leak made by the shim. */
EXPORT int close(int fd)
{
    const int error = verdict(KIND_CLOSE);
    const int result = REAL(close)(fd);
    return error ? fail(error) : result;
}

/* Half, in whole sectors where there is more than one, so that O_DIRECT takes it. */
static size_t shortened(size_t length)
{
    return length > 512 ? (length / 2 + 511) / 512 * 512 : length / 2;
}

#define DEFINE_TRANSFER(kind, name, real, buffer_type)                                             \
    static ssize_t do_##name(int fd, buffer_type buffer, size_t length, off_t offset)              \
    {                                                                                              \
        const int action = verdict(kind);                                                          \
        if (action > 0)                                                                            \
            return fail(action);                                                                   \
        if (action == FAULTSHIM_EOF)                                                               \
            return 0;                                                                              \
        return REAL(real)(fd, buffer, action ? shortened(length) : length, offset);                \
    }                                                                                              \
    EXPORT ssize_t name(int fd, buffer_type buffer, size_t length, off_t offset)                   \
    {                                                                                              \
        return do_##name(fd, buffer, length, offset);                                              \
    }
DEFINE_TRANSFER(KIND_PREAD, pread, pread, void *)
DEFINE_TRANSFER(KIND_PREAD, pread64, pread, void *)
DEFINE_TRANSFER(KIND_PWRITE, pwrite, pwrite, const void *)
DEFINE_TRANSFER(KIND_PWRITE, pwrite64, pwrite, const void *)

#define DEFINE_PREAD_CHECKED(name)                                                                 \
    ssize_t name(int fd, void *buffer, size_t length, off_t offset, size_t room);                  \
    EXPORT ssize_t name(int fd, void *buffer, size_t length, off_t offset, size_t room)            \
    {                                                                                              \
        if (length > room)                                                                         \
            abort();                                                                               \
        return do_pread(fd, buffer, length, offset);                                               \
    }
DEFINE_PREAD_CHECKED(__pread_chk)
DEFINE_PREAD_CHECKED(__pread64_chk)

/* The first half of a vector; returns how many elements it has. */
static int shorten_vector(const struct iovec *from, int count, struct iovec *to)
{
    size_t left = 0;
    int used = 0;
    for (int i = 0; i < count; i++)
        left += from[i].iov_len;
    left = shortened(left);
    for (; used < count && left > 0; used++) {
        to[used] = from[used];
        if (to[used].iov_len > left)
            to[used].iov_len = left;
        left -= to[used].iov_len;
    }
    return used;
}

#define DEFINE_VECTOR(kind, name, real, parameters, ...)                                           \
    EXPORT ssize_t name parameters                                                                 \
    {                                                                                              \
        const int action = verdict(kind);                                                          \
        if (action > 0)                                                                            \
            return fail(action);                                                                   \
        if (action == FAULTSHIM_EOF)                                                               \
            return 0;                                                                              \
        struct iovec part[MAX_IOV];                                                                \
        if (action == FAULTSHIM_SHORT && count > 0 && count <= MAX_IOV) {                          \
            count = shorten_vector(vector, count, part);                                           \
            vector = part;                                                                         \
        }                                                                                          \
        return REAL(real)(fd, vector, count, __VA_ARGS__);                                         \
    }
#define VECTOR (int fd, const struct iovec *vector, int count, off_t offset)
#define VECTOR2 (int fd, const struct iovec *vector, int count, off_t offset, int flags)
DEFINE_VECTOR(KIND_PREAD, preadv, preadv, VECTOR, offset)
DEFINE_VECTOR(KIND_PREAD, preadv64, preadv, VECTOR, offset)
DEFINE_VECTOR(KIND_PREAD, preadv2, preadv2, VECTOR2, offset, flags)
DEFINE_VECTOR(KIND_PREAD, preadv64v2, preadv2, VECTOR2, offset, flags)
DEFINE_VECTOR(KIND_PWRITE, pwritev, pwritev, VECTOR, offset)
DEFINE_VECTOR(KIND_PWRITE, pwritev64, pwritev, VECTOR, offset)
DEFINE_VECTOR(KIND_PWRITE, pwritev2, pwritev2, VECTOR2, offset, flags)
DEFINE_VECTOR(KIND_PWRITE, pwritev64v2, pwritev2, VECTOR2, offset, flags)

/* Transfers are left alone here: nothing in use makes them by number. */
static int syscall_verdict(long number, const long *argument)
{
    switch (number) {
#ifdef SYS_open
    case SYS_open:
        return open_verdict((const char *)argument[0]);
#endif
    case SYS_openat:
    case SYS_openat2:
        return open_verdict((const char *)argument[1]);
    case SYS_dup:
        return verdict(KIND_DUP);
    case SYS_dup3:
        return verdict(KIND_DUP3);
    case SYS_fcntl:
        return verdict(kind_of_fcntl((int)argument[1]));
    case SYS_statx:
        return verdict(KIND_STATX);
    case SYS_fsync:
        return verdict(KIND_FSYNC);
    case SYS_fdatasync:
        return verdict(KIND_FDATASYNC);
    case SYS_io_uring_setup:
    case SYS_io_uring_enter:
    case SYS_io_uring_register:
        return verdict(KIND_URING);
    default:
        return 0;
    }
}

EXPORT long syscall(long number, ...)
{
    long argument[6];
    va_list arguments;
    va_start(arguments, number);
    for (int i = 0; i < 6; i++)
        argument[i] = va_arg(arguments, long);
    va_end(arguments);
    const int error = syscall_verdict(number, argument);
    return error ? fail(error)
                 : REAL(syscall)(number, argument[0], argument[1], argument[2], argument[3],
                                 argument[4], argument[5]);
}
