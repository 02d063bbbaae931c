/* swap.h: a set of new descriptions and the slots that they go into. Public
 * calls are in fdstash_swap_api.h. */
#ifndef FDSTASH_SWAP_H
#define FDSTASH_SWAP_H

#include "hostfile.h"

struct swap_item {
    struct fdstash_file *file;
    int provided; /* an owned descriptor that the caller found, or -1 */
    uint32_t provided_route;
    int dirfd; /* for path */
    int beneath;
    const char *path;       /* borrowed, or NULL */
    int flags_before;       /* F_GETFL of the slot, before the exchange */
    int flags_after;        /* access mode and O_DIRECT that the slot is to have */
    uint32_t route;         /* taken */
    int fresh;              /* number of the new description, later of the old one; or -1 */
    struct sharing sharing; /* of the description that `fresh` holds */
    int exchanged;
};

struct fdstash_swap {
    FDStash stash; /* owns every `fresh`; after the exchange it is the rescue */
    int spare;     /* a number reserved for the exchange, or -1 */
    int flags;
    uint32_t routes;
    uint64_t epoch;
    size_t count;
    struct swap_item items[];
};

int swap_fail(fdstash_failure *failure, const struct fdstash_swap *swap, size_t index, int step,
              int rc);

#endif
