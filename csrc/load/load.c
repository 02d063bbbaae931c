/* load.c: requests without pause, or at a rate, through a queue. */
#include "load.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { FIRST_WIDTH_NS = 1000000 };

_Static_assert((int)FDSTASH_LOAD_COUNTERS == (int)HISTOGRAM_COUNTERS, "one layout");

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static struct timespec at_ns(int64_t when)
{
    struct timespec at = {when / 1000000000, when % 1000000000};
    return at;
}

/* ------------------------------------------------------------------- life -- */

static int are_sound(const fdstash_load_plan *plan)
{
    int stamped = plan->generations && !plan->baseline;
    for (uint64_t i = 0; i < plan->blocks; i++) {
        const fdstash_load_cell *cell = &plan->cells[i];
        if (cell->length < 1 || cell->length > plan->block || cell->offset > INT64_MAX ||
            cell->length > INT64_MAX - cell->offset ||
            (stamped && cell->length % FDSTASH_LOAD_STAMP))
            return 0;
    }
    return 1;
}

static int has_sound_places(const fdstash_load_plan *plan)
{
    if (plan->blocks < 1 || plan->blocks > UINT64_C(1) << 32 || plan->block < 1 ||
        plan->block > FDSTASH_MAX_REQUEST)
        return 0;
    if (plan->cells)
        return are_sound(plan);
    if (plan->generations && !plan->baseline && plan->block % FDSTASH_LOAD_STAMP)
        return 0;
    return plan->offset <= INT64_MAX && plan->blocks <= (INT64_MAX - plan->offset) / plan->block;
}

static int is_sound(const fdstash_load_plan *plan)
{
    if (plan->pattern > FDSTASH_LOAD_STRIDED || plan->read_percent > 100 || plan->stride < 1)
        return 0;
    if (plan->depth < 1 || plan->depth > FDSTASH_MAX_DEPTH || !plan->memory)
        return 0;
    if (plan->runtime_ns < 0 || plan->interval_ns < 0 || plan->pause_ns < 0)
        return 0;
    return (plan->generations || !plan->baseline) && has_sound_places(plan);
}

static void init_lock(struct fdstash_load *load)
{
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&load->written, &clock);
    pthread_condattr_destroy(&clock);
    pthread_mutex_init(&load->lock, NULL);
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
    init_lock(load);
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
    pthread_cond_destroy(&load->written);
    free(load);
}

void fdstash_load_stop(fdstash_load *load)
{
    atomic_store(&load->stopped, 1);
}

void fdstash_load_leave(fdstash_load *load)
{
    atomic_store(&load->leaving, 1);
}

void fdstash_load_attach(fdstash_load *load, fdstash_queue *queue)
{
    load->queue = queue;
    load->paused_until = 0;
    atomic_store(&load->leaving, 0);
}

/* --------------------------------------------------------- holding writes -- */

static void end_writes(struct fdstash_load *load, uint32_t count)
{
    if (count == 0 || atomic_fetch_sub(&load->writing, count) != count ||
        !atomic_load(&load->writes_held))
        return;
    pthread_mutex_lock(&load->lock);
    pthread_cond_broadcast(&load->written);
    pthread_mutex_unlock(&load->lock);
}

/* Counts a write as in flight, unless writes are held: whoever holds them sets that first
 * and then looks at the count. */
static int may_write(struct fdstash_load *load)
{
    if (atomic_load(&load->writes_held))
        return 0;
    atomic_fetch_add(&load->writing, 1);
    if (!atomic_load(&load->writes_held))
        return 1;
    end_writes(load, 1);
    return 0;
}

