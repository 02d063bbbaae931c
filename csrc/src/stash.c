/* stash.c: descriptors in the order they came, found by a hash of their name,
 * under one mutex. The table grows with what it holds, so that an image of
 * thousands of files is stashed in linear time. */
#include "stash.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A program with a closed stderr would print into the image. */
#define FIRST_SAFE_FD 3
#define KIND_MASK (O_ACCMODE | O_DIRECT)
#define FIRST_BUCKETS 8

struct entry {
    struct entry *chain; /* next of the same bucket, oldest first */
    struct entry *older, *newer;
    uint64_t hash;
    int fd;
    char name[];
};

struct table {
    size_t buckets; /* a power of two */
    size_t entries;
    struct entry *bucket[];
};

struct stash {
    pthread_mutex_t lock;
    struct table *table; /* NULL until something is given */
    struct entry *oldest, *newest;
};

_Static_assert(sizeof(struct stash) <= sizeof(FDStash), "FDStash.opaque is too small");
_Static_assert(_Alignof(struct stash) <= _Alignof(FDStash), "FDStash is aligned too weakly");

static struct stash *inside(FDStash *stash)
{
    return (struct stash *)stash->opaque;
}

/* FNV-1a, 64 bits. */
static uint64_t hash_of(const char *name)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (; *name; name++)
        hash = (hash ^ (unsigned char)*name) * 0x100000001b3u;
    return hash;
}

static struct entry **bucket_of(struct table *table, uint64_t hash)
{
    return &table->bucket[hash & (table->buckets - 1)];
}

static int is_named(const struct entry *entry, const char *name, uint64_t hash)
{
    return entry->hash == hash && strcmp(entry->name, name) == 0;
}

/* The oldest entry of the name, or NULL. */
static struct entry *find_name(struct stash *s, const char *name)
{
    if (!s->table)
        return NULL;
    uint64_t hash = hash_of(name);
    struct entry *entry = *bucket_of(s->table, hash);
    while (entry && !is_named(entry, name, hash))
        entry = entry->chain;
    return entry;
}

/* The next younger entry of the same name, or NULL. */
static struct entry *next_of_name(const struct entry *entry)
{
    struct entry *next = entry->chain;
    while (next && !is_named(next, entry->name, entry->hash))
        next = next->chain;
    return next;
}

static void link_in_bucket(struct table *table, struct entry *entry)
{
    struct entry **link = bucket_of(table, entry->hash);
    while (*link)
        link = &(*link)->chain;
    entry->chain = NULL;
    *link = entry;
}

/* Room for so many more. A table that cannot grow still works, only slower. */
static int make_room(struct stash *s, size_t more)
{
    struct table *old = s->table;
    size_t buckets = old ? old->buckets : FIRST_BUCKETS;
    size_t entries = old ? old->entries : 0;
    while (buckets < entries + more)
        buckets *= 2;
    if (old && buckets == old->buckets)
        return 0;
    struct table *table = calloc(1, sizeof(*table) + buckets * sizeof(struct entry *));
    if (!table)
        return old ? 0 : -ENOMEM;
    table->buckets = buckets;
    table->entries = entries;
    for (struct entry *entry = s->oldest; entry; entry = entry->newer)
        link_in_bucket(table, entry);
    free(old);
    s->table = table;
    return 0;
}

static void append(struct stash *s, struct entry *entry)
{
    link_in_bucket(s->table, entry);
    s->table->entries++;
    entry->older = s->newest;
    entry->newer = NULL;
    if (s->newest)
        s->newest->newer = entry;
    else
        s->oldest = entry;
    s->newest = entry;
}

static void unlink_entry(struct stash *s, struct entry *entry)
{
    struct entry **link = bucket_of(s->table, entry->hash);
    while (*link != entry)
        link = &(*link)->chain;
    *link = entry->chain;
    s->table->entries--;
    if (entry->older)
        entry->older->newer = entry->newer;
    else
        s->oldest = entry->newer;
    if (entry->newer)
        entry->newer->older = entry->older;
    else
        s->newest = entry->older;
}

