/* swap.c: a swap's life, and its commit. What comes before the commit, and may
 * fail, is in swap_acquire.c. */
#include "swap.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "owned.h"

/* dup3 and F_SETFL do not fail on what prove() saw, but for a signal or a race
 * for the number; a commit that can be finished by asking again is finished. */
#define ATTEMPTS 4

int swap_fail(fdstash_failure *failure, const struct fdstash_swap *swap, size_t index, int step,
              int rc)
{
    *failure = (fdstash_failure){
        .index = index < swap->count ? (int32_t)index : -1,
        .step = step,
        .error = -rc,
        .route = index < swap->count ? (int32_t)swap->items[index].route : 0,
    };
    return rc;
}

int fdstash_swap_new(fdstash_file *const *files, size_t count, fdstash_swap **out)
{
    fdstash_swap *swap = calloc(1, sizeof(*swap) + count * sizeof(swap->items[0]));
    if (!swap)
        return -ENOMEM;
    fdstash_init(&swap->stash);
    swap->count = count;
    swap->spare = -1;
    swap->epoch = owned_epoch();
    for (size_t i = 0; i < count; i++) {
        fdstash_file_ref(files[i]);
        swap->items[i].file = files[i];
        swap->items[i].fresh = -1;
        swap->items[i].provided = -1;
        swap->items[i].dirfd = AT_FDCWD;
    }
    *out = swap;
    return 0;
}

void fdstash_swap_free(fdstash_swap *swap)
{
    if (!swap)
        return;
    if (swap->epoch == owned_epoch())
        fdstash_swap_finish(swap, NULL);
    for (size_t i = 0; i < swap->count; i++)
        fdstash_file_unref(swap->items[i].file);
    free(swap);
}

static int duplicate_to(int from, int to)
{
    int rc = -1;
    for (int i = 0; i < ATTEMPTS && rc < 0; i++)
        rc = dup3(from, to, O_CLOEXEC);
    return rc < 0 ? -errno : 0;
}

/* Before: slot holds A, fresh holds B. After: slot B, fresh A, spare A. A failure
 * in the middle leaves or brings back A in the slot. */
static int exchange_descriptions(struct swap_item *item, int spare)
{
    int rc = duplicate_to(item->file->slot, spare);
    if (rc == 0)
        rc = duplicate_to(item->fresh, item->file->slot);
    if (rc == 0) {
        rc = duplicate_to(spare, item->fresh);
        if (rc < 0)
            duplicate_to(spare, item->file->slot);
    }
    return rc;
}

/* O_DIRECT as it is to be; the other status flags stay as they were. */
static int set_flags(const struct swap_item *item)
{
    int direct = (item->exchanged ? item->flags_before : item->flags_after) & O_DIRECT;
    int rc = -1;
    for (int i = 0; i < ATTEMPTS && rc < 0; i++)
        rc = fcntl(item->file->slot, F_SETFL, (item->flags_before & ~O_DIRECT) | direct);
    return rc < 0 ? -errno : 0;
}

static int exchange_one(struct fdstash_swap *swap, struct swap_item *item)
{
    struct fdstash_file *file = item->file;
    uint32_t direct_before = ((item->flags_before & O_DIRECT) != 0);
    uint32_t direct_after = ((item->flags_after & O_DIRECT) != 0);
    uint32_t direct_now = item->exchanged ? direct_after : direct_before;
    uint32_t direct_then = item->exchanged ? direct_before : direct_after;
    int rc = 0;
    /* Requests bounce a little early and a little late rather than be refused. */
    atomic_store(&file->direct, direct_now | direct_then);
    if (item->route == FDSTASH_ROUTE_SETFL) {
        rc = set_flags(item);
    } else if (item->route != FDSTASH_ROUTE_KEEP) {
        rc = exchange_descriptions(item, swap->spare);
        if (rc == 0) {
            /* Read now: it may have been handed out since it was acquired. */
            struct sharing old = hostfile_sharing(file);
            hostfile_set_sharing(file, item->sharing);
            item->sharing = old;
        }
    }
    if (rc == 0)
        item->exchanged = !item->exchanged;
    atomic_store(&file->direct, rc == 0 ? direct_then : direct_now);
    return rc;
}

