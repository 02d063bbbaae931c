/* gate.h: counts the requests in flight and can hold new ones, by class. A leaf.
 *
 * A request counts itself in and then looks whether its class is held; whoever
 * holds sets the mask and then looks at the counts. Sequential consistency
 * means that one of the two sees the other. The counts exist twice, for two
 * phases, so that a grace period ends also while new requests keep coming. */
#ifndef FDSTASH_GATE_H
#define FDSTASH_GATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

/* Told, by a write to an eventfd, when held classes are let go. */
struct gate_listener {
    int fd;
    struct gate_listener *prev, *next;
};

#define GATE_CLASSES 4
#define GATE_ALL ((1u << GATE_CLASSES) - 1)

struct gate {
    _Atomic uint32_t held; /* mask of classes */
    _Atomic uint32_t shut; /* for good: new requests get -ESHUTDOWN */
    _Atomic uint32_t phase;
    _Atomic uint64_t generation; /* how often the phase has changed */
    uint32_t in_grace;           /* under the lock: the phase is that of a grace period */
    _Atomic uint32_t watchers;   /* threads that wait for a count to fall */
    _Atomic int64_t active[2][GATE_CLASSES];
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t owner;                 /* of the hold; under the lock */
    struct gate_listener *listeners; /* under the lock */
};

void gate_init(struct gate *gate);
void gate_destroy(struct gate *gate);
/* class is a bit of the mask. Returns a ticket for leave; -ESHUTDOWN; -EDEADLK
 * when the caller's own thread holds the class. Any thread. */
int gate_enter(struct gate *gate, uint32_t class_bit);
/* As gate_enter, but -EAGAIN where that would wait. */
int gate_try_enter(struct gate *gate, uint32_t class_bit);
void gate_leave(struct gate *gate, int ticket, uint32_t class_bit);
void gate_listen(struct gate *gate, struct gate_listener *listener);
void gate_unlisten(struct gate *gate, struct gate_listener *listener);
/* Waits until the class is no longer held. Any thread. */
void gate_wait_open(struct gate *gate, uint32_t class_bit);
/* As fdstash_image_hold and its kin. Owner. */
int gate_hold(struct gate *gate, uint32_t mask, int drain, int64_t timeout_ns);
void gate_release(struct gate *gate);
int gate_grace(struct gate *gate, int64_t timeout_ns);
uint64_t gate_generation(struct gate *gate);
void gate_shut(struct gate *gate);
uint64_t gate_in_flight(struct gate *gate);

#endif
