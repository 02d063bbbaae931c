/* opening.c: new descriptors for images: the look before the open, the open
 * beneath a folder, and the second description of a file already open. */
#include "owned.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "filesystem.h"

/* Not in the headers of every system that builds this. */
#ifndef RESOLVE_CACHED
#define RESOLVE_CACHED 0x20
#endif

#define ALWAYS (O_CLOEXEC | O_NOCTTY)

int owned_open_again(int fd, int flags, int hold_fork)
{
    char path[sizeof("/proc/self/fd/") + 3 * sizeof(int)];
    int fresh;
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (hold_fork)
        owned_hold_fork();
    do
        fresh = open(path, flags | ALWAYS);
    while (fresh < 0 && errno == EINTR);
    fresh = fresh < 0 ? -errno : owned_register(fresh);
    if (hold_fork)
        owned_allow_fork();
    return fresh;
}

int fdstash_open_again(int fd, int flags)
{
    struct statfs fs;
    int local = fstatfs(fd, &fs) == 0 && !filesystem_is_remote((uint64_t)fs.f_type);
    return owned_open_again(fd, flags, local);
}

/* An O_PATH descriptor of the path: touches neither a device nor a FIFO. */
static int look(int dirfd, const char *path, int beneath, uint64_t resolve)
{
    int fd;
    if (beneath)
        resolve |= RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
    do {
        if (resolve) {
            struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = resolve};
            fd = (int)syscall(SYS_openat2, dirfd, path, &how, sizeof(how));
        } else {
            fd = openat(dirfd, path, O_PATH | O_CLOEXEC);
        }
    } while (fd < 0 && errno == EINTR);
    return fd < 0 ? -errno : fd;
}

/* Whether an image can live in a file of this mode. */
static int refuse_kind(uint32_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
    case S_IFBLK:
        return 0;
    case S_IFDIR:
        return -EISDIR;
    case S_IFCHR:
        return -EINVAL;
    default:
        return -ENXIO;
    }
}

/* Where /proc is missing the path is walked again, and must lead to the same
 * file. */
static int open_same(int dirfd, const char *path, int flags, int beneath,
                     const struct statx *looked_at)
{
    struct statx now;
    int fd;
    if (beneath) {
        struct open_how how = {.flags = (uint64_t)(flags | ALWAYS | O_NONBLOCK),
                               .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
        fd = (int)syscall(SYS_openat2, dirfd, path, &how, sizeof(how));
    } else {
        fd = openat(dirfd, path, flags | ALWAYS | O_NONBLOCK);
    }
    if (fd < 0)
        return -errno;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &now) < 0 ||
        now.stx_ino != looked_at->stx_ino || now.stx_dev_major != looked_at->stx_dev_major ||
        now.stx_dev_minor != looked_at->stx_dev_minor) {
        close(fd);
        return -ESTALE;
    }
    return owned_register(fd);
}

static int open_looked_at(int looked, int dirfd, const char *path, int flags, int beneath,
                          const struct statx *at, int hold_fork)
{
    int fd = owned_open_again(looked, flags, hold_fork);
    if (fd == -ENOENT)
        fd = open_same(dirfd, path, flags, beneath, at);
    return fd;
}

/* As look(), and registered: a child that is forked meanwhile must not keep it.
 * fork is kept away while the kernel's cache answers, not while a server does. */
static int look_owned(int dirfd, const char *path, int beneath)
{
    owned_hold_fork();
    int looked = look(dirfd, path, beneath, RESOLVE_CACHED);
    if (looked >= 0)
        looked = owned_register(looked);
    owned_allow_fork();
    if (looked != -EAGAIN && looked != -ENOSYS && looked != -EINVAL)
        return looked;
    looked = look(dirfd, path, beneath, 0);
    return looked < 0 ? looked : owned_register(looked);
}

int fdstash_open_path(int dirfd, const char *path, int flags, int beneath)
{
    struct statx at;
    struct statfs fs;
    int looked = look_owned(dirfd, path, beneath);
    if (looked < 0)
        return looked;
    int fd = statx(looked, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &at) < 0
                 ? -errno
                 : refuse_kind(at.stx_mode);
    if (fd == 0) {
        int local = S_ISREG(at.stx_mode) && fstatfs(looked, &fs) == 0 &&
                    !filesystem_is_remote((uint64_t)fs.f_type);
        fd = open_looked_at(looked, dirfd, path, flags, beneath, &at, local);
    }
    fdstash_close_owned(looked);
    return fd;
}

static int open_if_cached(int dirfd, const char *path, int flags, int beneath, uint64_t device)
{
    struct statx at;
    int looked = look(dirfd, path, beneath, RESOLVE_CACHED);
    if (looked == -ENOSYS || looked == -EINVAL)
        return -EAGAIN; /* a kernel without RESOLVE_CACHED */
    if (looked < 0)
        return looked;
    int fd = statx(looked, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS, &at) < 0
                 ? -errno
                 : refuse_kind(at.stx_mode);
    if (fd == 0 && makedev(at.stx_dev_major, at.stx_dev_minor) != device)
        fd = -EAGAIN;
    if (fd == 0)
        fd = open_looked_at(looked, dirfd, path, flags, beneath, &at, 0);
    close(looked);
    return fd;
}

int fdstash_open_cached(int dirfd, const char *path, int flags, int beneath, uint64_t device)
{
    /* Nothing in it waits for a server, so fork is kept away from all of it. */
    owned_hold_fork();
    int fd = open_if_cached(dirfd, path, flags, beneath, device);
    owned_allow_fork();
    return fd;
}

int fdstash_open_folder(const char *path)
{
    owned_hold_fork();
    int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    fd = fd < 0 ? -errno : owned_register(fd);
    owned_allow_fork();
    return fd;
}
