/* queue_request.c: a request from its start to its completion, as pieces. */
#include <errno.h>
#include <string.h>

#include "queue.h"

static int is_write(const struct queue_slot *slot)
{
    return slot->request.operation == FDSTASH_OP_WRITE;
}

/* ----------------------------------------------------------------- pieces -- */

static struct queue_piece *take_piece(struct fdstash_queue *queue, struct queue_slot *slot)
{
    struct queue_piece *piece = &slot->first;
    if (piece->slot) {
        piece = queue->free_pieces;
        if (!piece)
            return NULL;
        queue->free_pieces = piece->next;
    }
    piece->slot = slot;
    piece->ranged = 0;
    return piece;
}

static void give_piece_back(struct fdstash_queue *queue, struct queue_piece *piece)
{
    struct queue_slot *slot = piece->slot;
    piece->slot = NULL;
    if (piece != &slot->first) {
        piece->next = queue->free_pieces;
        queue->free_pieces = piece;
    }
}

/* The next run of the request: bytes of a file (1), or what needs none (0) and is
 * then done; -FDSTASH_NEEDS; other errors. */
static int next_run(struct queue_slot *slot, struct fdstash_file **file, fdstash_segment *run)
{
    const struct fdstash_layer *layer = slot->write.layer;
    uint64_t offset = slot->request.offset + slot->planned;
    uint64_t rest = slot->length - slot->planned;
    int rc;
    if (is_write(slot)) {
        rc = layer_lookup(layer, offset, rest, run);
        if (rc >= 0)
            rc = image_check_run(run, rc, slot->write.class_bit);
        if (rc == UNALIGNED_AFTER_ALL)
            rc = -FDSTASH_NEEDS;
    } else {
        layer = layer_resolve(layer, offset, rest, run);
        rc = layer ? 0 : -ERANGE;
    }
    if (rc < 0)
        return rc;
    switch (KIND_OF(run) & ~(uint32_t)FDSTASH_COPY) {
    case FDSTASH_DATA:
        *file = layer->files[run->file];
        return 1;
    case FDSTASH_HOLE:
    case FDSTASH_ZERO:
        memset((char *)slot->request.buffer + slot->planned, 0, run->length);
        return 0;
    case FDSTASH_DENIED:
        return -EACCES;
    default:
        return -FDSTASH_NEEDS;
    }
}

/* Makes as many pieces as there is room for. */
static void plan(struct fdstash_queue *queue, struct queue_slot *slot)
{
    slot->planning = 1;
    while (slot->planned < slot->length && slot->result == 0 && !slot->needs_driver) {
        struct queue_piece *piece = take_piece(queue, slot);
        struct fdstash_file *file = NULL;
        fdstash_segment run;
        if (!piece)
            break; /* one of its own is under way, and goes on with this */
        int rc = next_run(slot, &file, &run);
        if (rc < 0) {
            give_piece_back(queue, piece);
            slot->zeros = 0;
            if (rc == -FDSTASH_NEEDS)
                slot->needs_driver = 1;
            else
                slot->result = rc;
            break;
        }
        piece->file = file;
        piece->memory = (char *)slot->request.buffer + slot->planned;
        piece->length = run.length;
        piece->offset = run.file_offset;
        slot->planned += run.length;
        if (rc == 0) {
            give_piece_back(queue, piece);
            continue;
        }
        slot->outstanding++;
        slot->zeros = 0;
        piece_issue(queue, piece);
    }
    slot->planning = 0;
    if (slot->outstanding == 0)
        slot_finish(queue, slot);
}

/* Whether a worker may yet do what was refused. */
static int may_try_again(int64_t result)
{
    return result >= 0 || result == -EINVAL || result == -EAGAIN || result == -EINTR ||
           result == -EOPNOTSUPP || result == -ECANCELED;
}

void piece_done(struct fdstash_queue *queue, struct queue_piece *piece, int64_t result,
                int by_worker)
{
    struct queue_slot *slot = piece->slot;
    if (piece->ranged) {
        if (result < 0 || !slot->write.durable)
            atomic_store(&piece->file->dirty, 1);
        range_release(&piece->file->ranges, &piece->range);
        piece->ranged = 0;
    }
    if (!by_worker && result != (int64_t)piece->length && may_try_again(result)) {
        uint64_t moved = result > 0 ? (uint64_t)result : 0;
        piece->memory += moved;
        piece->offset += moved;
        piece->length -= moved;
        piece_to_worker(queue, piece);
        return;
    }
    /* The file is shorter than when the map was made: bytes are missing. */
    if (result >= 0 && result < (int64_t)piece->length)
        result = -EIO;
    if (result < 0 && slot->result == 0)
        slot->result = result;
    give_piece_back(queue, piece);
    slot->outstanding--;
    if (slot->planning)
        return;
    if (slot->planned < slot->length && slot->result == 0 && !slot->needs_driver)
        plan(queue, slot);
    else if (slot->outstanding == 0)
        slot_finish(queue, slot);
}

/* --------------------------------------------------------------- requests -- */

