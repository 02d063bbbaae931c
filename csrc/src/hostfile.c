/* hostfile.c: a file's slot, identity, references and latched errors. */
#include "hostfile.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "filesystem.h"
#include "owned.h"
#include "pump.h"

/* Not in every system's linux/fs.h. */
#ifndef BLKGETDISKSEQ
#define BLKGETDISKSEQ _IOR(0x12, 128, uint64_t)
#endif

static int ask_device(int fd, unsigned long request, uint64_t *answer)
{
    int rc;
    do
        rc = ioctl(fd, request, answer);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

int identity_of(int fd, struct file_identity *out, uint64_t *size)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    *out = (struct file_identity){.device = st.st_dev, .inode = st.st_ino};
    *size = (uint64_t)st.st_size;
    if (S_ISBLK(st.st_mode)) {
        out->is_block = 1;
        out->rdev = st.st_rdev;
        int rc = ask_device(fd, BLKGETDISKSEQ, &out->disk_sequence);
        /* A kernel before 5.15 has no sequence numbers: then rdev must do. */
        if (rc == -ENOTTY || rc == -EINVAL)
            rc = 0;
        if (rc == 0)
            rc = ask_device(fd, BLKGETSIZE64, size);
        return rc;
    } else if (!S_ISREG(st.st_mode)) {
        return -EINVAL;
    }
    return 0;
}

int identity_equal(const struct file_identity *a, const struct file_identity *b)
{
    if (a->is_block != b->is_block)
        return 0;
    if (a->is_block) /* the node's own inode may differ: /dev of another namespace */
        return a->rdev == b->rdev && a->disk_sequence == b->disk_sequence;
    return a->device == b->device && a->inode == b->inode;
}

int hostfile_is_shared(const struct fdstash_file *file)
{
    return atomic_load(&file->shared) || atomic_load(&file->fork_count) != owned_fork_count();
}

struct sharing hostfile_sharing(const struct fdstash_file *file)
{
    return (struct sharing){atomic_load(&file->shared), atomic_load(&file->fork_count)};
}

void hostfile_set_sharing(struct fdstash_file *file, struct sharing sharing)
{
    atomic_store(&file->fork_count, sharing.fork_count);
    atomic_store(&file->shared, sharing.shared);
}

void fdstash_file_mark_shared(fdstash_file *file)
{
    atomic_store(&file->shared, 1);
}

void hostfile_latch(struct fdstash_file *file, int error)
{
    int none = 0;
    atomic_compare_exchange_strong(&file->latched, &none, error);
}

int fdstash_file_take_latched(fdstash_file *file)
{
    return -atomic_exchange(&file->latched, 0);
}

int fdstash_file_new(int fd, uint32_t flags, fdstash_file **out)
{
    uint64_t size;
    struct statfs fs;
    int has = fcntl(fd, F_GETFL);
    if (has < 0)
        return -errno;
    if (has & (O_APPEND | O_PATH)) /* pwrite appends with the one, fails with the other */
        return -EBADF;
    fdstash_file *file = calloc(1, sizeof(*file));
    if (!file)
        return -ENOMEM;
    int rc = identity_of(fd, &file->identity, &size);
    if (rc == 0 && fstatfs(fd, &fs) < 0)
        rc = -errno;
    if (rc < 0) {
        free(file);
        return rc;
    }
    file->slot = fd;
    file->flags = flags;
    file->epoch = owned_epoch();
    file->filesystem = (uint64_t)fs.f_type;
    /* What a device's driver does at open is not known either. */
    file->remote = file->identity.is_block || filesystem_is_remote(file->filesystem);
    /* Of a device it is the folder's that is told, which may be memory. */
    file->memory = !file->identity.is_block && filesystem_is_memory(file->filesystem);
    atomic_init(&file->references, 1);
    range_lock_init(&file->ranges);
    hostfile_set_sharing(file, (struct sharing){flags & FDSTASH_FILE_SHARED, owned_fork_count()});
    if (has & O_DIRECT) {
        rc = hostfile_learn_alignment(file, fd);
        if (rc < 0) {
            range_lock_destroy(&file->ranges);
            free(file);
            return rc;
        }
        atomic_store(&file->direct, 1);
    }
    *out = file;
    return 0;
}

