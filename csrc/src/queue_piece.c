/* queue_piece.c: how a piece is moved: at once, by the ring, or by a worker.
 *
 * Where a file system cannot be asked not to wait, a ring hands the request to a
 * thread of the kernel, and a plain system call is much cheaper: for all that is on
 * tmpfs, which has nothing to wait for, and for writes to the page cache, which wait
 * only where the kernel slows writers down. Elsewhere few reads, and all without a
 * ring, ask the page cache first (RWF_NOWAIT) and take another way for what is not
 * there; where that misses again and again, they ask ever more seldom. docs/queue.md
 * has the measurements. */
#include <errno.h>
#include <unistd.h>

#include "queue.h"

enum { MOST_SKIPPED = 64 };

/* Requests in flight, from which on a ring costs less than calls. */
enum { FOR_RING = 4 };

static int is_write(const struct queue_piece *piece)
{
    return piece->slot->request.operation == FDSTASH_OP_WRITE;
}

static int rwf_flags(const struct queue_piece *piece)
{
    return is_write(piece) && piece->slot->write.durable ? RWF_DSYNC : 0;
}

/* What waits for whatever there is to wait for, on any thread: bytes, or -errno. */
static int64_t move(struct queue_piece *piece)
{
    fdstash_iovec iov = {piece->memory, piece->length};
    struct iov_cursor at = {&iov, 1, 0};
    return is_write(piece)
               ? hostfile_writev(piece->file, &at, piece->length, piece->offset, rwf_flags(piece))
               : hostfile_readv(piece->file, &at, piece->length, piece->offset);
}

void piece_run(struct queue_piece *piece)
{
    struct fdstash_queue *queue = piece->slot->queue;
    piece->result = move(piece);
    pthread_mutex_lock(&queue->finished_lock);
    piece->next = queue->finished_pieces;
    queue->finished_pieces = piece;
    pthread_mutex_unlock(&queue->finished_lock);
    queue_tell(queue);
}

static void run_job(struct job *job)
{
    piece_run((struct queue_piece *)job);
}

void piece_release_range(struct queue_piece *piece)
{
    if (piece->ranged)
        range_release(&piece->file->ranges, &piece->range);
    piece->ranged = 0;
}

void piece_to_worker(struct fdstash_queue *queue, struct queue_piece *piece)
{
    piece_release_range(piece);
    piece->job.run = run_job;
    queue->with_workers++;
    workers_give(queue->movers, &piece->job);
}

/* What a write of the file must hold while it is under way (hostfile_writev). */
static int take_range(struct queue_piece *piece)
{
    uint64_t start, end;
    hostfile_write_range(piece->length, piece->offset, &start, &end);
    int rc = range_try_acquire(&piece->file->ranges, &piece->range, start, end);
    piece->ranged = rc == 0;
    return rc;
}

static int64_t move_plainly(const struct queue_piece *piece)
{
    off_t offset = (off_t)piece->offset;
    ssize_t rc = is_write(piece) ? pwrite(piece->file->slot, piece->memory, piece->length, offset)
                                 : pread(piece->file->slot, piece->memory, piece->length, offset);
    return rc < 0 ? -errno : rc;
}

/* Bytes that are in the page cache: fewer than asked for, or -EAGAIN, where some are not. */
static int64_t read_cached(struct fdstash_queue *queue, const struct queue_piece *piece)
{
    struct iovec iov = {piece->memory, piece->length};
    if (queue->skip > 0) {
        queue->skip--;
        return -EAGAIN;
    }
    ssize_t rc = preadv2(piece->file->slot, &iov, 1, (off_t)piece->offset, RWF_NOWAIT);
    if (rc == (ssize_t)piece->length) {
        queue->misses = 0;
        return rc;
    }
    int64_t moved = rc < 0 ? -errno : rc;
    if (queue->misses < MOST_SKIPPED)
        queue->misses = queue->misses ? queue->misses * 2 : 1;
    queue->skip = queue->misses;
    return moved;
}

/* Requests that are in flight, or could be: those of a batch that are done at once never
 * are many. */
static uint64_t in_flight(const struct fdstash_queue *queue, const struct queue_piece *piece)
{
    const struct fdstash_batch *batch = piece->slot->batch;
    uint64_t taken = atomic_load_explicit(&queue->taken, memory_order_relaxed);
    uint64_t more = batch ? batch->count - batch->next : 0;
    return more < queue->depth - taken ? taken + more : queue->depth;
}

/* All of it, part of it, or -errno: then another way is to be taken. */
static int64_t move_cached(struct fdstash_queue *queue, const struct queue_piece *piece)
{
    if (is_write(piece) || piece->file->memory)
        return move_plainly(piece);
    return queue->ring && in_flight(queue, piece) >= FOR_RING ? -EAGAIN : read_cached(queue, piece);
}

static int is_direct(const struct queue_piece *piece)
{
    return atomic_load_explicit(&piece->file->direct, memory_order_relaxed) != 0;
}

/* Whether it is for the page cache. A file system that is memory has nothing else, whatever
 * O_DIRECT says; its io_uring would give each such request to a thread. */
static int is_cached(const struct queue_piece *piece)
{
    return !is_direct(piece) || piece->file->memory;
}

void piece_issue(struct fdstash_queue *queue, struct queue_piece *piece)
{
    if (queue->engine == FDSTASH_ENGINE_SYNC && !queue->at_once && !queue->lending) {
        piece_done(queue, piece, move(piece), 1);
        return;
    }
    if (!hostfile_fits(piece->file, piece->memory, piece->length, piece->offset) ||
        (is_write(piece) && take_range(piece) < 0)) {
        piece_to_worker(queue, piece);
        return;
    }
    if (queue->at_once && is_cached(piece) && !rwf_flags(piece)) {
        int64_t moved = move_cached(queue, piece);
        if (moved == (int64_t)piece->length) {
            piece_done(queue, piece, moved, 0);
            return;
        }
        if (moved > 0) {
            piece->memory += moved;
            piece->offset += (uint64_t)moved;
            piece->length -= (uint64_t)moved;
        }
    }
    if (queue->ring && !queue->lending)
        queue_refresh(queue);
    int direct = is_direct(piece);
    struct ring_request request = {
        .memory = piece->memory,
        .length = piece->length,
        .offset = piece->offset,
        .fd = piece->file->slot,
        .write = is_write(piece),
        .rwf_flags = rwf_flags(piece),
        .direct = direct,
    };
    if (!queue->ring || queue->lending || ring_prepare(queue->ring, &request, piece) < 0) {
        piece_to_worker(queue, piece);
    } else {
        piece->in_ring = 1;
        queue->in_ring++;
        /* In a batch the device would wait for the last to be prepared, and the block layer
         * make one request of neighbours where the device can do several. */
        if (direct)
            ring_submit(queue->ring);
    }
}
