/* hostfile_io.c: reads and writes at any offset and from any memory, whatever
 * O_DIRECT asks for.
 *
 * A request can reach the kernel after a swap has changed the description under
 * it, and then finds O_DIRECT where it prepared for the page cache: EINVAL, and
 * it goes through a bounce buffer. */
#include "hostfile.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "aligned_buffer.h"

static uint64_t round_down(uint64_t value, uint64_t alignment)
{
    return value & ~(alignment - 1);
}

static uint64_t round_up(uint64_t value, uint64_t alignment)
{
    return round_down(value + alignment - 1, alignment);
}

static uint32_t known_or_largest(const _Atomic uint32_t *alignment)
{
    uint32_t value = atomic_load_explicit(alignment, memory_order_relaxed);
    return value ? value : (uint32_t)FDSTASH_BOUNCE_ALIGNMENT;
}

static int is_direct(const struct fdstash_file *file)
{
    return (int)atomic_load_explicit(&file->direct, memory_order_acquire);
}

/* ------------------------------------------------------------------ reads -- */

/* All of length, or up to the end of the file. In O_DIRECT a short read leaves
 * an unaligned rest, which is asked for again from its block's start. */
static int64_t read_block(int fd, char *memory, uint64_t length, uint64_t offset,
                          uint32_t alignment)
{
    uint64_t done = 0;
    while (done < length) {
        ssize_t got = pread(fd, memory + done, length - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        done += (uint64_t)got;
        if (got == 0 || done % alignment)
            break; /* the end of the file: only there is a direct read short */
    }
    return (int64_t)done;
}

static int64_t read_bounced(struct fdstash_file *file, struct iov_cursor *at, uint64_t length,
                            uint64_t offset)
{
    uint32_t alignment = known_or_largest(&file->offset_alignment);
    uint64_t done = 0;
    char *memory = fdstash_bounce_get();
    if (!memory)
        return -ENOMEM;
    while (done < length) {
        uint64_t start = round_down(offset + done, alignment);
        uint64_t skip = offset + done - start;
        uint64_t part = round_up(skip + length - done, alignment);
        if (part > FDSTASH_BOUNCE_SIZE)
            part = FDSTASH_BOUNCE_SIZE;
        int64_t got = read_block(file->slot, memory, part, start, alignment);
        if (got < 0) {
            fdstash_bounce_put(memory);
            return got;
        }
        uint64_t useful = (uint64_t)got > skip ? (uint64_t)got - skip : 0;
        if (useful > length - done)
            useful = length - done;
        iov_copy(at, memory + skip, useful, IOV_FROM_MEMORY);
        done += useful;
        if ((uint64_t)got < part)
            break;
    }
    fdstash_bounce_put(memory);
    return (int64_t)done;
}

/* How much at the cursor can go to the kernel as it is: 0 when it must bounce.
 * With one buffer whose memory fits, only head and tail need to. */
static uint64_t direct_part(const struct fdstash_file *file, const struct iovec *iov, int count,
                            uint64_t length, uint64_t offset)
{
    uint32_t unit = known_or_largest(&file->offset_alignment);
    uint32_t memory = known_or_largest(&file->memory_alignment);
    if (offset % unit || length < unit)
        return 0;
    if (iov_is_aligned(iov, count, memory, unit))
        return length;
    if (count == 1 && ((uintptr_t)iov->iov_base & (memory - 1)) == 0)
        return round_down(length, unit);
    return 0;
}

int hostfile_fits(const struct fdstash_file *file, const void *memory, uint64_t length,
                  uint64_t offset)
{
    struct iovec iov = {(void *)(uintptr_t)memory, length};
    return !is_direct(file) || direct_part(file, &iov, 1, length, offset) == length;
}

/* The bytes to bounce before the next direct part can begin. */
static uint64_t bounce_part(const struct fdstash_file *file, const struct iovec *iov, int count,
                            uint64_t length, uint64_t offset)
{
    uint32_t unit = known_or_largest(&file->offset_alignment);
    uint64_t head = round_up(offset, unit) - offset;
    uint32_t memory = known_or_largest(&file->memory_alignment);
    if (head > 0 && head < length && count == 1 &&
        (((uintptr_t)iov->iov_base + head) & (memory - 1)) == 0)
        return head;
    return length;
}

int64_t hostfile_readv(struct fdstash_file *file, struct iov_cursor *at, uint64_t length,
                       uint64_t offset)
{
    uint64_t done = 0;
    while (done < length) {
        struct iovec iov[IOV_BATCH];
        uint64_t taken;
        int count = iov_take(at, length - done, iov, &taken);
        uint64_t part = taken;
        if (is_direct(file))
            part = direct_part(file, iov, count, taken, offset + done);
        int64_t got = -EINVAL;
        if (part > 0) {
            if (part < taken)
                iov[0].iov_len = part;
            ssize_t rc = count == 1 ? pread(file->slot, iov[0].iov_base, iov[0].iov_len,
                                            (off_t)(offset + done))
                                    : preadv(file->slot, iov, count, (off_t)(offset + done));
            got = rc < 0 ? -errno : rc;
            if (got == -EINTR)
                continue;
            if (got >= 0)
                iov_advance(at, (uint64_t)got);
        }
        if (got == -EINVAL) {
            part = bounce_part(file, iov, count, taken, offset + done);
            got = read_bounced(file, at, part, offset + done);
            if (got >= 0 && (uint64_t)got < part)
                return (int64_t)(done + (uint64_t)got);
        }
        if (got < 0)
            return got;
        if (got == 0)
            break;
        done += (uint64_t)got;
    }
    return (int64_t)done;
}

/* ----------------------------------------------------------------- writes -- */

static ssize_t write_some(int fd, const struct iovec *iov, int count, off_t offset, int rwf_flags)
{
    ssize_t rc = rwf_flags || count > 1 ? pwritev2(fd, iov, count, offset, rwf_flags)
                                        : pwrite(fd, iov->iov_base, iov->iov_len, offset);
    if (rc >= 0 || errno != EOPNOTSUPP || !rwf_flags)
        return rc;
    /* A file system without RWF_DSYNC. */
    rc = pwritev2(fd, iov, count, offset, 0);
    if (rc >= 0 && hostfile_sync(fd) < 0)
        return -1;
    return rc;
}

/* Whole blocks from bounce memory. */
static int write_block(int fd, char *memory, uint64_t length, uint64_t offset, uint32_t alignment,
                       int rwf_flags)
{
    uint64_t done = 0;
    unsigned stuck = 0;
    while (done < length) {
        struct iovec iov = {memory + done, length - done};
        ssize_t rc = write_some(fd, &iov, 1, (off_t)(offset + done), rwf_flags);
        if (rc < 0 && errno == EINTR)
            continue;
        if (rc < 0)
            return -errno;
        uint64_t whole = round_down((uint64_t)rc, alignment);
        if (whole == 0 && ++stuck > 3)
            return -EIO;
        done += whole;
    }
    return 0;
}

/* Reads the block at offset into memory; beyond the end of the file it is zero. */
static int fill_block(int fd, char *memory, uint64_t offset, uint32_t alignment)
{
    int64_t got = read_block(fd, memory, alignment, offset, alignment);
    if (got < 0)
        return (int)got;
    memset(memory + got, 0, alignment - (uint64_t)got);
    return 0;
}

/* A file that ends inside a block must still end there afterwards. */
static int restore_end(struct fdstash_file *file, uint64_t written_end, uint64_t data_end)
{
    struct stat st;
    if (file->identity.is_block || fstat(file->slot, &st) < 0)
        return 0;
    if ((uint64_t)st.st_size != written_end || data_end >= written_end)
        return 0;
    return fdstash_file_truncate(file, data_end);
}

/* Through bounce memory, with a read-modify-write of what is not a whole block.
 * The caller holds the range. */
static int write_bounced(struct fdstash_file *file, struct iov_cursor *at, uint64_t length,
                         uint64_t offset, int rwf_flags)
{
    uint32_t unit = known_or_largest(&file->offset_alignment);
    uint64_t end = offset + length;
    uint64_t file_size = UINT64_MAX;
    struct stat st;
    char *memory = fdstash_bounce_get();
    int rc = 0;
    if (!memory)
        return -ENOMEM;
    if (end % unit && !file->identity.is_block) {
        if (fstat(file->slot, &st) < 0)
            rc = -errno;
        else
            file_size = (uint64_t)st.st_size;
    }
    while (rc == 0 && length > 0) {
        uint64_t start = round_down(offset, unit);
        uint64_t skip = offset - start;
        uint64_t part = round_up(skip + length, unit);
        if (part > FDSTASH_BOUNCE_SIZE)
            part = FDSTASH_BOUNCE_SIZE;
        uint64_t useful = part - skip < length ? part - skip : length;
        uint64_t tail = round_down(skip + useful, unit);
        if (skip)
            rc = fill_block(file->slot, memory, start, unit);
        if (rc == 0 && tail < part && (tail > 0 || !skip))
            rc = fill_block(file->slot, memory + tail, start + tail, unit);
        if (rc == 0) {
            iov_copy(at, memory + skip, useful, IOV_TO_MEMORY);
            rc = write_block(file->slot, memory, part, start, unit, rwf_flags);
        }
        offset += useful;
        length -= useful;
    }
    if (rc == 0 && round_up(end, unit) > file_size)
        rc = restore_end(file, round_up(end, unit), end > file_size ? end : file_size);
    fdstash_bounce_put(memory);
    return rc;
}

/* The fast path: to the kernel as it is. Returns what was written in full, or
 * -EINVAL where the description asks for more alignment than there is. */
static int64_t write_plain(struct fdstash_file *file, struct iov_cursor *at, uint64_t length,
                           uint64_t offset, int rwf_flags)
{
    uint64_t done = 0;
    while (done < length) {
        struct iovec iov[IOV_BATCH];
        uint64_t taken;
        int count = iov_take(at, length - done, iov, &taken);
        if (is_direct(file) && direct_part(file, iov, count, taken, offset + done) != taken)
            return done ? (int64_t)done : -EINVAL;
        ssize_t rc = write_some(file->slot, iov, count, (off_t)(offset + done), rwf_flags);
        if (rc < 0 && errno == EINTR)
            continue;
        if (rc < 0)
            return errno == EINVAL && done ? (int64_t)done : -errno;
        if (rc == 0)
            return -EIO;
        iov_advance(at, (uint64_t)rc);
        done += (uint64_t)rc;
    }
    return (int64_t)done;
}

int64_t hostfile_writev(struct fdstash_file *file, struct iov_cursor *at, uint64_t length,
                        uint64_t offset, int rwf_flags)
{
    struct range range;
    uint64_t first, end;
    if (length == 0)
        return 0;
    hostfile_write_range(length, offset, &first, &end);
    range_acquire(&file->ranges, &range, first, end);
    struct iov_cursor start = *at;
    int64_t rc = write_plain(file, at, length, offset, rwf_flags);
    if (rc == -EINVAL || (rc >= 0 && (uint64_t)rc < length)) {
        /* Again from the last block boundary: the same bytes, so that whole
         * blocks need no read-modify-write. */
        uint32_t unit = known_or_largest(&file->offset_alignment);
        uint64_t done = rc > 0 ? (uint64_t)rc : 0;
        if (done > 0) {
            uint64_t boundary = round_down(offset + done, unit);
            done = boundary > offset ? boundary - offset : 0;
        }
        *at = start;
        iov_advance(at, done);
        rc = write_bounced(file, at, length - done, offset + done, rwf_flags);
    }
    if (!(rwf_flags & RWF_DSYNC) || rc < 0)
        atomic_store(&file->dirty, 1);
    range_release(&file->ranges, &range);
    return rc < 0 ? rc : (int64_t)length;
}

/* ---------------------------------------------------- one buffer at a time -- */

int64_t fdstash_file_pread(fdstash_file *file, void *buffer, uint64_t length, uint64_t offset)
{
    fdstash_iovec iov = {buffer, length};
    struct iov_cursor at = {&iov, 1, 0};
    if (offset > INT64_MAX || length > INT64_MAX - offset)
        return -EINVAL;
    return hostfile_readv(file, &at, length, offset);
}

int64_t fdstash_file_pwrite(fdstash_file *file, const void *buffer, uint64_t length,
                            uint64_t offset, uint32_t flags)
{
    fdstash_iovec iov = {(void *)(uintptr_t)buffer, length};
    struct iov_cursor at = {&iov, 1, 0};
    if (offset > INT64_MAX || length > INT64_MAX - offset)
        return -EINVAL;
    return hostfile_writev(file, &at, length, offset, flags & FDSTASH_FUA ? RWF_DSYNC : 0);
}
