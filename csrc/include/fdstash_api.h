/* fdstash_api.h: the declarations of the core, but for queues and swaps, which have
 * fdstash_queue_api.h and fdstash_swap_api.h. In plain C without directives, so that
 * a C compiler (through fdstash.h) and cffi read the very same text.
 *
 * Conventions. Sizes and offsets are bytes. A call that can fail returns 0 or a
 * count on success and -errno on failure, and on failure nothing has changed
 * unless its comment says otherwise. Every descriptor that the core returns or
 * keeps is close-on-exec and numbered 3 or higher.
 *
 * Threads: "any" may be called from any thread at any time; "owner" from one
 * thread at a time for that object; "quiesced" by the owner while no request
 * can be using the object.
 */

/* ------------------------------------------------------------------ stash --
 * Named descriptors: the object of the 2011 RFC. Any thread. */

typedef struct FDStash {
    uint64_t opaque[8]; /* private; storage belongs to the caller */
} FDStash;

void fdstash_init(FDStash *stash);
/* Closes every descriptor and empties the stash; it may be used again. */
void fdstash_cleanup(FDStash *stash);
/* Takes ownership of fd; what the name held is closed and replaced. A number
 * below 3 is moved up. -EINVAL (no name), -EBADF, -EMFILE, -ENOMEM: the caller
 * still owns fd. */
int fdstash_give(FDStash *stash, const char *name, int fd);
/* As give for several names at once, all or none; on failure the caller owns all
 * of them, and the stash holds what it held. */
int fdstash_give_all(FDStash *stash, const char *const *names, const int *fds, size_t count);
/* Hands the oldest descriptor of the name to the caller; -ENOENT. */
int fdstash_take(FDStash *stash, const char *name);
/* As give, but beside what the name already holds. */
int fdstash_add(FDStash *stash, const char *name, int fd);
/* A duplicate of the oldest descriptor of the name, owned by the caller. */
int fdstash_dup(FDStash *stash, const char *name);
/* A duplicate of the description whose access mode and O_DIRECT are those of
 * flags. -ENOENT: no such name; -EACCES: the name holds none that fits. */
int fdstash_find(FDStash *stash, const char *name, int flags);
/* Duplicates of all descriptors of the name, oldest first, into fds; returns
 * how many the name holds (0: no such name), which may exceed capacity, and
 * then nothing was duplicated. */
int fdstash_dup_all(FDStash *stash, const char *name, int *fds, int capacity);
/* How many names the stash holds. */
size_t fdstash_count(FDStash *stash);
/* All names, each ended by NUL, in one block of *bytes bytes that the caller
 * frees with fdstash_free; NULL without memory. */
char *fdstash_names(FDStash *stash, size_t *bytes);
void fdstash_free(void *memory);

/* ------------------------------------------------------- owned descriptors --
 * Descriptors that belong to images. A forked child closes them, so that it
 * keeps neither the image's locks nor its descriptions alive. Any thread. */

/* The look before the open: a descriptor of path opened with flags. Only
 * regular files and block devices are opened; for anything else -EISDIR,
 * -ENXIO (FIFO, socket), -EINVAL (character device) and nothing is touched.
 * dirfd may be AT_FDCWD; beneath != 0 refuses (-EXDEV) a path that leaves
 * dirfd, by "..", by a symbolic link or as an absolute path. */
int fdstash_open_path(int dirfd, const char *path, int flags, int beneath);
/* The same, but -EAGAIN instead of waiting for a server: succeeds only where
 * the path is in the kernel's cache and leads to device `device`. */
int fdstash_open_cached(int dirfd, const char *path, int flags, int beneath, uint64_t device);
/* A new description of the file behind fd, whatever became of its path. */
int fdstash_open_again(int fd, int flags);
int fdstash_dup_owned(int fd);
/* The folder for fdstash_open_path: an O_PATH descriptor. */
int fdstash_open_folder(const char *path);
/* Returns what close said; -EBADF when fd is not an owned descriptor. */
int fdstash_close_owned(int fd);
/* As fdstash_find, but the duplicate belongs to an image. */
int fdstash_find_owned(FDStash *stash, const char *name, int flags);
/* Grows the descriptor table to hold `more` further descriptors at once, so
 * that no reopen has to: growing stalls a threaded process for milliseconds.
 * fd is any open descriptor. Best effort. */
