/* fdstash_load_api.h: every declaration of the load generator, a library of its own
 * beside the core. The conventions are those of fdstash_api.h. */

enum fdstash_load_pattern {
    FDSTASH_LOAD_RANDOM = 0,     /* any block, each as likely, again and again */
    FDSTASH_LOAD_SEQUENTIAL = 1, /* the next block, and after the last the first */
    FDSTASH_LOAD_STRIDED = 2 /* `stride` blocks on, and past the end one behind the last start */
};

enum fdstash_load_limits {
    /* Units of 16 bytes in a verified block tell where they are and of which generation. */
    FDSTASH_LOAD_STAMP = 16,
    /* Counters of a histogram, laid out as HdrHistogram's with the lowest value 1, the
     * highest 2^42 - 1 ns (73 minutes) and three significant digits. */
    FDSTASH_LOAD_COUNTERS = 33792,
    FDSTASH_LOAD_INTERVALS = 1024
};

/* What fdstash_load_histogram counts, in nanoseconds. Due: where a rate is given, the
 * moment at which a request had to begin, however late it did; else when it began. */
enum fdstash_load_times {
    FDSTASH_LOAD_READ_DUE = 0, /* from due until collected */
    FDSTASH_LOAD_WRITE_DUE = 1,
    FDSTASH_LOAD_FLUSH = 2, /* from begun until collected */
    FDSTASH_LOAD_READ = 3,
    FDSTASH_LOAD_WRITE = 4,
    FDSTASH_LOAD_MARKED = 5, /* begun until collected, of those in flight at a mark */
    FDSTASH_LOAD_PLACEBO = 6 /* the same at a placebo mark */
};

/* What totals count apart. */
enum fdstash_load_kind {
    FDSTASH_LOAD_READS = 0,
    FDSTASH_LOAD_WRITES = 1,
    FDSTASH_LOAD_FLUSHES = 2,
    FDSTASH_LOAD_KINDS = 3
};

/* What fdstash_load_run returns. */
enum fdstash_load_state {
    FDSTASH_LOAD_ENDED = 0, /* all has been made and collected */
    FDSTASH_LOAD_GOES_ON = 1,
    FDSTASH_LOAD_LEFT = 2 /* nothing is in flight, and nothing begins before attach */
};

typedef struct fdstash_load fdstash_load;

/* A block of its own place and length. Blocks do not overlap. */
typedef struct fdstash_load_cell {
    uint64_t offset;   /* of the guest */
    uint32_t length;   /* bytes, 1 to the plan's block */
    uint32_t writable; /* 0: it is only read */
} fdstash_load_cell;

typedef struct fdstash_load_plan {
    char *memory;                   /* depth * block bytes; the caller's */
    uint32_t *generations;          /* one for each block, of a verified load; or NULL. See below */
    const fdstash_load_cell *cells; /* one for each block; NULL: they follow one another */
    const char *baseline;           /* `block` bytes for each block; or NULL. See below */
    uint64_t offset;                /* of the guest, where the first block begins; not of cells */
    uint64_t blocks;                /* 1 to 2^32 */
    uint64_t block;      /* bytes; lengths are multiples of FDSTASH_LOAD_STAMP where stamped */
    uint64_t stride;     /* blocks, at least 1 */
    uint64_t requests;   /* no more than those; 0: without limit */
    int64_t runtime_ns;  /* no request begins later; 0: without limit */
    int64_t interval_ns; /* from one due moment to the next; 0: as fast as can be */
    int64_t pause_ns;    /* nothing begins for so long after a failure */
    uint64_t seed;
    uint32_t pattern;      /* enum fdstash_load_pattern */
    uint32_t read_percent; /* the others are writes */
    uint32_t depth;        /* requests at once, at most the queue's */
    uint32_t flags;        /* of writes: enum fdstash_request_flags */
    uint32_t flush_every;  /* a flush after so many writes, beyond `requests`; 0: none */
    uint32_t reserved;
} fdstash_load_plan;

