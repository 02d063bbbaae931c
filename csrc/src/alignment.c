/* alignment.c: what O_DIRECT asks of offsets and of memory. In order: what the
 * kernel says of the file (statx), of the device, and then what reads show. */
#include "hostfile.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "aligned_buffer.h"

#define SMALLEST 512u
#define LARGEST 4096u

static void learned(struct fdstash_file *file, uint32_t memory, uint32_t offset)
{
    atomic_store(&file->memory_alignment, memory);
    atomic_store(&file->offset_alignment, offset);
    atomic_store(&file->direct_proven, 1);
}

static int is_usable(uint32_t alignment)
{
    return alignment > 0 && alignment <= LARGEST && !(alignment & (alignment - 1));
}

/* 1: learned; 0: the kernel does not say; -EINVAL: O_DIRECT is not borne. */
static int ask_statx(struct fdstash_file *file, int fd)
{
#ifdef STATX_DIOALIGN
    struct statx stx;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) < 0 || !(stx.stx_mask & STATX_DIOALIGN))
        return 0;
    if (stx.stx_dio_offset_align == 0)
        return -EINVAL;
    if (!is_usable(stx.stx_dio_offset_align) || !is_usable(stx.stx_dio_mem_align))
        return -EINVAL;
    learned(file, stx.stx_dio_mem_align, stx.stx_dio_offset_align);
    return 1;
#else
    (void)file;
    (void)fd;
    return 0;
#endif
}

static int ask_device(struct fdstash_file *file, int fd)
{
    int sector;
    if (!file->identity.is_block || ioctl(fd, BLKSSZGET, &sector) < 0)
        return 0;
    if (!is_usable((uint32_t)sector))
        return -EINVAL;
    learned(file, (uint32_t)sector, (uint32_t)sector);
    return 1;
}

/* What a read shows; or -errno. One that meets the end of the file may be
 * answered before its alignment is looked at. */
enum shown { REFUSED, ALLOWED, NOTHING };

static int try_read(int fd, char *memory, uint32_t length, off_t offset)
{
    ssize_t got;
    do
        got = pread(fd, memory, length, offset);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return errno == EINVAL ? REFUSED : -errno;
    return got == (ssize_t)length ? ALLOWED : NOTHING;
}

/* Over allocated data: in a hole some file systems look at no alignment. */
static int probe(struct fdstash_file *file, int fd)
{
    char *memory = fdstash_bounce_get();
    if (!memory)
        return -ENOMEM;
    off_t base = lseek(fd, 0, SEEK_DATA);
    uint32_t offset = LARGEST;
    uint32_t memory_alignment = LARGEST;
    int rc = NOTHING;
    if (base >= 0) {
        base = base / LARGEST * LARGEST;
        rc = REFUSED;
        for (uint32_t size = SMALLEST; rc == REFUSED && size < LARGEST; size *= 2) {
            rc = try_read(fd, memory, size, base + size);
            if (rc == ALLOWED)
                offset = size;
        }
        if (rc >= 0)
            rc = REFUSED;
        for (uint32_t size = SMALLEST; rc == REFUSED && size < LARGEST; size *= 2) {
            rc = try_read(fd, memory + size, offset, base);
            if (rc == ALLOWED)
                memory_alignment = size;
        }
        if (rc >= 0 && try_read(fd, memory, LARGEST, base) == REFUSED)
            rc = -EINVAL;
    }
    fdstash_bounce_put(memory);
    if (rc < 0)
        return rc;
    learned(file, memory_alignment, offset);
    return 0;
}

int hostfile_learn_alignment(struct fdstash_file *file, int fd)
{
    if (atomic_load(&file->offset_alignment)) {
        atomic_store(&file->direct_proven, 1);
        return 0;
    }
    int rc = ask_statx(file, fd);
    if (rc == 0)
        rc = ask_device(file, fd);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    return probe(file, fd);
}

uint64_t hostfile_write_grain(void)
{
    static _Atomic uint64_t grain;
    uint64_t known = atomic_load_explicit(&grain, memory_order_relaxed);
    if (!known) {
        known = (uint64_t)sysconf(_SC_PAGESIZE);
        known = known > LARGEST ? known : LARGEST;
        atomic_store_explicit(&grain, known, memory_order_relaxed);
    }
    return known;
}

void hostfile_write_range(uint64_t length, uint64_t offset, uint64_t *start, uint64_t *end)
{
    uint64_t grain = hostfile_write_grain();
    *start = offset & ~(grain - 1);
    *end = (offset + length + grain - 1) & ~(grain - 1);
}
