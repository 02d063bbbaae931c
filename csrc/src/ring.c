/* ring.c: io_uring through liburing, and whether this kernel gives it. */
#include "ring.h"

#include <errno.h>
#include <stdlib.h>

#include <liburing.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "owned.h"

/* Files with higher numbers are looked up by each request. */
enum { MOST_FILES = 1024 };

struct ring {
    struct io_uring uring;
    unsigned most_files;             /* 0: this kernel registers none */
    unsigned files;                  /* that are registered */
    unsigned char known[MOST_FILES]; /* by number: whether it is */
    char *pinned;                    /* memory that is registered; or NULL */
    uint64_t pinned_length;
    unsigned flags; /* IORING_SETUP_* that were accepted */
    int started;    /* a bound ring begins disabled, for the thread that submits first */
};

/* Asked for all at first; each was added by some kernel, newest first here, and is
 * dropped where the kernel does not know it. */
static const unsigned optional_flags[] = {IORING_SETUP_DEFER_TASKRUN, IORING_SETUP_SINGLE_ISSUER,
                                          IORING_SETUP_COOP_TASKRUN,  IORING_SETUP_TASKRUN_FLAG,
                                          IORING_SETUP_SUBMIT_ALL,    IORING_SETUP_CLAMP};

/* Completions that wait for the submitting thread's next system call cost least, but
 * where the thread may change, any thread must be able to reap them. */
static unsigned wanted_flags(int bound)
{
    unsigned flags = IORING_SETUP_CLAMP | IORING_SETUP_SUBMIT_ALL;
    if (bound)
        return flags | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
               IORING_SETUP_R_DISABLED;
    return flags | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
}

static int set_up(struct ring *ring, unsigned entries, unsigned wanted)
{
    size_t next = 0;
    for (;;) {
        struct io_uring_params params = {.flags = wanted};
        int rc = io_uring_queue_init_params(entries, &ring->uring, &params);
        if (rc != -EINVAL) {
            ring->flags = wanted;
            return rc;
        }
        while (next < sizeof(optional_flags) / sizeof(optional_flags[0]) &&
               !(wanted & optional_flags[next]))
            next++;
        if (next == sizeof(optional_flags) / sizeof(optional_flags[0]))
            return rc;
        wanted &= ~optional_flags[next];
        if (optional_flags[next] == IORING_SETUP_DEFER_TASKRUN)
            wanted |= IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
    }
}

int ring_new(unsigned entries, int bound, struct ring **out)
{
    struct ring *ring = calloc(1, sizeof(*ring));
    if (!ring)
        return -ENOMEM;
    int rc = set_up(ring, entries, wanted_flags(bound));
    if (rc < 0) {
        free(ring);
        return rc;
    }
    int fd = owned_register(ring->uring.ring_fd);
    ring->uring.ring_fd = ring->uring.enter_ring_fd = fd;
    if (fd < 0) {
        io_uring_queue_exit(&ring->uring);
        free(ring);
        return fd;
    }
    ring->started = !(ring->flags & IORING_SETUP_R_DISABLED);
    if (io_uring_register_files_sparse(&ring->uring, MOST_FILES) == 0)
        ring->most_files = MOST_FILES;
    *out = ring;
    return 0;
}

void ring_free(struct ring *ring)
{
    if (!ring)
        return;
    /* The kernel lets go of a ring's files when it comes to it, but of these at once. */
    if (ring->files)
        io_uring_unregister_files(&ring->uring);
    owned_close(ring->uring.ring_fd, 1);
    /* What is left for liburing to do is to unmap. */
    ring->uring.ring_fd = ring->uring.enter_ring_fd = -1;
    io_uring_queue_exit(&ring->uring);
    free(ring);
}

