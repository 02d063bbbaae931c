/* queue.h: requests in flight, and the parts that they are made of. Public calls are
 * in fdstash_queue_api.h.
 *
 * A request is counted by the gate from its start to its last part. It is walked
 * through the map like any other, but each run of a file becomes a piece: moved at
 * once, given to the ring, or to a worker thread. Outside of the owner's calls every
 * piece is with the kernel or with a worker, and whoever waits for it, or for the
 * gate, may look what became of it (pump.h): so that a reopen never waits for the
 * owner. */
#ifndef FDSTASH_QUEUE_H
#define FDSTASH_QUEUE_H

#include <pthread.h>
#include <stdatomic.h>

#include "image.h"
#include "pump.h"
#include "ring.h"
#include "workers.h"

/* A part of a request: one run of one file. */
struct queue_piece {
    struct job job; /* on a worker */
    struct queue_slot *slot;
    struct fdstash_file *file;
    char *memory;
    uint64_t length, offset; /* in the file */
    struct range range;
    int ranged;               /* the range is held */
    int in_ring;              /* it is the ring's */
    int64_t result;           /* of a worker: bytes, or -errno */
    struct queue_piece *next; /* free, or finished by a worker */
};

enum slot_state {
    SLOT_FREE,
    SLOT_ADDED,   /* taken up, not started */
    SLOT_HELD,    /* wants to start, and the gate holds its class */
    SLOT_RUNNING, /* counted by the gate */
    SLOT_DRIVER,  /* for the driver, which counts it by itself */
    SLOT_DONE     /* its completion waits to be collected */
};

/* A request. */
struct queue_slot {
    struct job job; /* all but reads and writes, on a worker */
    struct fdstash_queue *queue;
    struct fdstash_request request;
    struct fdstash_batch *batch; /* whose request it is; or NULL */
    struct write_request write;  /* while it runs; ticket and class of a read, too */
    uint64_t length;             /* cut to the image */
    uint64_t planned;            /* bytes for which there were pieces */
    uint32_t outstanding;        /* pieces not done; one more while it is being planned */
    uint32_t state;              /* enum slot_state */
    uint32_t id;
    int planning;
    int needs_driver;
    int zeros;      /* no piece of it was a file's */
    int64_t result; /* the first error; once done, what the completion says */
    struct queue_piece first;
    struct queue_slot *next;
};

struct slot_list {
    struct queue_slot *first, *last;
};

/* A ring that could not be used any more, and the pieces that it had. */
struct lost_ring {
    struct job job;
    struct ring *ring;
    struct queue_piece *pieces;
};

struct fdstash_queue {
    fdstash_image *image;
    uint32_t depth;
    _Atomic uint32_t engine; /* of what waits: io_uring, threads or sync */
    int at_once;             /* cached data is moved in submit */
    int bound;               /* FDSTASH_QUEUE_BOUND */
    uint64_t epoch;          /* of the process that made it */
    _Atomic int busy;        /* a thread is in one of the owner's calls */
    _Atomic uint32_t taken;  /* requests taken up and not collected */

    pthread_mutex_t lock; /* of all below; never held while waiting */
    struct pump pump;
    struct gate_listener listener;
    uint64_t changes;        /* hostfile_changes when the ring last forgot its files */
    struct ring *ring;       /* or NULL: there is none, or it was lost */
    unsigned in_ring;        /* pieces that are the ring's */
    struct workers *movers;  /* of pieces, zero and trim: nothing there waits at the gate */
    struct workers *flusher; /* a flush may wait at the gate */
    struct lost_ring lost;
    unsigned with_workers; /* pieces and slots that are with workers */
    unsigned with_driver;  /* slots that are for the driver */
    int sleeping;          /* the owner waits, and will look by itself */
    int lending;           /* it is a pump that runs: the ring's submission side is the owner's */
    struct slot_list added, held, done;
    struct queue_slot *free_slots;
    struct queue_piece *free_pieces;
    unsigned misses, skip; /* of data that was to be moved at once, see queue_piece.c */

    pthread_mutex_t finished_lock; /* of the lists that workers and the driver fill */
    struct queue_piece *finished_pieces;
    struct queue_slot *finished_slots;
    _Atomic int listening; /* the owner, or who has asked for the eventfd, wants to be told */
    int told;              /* the eventfd was asked for */
    int event_fd;

