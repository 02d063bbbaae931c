/* thread_life.c: a value of each thread, whose destructor says that the thread ends. */
#include "thread_life.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

struct thread_life {
    _Atomic unsigned holders; /* the thread itself is one */
    _Atomic int over;
};

static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static int key_error;

static void end(void *value)
{
    struct thread_life *life = value;
    atomic_store(&life->over, 1);
    thread_life_drop(life);
}

static void make_key(void)
{
    key_error = pthread_key_create(&key, end);
}

struct thread_life *thread_life_take(void)
{
    pthread_once(&key_once, make_key);
    if (key_error)
        return NULL;
    struct thread_life *life = pthread_getspecific(key);
    if (!life) {
        life = calloc(1, sizeof(*life));
        if (!life)
            return NULL;
        atomic_store(&life->holders, 1);
        if (pthread_setspecific(key, life) != 0) {
            free(life);
            return NULL;
        }
    }
    atomic_fetch_add(&life->holders, 1);
    return life;
}

void thread_life_drop(struct thread_life *life)
{
    if (life && atomic_fetch_sub(&life->holders, 1) == 1)
        free(life);
}

int thread_life_is_mine(const struct thread_life *life)
{
    return pthread_getspecific(key) == life;
}

int thread_life_is_over(const struct thread_life *life)
{
    return atomic_load(&life->over);
}
