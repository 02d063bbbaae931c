/* queue_wait.c: who waits for what became of requests, and how. */
#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <time.h>

#include "owned.h"
#include "queue.h"

enum { REAP_BATCH = 64 };

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

void queue_reap_ring(struct fdstash_queue *queue, struct ring *ring)
{
    struct ring_done done[REAP_BATCH];
    unsigned count = REAP_BATCH;
    while (queue->in_ring > 0 && count == REAP_BATCH) {
        count = ring_reap(ring, done, REAP_BATCH);
        queue->in_ring -= count;
        for (unsigned i = 0; i < count; i++) {
            struct queue_piece *piece = done[i].cookie;
            piece->in_ring = 0;
            piece_done(queue, piece, done[i].result, 0);
        }
    }
}

void queue_reap(struct fdstash_queue *queue)
{
    if (queue->ring) {
        queue_reap_ring(queue, queue->ring);
        queue_lose_useless_ring(queue);
    }
    if (queue->with_workers + queue->with_driver > 0)
        reap_finished(queue);
}

static int poll_for(struct fdstash_queue *queue, int64_t timeout_ns)
{
    struct pollfd event = {queue->event_fd, POLLIN, 0};
    struct timespec limit = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    int rc = ppoll(&event, 1, timeout_ns < 0 ? NULL : &limit, NULL);
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
    if (queue_lacks_driver(queue))
        return -FDSTASH_NEEDS;
    queue->sleeping = 1;
    atomic_store(&queue->listening, 1);
    pthread_mutex_unlock(&queue->lock);
    if (others && has_finished(queue))
        rc = 0;
    else if (in_ring)
        rc = ring_wait(queue->ring, others ? queue->event_fd : -1, timeout_ns);
    else
        rc = poll_for(queue, timeout_ns);
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
        out[count].zeros = (uint32_t)slot->zeros;
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
    if (queue_lacks_driver(queue))
        rc = -FDSTASH_NEEDS;
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
    int rc = 0;
    pthread_mutex_lock(&queue->lock);
    if (!queue->told) {
        if (queue->ring)
            rc = ring_tell(queue->ring, queue->event_fd);
        if (rc < 0 && !queue->sleeping) {
            queue_lose_ring(queue);
            rc = 0;
        }
        if (rc == 0) {
            queue->told = 1;
            atomic_store(&queue->listening, 1);
            eventfd_write(queue->event_fd, 1);
        }
    }
    pthread_mutex_unlock(&queue->lock);
    return rc < 0 ? rc : queue->event_fd;
}
