/* reopen_loop.c: see reopen_loop.h. The order of the calls is that of a reopen:
 * acquire and check, prove, lock, read the header, exchange, settle, close. */
#include "reopen_loop.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef RESOLVE_CACHED
#define RESOLVE_CACHED 0x20
#endif

#define ALWAYS (O_CLOEXEC | O_NOCTTY)
#define COMPARED (O_ACCMODE | O_DIRECT)
#define HEAD 2048
#define MAX_DESCRIPTOR (1 << 20)

struct file {
    const char *path;
    int slot;
    int lock;
    int fresh;
    int flags_before;
    dev_t device;
    ino_t inode;
    off_t size;
};

struct reopen_loop {
    char *memory; /* for the header */
    uint32_t lock_base;
    int spare;
    uint32_t count;
    struct file files[];
};

static int is_same(const struct file *file, const struct stat *st)
{
    return S_ISREG(st->st_mode) && st->st_dev == file->device && st->st_ino == file->inode;
}

/* ---------------------------------------------------------------- acquire -- */

static int open_again(int fd, int flags)
{
    char path[sizeof("/proc/self/fd/") + 3 * sizeof(int)];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int fresh = open(path, flags | ALWAYS);
    return fresh < 0 ? -errno : fresh;
}

static int open_by_path(const struct file *file, int flags)
{
    struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_CACHED};
    struct statx at;
    int looked = (int)syscall(SYS_openat2, AT_FDCWD, file->path, &how, sizeof(how));
    if (looked < 0)
        return -errno;
    int fresh = -ESTALE;
    if (statx(looked, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS, &at) < 0)
        fresh = -errno;
    else if (S_ISREG(at.stx_mode) && at.stx_ino == file->inode)
        fresh = open_again(looked, flags);
    close(looked);
    return fresh;
}

static int check_fresh(const struct file *file, int flags)
{
    struct stat st;
    if (fstat(file->fresh, &st) < 0)
        return -errno;
    if (!is_same(file, &st))
        return -ESTALE;
    int has = fcntl(file->fresh, F_GETFL);
    if (has < 0)
        return -errno;
    if ((has ^ flags) & COMPARED || has & (O_APPEND | O_PATH))
        return -EINVAL;
    if (st.st_size < file->size)
        return -EFBIG;
    if (fcntl(file->fresh, F_GETFD) < 0)
        return -errno;
    return 0;
}

static int acquire(struct reopen_loop *loop, const struct reopen_loop_plan *plan)
{
    for (uint32_t i = 0; i < loop->count; i++) {
        struct file *file = &loop->files[i];
        file->flags_before = fcntl(file->slot, F_GETFL);
        if (file->flags_before < 0)
            return -errno;
        if (plan->route == REOPEN_LOOP_SETFL) {
            if (((file->flags_before ^ plan->flags) & COMPARED) != O_DIRECT)
                return -EINVAL;
            continue;
        }
        file->fresh = plan->route == REOPEN_LOOP_PROC ? open_again(file->slot, plan->flags)
                                                      : open_by_path(file, plan->flags);
        if (file->fresh < 0)
            return file->fresh;
        int rc = check_fresh(file, plan->flags);
        if (rc < 0)
            return rc;
        if (loop->spare < 0)
            loop->spare = fcntl(file->fresh, F_DUPFD_CLOEXEC, 3);
        if (loop->spare < 0)
            return -errno;
    }
    return 0;
}

/* ------------------------------------------------------------------ prove -- */

static int prove(const struct reopen_loop *loop)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return -errno;
    for (uint32_t i = 0; i < loop->count; i++) {
        const struct file *file = &loop->files[i];
        struct stat st;
        if (fstat(file->slot, &st) < 0)
            return -errno;
        if (!is_same(file, &st))
            return -ESTALE;
        if (st.st_size < file->size)
            return -EFBIG;
        int highest = file->slot > file->fresh ? file->slot : file->fresh;
        if (loop->spare > highest)
            highest = loop->spare;
        if ((rlim_t)highest >= limit.rlim_cur)
            return -EMFILE;
    }
    return 0;
}

static int lock_byte(int fd, int command, short type, uint32_t byte)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    if (fcntl(fd, command, &lock) < 0)
        return -errno;
    return command == F_OFD_GETLK && lock.l_type != F_UNLCK ? -EAGAIN : 0;
}

