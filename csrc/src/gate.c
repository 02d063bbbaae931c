/* gate.c: see gate.h for the order of its loads and stores. */
#include "gate.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <time.h>

#include "pump.h"

static int index_of(uint32_t class_bit)
{
    return __builtin_ctz(class_bit);
}

void gate_init(struct gate *gate)
{
    pthread_condattr_t monotonic;
    *gate = (struct gate){0};
    pthread_mutex_init(&gate->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&gate->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

void gate_destroy(struct gate *gate)
{
    pthread_cond_destroy(&gate->changed);
    pthread_mutex_destroy(&gate->lock);
}

static void wake_all(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->lock);
}

void gate_leave(struct gate *gate, int ticket, uint32_t class_bit)
{
    atomic_fetch_sub(&gate->active[ticket][index_of(class_bit)], 1);
    if (atomic_load(&gate->watchers))
        wake_all(gate);
}

void gate_listen(struct gate *gate, struct gate_listener *listener)
{
    pthread_mutex_lock(&gate->lock);
    listener->prev = NULL;
    listener->next = gate->listeners;
    if (gate->listeners)
        gate->listeners->prev = listener;
    gate->listeners = listener;
    pthread_mutex_unlock(&gate->lock);
}

void gate_unlisten(struct gate *gate, struct gate_listener *listener)
{
    pthread_mutex_lock(&gate->lock);
    if (listener->prev)
        listener->prev->next = listener->next;
    else
        gate->listeners = listener->next;
    if (listener->next)
        listener->next->prev = listener->prev;
    pthread_mutex_unlock(&gate->lock);
}

/* Under the lock: something is held no more. */
static void tell_all(struct gate *gate)
{
    pthread_cond_broadcast(&gate->changed);
    for (struct gate_listener *each = gate->listeners; each; each = each->next)
        eventfd_write(each->fd, 1);
}

/* 0, or why the request must not even wait. */
static int wait_while_held(struct gate *gate, uint32_t class_bit)
{
    int rc = 0;
    pthread_mutex_lock(&gate->lock);
    while ((atomic_load(&gate->held) & class_bit) && !atomic_load(&gate->shut)) {
        if (pthread_equal(gate->owner, pthread_self())) {
            rc = -EDEADLK;
            break;
        }
        pthread_cond_wait(&gate->changed, &gate->lock);
    }
    pthread_mutex_unlock(&gate->lock);
    return rc;
}

/* The ticket; -ESHUTDOWN; -EAGAIN: the class is held. */
static int count_in(struct gate *gate, uint32_t class_bit)
{
    int ticket = (int)atomic_load_explicit(&gate->phase, memory_order_relaxed);
    atomic_fetch_add(&gate->active[ticket][index_of(class_bit)], 1);
    uint32_t shut = atomic_load(&gate->shut);
    if (!shut && !(atomic_load(&gate->held) & class_bit))
        return ticket;
    gate_leave(gate, ticket, class_bit);
    return shut ? -ESHUTDOWN : -EAGAIN;
}

int gate_enter(struct gate *gate, uint32_t class_bit)
{
    for (;;) {
        int ticket = count_in(gate, class_bit);
        if (ticket != -EAGAIN)
            return ticket;
        int rc = wait_while_held(gate, class_bit);
        if (rc < 0)
            return rc;
    }
}

int gate_try_enter(struct gate *gate, uint32_t class_bit)
{
    int ticket = count_in(gate, class_bit);
    if (ticket == -EAGAIN) {
        pthread_mutex_lock(&gate->lock);
        if ((atomic_load(&gate->held) & class_bit) && pthread_equal(gate->owner, pthread_self()))
            ticket = -EDEADLK;
        pthread_mutex_unlock(&gate->lock);
    }
    return ticket;
}

void gate_wait_open(struct gate *gate, uint32_t class_bit)
{
    if (atomic_load(&gate->held) & class_bit)
        wait_while_held(gate, class_bit);
}

static int64_t count_of(struct gate *gate, int ticket, uint32_t mask)
{
    int64_t sum = 0;
    for (int i = 0; i < GATE_CLASSES; i++)
        if (mask >> i & 1)
            sum += atomic_load(&gate->active[ticket][i]);
    return sum;
}

static struct timespec deadline_after(int64_t timeout_ns)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_sec += timeout_ns / 1000000000;
    at.tv_nsec += timeout_ns % 1000000000;
    if (at.tv_nsec >= 1000000000) {
        at.tv_nsec -= 1000000000;
        at.tv_sec++;
    }
    return at;
}