void fdstash_reserve_descriptors(int fd, size_t more);

/* ------------------------------------------------------------------- locks --
 * QEMU's byte-range protocol with OFD locks: byte 100+n for permission n in
 * use, 200+n for permission n not shared. fds are lock descriptions. */

/* Adds the locks of (perm, unshared) beyond (have_perm, have_unshared) to every
 * fd and tests for conflicts. On failure everything is as before, *failed is
 * the index and *byte the byte in conflict (-EAGAIN) or refused. Owner. */
int fdstash_lock_acquire(const int *fds, size_t count, uint32_t perm, uint32_t unshared,
                         uint32_t have_perm, uint32_t have_unshared, size_t *failed, int *byte);
/* Drops the given locks from every fd; returns the first error, having tried
 * all. Owner. */
int fdstash_lock_release(const int *fds, size_t count, uint32_t perm, uint32_t unshared);

/* --------------------------------------------------------------- host file --
 * One file of an image: a descriptor number (the slot) for its whole life. */

typedef struct fdstash_file fdstash_file;

enum fdstash_file_flags {
    FDSTASH_FILE_SHARED = 1,  /* others hold this description: never F_SETFL it */
    FDSTASH_FILE_READONLY = 2 /* never written, also in a writable image */
};

typedef struct fdstash_file_status {
    int32_t fd;                /* the slot */
    int32_t flags;             /* F_GETFL */
    uint64_t size;             /* bytes; of the device for a block device */
    uint64_t allocated;        /* bytes in use on the host file system */
    uint64_t device;           /* st_dev */
    uint64_t inode;            /* st_ino */
    uint64_t rdev;             /* st_rdev of a block device, else 0 */
    uint64_t disk_sequence;    /* BLKGETDISKSEQ of a block device, else 0 */
    uint64_t filesystem;       /* f_type of statfs */
    uint32_t memory_alignment; /* for O_DIRECT; 0: not known yet */
    uint32_t offset_alignment; /* for O_DIRECT; 0: not known yet */
    uint32_t shared;           /* not 0: the description may be held by others */
    uint32_t remote;           /* not 0: the file system may wait for a server */
} fdstash_file_status;

/* fd becomes the slot, owned by the file; it must be an owned descriptor.
 * Refused (and still the caller's): O_APPEND and O_PATH (-EBADF), anything but
 * a regular file or block device (-EINVAL), O_DIRECT on what does not bear it.
 * The file starts with one reference. */
int fdstash_file_new(int fd, uint32_t flags, fdstash_file **out);
void fdstash_file_ref(fdstash_file *file);
/* The last one closes the slot; returns what close said. */
int fdstash_file_unref(fdstash_file *file);
int fdstash_file_get_status(fdstash_file *file, fdstash_file_status *out); /* any */
/* Its size alone, or -errno. Any thread. */
int64_t fdstash_file_size(const fdstash_file *file);
/* device, inode and rdev of that, which never change: no system call. Any thread. */
void fdstash_file_identity(const fdstash_file *file, uint64_t identity[3]);
/* The description was handed out: F_SETFL is no longer a route. */
void fdstash_file_mark_shared(fdstash_file *file);
/* Short only at the end of the file. Any thread. */
int64_t fdstash_file_pread(fdstash_file *file, void *buffer, uint64_t length, uint64_t offset);
int64_t fdstash_file_pwrite(fdstash_file *file, const void *buffer, uint64_t length,
                            uint64_t offset, uint32_t flags);
int fdstash_file_flush(fdstash_file *file);
/* As flush, for a reopen: what went wrong now is latched, too, for the next flush. */
int fdstash_file_sync(fdstash_file *file);
int fdstash_file_truncate(fdstash_file *file, uint64_t size); /* quiesced */
/* The run of equal kind that starts at offset, at most limit bytes: *length and
 * *data (0: a hole of the host file). */
int fdstash_file_run(fdstash_file *file, uint64_t offset, uint64_t limit, uint64_t *length,
                     int *data);
