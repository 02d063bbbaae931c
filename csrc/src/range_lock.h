/* range_lock.h: keeps overlapping writes to one file apart. One of them may be a
 * read-modify-write; or one bypass the page cache while the other, which began after
 * a switch of O_DIRECT, dirties the page that the first is about to drop: the kernel
 * then tells the next fsync of an I/O error. A leaf. Any thread. */
#ifndef FDSTASH_RANGE_LOCK_H
#define FDSTASH_RANGE_LOCK_H

#include <pthread.h>
#include <stdint.h>

/* A range that a request holds; lives as long as it does. */
struct range {
    uint64_t start;
    uint64_t end; /* exclusive */
    struct range *prev, *next;
};

struct range_lock {
    pthread_mutex_t lock;
    pthread_cond_t freed;
    struct range *held;
    unsigned waiting;
};

void range_lock_init(struct range_lock *locks);
void range_lock_destroy(struct range_lock *locks);
/* Waits while an overlapping range is held. A thread may hold one range of a file
 * at a time. */
void range_acquire(struct range_lock *locks, struct range *range, uint64_t start, uint64_t end);
/* 0; -EAGAIN where range_acquire would wait. A thread may hold any number of ranges
 * that it has got so, while it waits for none. */
int range_try_acquire(struct range_lock *locks, struct range *range, uint64_t start, uint64_t end);
void range_release(struct range_lock *locks, struct range *range);

#endif
