/* The pool of bounce buffers: no buffer is lent twice, and a forked child can borrow. */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "aligned_buffer.h"
#include "check.h"

#define THREADS 4
#define AS_MANY_AS_ARE_KEPT 8
#define CHILDREN 200
#define HANGS_AFTER 30 /* seconds */

static _Atomic int stop;

static void borrow(uintptr_t me)
{
    uintptr_t *buffer = fdstash_bounce_get();
    CHECK(buffer != NULL);
    buffer[0] = me; /* plain on purpose: the thread sanitizer watches it */
    buffer[FDSTASH_BOUNCE_SIZE / sizeof(*buffer) - 1] = me;
    CHECK_EQUAL(buffer[0], me);
    fdstash_bounce_put(buffer);
}

static void *borrow_until_stopped(void *me)
{
    while (!atomic_load(&stop))
        borrow((uintptr_t)me);
    return NULL;
}

/* So that no thread and no child has to allocate: not every allocator bears a fork. */
static void fill(void)
{
    void *buffers[AS_MANY_AS_ARE_KEPT];
    for (int i = 0; i < AS_MANY_AS_ARE_KEPT; i++)
        buffers[i] = fdstash_bounce_get();
    for (int i = 0; i < AS_MANY_AS_ARE_KEPT; i++)
        fdstash_bounce_put(buffers[i]);
}

static void a_child_borrows_whenever_it_was_forked(void)
{
    pthread_t threads[THREADS];
    fill();
    for (uintptr_t t = 0; t < THREADS; t++)
        CHECK_EQUAL(pthread_create(&threads[t], NULL, borrow_until_stopped, (void *)(t + 1)), 0);
    for (int i = 0; i < CHILDREN; i++) {
        int status;
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            alarm(HANGS_AFTER);
            borrow(THREADS + 1);
            _exit(0);
        }
        CHECK_EQUAL(waitpid(child, &status, 0), child);
        CHECK_EQUAL(status, 0);
    }
    atomic_store(&stop, 1);
    for (int t = 0; t < THREADS; t++)
        pthread_join(threads[t], NULL);
}

/* What is lent at a time, beyond what is kept. */
static void every_buffer_is_lent_once(void)
{
    void *buffers[2 * AS_MANY_AS_ARE_KEPT];
    const int count = 2 * AS_MANY_AS_ARE_KEPT;
    for (int i = 0; i < count; i++) {
        buffers[i] = fdstash_bounce_get();
        CHECK(buffers[i] != NULL);
        CHECK_EQUAL((uintptr_t)buffers[i] % FDSTASH_BOUNCE_ALIGNMENT, 0);
        for (int j = 0; j < i; j++)
            CHECK(buffers[i] != buffers[j]);
    }
    for (int i = 0; i < count; i++)
        fdstash_bounce_put(buffers[i]);
}

int main(void)
{
    RUN(every_buffer_is_lent_once);
    RUN(a_child_borrows_whenever_it_was_forked);
    return 0;
}
