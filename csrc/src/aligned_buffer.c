/* aligned_buffer.c: allocation, and a small pool of bounce buffers. */
#include "aligned_buffer.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* More concurrent bounces than this allocate and free; it bounds idle memory. */
#define POOL_SLOTS 8

static struct {
    pthread_mutex_t lock;
    size_t count;
    void *free[POOL_SLOTS];
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER};

void *fdstash_bounce_get(void)
{
    void *buffer = NULL;
    pthread_mutex_lock(&pool.lock);
    if (pool.count > 0)
        buffer = pool.free[--pool.count];
    pthread_mutex_unlock(&pool.lock);
    if (!buffer && posix_memalign(&buffer, FDSTASH_BOUNCE_ALIGNMENT, FDSTASH_BOUNCE_SIZE))
        return NULL;
    return buffer;
}

void fdstash_bounce_put(void *buffer)
{
    pthread_mutex_lock(&pool.lock);
    if (pool.count < POOL_SLOTS) {
        pool.free[pool.count++] = buffer;
        buffer = NULL;
    }
    pthread_mutex_unlock(&pool.lock);
    free(buffer);
}

void *fdstash_buffer_new(size_t size, size_t alignment)
{
    void *buffer = NULL;
    if (alignment < sizeof(void *))
        alignment = sizeof(void *);
    if (posix_memalign(&buffer, alignment, size ? size : 1))
        return NULL;
    memset(buffer, 0, size);
    return buffer;
}

void fdstash_buffer_free(void *buffer)
{
    free(buffer);
}
