/* aligned_buffer.c: allocation, and a small pool of bounce buffers. */
#include "aligned_buffer.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* More concurrent bounces than this allocate and free; it bounds idle memory. */
#define POOL_SLOTS 8

/* Idle buffers, or NULL. Without a lock: one that another thread holds at a fork
 * would be taken in the child for ever. */
static _Atomic(void *) pool[POOL_SLOTS];

void *fdstash_bounce_get(void)
{
    void *buffer = NULL;
    for (int i = 0; i < POOL_SLOTS && !buffer; i++)
        if (atomic_load_explicit(&pool[i], memory_order_relaxed))
            buffer = atomic_exchange(&pool[i], NULL);
    if (!buffer && posix_memalign(&buffer, FDSTASH_BOUNCE_ALIGNMENT, FDSTASH_BOUNCE_SIZE))
        return NULL;
    return buffer;
}

void fdstash_bounce_put(void *buffer)
{
    for (int i = 0; i < POOL_SLOTS; i++) {
        void *none = NULL;
        if (atomic_compare_exchange_strong(&pool[i], &none, buffer))
            return;
    }
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