    pthread_mutex_t driver_lock;
    pthread_cond_t driver_wanted;
    struct slot_list driver; /* under that lock */
    int driver_known;        /* somebody has asked for its requests */
    int driver_stopped;

    struct queue_slot *slots;
    struct queue_piece *pieces;
};

static inline void slot_push(struct slot_list *list, struct queue_slot *slot)
{
    slot->next = NULL;
    if (list->first)
        list->last->next = slot;
    else
        list->first = slot;
    list->last = slot;
}

static inline struct queue_slot *slot_pop(struct slot_list *list)
{
    struct queue_slot *slot = list->first;
    if (slot)
        list->first = slot->next;
    return slot;
}

/* ---- the owner's calls (queue.c, queue_wait.c) ---- */

/* Begins and ends a call of the owner: 0, -EBUSY, -ESHUTDOWN. */
int queue_enter(struct fdstash_queue *queue);
void queue_leave(struct fdstash_queue *queue);
/* A slot for a request; NULL: there are as many as depth. Under the lock, like all
 * that follows. */
struct queue_slot *queue_take(struct fdstash_queue *queue, const fdstash_request *request);
void queue_give_back(struct fdstash_queue *queue, struct queue_slot *slot);
/* Starts a request, or keeps it for when the gate lets it. */
void queue_start(struct fdstash_queue *queue, struct queue_slot *slot);
/* What was added, and what the gate held. */
void queue_start_all(struct fdstash_queue *queue);
/* Lets the ring forget descriptions that a reopen or a close has put out of use. */
void queue_refresh(struct fdstash_queue *queue);
/* Looks what became of what was given away. */
void queue_reap(struct fdstash_queue *queue);
/* Only what a ring has done. */
void queue_reap_ring(struct fdstash_queue *queue, struct ring *ring);
/* Sleeps, without the lock, until something may have become of it: 0, -ETIMEDOUT,
 * -EINTR; -FDSTASH_NEEDS: a request waits for a driver that nobody has begun. */
int queue_sleep(struct fdstash_queue *queue, int64_t timeout_ns);
/* Nanoseconds left until then, at least 0; negative: without limit. */
int64_t queue_left(int64_t until_ns);
int64_t queue_until(int64_t timeout_ns);
/* For those who finish something on another thread: wakes the owner if it sleeps. */
void queue_tell(struct fdstash_queue *queue);

/* ---- requests (queue_request.c) ---- */

/* Starts a request; where the gate holds its class, -EAGAIN and nothing is done. */
int slot_start(struct fdstash_queue *queue, struct queue_slot *slot);
/* A piece is done: bytes, or -errno. by_worker: whatever was short has been seen to. */
void piece_done(struct fdstash_queue *queue, struct queue_piece *piece, int64_t result,
                int by_worker);
/* A request is done, or for the driver. */
void slot_finish(struct fdstash_queue *queue, struct queue_slot *slot);

/* ---- pieces (queue_piece.c) ---- */

/* Moves a piece at once, or gives it to the ring or a worker. */
void piece_issue(struct fdstash_queue *queue, struct queue_piece *piece);
/* To a worker, which waits for whatever is to be waited for. */
void piece_to_worker(struct fdstash_queue *queue, struct queue_piece *piece);
/* What the worker does, on any thread. */
void piece_run(struct queue_piece *piece);
void piece_release_range(struct queue_piece *piece);

/* ---- without the ring (queue_lost.c) ---- */

/* Goes on without the ring, if there is one: a worker waits until the kernel has let go of
 * the ring's pieces, and does them again. */
void queue_lose_ring(struct fdstash_queue *queue);
/* The same if the kernel refuses it, or the thread has ended that it is bound to. */
void queue_lose_useless_ring(struct fdstash_queue *queue);
/* The same if it is bound to another thread than the caller's, which may not use it. */
void queue_lose_ring_of_another(struct fdstash_queue *queue);

/* ---- the driver's side (queue_driver.c) ---- */

void queue_to_driver(struct fdstash_queue *queue, struct queue_slot *slot);
/* Whether a request waits for a driver that nobody has begun. */
int queue_lacks_driver(struct fdstash_queue *queue);

#endif