/* Takes the error that a former description had not yet reported; 0 if none. */
int fdstash_file_take_latched(fdstash_file *file);

/* -------------------------------------------------------------- extent map --
 * Guest offset -> (file, offset, kind). Immutable once made; no I/O. */

typedef struct fdstash_map fdstash_map;

enum fdstash_kind {
    FDSTASH_DATA = 0,   /* bytes of a file */
    FDSTASH_ZERO = 1,   /* reads as zeros, has no bytes: cannot be written */
    FDSTASH_HOLE = 2,   /* reads the backing image; cannot be written in place */
    FDSTASH_DENIED = 3, /* neither read nor written */
    FDSTASH_TABLE = 4,  /* of segments: a cluster table says, see below */
    /* Of the runs of a table alone: */
    FDSTASH_COMPRESSED = 5, /* data that only the driver can read */
    FDSTASH_UNKNOWN = 6,    /* not loaded yet */
    FDSTASH_BAD = 7,        /* the entry makes no sense */
    FDSTASH_READONLY = 16,  /* flag: data that must not be written */
    FDSTASH_COPY = 32       /* flag: data that must not be written in place */
};

typedef struct fdstash_segment {
    uint64_t start;       /* guest offset */
    uint64_t length;      /* never 0 */
    uint64_t file_offset; /* data: where the segment starts in the file */
    uint32_t file;        /* data: index into the layer's files; table: into its tables */
    uint32_t kind;        /* enum fdstash_kind, with flags */
} fdstash_segment;

/* Segments must be in order, cover [0, size) without gap or overlap, and not
 * wrap around: else -EINVAL and *failed is the index. */
int fdstash_map_new(const fdstash_segment *segments, size_t count, fdstash_map **out,
                    size_t *failed);
void fdstash_map_free(fdstash_map *map);
size_t fdstash_map_count(const fdstash_map *map);
uint64_t fdstash_map_size(const fdstash_map *map);
/* The part of the segment at offset from there on, cut to at most limit bytes;
 * -ERANGE at or beyond the end. Any thread. */
int fdstash_map_lookup(const fdstash_map *map, uint64_t offset, uint64_t limit,
                       fdstash_segment *out);

/* ----------------------------------------------------------- cluster table --
 * Guest cluster -> (host offset, kind), in pages: one for each table on disk,
 * loaded on first touch. The driver describes an entry once and hands raw tables
 * over. Owner, but for lookups, which the data path makes from any thread. */

typedef struct fdstash_table fdstash_table;

enum fdstash_entry_limits { FDSTASH_MAX_RULES = 8, FDSTASH_MAX_PARTS = 2 };

typedef struct fdstash_entry_rule { /* (entry & mask) == value means kind */
    uint64_t mask;
    uint64_t value;
    uint32_t kind;
    uint32_t reserved;
} fdstash_entry_rule;

typedef struct fdstash_entry_part { /* (entry & mask), shifted left, or right where negative */
    uint64_t mask;
    int32_t shift;
    uint32_t reserved;
} fdstash_entry_part;

typedef struct fdstash_entry_layout {
    uint32_t width; /* bytes: 4 or 8 */
    uint32_t big_endian;
    uint32_t rule_count; /* the first that matches says the kind; else it is data */
    uint32_t part_count;
    fdstash_entry_rule rules[8];
    fdstash_entry_part parts[2]; /* host offset = base + unit * (all parts together) */
    uint64_t unit;
    uint64_t base;
    uint64_t first; /* data before this byte of the file is FDSTASH_BAD: metadata is there */
} fdstash_entry_layout;

typedef struct fdstash_cluster {
    uint64_t offset; /* in the host file, bytes */
    uint32_t kind;   /* enum fdstash_kind */
    uint32_t reserved;
} fdstash_cluster;

/* A table for `size` bytes of guest disk in clusters of 1 << cluster_bits bytes,
 * page_entries of them a page, whose data lies in file `file` of the layer.
 * Nothing is loaded. -EINVAL; -EFBIG: more pages than there may be; -ENOMEM. */