static int exchange_all(fdstash_swap *swap, fdstash_failure *failure)
{
    for (size_t i = 0; i < swap->count; i++) {
        int rc = exchange_one(swap, &swap->items[i]);
        if (rc < 0) {
            swap_fail(failure, swap, i, FDSTASH_STEP_EXCHANGE, rc);
            while (i-- > 0)
                exchange_one(swap, &swap->items[i]);
            return rc;
        }
    }
    return 0;
}

int fdstash_swap_exchange(fdstash_swap *swap, fdstash_failure *failure)
{
    int rc = exchange_all(swap, failure);
    /* A description whose flags were set is the same as before. */
    if (swap->spare >= 0)
        hostfile_changed();
    return rc;
}

void fdstash_swap_settle(fdstash_swap *swap)
{
    for (size_t i = 0; i < swap->count; i++) {
        struct swap_item *item = &swap->items[i];
        if (!item->exchanged || item->fresh < 0)
            continue;
        /* Waits for nothing, since there is nothing so far out, but reports
         * what write-back has met and this description has not yet told. */
        off_t far_out = INT64_MAX - 4096;
        if (sync_file_range(item->fresh, far_out, 1, SYNC_FILE_RANGE_WAIT_BEFORE) < 0 &&
            (errno == EIO || errno == ENOSPC || errno == EDQUOT))
            hostfile_latch(item->file, errno);
    }
}

void fdstash_swap_finish(fdstash_swap *swap, int *close_errors)
{
    for (size_t i = 0; i < swap->count; i++) {
        struct swap_item *item = &swap->items[i];
        int rc = 0;
        if (item->fresh >= 0) {
            char name[24];
            snprintf(name, sizeof(name), "%zu", i);
            rc = owned_close(fdstash_take(&swap->stash, name), !item->file->remote);
        }
        if (item->provided >= 0)
            fdstash_close_owned(item->provided);
        item->fresh = -1;
        item->provided = -1;
        if (close_errors)
            close_errors[i] = rc;
    }
    if (swap->spare >= 0)
        fdstash_close_owned(swap->spare);
    swap->spare = -1;
    fdstash_cleanup(&swap->stash);
}

int64_t fdstash_swap_pread(fdstash_swap *swap, size_t index, void *buffer, uint64_t length,
                           uint64_t offset)
{
    struct swap_item *item = &swap->items[index];
    if (item->fresh < 0)
        return fdstash_file_pread(item->file, buffer, length, offset);
    struct fdstash_file view = {
        .slot = item->fresh,
        .identity = item->file->identity,
        .direct = (item->flags_after & O_DIRECT) != 0,
        .memory_alignment = atomic_load(&item->file->memory_alignment),
        .offset_alignment = atomic_load(&item->file->offset_alignment),
    };
    return fdstash_file_pread(&view, buffer, length, offset);
}

void fdstash_swap_routes(const fdstash_swap *swap, uint8_t *out)
{
    for (size_t i = 0; i < swap->count; i++)
        out[i] = (uint8_t)swap->items[i].route;
}

size_t fdstash_swap_changed(const fdstash_swap *swap)
{
    size_t changed = 0;
    for (size_t i = 0; i < swap->count; i++)
        changed += (size_t)(swap->items[i].exchanged && swap->items[i].route != FDSTASH_ROUTE_KEEP);
    return changed;
}

uint32_t fdstash_swap_classes(const fdstash_swap *swap)
{
    uint32_t classes = 0;
    for (size_t i = 0; i < swap->count; i++) {
        const struct swap_item *item = &swap->items[i];
        int differ = item->flags_before ^ item->flags_after;
        if (differ & O_DIRECT)
            classes |= FDSTASH_UNALIGNED_WRITES;
        if ((differ & O_ACCMODE) && (item->flags_after & O_ACCMODE) == O_RDONLY)
            classes |= FDSTASH_WRITES | FDSTASH_UNALIGNED_WRITES;
    }
    return classes;
}