int fdstash_load_hold_writes(fdstash_load *load, int hold, int64_t timeout_ns)
{
    struct timespec until = at_ns(now_ns() + timeout_ns);
    int rc = 0;
    atomic_store(&load->writes_held, hold != 0);
    pthread_mutex_lock(&load->lock);
    while (hold && rc == 0 && atomic_load(&load->writing) > 0)
        rc = pthread_cond_timedwait(&load->written, &load->lock, &until);
    pthread_mutex_unlock(&load->lock);
    return -rc;
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

static int is_leaving(const struct fdstash_load *load)
{
    /* Acquire: the queue to go on with was made before. */
    return atomic_load_explicit(&load->leaving, memory_order_acquire);
}

static int64_t due(const struct fdstash_load *load, int64_t now)
{
    if (load->plan.interval_ns == 0)
        return now;
    return load->totals.started_ns + (int64_t)load->made * load->plan.interval_ns;
}

static void forget_busy(struct fdstash_load *load, const struct load_slot *slot)
{
    if (load->plan.generations && slot->kind != FDSTASH_LOAD_FLUSHES)
        load->plan.generations[slot->block] &= ~(uint32_t)LOAD_BLOCK_BUSY;
}

/* Gives the slot's request to the queue, or takes back what was done for it. */
static int submit(struct fdstash_load *load, struct load_slot *slot, int64_t now)
{
    static const uint32_t operations[] = {FDSTASH_OP_READ, FDSTASH_OP_WRITE, FDSTASH_OP_FLUSH};
    fdstash_request request = {.operation = operations[slot->kind]};
    if (slot->kind != FDSTASH_LOAD_FLUSHES) {
        request.buffer = slot->buffer;
        request.length = load_length(load, slot->block);
        request.offset = load_offset(load, slot->block);
        request.flags = slot->kind == FDSTASH_LOAD_WRITES ? load->plan.flags : 0;
    }
    int id = fdstash_queue_add(load->queue, &request);
    if (id < 0) {
        forget_busy(load, slot);
        end_writes(load, slot->kind == FDSTASH_LOAD_WRITES);
        return 0;
    }
    load->by_id[id] = slot;
    slot->begun = now;
    slot->wrong = 0;
    load->running++;
    load->made += slot->kind != FDSTASH_LOAD_FLUSHES;
    load->since_flush += slot->kind == FDSTASH_LOAD_WRITES;
    return 1;
}

static int chooses_write(struct fdstash_load *load)
{
    uint32_t percent = load->plan.read_percent;
    return percent < 100 && (percent == 0 || (load_random(load) >> 32) % 100 >= percent);
}

/* What the slot is to do; 0: there is nothing. */
static int choose(struct fdstash_load *load, struct load_slot *slot)
{
    const fdstash_load_plan *plan = &load->plan;
    slot->then_write = 0;
    if (plan->flush_every > 0 && load->since_flush >= plan->flush_every) {
        load->since_flush = 0;
        slot->kind = FDSTASH_LOAD_FLUSHES;
        return 1;
    }
    slot->kind = FDSTASH_LOAD_READS;
    slot->block = load_idle_block(load);
    if (slot->block == UINT64_MAX)
        return 0;
    slot->buffer = slot->memory + load_skew(load, slot->block);
    if (!chooses_write(load) || !load_is_writable(load, slot->block))
        return 1;
    if (plan->baseline) {
        slot->then_write = 1;
    } else if (may_write(load)) {
        slot->kind = FDSTASH_LOAD_WRITES;
        if (plan->generations)
            load_fill(load, slot);
    }
    return 1;
}

/* Whether one was begun. */
static int begin(struct fdstash_load *load, int64_t now)
{
    struct load_slot *slot = load->free_slots;
    if (!slot || !choose(load, slot))
        return 0;
    slot->due = slot->kind == FDSTASH_LOAD_FLUSHES ? now : due(load, now);
    if (!submit(load, slot, now))
        return 0;
    load->free_slots = slot->next;
    return 1;
}

/* The writes of what was read; what cannot begin now is dropped. */
static void begin_writes(struct fdstash_load *load, int64_t now)
{
    struct load_slot *slot;
    while ((slot = load->to_write)) {
        load->to_write = slot->next;
        slot->next = NULL;
        slot->due = now;
        if (!is_over(load, now) && !is_leaving(load) && may_write(load)) {
            slot->kind = FDSTASH_LOAD_WRITES;
            if (submit(load, slot, now)) {
                pthread_mutex_lock(&load->lock);
                load_publish(load, slot, NULL);
                load->totals.in_flight = load->running;
                pthread_mutex_unlock(&load->lock);
                continue;
            }
        } else {
            forget_busy(load, slot);
        }
        slot->next = load->free_slots;
        load->free_slots = slot;
    }
}

static void begin_all(struct fdstash_load *load, int64_t now)
{
    begin_writes(load, now);
    const struct load_slot *first = load->free_slots;
    while (!is_over(load, now) && !is_leaving(load) && now >= load->paused_until &&
           due(load, now) <= now && begin(load, now))
        ;
    if (first == load->free_slots)
        return;
    /* The slots of the new ones still hang together as they did when they were free. */
    pthread_mutex_lock(&load->lock);
    load_publish(load, first, load->free_slots);
    load->totals.in_flight = load->running;
    pthread_mutex_unlock(&load->lock);
}

/* ------------------------------------------------------------ completions -- */

/* What they mean for the content, without the lock. Returns how many were writes. */
static uint32_t digest(struct fdstash_load *load, int count)
{
    uint32_t writes = 0;
    for (int i = 0; i < count; i++) {
        struct load_slot *slot = load->by_id[load->done[i].id];
        writes += slot->kind == FDSTASH_LOAD_WRITES;
        if (load->plan.generations && slot->kind != FDSTASH_LOAD_FLUSHES)
            load_check(load, slot, load->done[i].result);
    }
    return writes;
}

/* A slot whose request was counted is free, or writes what it has read. */
static void pass_on(struct fdstash_load *load, struct load_slot *slot)
{
    struct load_slot **list = &load->free_slots;
    if (slot->kind == FDSTASH_LOAD_READS && slot->then_write && !slot->wrong) {
        load->plan.generations[slot->block] |= (uint32_t)LOAD_BLOCK_BUSY;
        list = &load->to_write;
    }
    slot->next = *list;
    *list = slot;
}

static void finish_all(struct fdstash_load *load, int count)
{
    uint32_t writes = digest(load, count);
    int64_t now = now_ns();
    pthread_mutex_lock(&load->lock);
    for (int i = 0; i < count; i++) {
        struct load_slot *slot = load->by_id[load->done[i].id];
        if (!load_record(load, slot, load->done[i].result, now)) {
            load->paused_until = now + load->plan.pause_ns;
            slot->then_write = 0;
        }
        pass_on(load, slot);
    }
    load->running -= (uint32_t)count;
    load->totals.in_flight = load->running;
    load->totals.ended_ns = now;
    pthread_mutex_unlock(&load->lock);
    end_writes(load, writes);
}

/* ---------------------------------------------------------------- running -- */

/* With nothing in flight, until the next is due. */
static int sleep_until(int64_t when)
{
    struct timespec at = at_ns(when);
    return -clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
}

static void start(struct fdstash_load *load, int64_t now)
{
    pthread_mutex_lock(&load->lock);
    load->totals.started_ns = now;
    pthread_mutex_unlock(&load->lock);
}

/* When to look again, if nothing completes: when the next may begin, else at `until`. */
static int64_t wake_at(const struct fdstash_load *load, int64_t now, int64_t until)
{
    if (!load->free_slots || is_over(load, now))
        return until;
    int64_t next = due(load, now);
    if (next < load->paused_until)
        next = load->paused_until;
    return next > now && next < until ? next : until;
}

int fdstash_load_run(fdstash_load *load, int64_t slice_ns)
{
    int64_t now = now_ns(), until = now + slice_ns;
    if (load->totals.started_ns == 0)
        start(load, now);
    for (;; now = now_ns()) {
        begin_all(load, now);
        if (load->running == 0 && is_over(load, now))
            return FDSTASH_LOAD_ENDED;
        if (load->running == 0 && is_leaving(load))
            return FDSTASH_LOAD_LEFT;
        int64_t wake = wake_at(load, now, until);
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
            return FDSTASH_LOAD_GOES_ON;
    }
}