/* Moves all entries of the name to the front of a list linked by `newer`. */
static void unlink_name(struct stash *s, const char *name, struct entry **removed)
{
    for (struct entry *entry = find_name(s, name); entry;) {
        struct entry *next = next_of_name(entry);
        unlink_entry(s, entry);
        entry->newer = *removed;
        *removed = entry;
        entry = next;
    }
}

static void free_entries(struct entry *entry)
{
    while (entry) {
        struct entry *next = entry->newer;
        close(entry->fd);
        free(entry);
        entry = next;
    }
}

/* An entry that owns fd, or a number for it that is safe to keep; fd itself is
 * still open then, and the caller's to close where entry->fd differs. */
static int make_entry(const char *name, int fd, struct entry **out)
{
    if (!name || !*name)
        return -EINVAL;
    int flags = fcntl(fd, F_GETFD);
    if (flags < 0)
        return -errno;
    size_t bytes = strlen(name) + 1;
    struct entry *entry = malloc(sizeof(*entry) + bytes);
    if (!entry)
        return -ENOMEM;
    memcpy(entry->name, name, bytes);
    entry->hash = hash_of(name);
    entry->fd = fd;
    if (fd < FIRST_SAFE_FD) {
        entry->fd = fcntl(fd, F_DUPFD_CLOEXEC, FIRST_SAFE_FD);
        if (entry->fd < 0) {
            int error = errno;
            free(entry);
            return -error;
        }
    } else if (!(flags & FD_CLOEXEC)) {
        fcntl(fd, F_SETFD, FD_CLOEXEC);
    }
    *out = entry;
    return 0;
}

/* All of the entries, or none: they are linked by `newer` and become the stash's.
 * What cannot fail is done last, under the lock. */
static int insert(FDStash *stash, struct entry *entries, size_t count, int replace)
{
    struct stash *s = inside(stash);
    struct entry *replaced = NULL;
    pthread_mutex_lock(&s->lock);
    int rc = make_room(s, count);
    while (rc == 0 && entries) {
        struct entry *entry = entries;
        entries = entry->newer;
        if (replace)
            unlink_name(s, entry->name, &replaced);
        append(s, entry);
    }
    pthread_mutex_unlock(&s->lock);
    /* Closing may block (a remote file system): not under the lock. */
    free_entries(replaced);
    return rc;
}

static int give_all(FDStash *stash, const char *const *names, const int *fds, size_t count,
                    int replace)
{
    struct entry *first = NULL;
    struct entry **last = &first;
    int rc = 0;
    size_t made = 0;
    for (; made < count; made++) {
        struct entry *entry = NULL;
        rc = make_entry(names[made], fds[made], &entry);
        if (!entry)
            break;
        entry->newer = NULL;
        *last = entry;
        last = &entry->newer;
    }
    if (rc == 0)
        rc = insert(stash, first, count, replace);
    if (rc == 0) {
        for (size_t i = 0; i < count; i++)
            if (fds[i] < FIRST_SAFE_FD)
                close(fds[i]); /* moved up */
        return 0;
    }
    for (size_t i = 0; first; i++) {
        struct entry *next = first->newer;
        if (first->fd != fds[i])
            close(first->fd);
        free(first);
        first = next;
    }
    return rc;
}

void fdstash_init(FDStash *stash)
{
    struct stash *s = inside(stash);
    pthread_mutex_init(&s->lock, NULL);
    s->table = NULL;
    s->oldest = s->newest = NULL;
}

void fdstash_cleanup(FDStash *stash)
{
    struct stash *s = inside(stash);
    pthread_mutex_lock(&s->lock);
    struct entry *all = s->oldest;
    free(s->table);
    s->table = NULL;
    s->oldest = s->newest = NULL;
    pthread_mutex_unlock(&s->lock);
    free_entries(all);
}