typedef struct fdstash_load_totals {
    uint64_t requests[3]; /* completed, by enum fdstash_load_kind */
    uint64_t bytes[2];    /* read, written */
    uint64_t failed;
    uint64_t wrong;         /* blocks read that hold what they must not */
    uint64_t failed_offset; /* of the first that failed */
    uint64_t wrong_offset;  /* of the first that was wrong */
    int64_t error;          /* of the first that failed, -errno */
    int64_t started_ns;     /* CLOCK_MONOTONIC; 0: not yet */
    int64_t ended_ns;       /* when the last was collected */
    uint32_t in_flight;
    uint32_t reserved;
} fdstash_load_totals;

/* Requests that completed in a stretch of time. */
typedef struct fdstash_load_interval {
    uint64_t count;
    uint64_t sum_ns;
    uint64_t max_ns; /* from due until collected */
} fdstash_load_interval;

/* The queue must be empty, outlive the load and serve nothing else meanwhile; cells and
 * baseline outlive it too.
 *
 * generations: 0 is a block of which only the place is verified, and that one generation
 * fills it; what the load writes is counted from there. They may be used again by the
 * next load of the same blocks.
 *
 * baseline: blocks hold these bytes and no others ever, and there are no stamps; needs
 * generations, which count nothing then. What is to be written is read first, and written
 * only if it is what it must be, so that no change of somebody else is undone. -EINVAL:
 * the plan. */
int fdstash_load_new(fdstash_queue *queue, const fdstash_load_plan *plan, fdstash_load **out);
/* After fdstash_queue_drain at the latest. */
void fdstash_load_free(fdstash_load *load);
/* Owner of the queue. Makes requests for about slice_ns, and returns an
 * enum fdstash_load_state: call again while it is not ENDED. -EINTR and -FDSTASH_NEEDS as
 * from fdstash_queue_wait: call again. */
int fdstash_load_run(fdstash_load *load, int64_t slice_ns);
/* Goes on with another queue of at least the plan's depth, as empty as the first had to be:
 * of the image that has come in the place of one that was closed, say, whose queue lets
 * every request fail. The thread that runs the load, when run has returned LEFT; the former
 * queue is then its owner's again. */
void fdstash_load_attach(fdstash_load *load, fdstash_queue *queue);
/* Lets run return LEFT, as soon as what is in flight was collected. Any thread, as all that
 * follows. */
void fdstash_load_leave(fdstash_load *load);
/* No request begins any more. */
void fdstash_load_stop(fdstash_load *load);
/* hold != 0: from now on what would be a write is a read, and those in flight are waited
 * for, at most timeout_ns: 0, or -ETIMEDOUT, with which they are still held. Else writes
 * begin again. */
int fdstash_load_hold_writes(fdstash_load *load, int hold, int64_t timeout_ns);
/* Remembers which requests are in flight now. Returns how many. */
int fdstash_load_mark(fdstash_load *load, int placebo);
/* on != 0: marks, and marks each request that begins until it is called with 0. So each one
 * that is in flight at any instant of that stretch of time is counted once. Returns how many
 * are in flight. */
int fdstash_load_watch(fdstash_load *load, int placebo, int on);
void fdstash_load_report(fdstash_load *load, fdstash_load_totals *totals);
/* Copies FDSTASH_LOAD_COUNTERS counters; *max_ns is exact, *sum_ns too. */
void fdstash_load_histogram(fdstash_load *load, uint32_t times, uint64_t *counters,
                            uint64_t *max_ns, uint64_t *sum_ns);
/* Copies the intervals since the start, each *width_ns long; returns how many. */
int fdstash_load_intervals(fdstash_load *load, fdstash_load_interval *out, int64_t *width_ns);
/* The counter of a value, and the lowest value that is counted there. */
uint32_t fdstash_load_counter(uint64_t value_ns);
uint64_t fdstash_load_lowest(uint32_t counter);
