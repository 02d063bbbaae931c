/* ring.h: io_uring as the queue uses it: reads and writes of one buffer, submitted
 * and reaped in batches. A leaf but for owned.h and thread_life.h. Owner, but where noted. */
#ifndef FDSTASH_RING_H
#define FDSTASH_RING_H

#include "fdstash.h"

struct ring;

/* Files and memory that the kernel looks up once are registered: a file when it is
 * first used, by its number, as long as the ring is not told to forget. */
struct ring_request {
    void *memory;
    uint64_t length, offset; /* bytes; length below 4 GiB */
    int fd;
    int write;
    int rwf_flags; /* RWF_DSYNC or 0 */
    int direct;    /* past the page cache: what registered memory is for */
};

struct ring_done {
    void *cookie;
    int32_t result; /* bytes or -errno */
};

/* bound: only the thread that submits first may ask the kernel for anything. -errno: this
 * kernel or sandbox refuses it. */
int ring_new(unsigned entries, int bound, struct ring **out);
/* Of a ring that has nothing in flight. Any thread that excludes all others. */
void ring_free(struct ring *ring);
/* Frees a ring with requests in flight, and returns when the kernel has let go of their
 * memory: each was done, or not, or in part. Any thread that excludes all others. */
void ring_abandon(struct ring *ring);
/* Prepares a request; what the cookie is comes back with its result. -errno: the ring
 * takes none. */
int ring_prepare(struct ring *ring, const struct ring_request *request, void *cookie);
/* Hands what was prepared to the kernel, or the ring is refused. */
void ring_submit(struct ring *ring);
/* The kernel has refused a call of the ring: all that is left is to abandon it. */
int ring_is_refused(const struct ring *ring);
/* Whether it is bound to another thread than the caller's. Any thread. */
int ring_is_of_another(const struct ring *ring);
/* Whether the thread that it is bound to has ended. Any thread. */
int ring_is_orphaned(const struct ring *ring);
/* Submits, and lets go of the files that were registered: requests that the kernel
 * has taken up keep theirs. Unless bound, by any thread that excludes the owner. */
void ring_forget_files(struct ring *ring);
/* Registers memory, for direct requests that lie in it: once. Through the page cache it
 * would make them cost more. Owner. */
int ring_pin(struct ring *ring, void *memory, uint64_t length);
/* What is done, at most capacity of it; what the kernel has put off it finishes first,
 * where the caller may ask for that. Any one thread at a time. */
unsigned ring_reap(struct ring *ring, struct ring_done *out, unsigned capacity);
/* Submits, and waits until something is done, or event_fd (or -1) is readable, or the ring
 * is refused: 0, -ETIMEDOUT, -EINTR. timeout_ns: negative, without limit. */
int ring_wait(struct ring *ring, int event_fd, int64_t timeout_ns);
/* Requests that are prepared and not yet the kernel's. */
unsigned ring_prepared(const struct ring *ring);
/* Has an eventfd signalled whenever something is done: 0, or -errno. Any thread; while a
 * bound one runs, its own. */
int ring_tell(struct ring *ring, int event_fd);

#endif
