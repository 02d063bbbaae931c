/* fdstash_nbd_api.h: every declaration of the NBD server's transmission phase, a library
 * of its own beside the core. The conventions are those of fdstash_api.h. */

typedef struct fdstash_nbd fdstash_nbd;

enum fdstash_nbd_flags {
    FDSTASH_NBD_WRITABLE = 1,   /* else what changes bytes gets EPERM */
    FDSTASH_NBD_STRUCTURED = 2, /* structured replies were negotiated */
    FDSTASH_NBD_ALLOCATION = 4  /* base:allocation was */
};

typedef struct fdstash_nbd_plan {
    int32_t socket;   /* a stream; the caller's, who closes it after fdstash_nbd_free */
    uint32_t flags;   /* enum fdstash_nbd_flags */
    uint32_t depth;   /* requests at once, at most the queue's */
    uint32_t context; /* the id of base:allocation */
    uint32_t largest; /* bytes of a read or write; what is longer is refused */
    uint32_t reserved;
    uint64_t memory;     /* bytes for what is read and written, at least `largest` */
    const void *early;   /* what was received behind the handshake */
    size_t early_length; /* bytes, at most FDSTASH_NBD_EARLY */
} fdstash_nbd_plan;

enum fdstash_nbd_limits { FDSTASH_NBD_EARLY = 65536 };

/* A request that has failed. */
typedef struct fdstash_nbd_failure {
    uint64_t offset;
    uint32_t length;
    uint32_t command; /* NBD_CMD_ */
    int32_t error;    /* errno, positive */
    uint32_t reserved;
} fdstash_nbd_failure;

/* The queue must be empty, serve nothing else, and outlive the connection. -EINVAL. */
int fdstash_nbd_new(fdstash_queue *queue, const fdstash_nbd_plan *plan, fdstash_nbd **out);
/* After fdstash_queue_drain at the latest. */
void fdstash_nbd_free(fdstash_nbd *nbd);
/* Owner of the queue. Serves the client until it goes, breaks the protocol, or is told
 * to: 0. The call is to be made again after 1, when a request has failed (of each command
 * at most ten are told a second), and after -FDSTASH_NEEDS, that of fdstash_queue_wait. */
int fdstash_nbd_run(fdstash_nbd *nbd, fdstash_nbd_failure *failure);
/* Answers what was received and not begun with ESHUTDOWN, finishes what was begun, and
 * ends. abandon: does not wait for the client to take replies. Any thread. */
void fdstash_nbd_stop(fdstash_nbd *nbd, int abandon);
