/* range_lock.c: a list of the ranges held: as many as there are writes in flight, so
 * that a scan is short. */
#include "range_lock.h"

#include <errno.h>
#include <time.h>

#include "pump.h"

void range_lock_init(struct range_lock *locks)
{
    pthread_condattr_t monotonic;
    pthread_mutex_init(&locks->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&locks->freed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    locks->held = NULL;
    locks->waiting = 0;
}

void range_lock_destroy(struct range_lock *locks)
{
    pthread_cond_destroy(&locks->freed);
    pthread_mutex_destroy(&locks->lock);
}

static int conflicts(const struct range_lock *locks, const struct range *range)
{
    for (const struct range *other = locks->held; other; other = other->next)
        if (range->start < other->end && other->start < range->end)
            return 1;
    return 0;
}

static int acquire(struct range_lock *locks, struct range *range, uint64_t start, uint64_t end,
                   int may_wait)
{
    range->start = start;
    range->end = end;
    pthread_mutex_lock(&locks->lock);
    while (conflicts(locks, range)) {
        if (!may_wait) {
            pthread_mutex_unlock(&locks->lock);
            return -EAGAIN;
        }
        locks->waiting++;
        pump_wait(&locks->freed, &locks->lock);
        locks->waiting--;
    }
    range->prev = NULL;
    range->next = locks->held;
    if (locks->held)
        locks->held->prev = range;
    locks->held = range;
    pthread_mutex_unlock(&locks->lock);
    return 0;
}

void range_acquire(struct range_lock *locks, struct range *range, uint64_t start, uint64_t end)
{
    acquire(locks, range, start, end, 1);
}

int range_try_acquire(struct range_lock *locks, struct range *range, uint64_t start, uint64_t end)
{
    return acquire(locks, range, start, end, 0);
}

void range_release(struct range_lock *locks, struct range *range)
{
    pthread_mutex_lock(&locks->lock);
    if (range->prev)
        range->prev->next = range->next;
    else
        locks->held = range->next;
    if (range->next)
        range->next->prev = range->prev;
    if (locks->waiting)
        pthread_cond_broadcast(&locks->freed);
    pthread_mutex_unlock(&locks->lock);
}
