/* queue_batch.c: many requests of one size in one call. */
#include <errno.h>

#include "queue.h"

/* Requests after which a caller may look whether it was interrupted. */
enum { A_WHILE = 16384 };

static int is_sound(const fdstash_batch *batch)
{
    return batch->operation <= FDSTASH_OP_WRITE && batch->size <= FDSTASH_MAX_REQUEST &&
           batch->next <= batch->count;
}

/* Begins as many as there is room for, at most depth. */
static void begin_some(struct fdstash_queue *queue, fdstash_batch *batch)
{
    for (uint32_t begun = 0; begun < queue->depth && batch->next < batch->count; begun++) {
        fdstash_request request = {batch->buffer + batch->next * batch->size, batch->size,
                                   (uint64_t)batch->offsets[batch->next], batch->operation,
                                   batch->flags};
        struct queue_slot *slot = queue_take(queue, &request);
        if (!slot)
            break;
        slot->batch = batch;
        batch->next++;
        batch->running++;
        queue_start(queue, slot);
    }
}

int fdstash_queue_run(fdstash_queue *queue, fdstash_batch *batch)
{
    int rc = is_sound(batch) ? queue_enter(queue) : -EINVAL;
    if (rc < 0)
        return rc;
    uint64_t last = batch->next + A_WHILE;
    queue_start_all(queue);
    while (batch->running > 0 || batch->next < batch->count) {
        begin_some(queue, batch);
        queue_reap(queue);
        int room = queue->free_slots != NULL;
        if (batch->running == 0 && batch->next < batch->count && !room)
            rc = -EAGAIN;
        else if (batch->next < batch->count && room)
            rc = batch->next < last ? 0 : -EINTR;
        else if (batch->running > 0)
            rc = queue_sleep(queue, -1);
        if (rc < 0)
            break;
    }
    queue_leave(queue);
    return rc;
}
