/* hostfile.h: one host file of an image. Public calls are in fdstash_api.h. */
#ifndef FDSTASH_HOSTFILE_H
#define FDSTASH_HOSTFILE_H

#include <stdatomic.h>
#include <sys/types.h>

#include "fdstash.h"
#include "iov.h"
#include "range_lock.h"

/* What makes a descriptor the same file as another. */
struct file_identity {
    uint64_t device;
    uint64_t inode;
    uint64_t rdev;          /* of a block device, else 0 */
    uint64_t disk_sequence; /* of a block device, else 0: a reused number differs */
    uint32_t is_block;
};

/* Who else may hold a description. */
struct sharing {
    uint32_t shared;     /* it was handed out, or came from outside */
    uint64_t fork_count; /* when it was made: a later fork shares it with the child */
};

struct fdstash_file {
    int slot; /* for the file's whole life */
    _Atomic uint32_t references;
    uint32_t flags;      /* enum fdstash_file_flags */
    uint64_t epoch;      /* of the process that opened it */
    uint64_t filesystem; /* f_type */
    uint32_t remote;     /* an open or a close may wait */
    uint32_t memory;     /* a read or a write waits for no device */
    struct file_identity identity;
    _Atomic uint64_t required_size; /* bytes that a layer's map reaches into it */
    _Atomic uint32_t shared;        /* the description in the slot may be held by others */
    _Atomic uint64_t fork_count;    /* when that description was made */
    _Atomic uint32_t direct;        /* O_DIRECT is set, or about to be */
    _Atomic uint32_t direct_proven; /* some description of the inode bore O_DIRECT */
    _Atomic uint32_t memory_alignment, offset_alignment; /* 0: not known yet */
    _Atomic uint32_t dirty;                              /* written since the last flush began */
    _Atomic int latched; /* errno that a former description had not yet reported */
    struct range_lock ranges;
};

/* ---- what is known of the file (hostfile.c); any thread ---- */

int identity_of(int fd, struct file_identity *out, uint64_t *size);
int identity_equal(const struct file_identity *a, const struct file_identity *b);
int hostfile_is_shared(const struct fdstash_file *file);
struct sharing hostfile_sharing(const struct fdstash_file *file);
/* How often the slot of any file has got another description, or none at all: what
 * remembers descriptions forgets them when this has changed. */
uint64_t hostfile_changes(void);
/* It has: queues that no thread is using forget at once. */
void hostfile_changed(void);
/* Another description came into the slot. */
void hostfile_set_sharing(struct fdstash_file *file, struct sharing sharing);
void hostfile_latch(struct fdstash_file *file, int error);

/* ---- alignment (alignment.c); any thread ---- */

/* Learns what O_DIRECT asks for, if it is not yet known, from fd: an O_DIRECT
 * description of the file. -EINVAL: O_DIRECT is not borne. */
int hostfile_learn_alignment(struct fdstash_file *file, int fd);
/* Bytes, a power of two: the host page, or the largest alignment that is borne.
 * A write that is not aligned to it may share a block or a page with another. */
uint64_t hostfile_write_grain(void);
/* The whole grains that a write touches: what it holds of the file's ranges. */
void hostfile_write_range(uint64_t length, uint64_t offset, uint64_t *start, uint64_t *end);

/* ---- the data path (hostfile_io.c, hostfile_space.c); any thread ---- */

/* Whether memory goes to the kernel as it is, in the file's present cache mode. */
int hostfile_fits(const struct fdstash_file *file, const void *memory, uint64_t length,
                  uint64_t offset);
/* Move at most length bytes at the cursor and advance it by what was moved;
 * short only at the end of the file (reads). */
int64_t hostfile_readv(struct fdstash_file *file, struct iov_cursor *at, uint64_t length,
                       uint64_t offset);
int64_t hostfile_writev(struct fdstash_file *file, struct iov_cursor *at, uint64_t length,
                        uint64_t offset, int rwf_flags);
/* flags: FDSTASH_UNMAP, FDSTASH_FAST. */
int hostfile_zero(struct fdstash_file *file, uint64_t length, uint64_t offset, uint32_t flags,
                  int durable);
int hostfile_trim(struct fdstash_file *file, uint64_t length, uint64_t offset);
int hostfile_sync(int fd);
/* Nothing where nothing was written: an image of hundreds of files is flushed
 * often. A write is marked when it is done, before it is acknowledged. */
int hostfile_flush_dirty(struct fdstash_file *file);

#endif
