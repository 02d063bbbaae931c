/* queue_driver.c: requests that only a driver can serve, on a thread of its own. */
#include <errno.h>
#include <time.h>

#include "owned.h"
#include "queue.h"

static void finish(struct fdstash_queue *queue, struct queue_slot *slot, int64_t result)
{
    slot->result = result;
    pthread_mutex_lock(&queue->finished_lock);
    slot->next = queue->finished_slots;
    queue->finished_slots = slot;
    pthread_mutex_unlock(&queue->finished_lock);
    queue_tell(queue);
}

void queue_to_driver(struct fdstash_queue *queue, struct queue_slot *slot)
{
    slot->state = SLOT_DRIVER;
    queue->with_driver++;
    pthread_mutex_lock(&queue->driver_lock);
    int stopped = queue->driver_stopped, missing = !queue->driver_known;
    if (!stopped) {
        slot_push(&queue->driver, slot);
        pthread_cond_signal(&queue->driver_wanted);
    }
    pthread_mutex_unlock(&queue->driver_lock);
    if (stopped)
        finish(queue, slot, -ESHUTDOWN);
    else if (missing)
        queue_tell(queue); /* whoever polls is to call wait, which says so */
}

int queue_lacks_driver(struct fdstash_queue *queue)
{
    if (queue->with_driver == 0)
        return 0;
    pthread_mutex_lock(&queue->driver_lock);
    int missing = queue->driver.first && !queue->driver_known && !queue->driver_stopped;
    pthread_mutex_unlock(&queue->driver_lock);
    return missing;
}

static struct timespec deadline_after(int64_t timeout_ns)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_sec += timeout_ns / 1000000000;
    at.tv_nsec += timeout_ns % 1000000000;
    if (at.tv_nsec >= 1000000000) {
        at.tv_nsec -= 1000000000;
        at.tv_sec++;
    }
    return at;
}

int fdstash_queue_next(fdstash_queue *queue, int64_t timeout_ns, fdstash_request *request)
{
    struct timespec deadline = deadline_after(timeout_ns > 0 ? timeout_ns : 0);
    struct queue_slot *slot = NULL;
    int rc = 0;
    if (queue->epoch != owned_epoch())
        return -ESHUTDOWN;
    pthread_mutex_lock(&queue->driver_lock);
    /* Who looks and goes away serves what is there, and nothing that comes later. */
    queue->driver_known |= timeout_ns != 0;
    while (rc == 0 && !queue->driver_stopped && !slot) {
        slot = slot_pop(&queue->driver);
        if (!slot && timeout_ns < 0)
            pthread_cond_wait(&queue->driver_wanted, &queue->driver_lock);
        else if (!slot)
            rc = -pthread_cond_timedwait(&queue->driver_wanted, &queue->driver_lock, &deadline);
    }
    pthread_mutex_unlock(&queue->driver_lock);
    if (!slot)
        return rc < 0 ? rc : -ESHUTDOWN;
    *request = slot->request;
    return (int)slot->id;
}

void fdstash_queue_answer(fdstash_queue *queue, uint32_t id, int64_t result)
{
    finish(queue, &queue->slots[id], result);
}

void fdstash_queue_stop(fdstash_queue *queue)
{
    struct queue_slot *slot;
    if (queue->epoch != owned_epoch())
        return;
    pthread_mutex_lock(&queue->driver_lock);
    queue->driver_stopped = 1;
    struct slot_list left = queue->driver;
    queue->driver.first = NULL;
    pthread_cond_broadcast(&queue->driver_wanted);
    pthread_mutex_unlock(&queue->driver_lock);
    while ((slot = slot_pop(&left)))
        finish(queue, slot, -ESHUTDOWN);
}
