/* queue.c: a queue's life, and how requests are taken up and started. */
#include "queue.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "owned.h"

enum { MOST_MOVERS = 32 };

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
    if (rc == 0)
        queue_lose_ring(queue);
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
    queue_lose_ring_of_another(queue);
    while (drain(queue) < 0)
        ;
    pthread_mutex_unlock(&queue->lock);
    gate_unlisten(&queue->image->gate, &queue->listener);
    pump_remove(&queue->pump);
    free_parts(queue);
}

fdstash_image *fdstash_queue_image(const fdstash_queue *queue)
{
    return queue->image;
}

uint32_t fdstash_queue_engine(const fdstash_queue *queue)
{
    return queue->engine;
}

/* --------------------------------------------------------------- requests -- */

int queue_enter(struct fdstash_queue *queue)
{
    if (queue->epoch != owned_epoch())
        return -ESHUTDOWN;
    if (atomic_exchange_explicit(&queue->busy, 1, memory_order_acquire))
        return -EBUSY;
    pthread_mutex_lock(&queue->lock);
    queue_lose_ring_of_another(queue);
    return 0;
}

void queue_leave(struct fdstash_queue *queue)
{
    if (queue->ring && ring_prepared(queue->ring)) {
        ring_submit(queue->ring);
        queue_lose_useless_ring(queue);
    }
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
    if (request->operation > FDSTASH_OP_STATUS)
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
    rc = queue_lacks_driver(queue) ? -FDSTASH_NEEDS : (int)atomic_load(&queue->taken);
    queue_leave(queue);
    return rc;
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

uint32_t fdstash_queue_in_flight(const fdstash_queue *queue)
{
    return atomic_load(&queue->taken);
}
