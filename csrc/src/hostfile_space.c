/* hostfile_space.c: zeroing, trimming, and where a file has data. */
#include "hostfile.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <unistd.h>

#define ZEROS_SIZE ((size_t)65536)

static const char zeros[ZEROS_SIZE] __attribute__((aligned(4096)));

static int allocate(int fd, int mode, uint64_t length, uint64_t offset)
{
    int rc;
    do
        rc = fallocate(fd, mode, (off_t)offset, (off_t)length);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

static int write_zeros(struct fdstash_file *file, uint64_t length, uint64_t offset, int durable)
{
    fdstash_iovec iov[16];
    for (int i = 0; i < 16; i++)
        iov[i] = (fdstash_iovec){(void *)(uintptr_t)zeros, ZEROS_SIZE};
    while (length > 0) {
        struct iov_cursor at = {iov, 16, 0};
        uint64_t part = length < 16 * ZEROS_SIZE ? length : 16 * ZEROS_SIZE;
        int64_t rc = hostfile_writev(file, &at, part, offset, durable ? RWF_DSYNC : 0);
        if (rc < 0)
            return (int)rc;
        offset += part;
        length -= part;
    }
    return 0;
}

/* Whether the file system or device cannot do it, rather than failed to. */
static int cannot(int rc)
{
    return rc == -EOPNOTSUPP || rc == -ENODEV || rc == -ENOSYS || rc == -EINVAL || rc == -ENOTTY ||
           rc == -EPERM;
}

/* The whole grains inside [offset, offset + length). */
static int inner_part(uint64_t length, uint64_t offset, uint64_t *start, uint64_t *end)
{
    uint64_t grain = hostfile_write_grain();
    *start = (offset + grain - 1) & ~(grain - 1);
    *end = (offset + length) & ~(grain - 1);
    return *start < *end;
}

/* The file system zeroes whole pages; parts of pages are written, so that the
 * same rules hold for them as for any unaligned write. */
int hostfile_zero(struct fdstash_file *file, uint64_t length, uint64_t offset, uint32_t flags,
                  int durable)
{
    uint64_t start, end;
    int rc = -EOPNOTSUPP;
    if (!inner_part(length, offset, &start, &end))
        return write_zeros(file, length, offset, durable);
    struct range range;
    range_acquire(&file->ranges, &range, start, end);
    if (flags & FDSTASH_UNMAP)
        rc = allocate(file->slot, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, end - start, start);
    if (cannot(rc))
        rc = allocate(file->slot, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, end - start, start);
    atomic_store(&file->dirty, 1);
    if (rc == 0 && durable)
        rc = hostfile_flush_dirty(file);
    range_release(&file->ranges, &range);
    if (cannot(rc) && (flags & FDSTASH_FAST))
        return -EOPNOTSUPP;
    if (cannot(rc))
        rc = write_zeros(file, end - start, start, durable);
    if (rc == 0 && start > offset)
        rc = write_zeros(file, start - offset, offset, durable);
    if (rc == 0 && offset + length > end)
        rc = write_zeros(file, offset + length - end, end, durable);
    return rc;
}

/* A block device drops the cached pages of a range before it finds that it cannot
 * free it: what was written there must be on the device by then, or what it held
 * before is read again. */
static void write_back(struct fdstash_file *file, uint64_t length, uint64_t offset)
{
    unsigned how = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    if (sync_file_range(file->slot, (off_t)offset, (off_t)length, how) < 0 && errno != ESPIPE)
        hostfile_latch(file, errno);
}

int hostfile_trim(struct fdstash_file *file, uint64_t length, uint64_t offset)
{
    uint64_t start, end;
    if (!inner_part(length, offset, &start, &end))
        return 0;
    struct range range;
    range_acquire(&file->ranges, &range, start, end);
    if (file->identity.is_block)
        write_back(file, end - start, start);
    int rc = allocate(file->slot, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, end - start, start);
    atomic_store(&file->dirty, 1);
    range_release(&file->ranges, &range);
    return cannot(rc) ? 0 : rc;
}

int fdstash_file_run(fdstash_file *file, uint64_t offset, uint64_t limit, uint64_t *length,
                     int *data)
{
    off_t at = (off_t)offset;
    *length = limit;
    *data = 1;
    if (file->identity.is_block)
        return 0;
    off_t first = lseek(file->slot, at, SEEK_DATA);
    if (first < 0 && errno == ENXIO) {
        *data = 0; /* nothing but a hole up to the end */
        return 0;
    }
    if (first < 0)
        return errno == EINVAL ? 0 : -errno; /* EINVAL: a file system without holes */
    *data = first == at;
    off_t end = *data ? lseek(file->slot, at, SEEK_HOLE) : first;
    if (end < 0)
        return -errno;
    if ((uint64_t)(end - at) < limit)
        *length = (uint64_t)(end - at);
    return 0;
}
