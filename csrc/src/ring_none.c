/* ring_none.c: a build without liburing, in which there is no ring to call with. */
#include "ring.h"

#include <errno.h>

int ring_new(unsigned entries, int bound, struct ring **out)
{
    (void)entries;
    (void)bound;
    (void)out;
    return -ENOSYS;
}

void ring_free(struct ring *ring)
{
    (void)ring;
}

void ring_abandon(struct ring *ring)
{
    (void)ring;
}

int ring_prepare(struct ring *ring, const struct ring_request *request, void *cookie)
{
    (void)ring;
    (void)request;
    (void)cookie;
    return -ENOSYS;
}

void ring_submit(struct ring *ring)
{
    (void)ring;
}

int ring_is_refused(const struct ring *ring)
{
    (void)ring;
    return 1;
}

int ring_is_of_another(const struct ring *ring)
{
    (void)ring;
    return 0;
}

int ring_is_orphaned(const struct ring *ring)
{
    (void)ring;
    return 0;
}

void ring_forget_files(struct ring *ring)
{
    (void)ring;
}

int ring_pin(struct ring *ring, void *memory, uint64_t length)
{
    (void)ring;
    (void)memory;
    (void)length;
    return -ENOSYS;
}

unsigned ring_reap(struct ring *ring, struct ring_done *out, unsigned capacity)
{
    (void)ring;
    (void)out;
    (void)capacity;
    return 0;
}

int ring_wait(struct ring *ring, int event_fd, int64_t timeout_ns)
{
    (void)ring;
    (void)event_fd;
    (void)timeout_ns;
    return -ENOSYS;
}

unsigned ring_prepared(const struct ring *ring)
{
    (void)ring;
    return 0;
}

int ring_tell(struct ring *ring, int event_fd)
{
    (void)ring;
    (void)event_fd;
    return -ENOSYS;
}

int fdstash_uring_probe(int *error, uint32_t *flags, uint32_t *bound_flags)
{
    *error = 0;
    *flags = *bound_flags = 0;
    return FDSTASH_URING_NOT_BUILT;
}
