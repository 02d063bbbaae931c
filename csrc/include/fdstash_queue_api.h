/* fdstash_queue_api.h: requests in flight.
 * The conventions are those of fdstash_api.h.
 *
 * Many requests of an image at once. One thread at a time uses a queue: another
 * gets -EBUSY, but for fdstash_queue_fd, _next and _answer, which any thread may
 * call. A buffer belongs to the queue until its completion was collected. */

typedef struct fdstash_queue fdstash_queue;

enum fdstash_engine {
    FDSTASH_ENGINE_AUTO = 0,  /* by plain calls where those cost least, else by the best there is */
    FDSTASH_ENGINE_URING = 1, /* io_uring */
    FDSTASH_ENGINE_THREADS = 2, /* worker threads */
    FDSTASH_ENGINE_SYNC = 3     /* system calls that wait, in submit */
};

enum fdstash_queue_flags {
    /* For the thread alone that submits first. When another one uses the queue, or that
     * thread has ended, the queue goes on without io_uring. */
    FDSTASH_QUEUE_BOUND = 1
};

enum fdstash_queue_limits { FDSTASH_MAX_DEPTH = 4096, FDSTASH_MAX_REQUEST = 1073741824 };

enum fdstash_operation {
    FDSTASH_OP_READ = 0,
    FDSTASH_OP_WRITE = 1,
    FDSTASH_OP_FLUSH = 2,
    FDSTASH_OP_ZERO = 3,
    FDSTASH_OP_TRIM = 4,
    FDSTASH_OP_STATUS = 5 /* fdstash_image_status_on; the buffer is a fdstash_status */
};

typedef struct fdstash_request {
    void *buffer;       /* reads, writes and status */
    uint64_t length;    /* bytes; of reads and writes at most FDSTASH_MAX_REQUEST */
    uint64_t offset;    /* of the guest */
    uint32_t operation; /* enum fdstash_operation */
    uint32_t flags;     /* enum fdstash_request_flags */
} fdstash_request;

typedef struct fdstash_completion {
    int64_t result; /* bytes, as preadv and pwritev return them, or -errno */
    uint32_t id;    /* what fdstash_queue_add returned */
    uint32_t zeros; /* of a read, not 0: no file has bytes for any of it */
} fdstash_completion;

/* Many requests of one size, made by fdstash_queue_run in one call. */
typedef struct fdstash_batch {
    const int64_t *offsets; /* of the guest, count of them */
    char *buffer;           /* count * size bytes, in the order of the offsets */
    uint64_t count;
    uint64_t size;      /* bytes of each */
    uint32_t operation; /* read or write */
    uint32_t flags;     /* enum fdstash_request_flags */
    uint64_t next;      /* of those not begun; set it to count to begin no more */
    uint64_t running;
    uint64_t moved; /* bytes */
    int64_t error;  /* the first, negative, or 0 */
} fdstash_batch;

/* The image must outlive the queue. engine: -EOPNOTSUPP where io_uring is asked
 * for by name and not to be had; *why is its errno then, or for AUTO when it does
 * without. -EINVAL: depth is not 1 to FDSTASH_MAX_DEPTH. */
int fdstash_queue_new(fdstash_image *image, uint32_t depth, uint32_t engine, uint32_t flags,
                      fdstash_queue **out, int *why);
/* Drops what was added and not submitted, or is held by the gate, waits for the rest, and
 * gives io_uring up: 0; -EINTR and -FDSTASH_NEEDS, as from wait: call again. Completions may still
 * be collected. */
int fdstash_queue_drain(fdstash_queue *queue);
/* Drains, drops completions, and frees. Requests that wait for the driver are given up
 * first; no thread may be inside next or answer. */
void fdstash_queue_free(fdstash_queue *queue);
/* Whose queue it is. Any thread. */
fdstash_image *fdstash_queue_image(const fdstash_queue *queue);
/* What moves bytes: enum fdstash_engine, never AUTO; THREADS from when the kernel refuses
 * what it allowed when the queue was made. */
uint32_t fdstash_queue_engine(const fdstash_queue *queue);
/* Takes a request up; nothing starts before submit. Returns its id, below depth,
 * its own until the completion was collected. -EAGAIN: as many as depth are taken
 * up already; -EINVAL. What the request is refused for its completion tells. */
int fdstash_queue_add(fdstash_queue *queue, const fdstash_request *request);
/* Memory that most buffers lie in, until the queue is freed: the kernel then looks its
 * pages up once. Once a queue; -ENOMEM: beyond RLIMIT_MEMLOCK, and other errors, after
 * which all goes on as without. */
int fdstash_queue_pin(fdstash_queue *queue, void *memory, uint64_t length);
/* Starts what was added. Returns how many requests are taken up and not collected.
 * -FDSTASH_NEEDS, as from wait: all was started. */
int fdstash_queue_submit(fdstash_queue *queue);
/* Submits, waits until `min` completions are there, or all that are taken up, or
 * timeout_ns (negative: without limit) are over, and collects at most capacity of
 * them. Returns how many. Nothing was collected with -EINTR, after a signal, and with
 * -FDSTASH_NEEDS, where a request is for the driver and nobody ever waited in next. */
int fdstash_queue_wait(fdstash_queue *queue, uint32_t min, int64_t timeout_ns,
                       fdstash_completion *out, uint32_t capacity);
/* Makes the batch's requests, as many at once as there is room for. 0 when all have
 * completed. -EINTR, now and then, and -FDSTASH_NEEDS, as from wait: call again, also
 * to wait for those that run. -EAGAIN: other requests have taken all the room. */
int fdstash_queue_run(fdstash_queue *queue, fdstash_batch *batch);
/* Requests taken up and not collected. Any thread. */
uint32_t fdstash_queue_in_flight(const fdstash_queue *queue);
/* An eventfd that becomes readable when there may be something to wait for without
 * waiting; wait clears it. It belongs to the queue. Any thread; the first time of a bound
 * queue its own, else -EEXIST. */
int fdstash_queue_fd(fdstash_queue *queue);
/* The driver's side: waits for the next request that only the driver can serve, at
 * most timeout_ns, and fills *request; returns its id. -ETIMEDOUT; -ESHUTDOWN once
 * the queue is stopped. Without a timeout it only looks, and the queue still wants a
 * driver for what comes later. */
int fdstash_queue_next(fdstash_queue *queue, int64_t timeout_ns, fdstash_request *request);
/* Its result. */
void fdstash_queue_answer(fdstash_queue *queue, uint32_t id, int64_t result);
/* Lets fdstash_queue_next return -ESHUTDOWN from now on, and requests for the driver
 * fail with it. */
void fdstash_queue_stop(fdstash_queue *queue);