int fdstash_give(FDStash *stash, const char *name, int fd)
{
    return give_all(stash, &name, &fd, 1, 1);
}

int fdstash_add(FDStash *stash, const char *name, int fd)
{
    return give_all(stash, &name, &fd, 1, 0);
}

int fdstash_give_all(FDStash *stash, const char *const *names, const int *fds, size_t count)
{
    return give_all(stash, names, fds, count, 1);
}

int fdstash_take(FDStash *stash, const char *name)
{
    struct stash *s = inside(stash);
    int fd = -ENOENT;
    pthread_mutex_lock(&s->lock);
    struct entry *entry = find_name(s, name);
    if (entry) {
        fd = entry->fd;
        unlink_entry(s, entry);
    }
    pthread_mutex_unlock(&s->lock);
    free(entry);
    return fd;
}

/* Under the stash's lock, so that nobody closes fd in between. */
static int duplicate(int fd)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, FIRST_SAFE_FD);
    return copy < 0 ? -errno : copy;
}

int fdstash_dup(FDStash *stash, const char *name)
{
    struct stash *s = inside(stash);
    pthread_mutex_lock(&s->lock);
    struct entry *entry = find_name(s, name);
    int fd = entry ? duplicate(entry->fd) : -ENOENT;
    pthread_mutex_unlock(&s->lock);
    return fd;
}

int fdstash_find(FDStash *stash, const char *name, int flags)
{
    struct stash *s = inside(stash);
    int fd = -ENOENT;
    pthread_mutex_lock(&s->lock);
    for (struct entry *entry = find_name(s, name); entry; entry = next_of_name(entry)) {
        int has = fcntl(entry->fd, F_GETFL);
        if (has >= 0 && !(has & O_PATH) && (has & KIND_MASK) == (flags & KIND_MASK)) {
            fd = duplicate(entry->fd);
            break;
        }
        fd = -EACCES;
    }
    pthread_mutex_unlock(&s->lock);
    return fd;
}

int fdstash_dup_all(FDStash *stash, const char *name, int *fds, int capacity)
{
    struct stash *s = inside(stash);
    int held = 0;
    int made = 0;
    int error = 0;
    pthread_mutex_lock(&s->lock);
    struct entry *oldest = find_name(s, name);
    for (struct entry *entry = oldest; entry; entry = next_of_name(entry))
        held++;
    if (held <= capacity) {
        for (struct entry *entry = oldest; entry && !error; entry = next_of_name(entry)) {
            int fd = duplicate(entry->fd);
            if (fd < 0)
                error = fd;
            else
                fds[made++] = fd;
        }
    }
    pthread_mutex_unlock(&s->lock);
    if (error) {
        while (made > 0)
            close(fds[--made]);
        return error;
    }
    return held;
}

size_t fdstash_count(FDStash *stash)
{
    struct stash *s = inside(stash);
    size_t count = 0;
    pthread_mutex_lock(&s->lock);
    for (struct entry *entry = s->oldest; entry; entry = entry->newer)
        count += (size_t)(find_name(s, entry->name) == entry);
    pthread_mutex_unlock(&s->lock);
    return count;
}

char *fdstash_names(FDStash *stash, size_t *bytes)
{
    struct stash *s = inside(stash);
    size_t needed = 0;
    pthread_mutex_lock(&s->lock);
    for (struct entry *entry = s->oldest; entry; entry = entry->newer)
        if (find_name(s, entry->name) == entry)
            needed += strlen(entry->name) + 1;
    char *block = malloc(needed ? needed : 1);
    if (block) {
        char *end = block;
        for (struct entry *entry = s->oldest; entry; entry = entry->newer)
            if (find_name(s, entry->name) == entry)
                end = stpcpy(end, entry->name) + 1;
        *bytes = needed;
    }
    pthread_mutex_unlock(&s->lock);
    return block;
}

void fdstash_free(void *memory)
{
    free(memory);
}