int fdstash_table_new(uint64_t size, uint32_t cluster_bits, uint32_t page_entries, uint32_t file,
                      const fdstash_entry_layout *layout, fdstash_table **out);
/* For a table that no layer has taken over. */
void fdstash_table_free(fdstash_table *table);
/* Decodes a page from the raw table, page_entries entries, or makes it all holes
 * where raw is NULL. Data that does not lie in the first file_size bytes is
 * FDSTASH_BAD. `generation` is what fdstash_image_generation said just before.
 * -ERANGE, -EINVAL (bytes), -EBUSY (the page is pinned), -ENOMEM. */
int fdstash_table_load(fdstash_table *table, uint64_t page, const void *raw, size_t bytes,
                       uint64_t file_size, uint64_t generation);
/* Sets clusters of loaded pages, all or none; data is contiguous from offset on.
 * -ENOENT: a page is not loaded; -ERANGE, -EINVAL, -ENOMEM. */
int fdstash_table_set(fdstash_table *table, uint64_t cluster, uint64_t count, uint32_t kind,
                      uint64_t offset);
/* What is known of clusters; -ENOENT: a page is not loaded; -ERANGE. */
int fdstash_table_get(fdstash_table *table, uint64_t cluster, uint64_t count, fdstash_cluster *out);
/* A pinned page stays in memory: it holds entries that are not on disk yet. */
int fdstash_table_pin(fdstash_table *table, uint64_t page, int pinned);
/* Pages in memory, those of holes alone not counted. */
uint64_t fdstash_table_loaded(const fdstash_table *table);
/* Drops up to `count` pages that were not read of late; returns how many. */
uint64_t fdstash_table_evict(fdstash_table *table, uint64_t count, uint64_t generation);

/* ------------------------------------------------------------------- layer --
 * One image of a chain as the data path sees it: a map, its files and tables,
 * and the layer that holes fall through to. Shared by reference; immutable but
 * for what its tables have loaded. */

typedef struct fdstash_layer fdstash_layer;

/* Takes the map and the tables over and references the files and the backing
 * layer (or NULL). -EINVAL: a segment names a file or a table that is not there,
 * or a table of another size; then everything is still the caller's. */
int fdstash_layer_new(fdstash_map *map, fdstash_file *const *files, size_t count,
                      fdstash_table *const *tables, size_t table_count, fdstash_layer *backing,
                      fdstash_layer **out);
/* Whether tables hold entries that are not on disk yet: then a flush, or a write
 * that must be durable, is for the driver (FDSTASH_NEEDS). Owner. */
void fdstash_layer_set_dirty(fdstash_layer *layer, int dirty);
void fdstash_layer_unref(fdstash_layer *layer);

/* ------------------------------------------------------------------- image --
 * The synchronous data path and its gate. Any thread, but where noted. */

typedef struct fdstash_image fdstash_image;

typedef struct fdstash_iovec { /* the layout of struct iovec */
    void *base;
    size_t length;
} fdstash_iovec;

enum fdstash_image_flags {
    FDSTASH_WRITABLE = 1,
    FDSTASH_DSYNC = 2,   /* each write is durable when it returns */
    FDSTASH_NO_FLUSH = 4 /* flush does nothing (cache=unsafe) */
};

enum fdstash_request_flags {
    FDSTASH_FUA = 1,   /* this write is durable when it returns */
    FDSTASH_UNMAP = 2, /* zero: the host may free the space */
    FDSTASH_FAST = 4,  /* zero: -EOPNOTSUPP rather than pages of zeros written */
    FDSTASH_MARK = 8   /* of a queue: for the driver, by whom the format is told of a change */
};

/* Classes of requests that the gate tells apart; each is a bit of a mask. */
enum fdstash_class {
    FDSTASH_READS = 1,
    FDSTASH_WRITES = 2,           /* aligned to the host page */
    FDSTASH_UNALIGNED_WRITES = 4, /* all others that change bytes, metadata included */
    FDSTASH_FLUSHES = 8
};

/* References the layer. */
int fdstash_image_new(fdstash_layer *layer, uint32_t flags, fdstash_image **out);
/* Refuses new requests (-ESHUTDOWN from then on), waits for those in flight, and
 * drops the layer. Once closed, closing again does nothing. */
