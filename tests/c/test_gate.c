/* The gate: who waits, who is let through, and who is told instead of waiting. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "gate.h"

#define READS 1u
#define WRITES 2u
#define MILLISECOND 1000000

static struct gate gate;
static _Atomic int entered;

static void pause_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_nsec = ms * MILLISECOND}, NULL);
}

static void *enter_write(void *unused)
{
    int ticket = gate_enter(&gate, WRITES);
    if (ticket < 0)
        return (void *)(intptr_t)ticket;
    atomic_fetch_add(&entered, 1);
    gate_leave(&gate, ticket, WRITES);
    return unused;
}

static void a_held_class_waits_and_others_pass(void)
{
    pthread_t thread;
    gate_init(&gate);
    entered = 0;
    CHECK_EQUAL(gate_hold(&gate, WRITES, 1, -1), 0);
    CHECK_EQUAL(pthread_create(&thread, NULL, enter_write, NULL), 0);
    pause_ms(20);
    CHECK_EQUAL(entered, 0);
    int ticket = gate_enter(&gate, READS);
    CHECK(ticket >= 0);
    CHECK_EQUAL(gate_in_flight(&gate), 1);
    gate_leave(&gate, ticket, READS);
    gate_release(&gate);
    pthread_join(thread, NULL);
    CHECK_EQUAL(entered, 1);
    gate_destroy(&gate);
}

static void the_holder_is_told_instead_of_waiting_for_itself(void)
{
    gate_init(&gate);
    CHECK_EQUAL(gate_hold(&gate, WRITES, 1, -1), 0);
    CHECK_EQUAL(gate_enter(&gate, WRITES), -EDEADLK);
    gate_release(&gate);
    gate_destroy(&gate);
}

static void a_hold_that_times_out_leaves_the_gate_open(void)
{
    gate_init(&gate);
    int ticket = gate_enter(&gate, WRITES);
    CHECK_EQUAL(gate_hold(&gate, WRITES, 1, 10 * MILLISECOND), -ETIMEDOUT);
    int second = gate_enter(&gate, WRITES);
    CHECK(second >= 0);
    gate_leave(&gate, second, WRITES);
    gate_leave(&gate, ticket, WRITES);
    CHECK_EQUAL(gate_hold(&gate, WRITES, 1, 10 * MILLISECOND), 0);
    gate_release(&gate);
    gate_destroy(&gate);
}

static void grace_waits_for_requests_of_both_phases(void)
{
    gate_init(&gate);
    int old = gate_enter(&gate, READS);
    CHECK_EQUAL(gate_grace(&gate, 5 * MILLISECOND), -ETIMEDOUT);
    int newer = gate_enter(&gate, READS);
    gate_leave(&gate, old, READS);
    CHECK_EQUAL(gate_grace(&gate, 5 * MILLISECOND), -ETIMEDOUT);
    gate_leave(&gate, newer, READS);
    CHECK_EQUAL(gate_grace(&gate, 0), 0);
    CHECK_EQUAL(gate_grace(&gate, 0), 0);
    gate_destroy(&gate);
}

static void a_shut_gate_refuses_those_that_wait(void)
{
    pthread_t thread;
    void *result;
    gate_init(&gate);
    CHECK_EQUAL(gate_hold(&gate, WRITES, 1, -1), 0);
    CHECK_EQUAL(pthread_create(&thread, NULL, enter_write, NULL), 0);
    pause_ms(10);
    gate_shut(&gate);
    pthread_join(thread, &result);
    CHECK_EQUAL((intptr_t)result, -ESHUTDOWN);
    CHECK_EQUAL(gate_enter(&gate, READS), -ESHUTDOWN);
    gate_destroy(&gate);
}

static int shared_word; /* plain on purpose: the thread sanitizer watches it */
static _Atomic int stop;

static void *writer(void *unused)
{
    while (!stop) {
        int ticket = gate_enter(&gate, WRITES);
        (void)*(volatile int *)&shared_word;
        gate_leave(&gate, ticket, WRITES);
    }
    return unused;
}

static void nobody_is_inside_while_the_class_is_held(void)
{
    pthread_t threads[4];
    gate_init(&gate);
    stop = 0;
    for (int i = 0; i < 4; i++)
        CHECK_EQUAL(pthread_create(&threads[i], NULL, writer, NULL), 0);
    for (int i = 0; i < 2000; i++) {
        CHECK_EQUAL(gate_hold(&gate, WRITES, 1, -1), 0);
        CHECK_EQUAL(atomic_load(&gate.held), WRITES);
        shared_word++;
        gate_release(&gate);
        if (i % 16 == 0)
            CHECK_EQUAL(gate_grace(&gate, 10000LL * MILLISECOND), 0);
    }
    stop = 1;
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    CHECK_EQUAL(gate_in_flight(&gate), 0);
    gate_destroy(&gate);
}

int main(void)
{
    RUN(a_held_class_waits_and_others_pass);
    RUN(the_holder_is_told_instead_of_waiting_for_itself);
    RUN(a_hold_that_times_out_leaves_the_gate_open);
    RUN(grace_waits_for_requests_of_both_phases);
    RUN(a_shut_gate_refuses_those_that_wait);
    RUN(nobody_is_inside_while_the_class_is_held);
    return 0;
}