/* To be collected, or counted in the batch. */
static void complete(struct fdstash_queue *queue, struct queue_slot *slot, int64_t result)
{
    struct fdstash_batch *batch = slot->batch;
    slot->state = SLOT_DONE;
    slot->result = result;
    if (!batch) {
        slot_push(&queue->done, slot);
        return;
    }
    batch->running--;
    if (result >= 0)
        batch->moved += (uint64_t)result;
    else if (batch->error == 0)
        batch->error = result;
    queue_give_back(queue, slot);
}

void slot_finish(struct fdstash_queue *queue, struct queue_slot *slot)
{
    if (slot->state == SLOT_DRIVER) {
        complete(queue, slot, slot->result);
        return;
    }
    if (slot->write.ticket >= 0)
        fdstash_image_leave(queue->image, slot->write.ticket, slot->write.class_bit);
    slot->write.ticket = -1;
    if (slot->result == 0 && slot->needs_driver)
        queue_to_driver(queue, slot);
    else
        complete(queue, slot, slot->result < 0 ? slot->result : (int64_t)slot->length);
}

static int enter(struct fdstash_queue *queue, struct queue_slot *slot, uint32_t class_bit)
{
    slot->write.class_bit = class_bit;
    slot->write.ticket = image_try_enter(queue->image, class_bit);
    return slot->write.ticket < 0 ? slot->write.ticket : 0;
}

static int begin_read(struct fdstash_queue *queue, struct queue_slot *slot)
{
    int rc = enter(queue, slot, FDSTASH_READS);
    if (rc < 0)
        return rc;
    slot->write.layer = atomic_load(&queue->image->layer);
    slot->write.durable = 0;
    uint64_t size = slot->write.layer->size;
    if (slot->request.offset >= size)
        slot->length = 0;
    else if (slot->length > size - slot->request.offset)
        slot->length = size - slot->request.offset;
    return 0;
}

static int begin_write(struct fdstash_queue *queue, struct queue_slot *slot, uint32_t how)
{
    const fdstash_request *request = &slot->request;
    slot->write.ticket = -1;
    int rc = image_begin_write(queue->image, request->length, request->offset, request->flags,
                               how | BEGIN_TRY, &slot->write);
    if (rc < 0) {
        slot->write.ticket = -1;
        return rc;
    }
    if (!is_write(slot))
        return 0;
    rc = image_check_in_place(&slot->write, request->length, request->offset);
    if (rc == UNALIGNED_AFTER_ALL && !how) {
        image_end_write(queue->image, &slot->write);
        return begin_write(queue, slot, BEGIN_UNALIGNED);
    }
    if (rc == UNALIGNED_AFTER_ALL)
        rc = -FDSTASH_NEEDS;
    if (rc == -FDSTASH_NEEDS) {
        slot->needs_driver = 1;
        rc = 0;
    }
    return rc;
}

static int64_t serve(const struct queue_slot *slot)
{
    const fdstash_request *request = &slot->request;
    fdstash_need ignored;
    switch (request->operation) {
    case FDSTASH_OP_FLUSH:
        return image_flush_entered(slot->queue->image);
    case FDSTASH_OP_STATUS:
        return fdstash_image_status_on(slot->queue->image, request->length, request->offset,
                                       request->buffer, &ignored);
    default:
        return image_change_space(&slot->write, request->operation == FDSTASH_OP_TRIM,
                                  request->length, request->offset, request->flags);
    }
}

/* All but reads and writes: on a worker. */
static void run_slot(struct job *job)
{
    struct queue_slot *slot = (struct queue_slot *)job;
    struct fdstash_queue *queue = slot->queue;
    slot->result = serve(slot);
    pthread_mutex_lock(&queue->finished_lock);
    slot->next = queue->finished_slots;
    queue->finished_slots = slot;
    pthread_mutex_unlock(&queue->finished_lock);
    queue_tell(queue);
}

static int begin(struct fdstash_queue *queue, struct queue_slot *slot)
{
    const fdstash_request *request = &slot->request;
    slot->write.ticket = -1;
    if (request->offset > INT64_MAX || request->length > INT64_MAX - request->offset)
        return -EINVAL;
    switch (request->operation) {
    case FDSTASH_OP_READ:
    case FDSTASH_OP_STATUS:
        return begin_read(queue, slot);
    case FDSTASH_OP_FLUSH:
        return enter(queue, slot, FDSTASH_FLUSHES);
    default:
        return begin_write(queue, slot, 0);
    }
}

int slot_start(struct fdstash_queue *queue, struct queue_slot *slot)
{
    slot->length = slot->request.length;
    slot->planned = 0;
    slot->outstanding = 0;
    slot->planning = 0;
    slot->needs_driver = 0;
    slot->zeros = 1;
    slot->result = 0;
    if (slot->request.flags & FDSTASH_MARK) {
        queue_to_driver(queue, slot);
        return 0;
    }
    int rc = begin(queue, slot);
    if (rc == -EAGAIN)
        return rc;
    slot->state = SLOT_RUNNING;
    if (rc < 0)
        slot->result = rc;
    if (slot->request.operation <= FDSTASH_OP_WRITE || rc < 0) {
        plan(queue, slot);
        return 0;
    }
    slot->length = 0;
    slot->job.run = run_slot;
    queue->with_workers++;
    workers_give(slot->request.operation == FDSTASH_OP_FLUSH ? queue->flusher : queue->movers,
                 &slot->job);
    return 0;
}
