/* reopen_loop.h: the system calls of a reopen and their checks, and nothing else.
 *
 * What a reopen of fdstash is measured against. It holds the files of an image
 * open under numbers of its own, and toggles them as a reopen does: the same
 * calls in the same order, every result looked at. It has no gate, no rollback,
 * no report, and no error that says more than errno. One thread. */
#ifndef REOPEN_LOOP_H
#define REOPEN_LOOP_H

#include <stdint.h>

enum reopen_loop_route {
    REOPEN_LOOP_SETFL = 0, /* F_SETFL on the slot */
    REOPEN_LOOP_PROC = 1,  /* /proc/self/fd/SLOT */
    REOPEN_LOOP_PATH = 2   /* the file's path, walked again */
};

/* How the format reads its header again on the way to writing. */
enum reopen_loop_header {
    REOPEN_LOOP_NO_HEADER = 0,
    REOPEN_LOOP_LAST_BYTE = 1, /* raw: is the file as long as it was? */
    REOPEN_LOOP_DESCRIPTOR = 2 /* VMDK: the descriptor */
};

struct reopen_loop_plan {
    uint32_t route;  /* enum reopen_loop_route */
    int32_t flags;   /* the access mode, and perhaps O_DIRECT, that every file is to have */
    uint32_t widen;  /* not 0: take a writer's locks before the exchange */
    uint32_t narrow; /* not 0: drop them after it */
    uint32_t header; /* enum reopen_loop_header */
};

struct reopen_loop;

/* Opens the files read-write with a lock description for each, and takes a
 * writer's locks: those of QEMU's protocol, lock_base bytes further on, so that
 * the image may hold its own. The paths are borrowed. -errno. */
int reopen_loop_open(const char *const *paths, uint32_t count, uint32_t lock_base,
                     struct reopen_loop **out);
/* One toggle: the nanoseconds that it took, or -errno, and then the loop can
 * only be closed. */
int64_t reopen_loop_toggle(struct reopen_loop *loop, const struct reopen_loop_plan *plan);
void reopen_loop_close(struct reopen_loop *loop);

#endif
