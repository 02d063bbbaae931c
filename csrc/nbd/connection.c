/* connection.c: a connection's life, and what it waits for. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "connection.h"

enum {
    BATCH = 16,         /* requests that are taken up before replies are sent */
    LOOK_EVERY_MS = 100 /* whether it is to be abandoned, once the client is gone */
};

/* ------------------------------------------------------------------- life -- */

static int is_sound(const fdstash_nbd_plan *plan)
{
    return plan->depth >= 1 && plan->depth <= FDSTASH_MAX_DEPTH && plan->largest >= 1 &&
           plan->largest <= FDSTASH_MAX_REQUEST && plan->memory >= plan->largest &&
           plan->early_length <= FDSTASH_NBD_EARLY;
}

int fdstash_nbd_new(fdstash_queue *queue, const fdstash_nbd_plan *plan, fdstash_nbd **out)
{
    if (!is_sound(plan))
        return -EINVAL;
    fdstash_nbd *nbd = calloc(1, sizeof(*nbd));
    if (!nbd)
        return -ENOMEM;
    nbd->image = fdstash_queue_image(queue);
    nbd->queue = queue;
    nbd->plan = *plan;
    nbd->received = malloc(NBD_RECEIVE_SIZE);
    nbd->slots = calloc(plan->depth, sizeof(*nbd->slots));
    nbd->by_id = calloc(FDSTASH_MAX_DEPTH, sizeof(struct nbd_request *));
    nbd->completions = calloc(plan->depth, sizeof(*nbd->completions));
    if (!nbd->received || !nbd->slots || !nbd->by_id || !nbd->completions) {
        fdstash_nbd_free(nbd);
        return -ENOMEM;
    }
    for (uint32_t i = plan->depth; i-- > 0;)
        nbd_give_back(nbd, &nbd->slots[i]);
    if (plan->early_length > 0)
        memcpy(nbd->received, plan->early, plan->early_length);
    nbd->end = plan->early_length;
    nbd->plan.early = NULL;
    *out = nbd;
    return 0;
}

void fdstash_nbd_free(fdstash_nbd *nbd)
{
    if (!nbd)
        return;
    for (uint32_t i = 0; nbd->slots && i < nbd->plan.depth; i++)
        free(nbd->slots[i].buffer);
    free(nbd->received);
    free(nbd->slots);
    free(nbd->by_id);
    free(nbd->completions);
    free(nbd);
}

void fdstash_nbd_stop(fdstash_nbd *nbd, int abandon)
{
    int now = abandon ? NBD_ABANDONS : NBD_STOPS, before = atomic_load(&nbd->stopping);
    while (before < now && !atomic_compare_exchange_weak(&nbd->stopping, &before, now))
        ;
    /* Whoever waits for the client is woken by that. */
    shutdown(nbd->plan.socket, abandon ? SHUT_RDWR : SHUT_RD);
}

/* ---------------------------------------------------------------- running -- */

/* Starts what was begun, and sees to what has completed: how many that were, or
 * -FDSTASH_NEEDS. */
static int collect(struct fdstash_nbd *nbd)
{
    int total = 0;
    while (nbd->running > 0) {
        int count = fdstash_queue_wait(nbd->queue, 0, 0, nbd->completions, nbd->plan.depth);
        if (count == -EINTR)
            continue;
        if (count <= 0)
            return count < 0 ? count : total;
        total += count;
        for (int i = 0; i < count; i++) {
            nbd->running--;
            nbd_completed(nbd, nbd->by_id[nbd->completions[i].id], &nbd->completions[i]);
        }
    }
    return total;
}

static int is_over(const struct fdstash_nbd *nbd)
{
    if (atomic_load_explicit(&nbd->stopping, memory_order_relaxed) == NBD_ABANDONS)
        return 1;
    return nbd->input_ended && !nbd->more && !nbd->stalled && nbd->running == 0 &&
           !nbd->replies.first;
}

/* Until something came, can be sent, or may have completed. */
static void wait_for_any(struct fdstash_nbd *nbd)
{
    short wanted = nbd_may_receive(nbd) ? POLLIN : 0;
    if (nbd->replies.first)
        wanted |= POLLOUT;
    struct pollfd fds[2] = {{nbd->broken && !wanted ? -1 : nbd->plan.socket, wanted, 0},
                            {nbd->running > 0 ? fdstash_queue_fd(nbd->queue) : -1, POLLIN, 0}};
    poll(fds, 2, nbd->broken ? LOOK_EVERY_MS : -1);
    if (fds[0].revents & (POLLHUP | POLLERR | POLLNVAL))
        nbd_break(nbd);
}

static void wait_for_more(struct fdstash_nbd *nbd)
{
    if (nbd->running == 0 && !nbd->replies.first && nbd_may_receive(nbd))
        nbd_receive(nbd, 1);
    else if (!nbd_may_receive(nbd) || !nbd_receive(nbd, 0))
        wait_for_any(nbd);
}

int fdstash_nbd_run(fdstash_nbd *nbd, fdstash_nbd_failure *failure)
{
    for (;;) {
        nbd_parse(nbd, BATCH);
        int collected = collect(nbd);
        if (collected < 0)
            return collected;
        int waiting = nbd->replies.first != NULL;
        nbd_send(nbd);
        if (nbd->failure_waits) {
            nbd->failure_waits = 0;
            *failure = nbd->failure;
            return 1;
        }
        if (is_over(nbd))
            return 0;
        /* What was sent may have made room for what has been received. */
        if (nbd->more || (nbd->stalled && (waiting || collected > 0) && !nbd->replies.first))
            continue;
        wait_for_more(nbd);
    }
}