/* Waits until no request of the mask is counted under the tickets [first, last].
 * A count is looked at on its own, since what passes through one ticket while
 * the other is looked at is newer than the caller's change, and sees it. */
static int wait_idle(struct gate *gate, int first, int last, uint32_t mask, int64_t timeout_ns)
{
    int rc = 0;
    struct timespec deadline = deadline_after(timeout_ns > 0 ? timeout_ns : 0);
    atomic_fetch_add(&gate->watchers, 1);
    pthread_mutex_lock(&gate->lock);
    for (int ticket = first; ticket <= last && rc == 0; ticket++) {
        while (count_of(gate, ticket, mask) > 0 && rc == 0) {
            if (timeout_ns < 0)
                pump_wait(&gate->changed, &gate->lock);
            else
                rc = -pump_wait_until(&gate->changed, &gate->lock, &deadline);
        }
    }
    pthread_mutex_unlock(&gate->lock);
    atomic_fetch_sub(&gate->watchers, 1);
    return rc;
}

int gate_hold(struct gate *gate, uint32_t mask, int drain, int64_t timeout_ns)
{
    pthread_mutex_lock(&gate->lock);
    uint32_t before = atomic_load(&gate->held);
    gate->owner = pthread_self();
    atomic_store(&gate->held, before | mask);
    pthread_mutex_unlock(&gate->lock);
    int rc = drain ? wait_idle(gate, 0, 1, mask, timeout_ns) : 0;
    if (rc < 0) {
        pthread_mutex_lock(&gate->lock);
        atomic_store(&gate->held, before);
        tell_all(gate);
        pthread_mutex_unlock(&gate->lock);
    }
    return rc;
}

void gate_release(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    atomic_store(&gate->held, 0);
    tell_all(gate);
    pthread_mutex_unlock(&gate->lock);
}

static void set_in_grace(struct gate *gate, uint32_t in_grace)
{
    pthread_mutex_lock(&gate->lock);
    gate->in_grace = in_grace;
    pthread_mutex_unlock(&gate->lock);
}

static void next_phase(struct gate *gate, uint32_t next)
{
    atomic_store(&gate->phase, next);
    atomic_fetch_add(&gate->generation, 1);
}

int gate_grace(struct gate *gate, int64_t timeout_ns)
{
    set_in_grace(gate, 1);
    uint32_t now = atomic_load(&gate->phase);
    uint32_t next = 1 - now;
    /* Requests of two phases ago first, so that each wait is for a count that
     * only falls. */
    int rc = wait_idle(gate, (int)next, (int)next, GATE_ALL, timeout_ns);
    if (rc == 0) {
        next_phase(gate, next);
        rc = wait_idle(gate, (int)now, (int)now, GATE_ALL, timeout_ns);
    }
    set_in_grace(gate, 0);
    return rc;
}

/* Something that was put out of reach in generation n was in reach of requests
 * counted under either ticket. The step to n + 1 waits for those of one of them,
 * the step to n + 2 for those of the other. */
uint64_t gate_generation(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    uint32_t next = 1 - atomic_load(&gate->phase);
    if (!gate->in_grace && count_of(gate, (int)next, GATE_ALL) == 0)
        next_phase(gate, next);
    pthread_mutex_unlock(&gate->lock);
    return atomic_load(&gate->generation);
}

void gate_shut(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    atomic_store(&gate->shut, 1);
    tell_all(gate);
    pthread_mutex_unlock(&gate->lock);
    wait_idle(gate, 0, 1, GATE_ALL, -1);
}

uint64_t gate_in_flight(struct gate *gate)
{
    int64_t sum = count_of(gate, 0, GATE_ALL) + count_of(gate, 1, GATE_ALL);
    return sum > 0 ? (uint64_t)sum : 0;
}
