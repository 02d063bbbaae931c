/* load.h: the parts of a load generator, for the files that make it up. */
#ifndef FDSTASH_LOAD_PARTS_H
#define FDSTASH_LOAD_PARTS_H

#include <pthread.h>
#include <stdatomic.h>

#include "fdstash_load.h"
#include "histogram.h"

enum {
    LOAD_TIMES = FDSTASH_LOAD_PLACEBO + 1,
    /* In a block's generation: a request for it is in flight. */
    LOAD_BLOCK_BUSY = INT32_MIN,
    /* A write of it failed: nobody knows what it holds. */
    LOAD_BLOCK_UNKNOWN = INT32_MAX
};

struct load_slot {
    char *memory;   /* of the plan's, for this request */
    char *buffer;   /* where in it the block begins */
    uint64_t block; /* its number; of no flush */
    int64_t due, begun;
    uint32_t kind;  /* enum fdstash_load_kind */
    int wrong;      /* what was read is not what must be there */
    int then_write; /* what was read is to be written */
    uint32_t marks[2];
    struct load_slot *next; /* free, or to be written */
};

struct fdstash_load {
    fdstash_queue *queue;
    fdstash_load_plan plan;
    _Atomic int stopped, leaving, writes_held;
    _Atomic uint32_t writing; /* writes in flight, and one that looks whether it may begin */
    uint64_t random;
    uint64_t next_block, made;
    uint32_t since_flush; /* writes */
    int64_t paused_until;
    uint32_t running;
    struct load_slot *slots, *free_slots, *to_write;
    struct load_slot **by_id; /* of the queue's requests */
    fdstash_completion *done;

    pthread_mutex_t lock;   /* of all below, and of what is in flight; never held while waiting */
    pthread_cond_t written; /* `writing` has become 0 while writes are held */
    uint8_t *in_flight;     /* by slot */
    int watched[2];         /* what begins is marked */
    fdstash_load_totals totals;
    struct histogram times[LOAD_TIMES];
    fdstash_load_interval intervals[FDSTASH_LOAD_INTERVALS];
    int interval_count;
    int64_t width_ns;
};

/* -- place.c: which block, and where it is. The owner of the queue. */

uint64_t load_random(struct fdstash_load *load);
/* A block that no request is using, now busy where blocks are verified; UINT64_MAX: there is
 * none. */
uint64_t load_idle_block(struct fdstash_load *load);
uint64_t load_offset(const struct fdstash_load *load, uint64_t block);
uint64_t load_length(const struct fdstash_load *load, uint64_t block);
/* How far from the start of its memory it begins: what is not whole sectors has no use for
 * aligned memory, and goes through other one where there is room. */
uint64_t load_skew(const struct fdstash_load *load, uint64_t block);
int load_is_writable(const struct fdstash_load *load, uint64_t block);

/* -- content.c: what blocks hold. The owner of the queue. */

/* What is to be written: the next generation. */
void load_fill(struct fdstash_load *load, struct load_slot *slot);
/* What a completion means for the content; the block is no longer busy. */
void load_check(struct fdstash_load *load, struct load_slot *slot, int64_t result);

/* -- record.c: what is counted; under the lock. */

/* Whether it succeeded. */
int load_record(struct fdstash_load *load, struct load_slot *slot, int64_t result, int64_t now);
/* That requests are in flight: from one free slot to another, along `next`. */
void load_publish(struct fdstash_load *load, const struct load_slot *from,
                  const struct load_slot *until);

#endif