void fdstash_image_close(fdstash_image *image);
/* Frees the image; it must be closed, and no thread may be inside a call. */
void fdstash_image_free(fdstash_image *image);
uint64_t fdstash_image_size(fdstash_image *image);
uint32_t fdstash_image_flags(fdstash_image *image);
void fdstash_image_set_flags(fdstash_image *image, uint32_t flags);
/* Whether the format has marked its header as written to, for who makes requests with
 * FDSTASH_MARK until it has. Any thread. */
void fdstash_image_set_marked(fdstash_image *image, int marked);
int fdstash_image_is_marked(const fdstash_image *image);

/* Returned, negated, by a request that needs the driver: nothing was done, and the
 * call is to be made again with a fdstash_need, within fdstash_image_enter. */
enum fdstash_needs { FDSTASH_NEEDS = 4096 };

/* What a request has met that only the driver can serve. */
typedef struct fdstash_need {
    fdstash_layer *layer; /* whose table it is; borrowed */
    uint64_t start;       /* guest offset */
    uint64_t length;      /* of the run, cut to the request */
    uint64_t offset;      /* in the host file, for what lies in one */
    uint64_t done;        /* bytes of the request, from its very start, that are done */
    uint32_t kind;        /* enum fdstash_kind of the run */
    uint32_t reserved;
} fdstash_need;

/* As preadv, pwritev, zero and trim below, from `done` bytes into the request on.
 * -FDSTASH_NEEDS fills *need; after what it asks for was seen to, the call is made
 * again with need->done, more where the driver has moved bytes itself. The caller
 * has entered FDSTASH_READS, or FDSTASH_UNALIGNED_WRITES. */
int64_t fdstash_image_read_on(fdstash_image *image, const fdstash_iovec *iov, int count,
                              uint64_t offset, uint64_t done, fdstash_need *need);
int64_t fdstash_image_write_on(fdstash_image *image, const fdstash_iovec *iov, int count,
                               uint64_t offset, uint64_t done, uint32_t flags, fdstash_need *need);
int fdstash_image_zero_on(fdstash_image *image, uint64_t length, uint64_t offset, uint64_t done,
                          uint32_t flags, fdstash_need *need);
int fdstash_image_trim_on(fdstash_image *image, uint64_t length, uint64_t offset, uint64_t done,
                          fdstash_need *need);
/* The run at offset; holes of the host file are not looked for. kind is that of
 * enum fdstash_kind. -ERANGE at the end. The caller has entered FDSTASH_READS. */
int fdstash_layer_lookup(fdstash_layer *layer, uint64_t offset, uint64_t limit,
                         fdstash_segment *out);
enum fdstash_status_bits {
    FDSTASH_STATUS_HOLE = 1, /* takes no space on the host */
    FDSTASH_STATUS_ZERO = 2  /* reads as zeros */
};

typedef struct fdstash_status_run {
    uint64_t length; /* bytes, never 0 */
    uint32_t bits;   /* enum fdstash_status_bits */
    uint32_t reserved;
} fdstash_status_run;

/* Runs from an offset on, neighbours of different bits. All but runs and capacity is 0
 * at first. */
typedef struct fdstash_status {
    fdstash_status_run *runs; /* the caller's; room for capacity of them, at least 1 */
    uint64_t covered;         /* bytes, the sum of their lengths */
    uint32_t capacity;
    uint32_t count;
} fdstash_status;

/* What [offset + status->covered, offset + length) holds, in all the layers and with
 * holes of the host files, as far as there is room, or to the end of the image.
 * -FDSTASH_NEEDS fills *need: call again. The caller has entered FDSTASH_READS. */
int fdstash_image_status_on(fdstash_image *image, uint64_t length, uint64_t offset,
                            fdstash_status *status, fdstash_need *need);
/* Copies into the buffers of a request, from `at` bytes into it on. */
void fdstash_iov_fill(const fdstash_iovec *iov, int count, uint64_t at, const void *data,
                      uint64_t length);
/* Moves part of a request's buffers, from `at` on, to a file: what pwritev does for
 * data that is mapped. */
