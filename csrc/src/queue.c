/* queue.c: a queue's life, and the calls of its owner. */
#include "queue.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>

#include "owned.h"

enum { MOST_MOVERS = 32, REAP_BATCH = 64 };

/* ------------------------------------------------------------------- life -- */

/* As a pump: on a thread that waits for a request, while the owner is elsewhere. */
static void lend(struct pump *pump)
{
    struct fdstash_queue *queue =
        (struct fdstash_queue *)(void *)((char *)pump - offsetof(struct fdstash_queue, pump));
    if (pthread_mutex_trylock(&queue->lock) != 0)
        return;
    if (!queue->sleeping) {
        queue->lending = 1;
        if (!queue->bound)
            queue_refresh(queue);
        queue_reap(queue);
        queue->lending = 0;
        if (queue->told && queue->done.first)
            queue_tell(queue);
    }
    pthread_mutex_unlock(&queue->lock);
}

static void init_locks(struct fdstash_queue *queue)
{
    pthread_condattr_t monotonic;
    pthread_mutex_init(&queue->lock, NULL);
    pthread_mutex_init(&queue->finished_lock, NULL);
    pthread_mutex_init(&queue->driver_lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&queue->driver_wanted, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

static void free_parts(struct fdstash_queue *queue)
{
    ring_free(queue->ring);
    workers_free(queue->movers);
    workers_free(queue->flusher);
    if (queue->event_fd >= 0)
        owned_close(queue->event_fd, 1);
    free(queue->slots);
    free(queue->pieces);
    pthread_mutex_destroy(&queue->lock);
    pthread_mutex_destroy(&queue->finished_lock);
    pthread_mutex_destroy(&queue->driver_lock);
    pthread_cond_destroy(&queue->driver_wanted);
    free(queue);
}

static int make_parts(struct fdstash_queue *queue)
{
    uint32_t movers = queue->depth < MOST_MOVERS ? queue->depth : MOST_MOVERS;
    queue->slots = calloc(queue->depth, sizeof(*queue->slots));
    queue->pieces = calloc(queue->depth, sizeof(*queue->pieces));
    queue->movers = workers_new(movers);
    queue->flusher = workers_new(1);
    if (!queue->slots || !queue->pieces || !queue->movers || !queue->flusher)
        return -ENOMEM;
    for (uint32_t i = queue->depth; i-- > 0;) {
        queue->slots[i].id = i;
        queue->slots[i].queue = queue;
        queue->slots[i].next = queue->free_slots;
        queue->free_slots = &queue->slots[i];
        queue->pieces[i].next = queue->free_pieces;
        queue->free_pieces = &queue->pieces[i];
    }
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return -errno;
    queue->event_fd = owned_register(fd);
    return queue->event_fd < 0 ? queue->event_fd : 0;
}

/* A ring has room for all pieces that there can be. */
static int choose_engine(struct fdstash_queue *queue, uint32_t engine, int *why)
{
    *why = 0;
    queue->engine = engine;
    queue->at_once = engine == FDSTASH_ENGINE_AUTO;
    if (engine == FDSTASH_ENGINE_THREADS || engine == FDSTASH_ENGINE_SYNC)
        return 0;
    int rc = ring_new(2 * queue->depth, queue->bound, &queue->ring);
    queue->engine = rc < 0 ? FDSTASH_ENGINE_THREADS : FDSTASH_ENGINE_URING;
    *why = -rc;
    return rc < 0 && engine == FDSTASH_ENGINE_URING ? -EOPNOTSUPP : 0;
}

int fdstash_queue_new(fdstash_image *image, uint32_t depth, uint32_t engine, uint32_t flags,
                      fdstash_queue **out, int *why)
{
    if (depth < 1 || depth > FDSTASH_MAX_DEPTH || engine > FDSTASH_ENGINE_SYNC)
        return -EINVAL;
    fdstash_queue *queue = calloc(1, sizeof(*queue));
    if (!queue)
        return -ENOMEM;
    queue->image = image;
    queue->depth = depth;
    queue->bound = (flags & FDSTASH_QUEUE_BOUND) != 0;
    queue->epoch = owned_epoch();
    queue->event_fd = -1;
    init_locks(queue);
    int rc = make_parts(queue);
    if (rc == 0)
        rc = choose_engine(queue, engine, why);
    if (rc < 0) {
        free_parts(queue);
        return rc;
    }
    queue->pump.run = lend;
    pump_add(&queue->pump);
    queue->listener.fd = queue->event_fd;
    gate_listen(&image->gate, &queue->listener);
    *out = queue;
    return 0;
}

static int is_running(const struct fdstash_queue *queue)
{
    for (uint32_t i = 0; i < queue->depth; i++)
        if (queue->slots[i].state == SLOT_RUNNING || queue->slots[i].state == SLOT_DRIVER)
            return 1;
    return 0;
}

/* Under the lock. */
static int drain(struct fdstash_queue *queue)
{
    struct queue_slot *slot;
    int rc = 0;
    while ((slot = slot_pop(&queue->held)))
        queue_give_back(queue, slot);
    while ((slot = slot_pop(&queue->added)))
        queue_give_back(queue, slot);
    queue_reap(queue);
    while (rc == 0 && is_running(queue))
        rc = queue_sleep(queue, -1);
    return rc;
}

int fdstash_queue_drain(fdstash_queue *queue)
{
    int rc = queue_enter(queue);
    if (rc < 0)
        return rc;
    rc = drain(queue);
    queue_leave(queue);
    return rc;
}

void fdstash_queue_free(fdstash_queue *queue)
{
    /* In a forked child the threads are not there, and the locks may be held. */
    if (!queue || queue->epoch != owned_epoch())
        return;
    fdstash_queue_stop(queue);
    pthread_mutex_lock(&queue->lock);
    while (drain(queue) < 0)
        ;
    pthread_mutex_unlock(&queue->lock);
    gate_unlisten(&queue->image->gate, &queue->listener);
    pump_remove(&queue->pump);
    free_parts(queue);
}

uint32_t fdstash_queue_engine(const fdstash_queue *queue)
{
    return queue->engine;
}

/* ------------------------------------------------------------------- time -- */

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t queue_until(int64_t timeout_ns)
{
    if (timeout_ns <= 0)
        return timeout_ns < 0 ? INT64_MAX : 0;
    int64_t now = now_ns();
    return timeout_ns < INT64_MAX - now ? now + timeout_ns : INT64_MAX;
}

int64_t queue_left(int64_t until_ns)
{
    if (until_ns == INT64_MAX)
        return -1;
    int64_t left = until_ns == 0 ? 0 : until_ns - now_ns();
    return left > 0 ? left : 0;
}

/* --------------------------------------------------------------- requests -- */

int queue_enter(struct fdstash_queue *queue)
{
    if (queue->epoch != owned_epoch())
        return -ESHUTDOWN;
    if (atomic_exchange_explicit(&queue->busy, 1, memory_order_acquire))
        return -EBUSY;
    pthread_mutex_lock(&queue->lock);
    return 0;
}

void queue_leave(struct fdstash_queue *queue)
{
    if (queue->ring && ring_prepared(queue->ring))
        ring_submit(queue->ring);
    if (queue->told && queue->done.first)
        queue_tell(queue);
    pthread_mutex_unlock(&queue->lock);
    atomic_store_explicit(&queue->busy, 0, memory_order_release);
}

static void count_taken(struct fdstash_queue *queue, int32_t by)
{
    uint32_t taken = atomic_load_explicit(&queue->taken, memory_order_relaxed);
    atomic_store_explicit(&queue->taken, taken + (uint32_t)by, memory_order_relaxed);
}

struct queue_slot *queue_take(struct fdstash_queue *queue, const fdstash_request *request)
{
    struct queue_slot *slot = queue->free_slots;
    if (!slot)
        return NULL;
    queue->free_slots = slot->next;
    slot->request = *request;
    slot->batch = NULL;
    count_taken(queue, 1);
    return slot;
}

void queue_give_back(struct fdstash_queue *queue, struct queue_slot *slot)
{
    slot->state = SLOT_FREE;
    slot->next = queue->free_slots;
    queue->free_slots = slot;
    count_taken(queue, -1);
}

static int is_sound(const fdstash_request *request)
{
    if (request->operation > FDSTASH_OP_TRIM)
        return 0;
    if (request->operation <= FDSTASH_OP_WRITE && request->length > FDSTASH_MAX_REQUEST)
        return 0;
    return request->offset <= INT64_MAX && request->length <= INT64_MAX - request->offset;
}

int fdstash_queue_add(fdstash_queue *queue, const fdstash_request *request)
{
    int rc = is_sound(request) ? queue_enter(queue) : -EINVAL;
    if (rc < 0)
        return rc;
    struct queue_slot *slot = queue_take(queue, request);
    rc = slot ? (int)slot->id : -EAGAIN;
    if (slot) {
        slot->state = SLOT_ADDED;
        slot_push(&queue->added, slot);
    }
    pthread_mutex_unlock(&queue->lock);
    atomic_store_explicit(&queue->busy, 0, memory_order_release);
    return rc;
}

void queue_start(struct fdstash_queue *queue, struct queue_slot *slot)
{
    if (slot_start(queue, slot) == -EAGAIN) {
        slot->state = SLOT_HELD;
        slot_push(&queue->held, slot);
    }
}

void queue_start_all(struct fdstash_queue *queue)
{
    struct slot_list waiting = queue->held;
    struct queue_slot *slot;
    queue->held.first = NULL;
    while ((slot = slot_pop(&waiting)))
        queue_start(queue, slot);
    while ((slot = slot_pop(&queue->added)))
        queue_start(queue, slot);
}

int fdstash_queue_submit(fdstash_queue *queue)
{
    int rc = queue_enter(queue);
    if (rc < 0)
        return rc;
    queue_start_all(queue);
    rc = (int)atomic_load(&queue->taken);
    queue_leave(queue);
    return rc;
}

uint32_t fdstash_queue_in_flight(const fdstash_queue *queue)
{
    return atomic_load(&queue->taken);
}

/* ---------------------------------------------------------------- waiting -- */

void queue_tell(struct fdstash_queue *queue)
{
    if (atomic_load(&queue->listening))
        eventfd_write(queue->event_fd, 1);
}

static void reap_finished(struct fdstash_queue *queue)
{
    pthread_mutex_lock(&queue->finished_lock);
    struct queue_piece *piece = queue->finished_pieces;
    struct queue_slot *slot = queue->finished_slots;
    queue->finished_pieces = NULL;
    queue->finished_slots = NULL;
    pthread_mutex_unlock(&queue->finished_lock);
    while (piece) {
        struct queue_piece *next = piece->next;
        queue->with_workers--;
        piece_done(queue, piece, piece->result, 1);
        piece = next;
    }
    while (slot) {
        struct queue_slot *next = slot->next;
        if (slot->state == SLOT_DRIVER)
            queue->with_driver--;
        else
            queue->with_workers--;
        if (slot->state == SLOT_RUNNING && slot->result == -FDSTASH_NEEDS) {
            slot->result = 0;
            slot->needs_driver = 1;
        }
        slot_finish(queue, slot);
        slot = next;
    }
}

void queue_refresh(struct fdstash_queue *queue)
{
    uint64_t changes = hostfile_changes();
    if (queue->ring && queue->changes != changes) {
        queue->changes = changes;
        ring_forget_files(queue->ring);
    }
}

void queue_reap(struct fdstash_queue *queue)
{
    struct ring_done done[REAP_BATCH];
    unsigned count = REAP_BATCH;
    while (queue->in_ring > 0 && count == REAP_BATCH) {
        count = ring_reap(queue->ring, !(queue->lending && queue->bound), done, REAP_BATCH);
        queue->in_ring -= count;
        for (unsigned i = 0; i < count; i++)
            piece_done(queue, done[i].cookie, done[i].result, 0);
    }
    if (queue->with_workers + queue->with_driver > 0)
        reap_finished(queue);
}

int fdstash_queue_pin(fdstash_queue *queue, void *memory, uint64_t length)
{
    int rc = queue_enter(queue);
    if (rc < 0)
        return rc;
    if (queue->ring)
        rc = ring_pin(queue->ring, memory, length);
    queue_leave(queue);
    return rc;
}

static int is_driver_missing(struct fdstash_queue *queue)
{
    pthread_mutex_lock(&queue->driver_lock);
    int missing = queue->driver.first && !queue->driver_known && !queue->driver_stopped;
    pthread_mutex_unlock(&queue->driver_lock);
    return missing;
}

static int poll_for(struct fdstash_queue *queue, int with_ring, int64_t timeout_ns)
{
    struct pollfd fds[2] = {{queue->event_fd, POLLIN, 0},
                            {with_ring ? ring_fd(queue->ring) : -1, POLLIN, 0}};
    struct timespec limit = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    int rc = ppoll(fds, 2, timeout_ns < 0 ? NULL : &limit, NULL);
    if (rc < 0)
        return -errno;
    return rc == 0 ? -ETIMEDOUT : 0;
}

static int has_finished(struct fdstash_queue *queue)
{
    pthread_mutex_lock(&queue->finished_lock);
    int has = queue->finished_pieces || queue->finished_slots;
    pthread_mutex_unlock(&queue->finished_lock);
    return has;
}

int queue_sleep(struct fdstash_queue *queue, int64_t timeout_ns)
{
    int others = queue->with_workers + queue->with_driver > 0 || queue->held.first;
    int in_ring = queue->in_ring > 0;
    int rc = 0;
    if (queue->with_driver > 0 && is_driver_missing(queue))
        return -FDSTASH_NEEDS;
    if (others && in_ring)
        ring_submit(queue->ring);
    queue->sleeping = 1;
    atomic_store(&queue->listening, 1);
    pthread_mutex_unlock(&queue->lock);
    if (!others && in_ring)
        rc = ring_wait(queue->ring, timeout_ns);
    else if (!has_finished(queue))
        rc = poll_for(queue, in_ring, timeout_ns);
    pthread_mutex_lock(&queue->lock);
    queue->sleeping = 0;
    atomic_store(&queue->listening, queue->told);
    eventfd_t ignored;
    if (others)
        eventfd_read(queue->event_fd, &ignored);
    queue_start_all(queue);
    queue_reap(queue);
    return rc;
}

static uint32_t count_done(const struct fdstash_queue *queue, uint32_t enough)
{
    uint32_t count = 0;
    for (const struct queue_slot *slot = queue->done.first; slot && count < enough;
         slot = slot->next)
        count++;
    return count;
}

static uint32_t collect(struct fdstash_queue *queue, fdstash_completion *out, uint32_t capacity)
{
    uint32_t count = 0;
    while (count < capacity && queue->done.first) {
        struct queue_slot *slot = slot_pop(&queue->done);
        out[count].result = slot->result;
        out[count].id = slot->id;
        queue_give_back(queue, slot);
        count++;
    }
    return count;
}

int fdstash_queue_wait(fdstash_queue *queue, uint32_t min, int64_t timeout_ns,
                       fdstash_completion *out, uint32_t capacity)
{
    int rc = queue_enter(queue);
    if (rc < 0)
        return rc;
    int64_t until = queue_until(timeout_ns);
    eventfd_t ignored;
    if (queue->told)
        eventfd_read(queue->event_fd, &ignored);
    queue_start_all(queue);
    queue_reap(queue);
    uint32_t taken = atomic_load(&queue->taken);
    uint32_t enough = min < taken ? min : taken;
    if (enough > capacity)
        enough = capacity;
    while (rc == 0 && count_done(queue, enough) < enough) {
        int64_t left = queue_left(until);
        rc = left == 0 ? -ETIMEDOUT : queue_sleep(queue, left);
    }
    if (rc != -FDSTASH_NEEDS && rc != -EINTR)
        rc = (int)collect(queue, out, capacity);
    queue_leave(queue);
    return rc;
}

int fdstash_queue_fd(fdstash_queue *queue)
{
    if (queue->epoch != owned_epoch())
        return -ESHUTDOWN;
    pthread_mutex_lock(&queue->lock);
    if (!queue->told) {
        queue->told = 1;
        atomic_store(&queue->listening, 1);
        if (queue->ring)
            ring_tell(queue->ring, queue->event_fd);
        eventfd_write(queue->event_fd, 1);
    }
    pthread_mutex_unlock(&queue->lock);
    return queue->event_fd;
}
