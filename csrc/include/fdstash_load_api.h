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
    FDSTASH_LOAD_READ = 2, /* from begun until collected */
    FDSTASH_LOAD_WRITE = 3,
    FDSTASH_LOAD_MARKED = 4, /* begun until collected, of those in flight at a mark */
    FDSTASH_LOAD_PLACEBO = 5 /* the same at a placebo mark */
};

typedef struct fdstash_load fdstash_load;

typedef struct fdstash_load_plan {
    char *memory;          /* depth * block bytes; the caller's */
    uint32_t *generations; /* one for each block, of a verified load; or NULL. See below */
    uint64_t offset;       /* of the guest, where the first block begins */
    uint64_t blocks;       /* 1 to 2^32 */
    uint64_t block;        /* bytes, a multiple of FDSTASH_LOAD_STAMP where verified */
    uint64_t stride;       /* blocks, at least 1 */
    uint64_t requests;     /* no more than those; 0: without limit */
    int64_t runtime_ns;    /* no request begins later; 0: without limit */
    int64_t interval_ns;   /* from one due moment to the next; 0: as fast as can be */
    uint64_t seed;
    uint32_t pattern;      /* enum fdstash_load_pattern */
    uint32_t read_percent; /* the others are writes */
    uint32_t depth;        /* requests at once, at most the queue's */
    uint32_t flags;        /* of writes: enum fdstash_request_flags */
} fdstash_load_plan;

typedef struct fdstash_load_totals {
    uint64_t requests[2]; /* completed: reads, writes */
    uint64_t bytes[2];    /* moved */
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

/* The queue must be empty, outlive the load and serve nothing else meanwhile.
 *
 * generations: 0 is a block of which only the place is verified, and that one generation
 * fills it; what the load writes is counted from there. They may be used again by the
 * next load of the same blocks. -EINVAL: the plan. */
int fdstash_load_new(fdstash_queue *queue, const fdstash_load_plan *plan, fdstash_load **out);
/* After fdstash_queue_drain at the latest. */
void fdstash_load_free(fdstash_load *load);
/* Owner of the queue. Makes requests for about slice_ns: 1, call again; 0, all has been
 * made and collected. -EINTR and -FDSTASH_NEEDS as from fdstash_queue_wait: call again. */
int fdstash_load_run(fdstash_load *load, int64_t slice_ns);
/* No request begins any more. Any thread, as all that follows. */
void fdstash_load_stop(fdstash_load *load);
/* Remembers which requests are in flight now. Returns how many. */
int fdstash_load_mark(fdstash_load *load, int placebo);
void fdstash_load_report(fdstash_load *load, fdstash_load_totals *totals);
/* Copies FDSTASH_LOAD_COUNTERS counters; *max_ns is exact, *sum_ns too. */
void fdstash_load_histogram(fdstash_load *load, uint32_t times, uint64_t *counters,
                            uint64_t *max_ns, uint64_t *sum_ns);
/* Copies the intervals since the start, each *width_ns long; returns how many. */
int fdstash_load_intervals(fdstash_load *load, fdstash_load_interval *out, int64_t *width_ns);
/* The counter of a value, and the lowest value that is counted there. */
uint32_t fdstash_load_counter(uint64_t value_ns);
uint64_t fdstash_load_lowest(uint32_t counter);
