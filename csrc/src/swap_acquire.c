/* swap_acquire.c: everything of a swap that may fail, before anything changes. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "owned.h"
#include "swap.h"

#define COMPARED (O_ACCMODE | O_DIRECT)

void fdstash_swap_want(fdstash_swap *swap, int flags, uint32_t routes)
{
    fdstash_swap_finish(swap, NULL); /* of a reopen that was interrupted */
    swap->flags = flags & COMPARED;
    swap->routes = routes;
    for (size_t i = 0; i < swap->count; i++) {
        swap->items[i].exchanged = 0;
        swap->items[i].route = FDSTASH_ROUTE_KEEP;
    }
}

int fdstash_swap_provide(fdstash_swap *swap, size_t index, int fd, uint32_t route)
{
    if (index >= swap->count)
        return -EINVAL;
    if (swap->items[index].provided >= 0)
        fdstash_close_owned(swap->items[index].provided);
    swap->items[index].provided = fd;
    swap->items[index].provided_route = route;
    return 0;
}

void fdstash_swap_set_path(fdstash_swap *swap, size_t index, int dirfd, const char *path,
                           int beneath)
{
    swap->items[index].path = path;
    swap->items[index].dirfd = dirfd;
    swap->items[index].beneath = beneath;
}

/* F_SETFL may put O_DIRECT on a file that then refuses every request, so some
 * other description of the inode must have borne it. */
static int direct_is_proven(struct fdstash_file *file)
{
    if (atomic_load(&file->direct_proven))
        return 1;
    if (file->remote)
        return 0;
    int fd = owned_open_again(file->slot, O_RDONLY | O_DIRECT, 1);
    if (fd < 0)
        return 0;
    int rc = hostfile_learn_alignment(file, fd);
    fdstash_close_owned(fd);
    return rc == 0;
}

static int setfl_serves(struct fdstash_file *file, int differ, int wanted)
{
    return differ == O_DIRECT && !hostfile_is_shared(file) &&
           (!(wanted & O_DIRECT) || direct_is_proven(file));
}

/* A new description by the first route that serves; -errno of the last tried. */
static int open_fresh(struct fdstash_swap *swap, struct swap_item *item, int may_wait)
{
    struct fdstash_file *file = item->file;
    int fd = -ENOTSUP;
    /* Before the open: a fork right after it shares the description. */
    item->sharing = (struct sharing){0, owned_fork_count()};
    if (item->provided >= 0) {
        fd = item->provided;
        item->provided = -1;
        item->route = item->provided_route;
        item->sharing.shared = item->route == FDSTASH_ROUTE_STASH;
        return fd;
    }
    if (swap->routes & FDSTASH_ROUTE_PROC) {
        item->route = FDSTASH_ROUTE_PROC;
        fd = owned_open_again(file->slot, item->flags_after, !file->remote);
        if (fd != -ENOENT) /* ENOENT: there is no /proc */
            return fd;
    }
    if ((swap->routes & FDSTASH_ROUTE_PATH) && item->path) {
        item->route = FDSTASH_ROUTE_PATH;
        fd = may_wait ? fdstash_open_path(item->dirfd, item->path, item->flags_after, item->beneath)
                      : fdstash_open_cached(item->dirfd, item->path, item->flags_after,
                                            item->beneath, file->identity.device);
        if (fd == -EAGAIN && !may_wait)
            fd = -EINPROGRESS;
    }
    return fd;
}

/* Whether fd may take the slot's place: 0, or -errno and *step. */
static int check_fresh(struct swap_item *item, int fd, int *step)
{
    struct fdstash_file *file = item->file;
    struct file_identity identity;
    uint64_t size;
    *step = FDSTASH_STEP_IDENTITY;
    int rc = identity_of(fd, &identity, &size);
    if (rc < 0)
        return rc;
    if (!identity_equal(&identity, &file->identity))
        return -ESTALE;
    *step = FDSTASH_STEP_MODE;
    int has = fcntl(fd, F_GETFL);
    if (has < 0)
        return -errno;
    if (has & (O_APPEND | O_PATH))
        return -EBADF;
    if ((has ^ item->flags_after) & O_ACCMODE)
        return -EACCES;
    if ((has ^ item->flags_after) & O_DIRECT)
        return -EINVAL;
    *step = FDSTASH_STEP_SIZE;
    if (size < atomic_load(&file->required_size))
        return -EFBIG;
    *step = FDSTASH_STEP_ALIGNMENT;
    return has & O_DIRECT ? hostfile_learn_alignment(file, fd) : 0;
}

/* The stash takes the new description over, under the file's index. */
static int keep_fresh(struct fdstash_swap *swap, size_t index, int fd)
{
    char name[24];
    snprintf(name, sizeof(name), "%zu", index);
    int rc = fdstash_give(&swap->stash, name, fd);
    if (rc == 0)
        swap->items[index].fresh = fd;
    return rc;
}