void fdstash_file_ref(fdstash_file *file)
{
    atomic_fetch_add(&file->references, 1);
}

static _Atomic uint64_t changes;

uint64_t hostfile_changes(void)
{
    return atomic_load_explicit(&changes, memory_order_acquire);
}

void hostfile_changed(void)
{
    atomic_fetch_add(&changes, 1);
    pump_run_all();
}

int fdstash_file_unref(fdstash_file *file)
{
    int rc = 0;
    if (atomic_fetch_sub(&file->references, 1) != 1)
        return 0;
    /* In a forked child the number is closed, and may be somebody else's, and
     * threads that are not there still seem to wait for a range. */
    if (file->epoch == owned_epoch()) {
        hostfile_changed();
        rc = owned_close(file->slot, !file->remote);
        range_lock_destroy(&file->ranges);
    }
    free(file);
    return rc;
}

int fdstash_file_get_status(fdstash_file *file, fdstash_file_status *out)
{
    struct stat st;
    int flags = fcntl(file->slot, F_GETFL);
    if (flags < 0 || fstat(file->slot, &st) < 0)
        return -errno;
    *out = (fdstash_file_status){
        .fd = file->slot,
        .flags = flags,
        .size = (uint64_t)st.st_size,
        .allocated = (uint64_t)st.st_blocks * 512,
        .device = st.st_dev,
        .inode = st.st_ino,
        .rdev = file->identity.rdev,
        .disk_sequence = file->identity.disk_sequence,
        .filesystem = file->filesystem,
        .memory_alignment = atomic_load(&file->memory_alignment),
        .offset_alignment = atomic_load(&file->offset_alignment),
        .shared = (uint32_t)hostfile_is_shared(file),
        .remote = file->remote,
    };
    if (file->identity.is_block && ioctl(file->slot, BLKGETSIZE64, &out->size) < 0)
        return -errno;
    return 0;
}

int64_t fdstash_file_size(const fdstash_file *file)
{
    struct stat st;
    uint64_t size;
    if (file->identity.is_block)
        return ioctl(file->slot, BLKGETSIZE64, &size) < 0 ? -errno : (int64_t)size;
    return fstat(file->slot, &st) < 0 ? -errno : (int64_t)st.st_size;
}

void fdstash_file_identity(const fdstash_file *file, uint64_t identity[3])
{
    identity[0] = file->identity.device;
    identity[1] = file->identity.inode;
    identity[2] = file->identity.rdev;
}

int hostfile_sync(int fd)
{
    int rc;
    do
        rc = fdatasync(fd);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

int hostfile_flush_dirty(struct fdstash_file *file)
{
    if (!atomic_exchange(&file->dirty, 0))
        return 0;
    int rc = hostfile_sync(file->slot);
    if (rc < 0)
        atomic_store(&file->dirty, 1);
    return rc;
}

int fdstash_file_sync(fdstash_file *file)
{
    int rc = hostfile_flush_dirty(file);
    if (rc < 0)
        hostfile_latch(file, -rc);
    return rc;
}

int fdstash_file_flush(fdstash_file *file)
{
    int rc = hostfile_flush_dirty(file);
    int latched = fdstash_file_take_latched(file);
    return rc < 0 ? rc : latched;
}

int fdstash_file_truncate(fdstash_file *file, uint64_t size)
{
    int rc;
    do
        rc = ftruncate(file->slot, (off_t)size);
    while (rc < 0 && errno == EINTR);
    if (rc < 0)
        return -errno;
    /* A new size is for the next flush to make durable, as bytes are. */
    atomic_store(&file->dirty, 1);
    return 0;
}
