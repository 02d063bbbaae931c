/* The range lock: no write meets another. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "check.h"
#include "range_lock.h"

#define CELLS 8
#define ROUNDS 20000

static struct range_lock locks;
static long cells[CELLS]; /* plain on purpose: the thread sanitizer watches them */

/* A range over one or two cells adds to them without atomics. */
static void *add(void *seed)
{
    unsigned state = (unsigned)(uintptr_t)seed;
    for (int i = 0; i < ROUNDS; i++) {
        struct range range;
        state = state * 1103515245u + 12345u;
        unsigned first = (state >> 16) % (CELLS - 1);
        unsigned width = 1 + (state >> 24) % 2;
        range_acquire(&locks, &range, first, first + width);
        for (unsigned c = first; c < first + width; c++)
            cells[c]++;
        range_release(&locks, &range);
    }
    return NULL;
}

static void ranges_lose_no_update(void)
{
    pthread_t threads[4];
    long expected = 0;
    long found = 0;
    range_lock_init(&locks);
    memset(cells, 0, sizeof(cells));
    for (uintptr_t t = 0; t < 4; t++) {
        unsigned state = (unsigned)t + 1;
        for (int i = 0; i < ROUNDS; i++) {
            state = state * 1103515245u + 12345u;
            expected += 1 + (state >> 24) % 2;
        }
        CHECK_EQUAL(pthread_create(&threads[t], NULL, add, (void *)(t + 1)), 0);
    }
    for (int t = 0; t < 4; t++)
        pthread_join(threads[t], NULL);
    for (int c = 0; c < CELLS; c++)
        found += cells[c];
    CHECK_EQUAL(found, expected);
    CHECK(locks.held == NULL);
    range_lock_destroy(&locks);
}

static void ranges_that_do_not_overlap_never_wait(void)
{
    struct range a, b, c;
    range_lock_init(&locks);
    range_acquire(&locks, &a, 0, 10);
    range_acquire(&locks, &b, 15, 20);
    range_acquire(&locks, &c, 10, 15);
    range_release(&locks, &b);
    range_release(&locks, &a);
    range_release(&locks, &c);
    range_lock_destroy(&locks);
}

static void who_may_not_wait_is_told_of_an_overlap(void)
{
    struct range a, b;
    range_lock_init(&locks);
    range_acquire(&locks, &a, 0, 10);
    CHECK_EQUAL(range_try_acquire(&locks, &b, 9, 11), -EAGAIN);
    range_release(&locks, &a);
    CHECK_EQUAL(range_try_acquire(&locks, &b, 9, 11), 0);
    range_release(&locks, &b);
    range_lock_destroy(&locks);
}

int main(void)
{
    RUN(ranges_that_do_not_overlap_never_wait);
    RUN(who_may_not_wait_is_told_of_an_overlap);
    RUN(ranges_lose_no_update);
    return 0;
}
