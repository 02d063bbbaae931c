/* ring.c: io_uring through liburing, and whether this kernel gives it. */
#include "ring.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <time.h>

#include <liburing.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "owned.h"
#include "thread_life.h"

/* Files with higher numbers are looked up by each request. */
enum { MOST_FILES = 1024 };

/* How often a call is made again that failed for want of something, and how long after. */
enum { MOST_TRIES = 10, PAUSE_NS = 100000 };

struct ring {
    struct io_uring uring;
    unsigned most_files;             /* 0: this kernel registers none */
    unsigned files;                  /* that are registered */
    unsigned char known[MOST_FILES]; /* by number: whether it is */
    char *pinned;                    /* memory that is registered; or NULL */
    uint64_t pinned_length;
    unsigned flags; /* IORING_SETUP_* that were accepted */
    int started;    /* a bound ring begins disabled, for the thread that submits first */
    int refused;
    int watching;               /* a poll of an eventfd is in flight; its cookie is the ring */
    struct thread_life *thread; /* that a bound ring is of, once started */
    int gone_fd;                /* of a pipe that ends when the kernel has freed the ring */
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
               IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_R_DISABLED;
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
            wanted |= IORING_SETUP_COOP_TASKRUN;
    }
}

/* The kernel frees a ring some time after it was closed, and until then it may write to
 * the memory of requests. One end of a pipe is a file of the ring alone, and the other one
 * tells when that was closed. */
static int register_files(struct ring *ring)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    int rc = io_uring_register_files_sparse(&ring->uring, MOST_FILES + 1);
    if (rc == 0) {
        rc = io_uring_register_files_update(&ring->uring, MOST_FILES, &ends[1], 1);
        ring->most_files = MOST_FILES;
        rc = rc == 1 ? 0 : rc < 0 ? rc : -EIO;
    } else {
        rc = io_uring_register_files(&ring->uring, &ends[1], 1);
    }
    close(ends[1]);
    ring->gone_fd = owned_register(ends[0]);
    return rc < 0 ? rc : ring->gone_fd < 0 ? ring->gone_fd : 0;
}

static int make(struct ring *ring, unsigned entries, int bound)
{
    int rc = set_up(ring, entries, wanted_flags(bound));
    if (rc < 0)
        return rc;
    int fd = owned_register(ring->uring.ring_fd);
    ring->uring.ring_fd = ring->uring.enter_ring_fd = fd < 0 ? -1 : fd;
    ring->started = !(ring->flags & IORING_SETUP_R_DISABLED);
    rc = fd < 0 ? fd : register_files(ring);
    /* A child that had it mapped would keep it from being freed. */
    if (rc == 0)
        rc = io_uring_ring_dontfork(&ring->uring);
    if (rc < 0)
        ring_free(ring);
    return rc;
}

int ring_new(unsigned entries, int bound, struct ring **out)
{
    struct ring *ring = calloc(1, sizeof(*ring));
    if (!ring)
        return -ENOMEM;
    ring->gone_fd = -1;
    owned_hold_fork();
    int rc = make(ring, entries, bound);
    owned_allow_fork();
    if (rc == 0)
        *out = ring;
    return rc;
}

static void close_ring(struct ring *ring)
{
    owned_close(ring->uring.ring_fd, 0);
    /* What is left for liburing to do is to unmap. */
    ring->uring.ring_fd = ring->uring.enter_ring_fd = -1;
    io_uring_queue_exit(&ring->uring);
}

static void free_rest(struct ring *ring)
{
    owned_close(ring->gone_fd, 0);
    thread_life_drop(ring->thread);
    free(ring);
}

void ring_free(struct ring *ring)
{
    if (!ring)
        return;
    /* The kernel lets go of a ring's files when it comes to it, but of these at once. */
    if (ring->files)
        io_uring_unregister_files(&ring->uring);
    close_ring(ring);
    free_rest(ring);
}

void ring_abandon(struct ring *ring)
{
    struct pollfd gone = {ring->gone_fd, POLLIN, 0};
    close_ring(ring);
    while (poll(&gone, 1, -1) < 0 && errno == EINTR)
        ;
    free_rest(ring);
}

int ring_is_refused(const struct ring *ring)
{
    return ring->refused;
}

int ring_is_of_another(const struct ring *ring)
{
    return ring->thread && !thread_life_is_mine(ring->thread);
}

int ring_is_orphaned(const struct ring *ring)
{
    return ring->thread && thread_life_is_over(ring->thread);
}

