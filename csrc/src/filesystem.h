/* filesystem.h: what the type of a file system tells. A leaf. */
#ifndef FDSTASH_FILESYSTEM_H
#define FDSTASH_FILESYSTEM_H

#include <linux/magic.h>
#include <stdint.h>

/* Not in every system's linux/magic.h. */
#ifndef FUSE_SUPER_MAGIC
#define FUSE_SUPER_MAGIC 0x65735546
#endif
#ifndef CEPH_SUPER_MAGIC
#define CEPH_SUPER_MAGIC 0x00c36400
#endif

/* Whether an open or a close may wait for a server. A type that is not known to
 * be local counts as remote: that costs a thread, never a hang. */
static inline int filesystem_is_remote(uint64_t type)
{
    switch (type) {
    case EXT4_SUPER_MAGIC: /* ext2 and ext3 too */
    case XFS_SUPER_MAGIC:
    case BTRFS_SUPER_MAGIC:
    case TMPFS_MAGIC:
    case RAMFS_MAGIC:
    case F2FS_SUPER_MAGIC:
    case SQUASHFS_MAGIC:
    case HUGETLBFS_MAGIC:
    case MSDOS_SUPER_MAGIC:
    case 0x2fc12fc1: /* ZFS */
    case 0xca451a4e: /* bcachefs */
        return 0;
    default:
        /* overlayfs is not listed: its layers may be anywhere */
        return 1;
    }
}

/* Whether its files are memory: a read or write of one waits for no device. */
static inline int filesystem_is_memory(uint64_t type)
{
    return type == TMPFS_MAGIC || type == RAMFS_MAGIC;
}

#endif
