/* writelog.h: the log that the preloaded library keeps of calls that change
 * files, and its format, which tests/support/write_log.py reads. */

#ifndef WRITELOG_H
#define WRITELOG_H

#include <stdint.h>
#include <sys/uio.h>

_Static_assert(sizeof(long) == 8 && sizeof(void *) == 8, "LP64 only");

/* Environment: the folder whose files are watched, absolute and without links,
 * and the file that the log is appended to. Without both nothing is logged. */
#define WRITELOG_FOLDER "FDSTASH_WRITELOG_FOLDER"
#define WRITELOG_FILE "FDSTASH_WRITELOG_FILE"

enum record_kind {
    RECORD_WRITE = 1,  /* `length` bytes, which follow the name, at `offset` */
    RECORD_ZERO,       /* `length` bytes from `offset` read as zeros now */
    RECORD_SIZE,       /* the file has `length` bytes now */
    RECORD_GROW,       /* the file has at least `length` bytes now */
    RECORD_SYNC_BEGIN, /* a barrier with the number `offset` is about to begin */
    RECORD_SYNC_END,   /* it has succeeded: what is before its begin is durable */
};

/* By itself durable when it returned, as with O_DSYNC or RWF_DSYNC. */
#define RECORD_DURABLE 1u

/* Little-endian; the name and the data follow without padding. */
struct record {
    uint32_t kind;
    uint32_t flags;
    uint64_t offset; /* bytes */
    uint64_t length; /* bytes */
    uint64_t name;   /* bytes of the name, relative to the folder */
};

#define NAME_ROOM 4096

/* What `fd` is called beneath the folder, in `name` of NAME_ROOM bytes; returns
 * its length, 0 for a file that is not watched. Any thread; leaves errno alone. */
uint64_t writelog_name(int fd, char *name);

/* Appends a record whose data, for RECORD_WRITE, is the first `length` bytes of
 * `count` vectors. Ends the process where that fails: a log with a gap would
 * accuse the innocent. Any thread; leaves errno alone. */
void writelog_append(enum record_kind kind, uint32_t flags, uint64_t offset, uint64_t length,
                     const char *name, uint64_t name_length, const struct iovec *vector, int count);

/* Ends the process: a watched file was changed by a call that is not understood. */
void writelog_refuse(const char *what) __attribute__((noreturn));

#endif