/* Of a writer: permissions 1 (write) and 3 (resize). */
static int widen(const struct reopen_loop *loop)
{
    for (uint32_t i = 0; i < loop->count; i++) {
        int fd = loop->files[i].lock;
        int rc = lock_byte(fd, F_OFD_SETLK, F_RDLCK, loop->lock_base + 101);
        if (rc == 0)
            rc = lock_byte(fd, F_OFD_SETLK, F_RDLCK, loop->lock_base + 103);
        if (rc == 0)
            rc = lock_byte(fd, F_OFD_GETLK, F_WRLCK, loop->lock_base + 201);
        if (rc == 0)
            rc = lock_byte(fd, F_OFD_GETLK, F_WRLCK, loop->lock_base + 203);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int narrow(const struct reopen_loop *loop)
{
    for (uint32_t i = 0; i < loop->count; i++) {
        int rc = lock_byte(loop->files[i].lock, F_OFD_SETLK, F_UNLCK, loop->lock_base + 101);
        if (rc == 0)
            rc = lock_byte(loop->files[i].lock, F_OFD_SETLK, F_UNLCK, loop->lock_base + 103);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* All of length, or up to the end of the file. */
static int read_whole(const struct reopen_loop *loop, off_t length, off_t offset)
{
    off_t done = 0;
    while (done < length) {
        ssize_t got = pread(loop->files[0].fresh, loop->memory + done, (size_t)(length - done),
                            offset + done);
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        done += got;
    }
    return done > 0 ? 0 : -EINVAL;
}

static int check_size(const struct file *file)
{
    struct stat st;
    if (fstat(file->slot, &st) < 0)
        return -errno;
    return st.st_size < file->size ? -EFBIG : 0;
}

static int read_header(const struct reopen_loop *loop, uint32_t header)
{
    const struct file *first = &loop->files[0];
    if (header == REOPEN_LOOP_LAST_BYTE)
        return read_whole(loop, 1, first->size - 1);
    int rc = read_whole(loop, HEAD, 0);
    if (rc == 0)
        rc = check_size(first);
    if (rc == 0 && first->size > HEAD)
        rc = first->size < MAX_DESCRIPTOR ? read_whole(loop, first->size, 0) : -EFBIG;
    return rc;
}

/* --------------------------------------------------------------- exchange -- */

static int exchange_one(struct reopen_loop *loop, struct file *file)
{
    return dup3(file->slot, loop->spare, O_CLOEXEC) < 0 ||
                   dup3(file->fresh, file->slot, O_CLOEXEC) < 0 ||
                   dup3(loop->spare, file->fresh, O_CLOEXEC) < 0
               ? -errno
               : 0;
}

static int exchange(struct reopen_loop *loop, const struct reopen_loop_plan *plan)
{
    for (uint32_t i = 0; i < loop->count; i++) {
        struct file *file = &loop->files[i];
        int rc;
        if (plan->route == REOPEN_LOOP_SETFL) {
            int flags = (file->flags_before & ~O_DIRECT) | (plan->flags & O_DIRECT);
            rc = fcntl(file->slot, F_SETFL, flags) < 0 ? -errno : 0;
        } else {
            rc = exchange_one(loop, file);
        }
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* Asks the old descriptions what write-back has met. */
static int settle(const struct reopen_loop *loop)
{
    for (uint32_t i = 0; i < loop->count; i++)
        if (sync_file_range(loop->files[i].fresh, INT64_MAX - 4096, 1,
                            SYNC_FILE_RANGE_WAIT_BEFORE) < 0)
            return -errno;
    return 0;
}

static int close_number(int *fd)
{
    int rc = *fd >= 0 && close(*fd) < 0 ? -errno : 0;
    *fd = -1;
    return rc;
}

static int finish(struct reopen_loop *loop)
{
    int rc = 0;
    for (uint32_t i = 0; i < loop->count; i++) {
        int closed = close_number(&loop->files[i].fresh);
        if (rc == 0)
            rc = closed;
    }
    int closed = close_number(&loop->spare);
    return rc < 0 ? rc : closed;
}

static int toggle(struct reopen_loop *loop, const struct reopen_loop_plan *plan)
{
    int rc = acquire(loop, plan);
    if (rc == 0)
        rc = prove(loop);
    if (rc == 0 && plan->widen)
        rc = widen(loop);
    if (rc == 0 && plan->header)
        rc = read_header(loop, plan->header);
    if (rc == 0)
        rc = exchange(loop, plan);
    if (plan->route == REOPEN_LOOP_SETFL)
        return rc;
    if (rc == 0)
        rc = settle(loop);
    if (rc == 0 && plan->narrow)
        rc = narrow(loop);
    int finished = finish(loop);
    return rc < 0 ? rc : finished;
}

int64_t reopen_loop_toggle(struct reopen_loop *loop, const struct reopen_loop_plan *plan)
{
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    int rc = toggle(loop, plan);
    clock_gettime(CLOCK_MONOTONIC, &to);
    return rc < 0 ? rc : (to.tv_sec - from.tv_sec) * 1000000000LL + to.tv_nsec - from.tv_nsec;
}

/* --------------------------------------------------------- open and close -- */

static int open_file(struct file *file, const char *path, uint32_t lock_base)
{
    struct stat st;
    file->path = path;
    file->lock = open(path, O_RDONLY | ALWAYS);
    file->slot = open(path, O_RDWR | ALWAYS);
    if (file->lock < 0 || file->slot < 0 || fstat(file->slot, &st) < 0)
        return -errno;
    file->device = st.st_dev;
    file->inode = st.st_ino;
    file->size = st.st_size;
    static const uint32_t writer[] = {100, 101, 103, 201, 203};
    for (size_t i = 0; i < sizeof(writer) / sizeof(writer[0]); i++) {
        int rc = lock_byte(file->lock, F_OFD_SETLK, F_RDLCK, lock_base + writer[i]);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int reopen_loop_open(const char *const *paths, uint32_t count, uint32_t lock_base,
                     struct reopen_loop **out)
{
    struct reopen_loop *loop = calloc(1, sizeof(*loop) + count * sizeof(loop->files[0]));
    if (!loop)
        return -ENOMEM;
    loop->lock_base = lock_base;
    loop->spare = -1;
    loop->count = count;
    for (uint32_t i = 0; i < count; i++)
        loop->files[i] = (struct file){.slot = -1, .lock = -1, .fresh = -1};
    loop->memory = malloc(MAX_DESCRIPTOR);
    int rc = loop->memory ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < count && rc == 0; i++)
        rc = open_file(&loop->files[i], paths[i], lock_base);
    if (rc < 0) {
        reopen_loop_close(loop);
        return rc;
    }
    *out = loop;
    return 0;
}

void reopen_loop_close(struct reopen_loop *loop)
{
    finish(loop);
    for (uint32_t i = 0; i < loop->count; i++) {
        close_number(&loop->files[i].slot);
        close_number(&loop->files[i].lock);
    }
    free(loop->memory);
    free(loop);
}
