/* queue_lost.c: a queue goes on where its ring does not: because a sandbox refuses what it
 * once allowed, for want of memory, or since the thread has ended that the ring was bound to.
 *
 * What the ring had may be done, or not, or half of it, or may yet be done by the kernel. So
 * nobody touches its memory, or releases its ranges, before the kernel has let go; then it is
 * done again, which changes nothing where it had been done. */
#include "queue.h"

static void do_again(struct job *job)
{
    struct lost_ring *lost = (struct lost_ring *)job;
    struct queue_piece *piece = lost->pieces;
    ring_abandon(lost->ring);
    while (piece) {
        struct queue_piece *next = piece->next;
        piece_release_range(piece);
        piece_run(piece);
        piece = next;
    }
}

static void take_over(struct fdstash_queue *queue, struct queue_piece *piece)
{
    if (!piece->in_ring)
        return;
    piece->in_ring = 0;
    piece->next = queue->lost.pieces;
    queue->lost.pieces = piece;
    queue->in_ring--;
    queue->with_workers++;
}

void queue_lose_ring(struct fdstash_queue *queue)
{
    struct ring *ring = queue->ring;
    if (!ring)
        return;
    queue->ring = NULL;
    queue->engine = FDSTASH_ENGINE_THREADS;
    queue_reap_ring(queue, ring);
    if (queue->in_ring == 0) {
        ring_free(ring);
        return;
    }
    for (uint32_t i = 0; i < queue->depth; i++) {
        take_over(queue, &queue->slots[i].first);
        take_over(queue, &queue->pieces[i]);
    }
    queue->lost.ring = ring;
    queue->lost.job.run = do_again;
    workers_give(queue->movers, &queue->lost.job);
}

void queue_lose_useless_ring(struct fdstash_queue *queue)
{
    if (queue->ring && (ring_is_refused(queue->ring) || ring_is_orphaned(queue->ring)))
        queue_lose_ring(queue);
}

void queue_lose_ring_of_another(struct fdstash_queue *queue)
{
    if (queue->ring && ring_is_of_another(queue->ring))
        queue_lose_ring(queue);
}