int64_t fdstash_file_pwrite_from(fdstash_file *file, const fdstash_iovec *iov, int count,
                                 uint64_t at, uint64_t length, uint64_t offset, uint32_t flags);
/* Counts the generations of requests: what was taken out of reach in one is in
 * nobody's hands two later. Tries to begin the next one. Any thread. */
uint64_t fdstash_image_generation(fdstash_image *image);

/* Bytes moved; short only at the end of the image. -EACCES: a denied extent. */
int64_t fdstash_image_pread(fdstash_image *image, void *buffer, uint64_t length, uint64_t offset);
int64_t fdstash_image_preadv(fdstash_image *image, const fdstash_iovec *iov, int count,
                             uint64_t offset);
/* All or an error: -ENOSPC past the end (nothing written), -EBADF on a read-only
 * image, -EROFS where the extent must not be written, -EDEADLK from the thread
 * that holds the gate closed. */
int64_t fdstash_image_pwrite(fdstash_image *image, const void *buffer, uint64_t length,
                             uint64_t offset, uint32_t flags);
int64_t fdstash_image_pwritev(fdstash_image *image, const fdstash_iovec *iov, int count,
                              uint64_t offset, uint32_t flags);
int fdstash_image_zero(fdstash_image *image, uint64_t length, uint64_t offset, uint32_t flags);
int fdstash_image_trim(fdstash_image *image, uint64_t length, uint64_t offset);
/* Makes all completed writes durable, backing layers included, and returns what
 * any description, former ones too, has to report. */
int fdstash_image_flush(fdstash_image *image);
/* The same for the files alone, whether or not tables hold entries that are not
 * on disk: for who has just written those. */
int fdstash_image_flush_files(fdstash_image *image);
/* The same on behalf of a reopen: the next flush returns the error as well. */
int fdstash_image_sync(fdstash_image *image);

/* A request that consists of several calls, such as a metadata update: counted
 * by the gate from enter to leave. Waits while its class is held. Returns a
 * ticket (>= 0) for leave. */
int fdstash_image_enter(fdstash_image *image, uint32_t class_bit);
void fdstash_image_leave(fdstash_image *image, int ticket, uint32_t class_bit);

/* The gate. Holds new requests of the classes in mask and waits until those in
 * flight are done, at most timeout_ns (negative: without limit); -ETIMEDOUT
 * leaves the gate open. With drain == 0 it does not wait. Owner; may be called
 * again with a larger mask. Reading and writing from the thread that closed it:
 * a held class gets -EDEADLK. */
int fdstash_image_hold(fdstash_image *image, uint32_t mask, int drain, int64_t timeout_ns);
void fdstash_image_release(fdstash_image *image);
uint64_t fdstash_image_in_flight(fdstash_image *image);
/* Publishes another layer; returns the old one, whose reference is now the
 * caller's, to be dropped once fdstash_image_grace has returned 0. Owner. */
fdstash_layer *fdstash_image_switch(fdstash_image *image, fdstash_layer *layer);
/* Waits until every request that may have seen a former layer is done;
 * -ETIMEDOUT. Owner. */
int fdstash_image_grace(fdstash_image *image, int64_t timeout_ns);

/* ----------------------------------------------------------- aligned buffer --
 * Memory for O_DIRECT. Any thread. */

/* Zeroed; alignment is a power of two; NULL without memory. */
void *fdstash_buffer_new(size_t size, size_t alignment);
void fdstash_buffer_free(void *buffer);

/* ------------------------------------------------------------------- build --
 * What this build and this kernel give. */

enum fdstash_uring {
    FDSTASH_URING_NOT_BUILT = 0, /* the core was built without liburing */
    FDSTASH_URING_REFUSED = 1,   /* the kernel or a sandbox refuses it */
    FDSTASH_URING_USABLE = 2
};
/* Sets up rings as a queue does. *error: errno when refused; *flags and *bound_flags: the
 * IORING_SETUP_ flags that the kernel took, without and with FDSTASH_QUEUE_BOUND. */
int fdstash_uring_probe(int *error, uint32_t *flags, uint32_t *bound_flags);
const char *fdstash_version(void);
