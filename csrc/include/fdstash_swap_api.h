/* fdstash_swap_api.h: new descriptions for a set of files.
 * The conventions are those of fdstash_api.h.
 *
 * Acquire and check new descriptions for a set of files, then exchange them
 * with the slots. The descriptions wait in a stash; after the exchange that
 * stash holds the old ones, and the same call undoes it. Owner. */

typedef struct fdstash_swap fdstash_swap;

enum fdstash_route {
    FDSTASH_ROUTE_KEEP = 0,  /* the slot is already as wanted */
    FDSTASH_ROUTE_SETFL = 1, /* F_SETFL on the slot */
    FDSTASH_ROUTE_STASH = 2, /* a descriptor that the caller provides */
    FDSTASH_ROUTE_PROC = 4,  /* /proc/self/fd/SLOT */
    FDSTASH_ROUTE_PATH = 8   /* the file's path */
};

enum fdstash_step {
    FDSTASH_STEP_NONE = 0,
    FDSTASH_STEP_OPEN = 1,      /* no new description */
    FDSTASH_STEP_IDENTITY = 2,  /* another file */
    FDSTASH_STEP_MODE = 3,      /* another access mode or O_DIRECT than asked for */
    FDSTASH_STEP_SIZE = 4,      /* shorter than the image needs */
    FDSTASH_STEP_ALIGNMENT = 5, /* O_DIRECT is not borne */
    FDSTASH_STEP_SLOT = 6,      /* the slot is no longer the file it should be */
    FDSTASH_STEP_LIMIT = 7,     /* a number at or above the soft RLIMIT_NOFILE */
    FDSTASH_STEP_SYNC = 8,      /* fsync before the commit, on a remote file system */
    FDSTASH_STEP_EXCHANGE = 9,  /* the exchange itself; undone */
    FDSTASH_STEP_MEMORY = 10
};

typedef struct fdstash_failure {
    int32_t index; /* of the file, or -1 */
    int32_t step;  /* enum fdstash_step */
    int32_t error; /* errno, positive */
    int32_t route; /* enum fdstash_route */
} fdstash_failure;

/* References the files; allocates all that a commit needs. */
int fdstash_swap_new(fdstash_file *const *files, size_t count, fdstash_swap **out);
/* Drops what is held (see finish) and frees. */
void fdstash_swap_free(fdstash_swap *swap);
/* What is wanted of every file: flags is an access mode and perhaps O_DIRECT
 * (files marked READONLY get O_RDONLY instead of O_RDWR); routes is a mask of
 * those that may be used where no descriptor was provided. */
void fdstash_swap_want(fdstash_swap *swap, int flags, uint32_t routes);
/* Overrides for one file: an owned descriptor that the swap takes over, as if
 * it had come by `route`. */
int fdstash_swap_provide(fdstash_swap *swap, size_t index, int fd, uint32_t route);
/* The path of one file, for FDSTASH_ROUTE_PATH; borrowed while the swap lives. */
void fdstash_swap_set_path(fdstash_swap *swap, size_t index, int dirfd, const char *path,
                           int beneath);
/* Acquires and checks everything; on failure drops it all. With may_wait == 0,
 * -EINPROGRESS where a server may have to be waited for: what was acquired is
 * kept, and the call is to be made again, with may_wait, on a thread that can
 * afford to hang. */
int fdstash_swap_acquire(fdstash_swap *swap, int may_wait, fdstash_failure *failure);
/* Proves what the exchange relies on. */
int fdstash_swap_prove(fdstash_swap *swap, fdstash_failure *failure);
/* The commit, and its own inverse. On failure what was done is undone. */
int fdstash_swap_exchange(fdstash_swap *swap, fdstash_failure *failure);
/* Reads through the new description before the exchange: the format's check of
 * its header. Falls back on the slot where the route keeps the description. */
int64_t fdstash_swap_pread(fdstash_swap *swap, size_t index, void *buffer, uint64_t length,
                           uint64_t offset);
/* Asks the old descriptions for errors and latches them in their files. */
void fdstash_swap_settle(fdstash_swap *swap);
/* Closes what the stash holds. close_errors (count entries or NULL) receives
 * what each close said. */
void fdstash_swap_finish(fdstash_swap *swap, int *close_errors);
/* The route taken for each file, one byte each (count entries). */
void fdstash_swap_routes(const fdstash_swap *swap, uint8_t *out);
/* How many files were exchanged or had flags set. */
size_t fdstash_swap_changed(const fdstash_swap *swap);
/* Whether O_DIRECT differs from now for any file, and whether write access is
 * taken away from any; tells which classes the gate must hold. */
uint32_t fdstash_swap_classes(const fdstash_swap *swap);
