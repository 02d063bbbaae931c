/* owned.c: a bitmap of owned descriptor numbers, emptied in a forked child. */
#include "owned.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define FIRST_SAFE_FD 3
#define WORD_BITS 64

static struct {
    pthread_mutex_t lock; /* of the bitmap */
    uint64_t *words;
    size_t count;
} owned = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* Many may make descriptors at once; a fork excludes them all. It is preferred,
 * or a process that reopens without pause could never fork. */
static pthread_rwlock_t fork_lock = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
static pthread_once_t handlers_once = PTHREAD_ONCE_INIT;
static _Atomic uint64_t epoch;
static _Atomic uint64_t fork_count;
static _Atomic size_t reserved;

uint64_t owned_epoch(void)
{
    return atomic_load_explicit(&epoch, memory_order_relaxed);
}

uint64_t owned_fork_count(void)
{
    return atomic_load_explicit(&fork_count, memory_order_relaxed);
}

void owned_hold_fork(void)
{
    pthread_rwlock_rdlock(&fork_lock);
}

void owned_allow_fork(void)
{
    pthread_rwlock_unlock(&fork_lock);
}

static void before_fork(void)
{
    pthread_rwlock_wrlock(&fork_lock);
    pthread_mutex_lock(&owned.lock);
    atomic_fetch_add(&fork_count, 1);
}

static void after_fork_in_parent(void)
{
    pthread_mutex_unlock(&owned.lock);
    pthread_rwlock_unlock(&fork_lock);
}

static void after_fork_in_child(void)
{
    atomic_fetch_add(&epoch, 1);
    for (size_t word = 0; word < owned.count; word++) {
        while (owned.words[word]) {
            int bit = __builtin_ctzll(owned.words[word]);
            close((int)(word * WORD_BITS) + bit);
            owned.words[word] &= owned.words[word] - 1;
        }
    }
    /* Made new: threads that are not here may have been waiting for them. */
    owned.lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    fork_lock = (pthread_rwlock_t)PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
}

static void install_handlers(void)
{
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

static int grow(size_t words)
{
    if (words <= owned.count)
        return 0;
    words += words / 2;
    uint64_t *grown = realloc(owned.words, words * sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    memset(grown + owned.count, 0, (words - owned.count) * sizeof(*grown));
    owned.words = grown;
    owned.count = words;
    return 0;
}

int owned_register(int fd)
{
    pthread_once(&handlers_once, install_handlers);
    if (fd < FIRST_SAFE_FD) {
        int moved = fcntl(fd, F_DUPFD_CLOEXEC, FIRST_SAFE_FD);
        int error = errno;
        close(fd);
        if (moved < 0)
            return -error;
        fd = moved;
    }
    size_t word = (size_t)fd / WORD_BITS;
    pthread_mutex_lock(&owned.lock);
    int rc = grow(word + 1);
    if (rc == 0)
        owned.words[word] |= (uint64_t)1 << (fd % WORD_BITS);
    pthread_mutex_unlock(&owned.lock);
    if (rc < 0) {
        close(fd);
        return rc;
    }
    return fd;
}

int owned_close(int fd, int hold_fork)
{
    uint64_t bit = (uint64_t)1 << (fd % WORD_BITS);
    size_t word = (size_t)fd / WORD_BITS;
    int rc = 0;
    if (fd < 0)
        return -EBADF;
    if (hold_fork)
        owned_hold_fork();
    pthread_mutex_lock(&owned.lock);
    int is_owned = word < owned.count && (owned.words[word] & bit);
    if (is_owned)
        owned.words[word] &= ~bit;
    pthread_mutex_unlock(&owned.lock);
    if (!is_owned)
        rc = -EBADF;
    else if (close(fd) < 0)
        rc = -errno; /* the number is free all the same: never close again */
    if (hold_fork)
        owned_allow_fork();
    return rc;
}

int fdstash_close_owned(int fd)
{
    return owned_close(fd, 1);
}

int fdstash_dup_owned(int fd)
{
    owned_hold_fork();
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, FIRST_SAFE_FD);
    copy = copy < 0 ? -errno : owned_register(copy);
    owned_allow_fork();
    return copy;
}

int fdstash_find_owned(FDStash *stash, const char *name, int flags)
{
    owned_hold_fork();
    int fd = fdstash_find(stash, name, flags);
    if (fd >= 0)
        fd = owned_register(fd);
    owned_allow_fork();
    return fd;
}

void fdstash_reserve_descriptors(int fd, size_t more)
{
    struct rlimit limit;
    size_t wanted = (size_t)fd + more;
    if (wanted <= atomic_load(&reserved) || getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return;
    if (wanted >= limit.rlim_cur)
        wanted = limit.rlim_cur - 1;
    owned_hold_fork();
    int high = fcntl(fd, F_DUPFD_CLOEXEC, (int)wanted);
    if (high >= 0)
        close(high);
    owned_allow_fork();
    if (high >= 0)
        atomic_store(&reserved, wanted);
}
