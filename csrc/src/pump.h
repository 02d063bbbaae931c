/* pump.h: a hand for whoever waits for requests in flight. A leaf.
 *
 * What the kernel has done of a queue's requests counts as in flight until a thread
 * looks. The queue's own thread may be busy with other things, or be the very one
 * that waits: so those who wait look from time to time. */
#ifndef FDSTASH_PUMP_H
#define FDSTASH_PUMP_H

#include <pthread.h>

struct pump {
    void (*run)(struct pump *pump); /* any thread; must not wait for anything */
    struct pump *prev, *next;
};

/* From now on, until pump_remove, the pump may be run by other threads. */
void pump_add(struct pump *pump);
/* Returns when nobody is running it. */
void pump_remove(struct pump *pump);

/* Runs every pump once: for who has changed what queues remember. */
void pump_run_all(void);

/* As pthread_cond_wait on a condition of the monotonic clock, running the pumps that
 * there are once a millisecond, without the lock; may return for no reason. */
void pump_wait(pthread_cond_t *changed, pthread_mutex_t *lock);
/* The same until a moment of the monotonic clock: 0, or ETIMEDOUT. */
int pump_wait_until(pthread_cond_t *changed, pthread_mutex_t *lock, const struct timespec *until);

#endif
