/* layer.h: one image of a chain: a map, its files and its cluster tables. Shared
 * by reference. Public calls are in fdstash_api.h. */
#ifndef FDSTASH_LAYER_H
#define FDSTASH_LAYER_H

#include <stdatomic.h>

#include "cluster_table.h"
#include "extent_map.h"
#include "hostfile.h"

struct fdstash_layer {
    _Atomic uint32_t references;
    fdstash_map *map;
    uint64_t size;
    struct fdstash_layer *backing; /* or NULL: holes read as zeros */
    int whole_pages;               /* guest pages are host pages: an aligned write stays aligned */
    int all_writable;              /* every segment is data that may be written */
    _Atomic uint32_t dirty;        /* tables hold entries that are not on disk */
    fdstash_table **tables;
    size_t table_count;
    size_t count;
    struct fdstash_file *files[];
};

/* The run at offset, cut to limit: of a segment (0) or of a table (1), so that
 * what has no bytes yet may be given some; -ERANGE at the end. Any thread. */
int layer_lookup(const struct fdstash_layer *layer, uint64_t offset, uint64_t limit,
                 fdstash_segment *out);
/* What a read of offset meets, with holes looked up in the layers below: bytes of a
 * file of the layer that is returned, or zeros; NULL at the end. Any thread. */
const struct fdstash_layer *layer_resolve(const struct fdstash_layer *layer, uint64_t offset,
                                          uint64_t limit, fdstash_segment *out);
void layer_ref(struct fdstash_layer *layer);
/* Tells the files how far the map reaches into them: a reopen accepts no shorter
 * one. Owner. */
void layer_require(struct fdstash_layer *layer);

#endif
