/* aligned_buffer.h: memory for O_DIRECT, and the pool that bounced requests
 * borrow from. A leaf. Any thread, also of a child that was forked meanwhile. */
#ifndef FDSTASH_ALIGNED_BUFFER_H
#define FDSTASH_ALIGNED_BUFFER_H

#include "fdstash.h"

/* The size of a pooled buffer, and so of the largest piece that is bounced at
 * once: large enough to stay sequential on a device, small enough to cache. */
#define FDSTASH_BOUNCE_SIZE ((size_t)1 << 20)
/* No supported device asks for more than a host page. */
#define FDSTASH_BOUNCE_ALIGNMENT ((size_t)4096)

/* FDSTASH_BOUNCE_SIZE bytes, not zeroed; NULL without memory. */
void *fdstash_bounce_get(void);
void fdstash_bounce_put(void *buffer);

#endif
