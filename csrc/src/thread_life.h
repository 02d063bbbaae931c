/* thread_life.h: whether a thread has ended, which its number does not say for long. A
 * leaf. Any thread. */
#ifndef FDSTASH_THREAD_LIFE_H
#define FDSTASH_THREAD_LIFE_H

struct thread_life;

/* The calling thread's, to be dropped by whoever took it; NULL without memory. */
struct thread_life *thread_life_take(void);
void thread_life_drop(struct thread_life *life);
/* Whether it is the calling thread's. */
int thread_life_is_mine(const struct thread_life *life);
/* Whether the thread is ending, or has ended: it makes no call of this library any more. */
int thread_life_is_over(const struct thread_life *life);

#endif
