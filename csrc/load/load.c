/* load.c: requests without pause, or at a rate, through a queue. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fdstash_load.h"
#include "histogram.h"
#include "stamp.h"

enum {
    TIMES = FDSTASH_LOAD_PLACEBO + 1,
    /* In a block's generation: a request for it is in flight. */
    BLOCK_BUSY = INT32_MIN,
    /* A write of it failed: nobody knows what it holds. */
    BLOCK_UNKNOWN = INT32_MAX,
    FIRST_WIDTH_NS = 1000000
};

_Static_assert((int)FDSTASH_LOAD_COUNTERS == (int)HISTOGRAM_COUNTERS, "one layout");

struct load_slot {
    char *memory;
    uint64_t block; /* its number */
    int64_t due, begun;
    int write;
    int wrong; /* what was read is not what was written */
    uint32_t marks[2];
    struct load_slot *next; /* free */
};

struct fdstash_load {
    fdstash_queue *queue;
    fdstash_load_plan plan;
    _Atomic int stopped;
    uint64_t random;
    uint64_t next_block, made;
    uint32_t running;
    struct load_slot *slots, *free_slots;
    struct load_slot **by_id; /* of the queue's requests */
    fdstash_completion *done;

    pthread_mutex_t lock; /* of all below, and of what is in flight; never held while waiting */
    uint8_t *in_flight;   /* by slot */
    fdstash_load_totals totals;
    struct histogram times[TIMES];
    fdstash_load_interval intervals[FDSTASH_LOAD_INTERVALS];
    int interval_count;
    int64_t width_ns;
};

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* ------------------------------------------------------------------- life -- */

static int is_sound(const fdstash_load_plan *plan)
{
    if (plan->blocks < 1 || plan->blocks > UINT64_C(1) << 32 || plan->block < 1 ||
        plan->block > FDSTASH_MAX_REQUEST || plan->offset > INT64_MAX ||
        plan->blocks > (INT64_MAX - plan->offset) / plan->block)
        return 0;
    if (plan->pattern > FDSTASH_LOAD_STRIDED || plan->read_percent > 100 || plan->stride < 1)
        return 0;
    if (plan->depth < 1 || plan->depth > FDSTASH_MAX_DEPTH || !plan->memory)
        return 0;
    return plan->runtime_ns >= 0 && plan->interval_ns >= 0 &&
           !(plan->generations && plan->block % FDSTASH_LOAD_STAMP);
}

int fdstash_load_new(fdstash_queue *queue, const fdstash_load_plan *plan, fdstash_load **out)
{
    if (!is_sound(plan))
        return -EINVAL;
    fdstash_load *load = calloc(1, sizeof(*load));
    if (!load)
        return -ENOMEM;
    load->queue = queue;
    load->plan = *plan;
    load->random = plan->seed;
    load->width_ns = FIRST_WIDTH_NS;
    pthread_mutex_init(&load->lock, NULL);
    load->slots = calloc(plan->depth, sizeof(*load->slots));
    load->in_flight = calloc(plan->depth, sizeof(*load->in_flight));
    load->by_id = calloc(FDSTASH_MAX_DEPTH, sizeof(struct load_slot *));
    load->done = calloc(plan->depth, sizeof(*load->done));
    if (!load->slots || !load->in_flight || !load->by_id || !load->done) {
        fdstash_load_free(load);
        return -ENOMEM;
    }
    for (uint32_t i = plan->depth; i-- > 0;) {
        load->slots[i].memory = plan->memory + i * plan->block;
        load->slots[i].next = load->free_slots;
        load->free_slots = &load->slots[i];
    }
    *out = load;
    return 0;
}

void fdstash_load_free(fdstash_load *load)
{
    if (!load)
        return;
    free(load->slots);
    free(load->in_flight);
    free(load->by_id);
    free(load->done);
    pthread_mutex_destroy(&load->lock);
    free(load);
}

void fdstash_load_stop(fdstash_load *load)
{
    atomic_store(&load->stopped, 1);
}

/* --------------------------------------------------------------- choosing -- */

