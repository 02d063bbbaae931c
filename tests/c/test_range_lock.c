/* The range lock: a read-modify-write meets no other write. */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "check.h"
#include "range_lock.h"

#define CELLS 8
#define ROUNDS 20000

static struct range_lock locks;
static long cells[CELLS]; /* plain on purpose: the thread sanitizer watches them */

/* An exclusive range over one or two cells adds to them without atomics. */
static void *add(void *seed)
{
    unsigned state = (unsigned)(uintptr_t)seed;
    for (int i = 0; i < ROUNDS; i++) {
        struct range range;
        state = state * 1103515245u + 12345u;
        unsigned first = (state >> 16) % (CELLS - 1);
        unsigned width = 1 + (state >> 24) % 2;
        range_acquire(&locks, &range, first, first + width, 1);
        for (unsigned c = first; c < first + width; c++)
            cells[c]++;
        range_release(&locks, &range);
    }
    return NULL;
}

static void exclusive_ranges_lose_no_update(void)
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

static void shared_ranges_overlap_and_disjoint_ones_never_wait(void)
{
    struct range a, b, c;
    range_lock_init(&locks);
    range_acquire(&locks, &a, 0, 10, 0);
    range_acquire(&locks, &b, 5, 15, 0); /* would wait for ever otherwise */
    range_acquire(&locks, &c, 15, 20, 1);
    range_release(&locks, &b);
    range_release(&locks, &a);
    range_release(&locks, &c);
    CHECK_EQUAL(locks.exclusive, 0);
    range_lock_destroy(&locks);
}

int main(void)
{
    RUN(shared_ranges_overlap_and_disjoint_ones_never_wait);
    RUN(exclusive_ranges_lose_no_update);
    return 0;
}