static void start(struct ring *ring)
{
    if (!ring->started) {
        /* liburing 2.3 declares a call for this, but does not export it. */
        syscall(__NR_io_uring_register, ring->uring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
        ring->started = 1;
    }
}

int ring_submit(struct ring *ring)
{
    int rc = 0;
    start(ring);
    /* -EBUSY and -EAGAIN: until completions are reaped, or for want of memory. */
    while (rc >= 0 && io_uring_sq_ready(&ring->uring) > 0) {
        rc = io_uring_submit(&ring->uring);
        if (rc == -EINTR)
            rc = 0;
    }
    return rc < 0 ? rc : 0;
}

/* Whether the file can be named by its place in the ring's table, which is its number.
 * A place is filled where it is empty, and emptied when nothing that is prepared names
 * it: so an update that fails leaves no request without a file. */
static int is_registered(struct ring *ring, int fd)
{
    if ((unsigned)fd >= ring->most_files)
        return 0;
    if (!ring->known[fd] &&
        io_uring_register_files_update(&ring->uring, (unsigned)fd, &fd, 1) == 1) {
        ring->known[fd] = 1;
        ring->files++;
    }
    return ring->known[fd];
}

void ring_forget_files(struct ring *ring)
{
    int none = -1;
    if (!ring->files)
        return;
    if (io_uring_sq_ready(&ring->uring))
        ring_submit(ring);
    for (unsigned i = 0; i < ring->most_files && ring->files > 0; i++) {
        if (!ring->known[i])
            continue;
        io_uring_register_files_update(&ring->uring, i, &none, 1);
        ring->known[i] = 0;
        ring->files--;
    }
}

int ring_pin(struct ring *ring, void *memory, uint64_t length)
{
    struct iovec iov = {memory, length};
    if (ring->pinned)
        return -EBUSY;
    int rc = io_uring_register_buffers(&ring->uring, &iov, 1);
    if (rc < 0)
        return rc;
    ring->pinned = memory;
    ring->pinned_length = length;
    return 0;
}

int ring_has_pinned(const struct ring *ring, const void *memory, uint64_t length)
{
    uint64_t at = (uint64_t)((const char *)memory - ring->pinned);
    return ring->pinned && (const char *)memory >= ring->pinned && at <= ring->pinned_length &&
           length <= ring->pinned_length - at;
}

static void prepare(struct io_uring_sqe *sqe, const struct ring_request *request, int pinned)
{
    unsigned length = (unsigned)request->length;
    if (request->write && pinned)
        io_uring_prep_write_fixed(sqe, request->fd, request->memory, length, request->offset, 0);
    else if (request->write)
        io_uring_prep_write(sqe, request->fd, request->memory, length, request->offset);
    else if (pinned)
        io_uring_prep_read_fixed(sqe, request->fd, request->memory, length, request->offset, 0);
    else
        io_uring_prep_read(sqe, request->fd, request->memory, length, request->offset);
    sqe->rw_flags = request->rwf_flags;
}

int ring_prepare(struct ring *ring, const struct ring_request *request, void *cookie)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);
    if (!sqe) {
        ring_submit(ring);
        sqe = io_uring_get_sqe(&ring->uring);
        if (!sqe)
            return -EAGAIN;
    }
    prepare(sqe, request, ring_has_pinned(ring, request->memory, request->length));
    if (is_registered(ring, request->fd))
        io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data(sqe, cookie);
    return 0;
}

unsigned ring_reap(struct ring *ring, int may_enter, struct ring_done *out, unsigned capacity)
{
    unsigned head, count = 0;
    struct io_uring_cqe *cqe;
    unsigned put_off = IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW;
    if (may_enter && ring->started &&
        (__atomic_load_n(ring->uring.sq.kflags, __ATOMIC_RELAXED) & put_off))
        io_uring_get_events(&ring->uring);
    io_uring_for_each_cqe(&ring->uring, head, cqe)
    {
        if (count == capacity)
            break;
        out[count].cookie = io_uring_cqe_get_data(cqe);
        out[count].result = cqe->res;
        count++;
    }
    io_uring_cq_advance(&ring->uring, count);
    return count;
}

int ring_wait(struct ring *ring, int64_t timeout_ns)
{
    struct io_uring_cqe *cqe;
    struct __kernel_timespec limit = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    start(ring);
    int rc = timeout_ns < 0 ? io_uring_submit_and_wait(&ring->uring, 1)
                            : io_uring_submit_and_wait_timeout(&ring->uring, &cqe, 1, &limit, NULL);
    if (rc == -ETIME)
        return -ETIMEDOUT;
    /* Busy: there is something to reap. */
    return rc >= 0 || rc == -EBUSY || rc == -EAGAIN ? 0 : rc;
}

int ring_fd(const struct ring *ring)
{
    return ring->uring.ring_fd;
}

unsigned ring_prepared(const struct ring *ring)
{
    return io_uring_sq_ready(&ring->uring);
}

int ring_tell(struct ring *ring, int event_fd)
{
    return io_uring_register_eventfd(&ring->uring, event_fd);
}

static int probe(int bound, uint32_t *flags)
{
    struct ring *ring;
    int rc = ring_new(2, bound, &ring);
    if (rc < 0)
        return rc;
    *flags = ring->flags;
    ring_free(ring);
    return 0;
}

int fdstash_uring_probe(int *error, uint32_t *flags, uint32_t *bound_flags)
{
    *flags = *bound_flags = 0;
    int rc = probe(0, flags);
    if (rc == 0)
        rc = probe(1, bound_flags);
    *error = -rc;
    return rc < 0 ? FDSTASH_URING_REFUSED : FDSTASH_URING_USABLE;
}