/* SplitMix64: short, and good enough for places on a disk. */
static uint64_t next_random(struct fdstash_load *load)
{
    uint64_t z = (load->random += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static uint64_t next_block(struct fdstash_load *load)
{
    const fdstash_load_plan *plan = &load->plan;
    uint64_t block = load->next_block;
    if (plan->pattern == FDSTASH_LOAD_RANDOM)
        return ((next_random(load) >> 32) * plan->blocks) >> 32;
    if (plan->pattern == FDSTASH_LOAD_SEQUENTIAL)
        load->next_block = block + 1 < plan->blocks ? block + 1 : 0;
    else if (block + plan->stride < plan->blocks)
        load->next_block = block + plan->stride;
    else
        load->next_block = (block + 1) % plan->stride % plan->blocks;
    return block;
}

/* A block that no request is using; UINT64_MAX: there is none. */
static uint64_t idle_block(struct fdstash_load *load)
{
    uint64_t block = next_block(load);
    uint32_t *generations = load->plan.generations;
    if (!generations)
        return block;
    for (uint64_t tries = 0; tries < load->plan.blocks; tries++) {
        if (!(generations[block] & (uint32_t)BLOCK_BUSY)) {
            generations[block] |= (uint32_t)BLOCK_BUSY;
            return block;
        }
        block = block + 1 < load->plan.blocks ? block + 1 : 0;
    }
    return UINT64_MAX;
}

static uint32_t generation_of(const struct fdstash_load *load, uint64_t block)
{
    return load->plan.generations[block] & ~(uint32_t)BLOCK_BUSY;
}

/* Generations are 1 to BLOCK_UNKNOWN - 1, round and round. */
static uint32_t generation_after(uint32_t generation)
{
    return generation < BLOCK_UNKNOWN - 1 ? generation + 1 : 1;
}

static uint64_t offset_of(const struct fdstash_load *load, uint64_t block)
{
    return load->plan.offset + block * load->plan.block;
}

/* --------------------------------------------------------------- requests -- */

static int is_over(const struct fdstash_load *load, int64_t now)
{
    const fdstash_load_plan *plan = &load->plan;
    if (atomic_load_explicit(&load->stopped, memory_order_relaxed))
        return 1;
    if (plan->requests > 0 && load->made >= plan->requests)
        return 1;
    return plan->runtime_ns > 0 && now - load->totals.started_ns >= plan->runtime_ns;
}

static int64_t due(const struct fdstash_load *load, int64_t now)
{
    if (load->plan.interval_ns == 0)
        return now;
    return load->totals.started_ns + (int64_t)load->made * load->plan.interval_ns;
}

/* Whether one was begun. */
static int begin(struct fdstash_load *load, int64_t now)
{
    struct load_slot *slot = load->free_slots;
    uint64_t block = slot ? idle_block(load) : UINT64_MAX;
    if (block == UINT64_MAX)
        return 0;
    const fdstash_load_plan *plan = &load->plan;
    slot->write =
        plan->read_percent < 100 &&
        (plan->read_percent == 0 || (next_random(load) >> 32) % 100 >= plan->read_percent);
    fdstash_request request = {slot->memory, plan->block, offset_of(load, block),
                               slot->write ? FDSTASH_OP_WRITE : FDSTASH_OP_READ,
                               slot->write ? plan->flags : 0};
    if (slot->write && plan->generations) {
        uint32_t last = generation_of(load, block);
        last = last == (uint32_t)BLOCK_UNKNOWN ? 0 : last;
        stamp_fill(slot->memory, plan->block, request.offset, generation_after(last));
    }
    int id = fdstash_queue_add(load->queue, &request);
    if (id < 0) {
        if (plan->generations)
            plan->generations[block] &= ~(uint32_t)BLOCK_BUSY;
        return 0;
    }
    load->free_slots = slot->next;
    load->by_id[id] = slot;
    slot->block = block;
    slot->due = due(load, now);
    slot->begun = now;
    slot->wrong = 0;
    load->made++;
    load->running++;
    return 1;
}

/* Under the lock: what was begun may be marked from now on. */
static void publish(struct fdstash_load *load, const struct load_slot *from,
                    const struct load_slot *until)
{
    for (; from != until; from = from->next)
        load->in_flight[from - load->slots] = 1;
}

static void begin_all(struct fdstash_load *load, int64_t now)
{
    const struct load_slot *first = load->free_slots;
    while (!is_over(load, now) && due(load, now) <= now && begin(load, now))
        ;
    if (first == load->free_slots)
        return;
    /* The slots of the new ones still hang together as they did when they were free. */
    pthread_mutex_lock(&load->lock);
    publish(load, first, load->free_slots);
    load->totals.in_flight = load->running;
    pthread_mutex_unlock(&load->lock);
}

/* ------------------------------------------------------------ completions -- */

/* What a completion means for the content; without the lock. */
static void check_content(struct fdstash_load *load, struct load_slot *slot, int64_t result)
{
    const fdstash_load_plan *plan = &load->plan;
    uint32_t last = generation_of(load, slot->block), now = last;
    uint64_t offset = offset_of(load, slot->block);
    if (slot->write) {
        uint32_t before = last == (uint32_t)BLOCK_UNKNOWN ? 0 : last;
        now = result == (int64_t)plan->block ? generation_after(before) : (uint32_t)BLOCK_UNKNOWN;
    } else if (result == (int64_t)plan->block && last != (uint32_t)BLOCK_UNKNOWN) {
        slot->wrong = !stamp_holds(slot->memory, plan->block, offset, last);
    }
    plan->generations[slot->block] = now;
}

static void halve_intervals(struct fdstash_load *load)
{
    for (int i = 0; i < FDSTASH_LOAD_INTERVALS; i += 2) {
        fdstash_load_interval a = load->intervals[i], b = load->intervals[i + 1];
        fdstash_load_interval both = {a.count + b.count, a.sum_ns + b.sum_ns,
                                      a.max_ns > b.max_ns ? a.max_ns : b.max_ns};
        load->intervals[i / 2] = both;
    }
    memset(load->intervals + FDSTASH_LOAD_INTERVALS / 2, 0, sizeof(load->intervals) / 2);
    load->width_ns *= 2;
}

static void record_interval(struct fdstash_load *load, int64_t now, uint64_t took)
{
    int64_t since = now - load->totals.started_ns;
    while (since / load->width_ns >= FDSTASH_LOAD_INTERVALS)
        halve_intervals(load);
    int index = (int)(since / load->width_ns);
    fdstash_load_interval *interval = &load->intervals[index];
    interval->count++;
    interval->sum_ns += took;
    if (took > interval->max_ns)
        interval->max_ns = took;
    load->interval_count = index + 1;
}

static void record_marks(struct fdstash_load *load, struct load_slot *slot, uint64_t took)
{
    for (int placebo = 0; placebo < 2; placebo++) {
        for (; slot->marks[placebo] > 0; slot->marks[placebo]--)
            histogram_record(&load->times[FDSTASH_LOAD_MARKED + placebo], took);
    }
}

/* Under the lock. */
static void record(struct fdstash_load *load, struct load_slot *slot, int64_t result, int64_t now)
{
    fdstash_load_totals *totals = &load->totals;
    uint64_t offset = offset_of(load, slot->block);
    uint64_t took = (uint64_t)(now - slot->begun), since_due = (uint64_t)(now - slot->due);
    load->in_flight[slot - load->slots] = 0;
    if (slot->marks[0] | slot->marks[1])
        record_marks(load, slot, took);
    totals->requests[slot->write]++;
    if (result != (int64_t)load->plan.block) {
        if (totals->failed++ == 0) {
            totals->error = result < 0 ? result : -EIO;
            totals->failed_offset = offset;
        }
        return;
    }
    totals->bytes[slot->write] += (uint64_t)result;
    if (slot->wrong && totals->wrong++ == 0)
        totals->wrong_offset = offset;
    histogram_record(&load->times[FDSTASH_LOAD_READ_DUE + slot->write], since_due);
    if (load->plan.interval_ns > 0)
        histogram_record(&load->times[FDSTASH_LOAD_READ + slot->write], took);
    record_interval(load, now, since_due);
}

static void finish_all(struct fdstash_load *load, int count)
{
    if (load->plan.generations)
        for (int i = 0; i < count; i++)
            check_content(load, load->by_id[load->done[i].id], load->done[i].result);
    int64_t now = now_ns();
    pthread_mutex_lock(&load->lock);
    for (int i = 0; i < count; i++) {
        struct load_slot *slot = load->by_id[load->done[i].id];
        record(load, slot, load->done[i].result, now);
        slot->next = load->free_slots;
        load->free_slots = slot;
    }
    load->running -= (uint32_t)count;
    load->totals.in_flight = load->running;
    load->totals.ended_ns = now;
    pthread_mutex_unlock(&load->lock);
}

/* ---------------------------------------------------------------- running -- */

/* With nothing in flight, until the next is due. */
static int sleep_until(int64_t when)
{
    struct timespec at = {when / 1000000000, when % 1000000000};
    return -clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
}

static void start(struct fdstash_load *load, int64_t now)
{
    pthread_mutex_lock(&load->lock);
    load->totals.started_ns = now;
    pthread_mutex_unlock(&load->lock);
}

int fdstash_load_run(fdstash_load *load, int64_t slice_ns)
{
    int64_t now = now_ns(), until = now + slice_ns;
    if (load->totals.started_ns == 0)
        start(load, now);
    for (;; now = now_ns()) {
        begin_all(load, now);
        int over = is_over(load, now);
        if (over && load->running == 0)
            return 0;
        int64_t wake = until;
        if (!over && load->plan.interval_ns > 0 && load->free_slots && due(load, now) < until)
            wake = due(load, now);
        int rc;
        if (load->running == 0)
            rc = sleep_until(wake);
        else
            rc = fdstash_queue_wait(load->queue, 1, wake > now ? wake - now : 0, load->done,
                                    load->plan.depth);
        if (rc < 0)
            return rc;
        if (load->running > 0 && rc > 0)
            finish_all(load, rc);
        if (now >= until)
            return 1;
    }
}

/* --------------------------------------------------------------- looking -- */

int fdstash_load_mark(fdstash_load *load, int placebo)
{
    int count = 0;
    pthread_mutex_lock(&load->lock);
    for (uint32_t i = 0; i < load->plan.depth; i++) {
        if (load->in_flight[i]) {
            load->slots[i].marks[placebo != 0]++;
            count++;
        }
    }
    pthread_mutex_unlock(&load->lock);
    return count;
}

void fdstash_load_report(fdstash_load *load, fdstash_load_totals *totals)
{
    pthread_mutex_lock(&load->lock);
    *totals = load->totals;
    pthread_mutex_unlock(&load->lock);
}

void fdstash_load_histogram(fdstash_load *load, uint32_t times, uint64_t *counters,
                            uint64_t *max_ns, uint64_t *sum_ns)
{
    /* Without a rate each request is due when it begins. */
    if (load->plan.interval_ns == 0 && (times == FDSTASH_LOAD_READ || times == FDSTASH_LOAD_WRITE))
        times -= FDSTASH_LOAD_READ;
    const struct histogram *histogram = &load->times[times < TIMES ? times : 0];
    pthread_mutex_lock(&load->lock);
    memcpy(counters, histogram->counters, sizeof(histogram->counters));
    *max_ns = histogram->max;
    *sum_ns = histogram->sum;
    pthread_mutex_unlock(&load->lock);
}

int fdstash_load_intervals(fdstash_load *load, fdstash_load_interval *out, int64_t *width_ns)
{
    pthread_mutex_lock(&load->lock);
    int count = load->interval_count;
    memcpy(out, load->intervals, (size_t)count * sizeof(*out));
    *width_ns = load->width_ns;
    pthread_mutex_unlock(&load->lock);
    return count;
}

uint32_t fdstash_load_counter(uint64_t value_ns)
{
    return histogram_counter(value_ns);
}

uint64_t fdstash_load_lowest(uint32_t counter)
{
    return histogram_lowest(counter);
}