static int acquire_one(struct fdstash_swap *swap, size_t index, int may_wait, int *step)
{
    struct swap_item *item = &swap->items[index];
    struct fdstash_file *file = item->file;
    *step = FDSTASH_STEP_OPEN;
    if (file->remote && !may_wait)
        return -EINPROGRESS;
    *step = FDSTASH_STEP_SLOT;
    int has = fcntl(file->slot, F_GETFL);
    if (has < 0)
        return -errno;
    if (has & (O_APPEND | O_PATH)) /* no image's descriptor: somebody replaced it */
        return -EBADF;
    item->flags_before = has;
    item->flags_after = swap->flags;
    if (file->flags & FDSTASH_FILE_READONLY)
        item->flags_after = (swap->flags & ~O_ACCMODE) | O_RDONLY;
    int differ = (has ^ item->flags_after) & COMPARED;
    /* A caller that allows only the path wants the path walked again. */
    int forced = swap->routes == FDSTASH_ROUTE_PATH;
    if (item->provided < 0 && !forced) {
        item->route = FDSTASH_ROUTE_KEEP;
        if (!differ)
            return 0;
        item->route = FDSTASH_ROUTE_SETFL;
        if ((swap->routes & FDSTASH_ROUTE_SETFL) && setfl_serves(file, differ, item->flags_after))
            return 0;
    }
    *step = FDSTASH_STEP_OPEN;
    int fd = open_fresh(swap, item, may_wait);
    if (fd < 0)
        return fd;
    int rc = -EBADF;
    if (fd == file->slot) /* somebody closed it, and the number came round */
        *step = FDSTASH_STEP_SLOT;
    else
        rc = check_fresh(item, fd, step);
    if (rc == 0) {
        *step = FDSTASH_STEP_MEMORY;
        rc = keep_fresh(swap, index, fd);
    }
    if (rc < 0)
        fdstash_close_owned(fd);
    return rc;
}

int fdstash_swap_acquire(fdstash_swap *swap, int may_wait, fdstash_failure *failure)
{
    for (size_t i = 0; i < swap->count; i++) {
        int step = FDSTASH_STEP_NONE;
        if (swap->items[i].fresh >= 0)
            continue; /* the call is made again */
        int rc = acquire_one(swap, i, may_wait, &step);
        if (rc == 0 && swap->items[i].fresh >= 0 && swap->spare < 0) {
            step = FDSTASH_STEP_OPEN;
            swap->spare = fdstash_dup_owned(swap->items[i].fresh);
            rc = swap->spare < 0 ? swap->spare : 0;
        }
        if (rc < 0) {
            swap_fail(failure, swap, i, step, rc);
            if (rc != -EINPROGRESS)
                fdstash_swap_finish(swap, NULL);
            return rc;
        }
    }
    return 0;
}

/* The slot is still the file it should be, nobody closed or reused the number,
 * and the file is still as long as the image needs. */
static int prove_slot(struct swap_item *item, int *step)
{
    struct file_identity identity;
    uint64_t size;
    *step = FDSTASH_STEP_SLOT;
    int rc = identity_of(item->file->slot, &identity, &size);
    if (rc < 0)
        return rc;
    if (!identity_equal(&identity, &item->file->identity))
        return -ESTALE;
    *step = FDSTASH_STEP_SIZE;
    return size < atomic_load(&item->file->required_size) ? -EFBIG : 0;
}

int fdstash_swap_prove(fdstash_swap *swap, fdstash_failure *failure)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return swap_fail(failure, swap, SIZE_MAX, FDSTASH_STEP_LIMIT, -errno);
    for (size_t i = 0; i < swap->count; i++) {
        struct swap_item *item = &swap->items[i];
        int step;
        int rc = prove_slot(item, &step);
        if (rc < 0)
            return swap_fail(failure, swap, i, step, rc);
        if (item->fresh < 0)
            continue;
        /* dup3 refuses a number at or above the limit, even one in use. */
        int highest = item->file->slot > item->fresh ? item->file->slot : item->fresh;
        if (swap->spare > highest)
            highest = swap->spare;
        if ((rlim_t)highest >= limit.rlim_cur)
            return swap_fail(failure, swap, i, FDSTASH_STEP_LIMIT, -EMFILE);
        if (item->file->remote && (item->flags_before & O_ACCMODE) != O_RDONLY) {
            /* Such a file system may tell an error only to who asks for it. */
            rc = hostfile_flush_dirty(item->file);
            if (rc < 0)
                hostfile_latch(item->file, -rc); /* the next flush returns it */
            if (rc < 0)
                return swap_fail(failure, swap, i, FDSTASH_STEP_SYNC, rc);
        }
    }
    return 0;
}
