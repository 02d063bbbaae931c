/* pump.c: the pumps of this process, and waiting beside them. */
#include "pump.h"

#include <errno.h>
#include <stdatomic.h>
#include <time.h>

enum { EVERY_NS = 1000000 };

static pthread_mutex_t pumps_lock = PTHREAD_MUTEX_INITIALIZER;
static struct pump *pumps;
static _Atomic unsigned pump_count;

/* A forked child has none of the parent's threads, and so none of its queues. */
static void forget_all(void)
{
    pthread_mutex_init(&pumps_lock, NULL);
    pumps = NULL;
    atomic_store(&pump_count, 0);
}

static void look_after_forks(void)
{
    pthread_atfork(NULL, NULL, forget_all);
}

void pump_add(struct pump *pump)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, look_after_forks);
    pthread_mutex_lock(&pumps_lock);
    pump->prev = NULL;
    pump->next = pumps;
    if (pumps)
        pumps->prev = pump;
    pumps = pump;
    atomic_fetch_add(&pump_count, 1);
    pthread_mutex_unlock(&pumps_lock);
}

void pump_remove(struct pump *pump)
{
    pthread_mutex_lock(&pumps_lock);
    if (pump->prev)
        pump->prev->next = pump->next;
    else
        pumps = pump->next;
    if (pump->next)
        pump->next->prev = pump->prev;
    atomic_fetch_sub(&pump_count, 1);
    pthread_mutex_unlock(&pumps_lock);
}

void pump_run_all(void)
{
    if (!atomic_load(&pump_count))
        return;
    pthread_mutex_lock(&pumps_lock);
    for (struct pump *pump = pumps; pump; pump = pump->next)
        pump->run(pump);
    pthread_mutex_unlock(&pumps_lock);
}

static int is_before(const struct timespec *a, const struct timespec *b)
{
    return a->tv_sec != b->tv_sec ? a->tv_sec < b->tv_sec : a->tv_nsec < b->tv_nsec;
}

static struct timespec soon(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_nsec += EVERY_NS;
    if (at.tv_nsec >= 1000000000) {
        at.tv_nsec -= 1000000000;
        at.tv_sec++;
    }
    return at;
}

/* until == NULL: without limit. */
static int wait_beside(pthread_cond_t *changed, pthread_mutex_t *lock, const struct timespec *until)
{
    if (!atomic_load(&pump_count))
        return until ? pthread_cond_timedwait(changed, lock, until)
                     : pthread_cond_wait(changed, lock);
    struct timespec next = soon();
    int last = until && !is_before(&next, until);
    int rc = pthread_cond_timedwait(changed, lock, last ? until : &next);
    if (rc != ETIMEDOUT)
        return rc;
    pthread_mutex_unlock(lock);
    pump_run_all();
    pthread_mutex_lock(lock);
    return last ? ETIMEDOUT : 0;
}

void pump_wait(pthread_cond_t *changed, pthread_mutex_t *lock)
{
    wait_beside(changed, lock, NULL);
}

int pump_wait_until(pthread_cond_t *changed, pthread_mutex_t *lock, const struct timespec *until)
{
    return wait_beside(changed, lock, until);
}
