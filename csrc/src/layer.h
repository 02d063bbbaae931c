/* layer.h: one image of a chain: a map and its files. Immutable, shared by
 * reference. Public calls are in fdstash_api.h. */
#ifndef FDSTASH_LAYER_H
#define FDSTASH_LAYER_H

#include <stdatomic.h>

#include "extent_map.h"
#include "hostfile.h"

struct fdstash_layer {
    _Atomic uint32_t references;
    fdstash_map *map;
    uint64_t size;
    struct fdstash_layer *backing; /* or NULL: holes read as zeros */
    int whole_pages;               /* guest pages are host pages: an aligned write stays aligned */
    int all_writable;              /* every segment is data that may be written */
    size_t count;
    struct fdstash_file *files[];
};

void layer_ref(struct fdstash_layer *layer);
/* Tells the files how far the map reaches into them: a reopen accepts no shorter
 * one. Owner. */
void layer_require(struct fdstash_layer *layer);

#endif
