/* ring.h: io_uring as the queue uses it: reads and writes of one buffer, submitted
 * and reaped in batches. A leaf but for owned.h. Owner, but where noted. */
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
};

struct ring_done {
    void *cookie;
    int32_t result; /* bytes or -errno */
};

/* bound: only the thread that submits first ever uses the ring, but for
 * ring_reap without may_enter. -errno: this kernel or sandbox refuses it. */
int ring_new(unsigned entries, int bound, struct ring **out);
void ring_free(struct ring *ring);
/* Prepares a request; what the cookie is comes back with its result. -EAGAIN: the
 * ring is full of requests that the kernel does not take up. */
int ring_prepare(struct ring *ring, const struct ring_request *request, void *cookie);
/* Hands what was prepared to the kernel. */
int ring_submit(struct ring *ring);
/* Submits, and lets go of the files that were registered: requests that the kernel
 * has taken up keep theirs. Unless bound, by any thread that excludes the owner. */
void ring_forget_files(struct ring *ring);
/* Registers memory, for requests that lie in it: once. Owner. */
int ring_pin(struct ring *ring, void *memory, uint64_t length);
int ring_has_pinned(const struct ring *ring, const void *memory, uint64_t length);
/* What is done, at most capacity of it. may_enter: the kernel may be asked to finish
 * what it has put off. Any one thread at a time. */
unsigned ring_reap(struct ring *ring, int may_enter, struct ring_done *out, unsigned capacity);
/* Submits, and waits until something is done: 0, -ETIMEDOUT, -EINTR, or another
 * error. timeout_ns: negative, without limit. */
int ring_wait(struct ring *ring, int64_t timeout_ns);
/* Becomes readable when something is done. */
int ring_fd(const struct ring *ring);
/* Requests that are prepared and not yet the kernel's. */
unsigned ring_prepared(const struct ring *ring);
/* Has an eventfd signalled whenever something is done. Any thread. */
int ring_tell(struct ring *ring, int event_fd);

#endif