/* Whether a call of the kernel that failed is to be made again; else the ring is refused. */
static int may_try_again(struct ring *ring, int error, int tries)
{
    struct timespec pause = {0, PAUSE_NS};
    if (error == -EINTR)
        return 1;
    if ((error != -EAGAIN && error != -EBUSY && error != -ENOMEM) || tries >= MOST_TRIES) {
        ring->refused = 1;
        return 0;
    }
    nanosleep(&pause, NULL);
    return 1;
}

static void start(struct ring *ring)
{
    if (ring->started)
        return;
    ring->started = 1;
    ring->thread = thread_life_take();
    /* liburing 2.3 declares a call for this, but does not export it. */
    if (!ring->thread || syscall(__NR_io_uring_register, ring->uring.ring_fd,
                                 IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0)
        ring->refused = 1;
}

void ring_submit(struct ring *ring)
{
    start(ring);
    for (int tries = 0; !ring->refused && io_uring_sq_ready(&ring->uring) > 0; tries++) {
        int rc = io_uring_submit(&ring->uring);
        if (rc < 0 && !may_try_again(ring, rc, tries))
            return;
    }
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
        if (io_uring_register_files_update(&ring->uring, i, &none, 1) != 1)
            ring->refused = 1;
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

static int is_pinned(const struct ring *ring, const void *memory, uint64_t length)
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

static struct io_uring_sqe *next_sqe(struct ring *ring)
{
    struct io_uring_sqe *sqe = ring->refused ? NULL : io_uring_get_sqe(&ring->uring);
    if (sqe || ring->refused)
        return sqe;
    ring_submit(ring);
    return io_uring_get_sqe(&ring->uring);
}

int ring_prepare(struct ring *ring, const struct ring_request *request, void *cookie)
{
    struct io_uring_sqe *sqe = next_sqe(ring);
    if (!sqe)
        return -EAGAIN;
    prepare(sqe, request, request->direct && is_pinned(ring, request->memory, request->length));
    if (is_registered(ring, request->fd))
        io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data(sqe, cookie);
    return 0;
}

/* What the kernel has put off, so that it is among what can be reaped. */
static void finish_put_off(struct ring *ring)
{
    unsigned put_off = IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW;
    if (!ring->started || ring->refused || ring_is_of_another(ring) ||
        !(__atomic_load_n(ring->uring.sq.kflags, __ATOMIC_RELAXED) & put_off))
        return;
    for (int tries = 0;; tries++) {
        int rc = io_uring_get_events(&ring->uring);
        if (rc >= 0 || !may_try_again(ring, rc, tries))
            return;
    }
}

unsigned ring_reap(struct ring *ring, struct ring_done *out, unsigned capacity)
{
    unsigned head, seen = 0, count = 0;
    struct io_uring_cqe *cqe;
    finish_put_off(ring);
    io_uring_for_each_cqe(&ring->uring, head, cqe)
    {
        void *cookie = io_uring_cqe_get_data(cqe);
        if (count == capacity)
            break;
        seen++;
        if (cookie == ring) {
            ring->watching = 0;
            continue;
        }
        out[count].cookie = cookie;
        out[count].result = cqe->res;
        count++;
    }
    io_uring_cq_advance(&ring->uring, seen);
    return count;
}

/* A poll of the ring's descriptor would not do: nothing wakes it for what the kernel puts
 * off until the ring's thread asks. */
static void watch(struct ring *ring, int event_fd)
{
    struct io_uring_sqe *sqe = ring->watching ? NULL : next_sqe(ring);
    if (!sqe)
        return;
    io_uring_prep_poll_add(sqe, event_fd, POLLIN);
    io_uring_sqe_set_data(sqe, ring);
    ring->watching = 1;
}

int ring_wait(struct ring *ring, int event_fd, int64_t timeout_ns)
{
    struct io_uring_cqe *cqe;
    struct __kernel_timespec limit = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    start(ring);
    if (event_fd >= 0)
        watch(ring, event_fd);
    for (int tries = 0; !ring->refused; tries++) {
        int rc = timeout_ns < 0
                     ? io_uring_submit_and_wait(&ring->uring, 1)
                     : io_uring_submit_and_wait_timeout(&ring->uring, &cqe, 1, &limit, NULL);
        if (rc == -ETIME)
            return -ETIMEDOUT;
        if (rc == -EINTR)
            return rc;
        if (rc >= 0 || io_uring_cq_ready(&ring->uring) > 0 || !may_try_again(ring, rc, tries))
            break;
    }
    return 0;
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
