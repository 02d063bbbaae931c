/* layer.c: references, and what a layer's map means for its files. */
#include "layer.h"

#include <errno.h>
#include <stdlib.h>

static void survey(struct fdstash_layer *layer)
{
    const fdstash_segment *segments = fdstash_map_segments(layer->map);
    uint64_t grain = hostfile_write_grain();
    layer->whole_pages = 1;
    layer->all_writable = 1;
    for (size_t i = 0; i < fdstash_map_count(layer->map); i++) {
        if (segments[i].kind != FDSTASH_DATA)
            layer->all_writable = 0;
        if ((segments[i].kind & ~(uint32_t)FDSTASH_READONLY) != FDSTASH_DATA)
            continue;
        if ((segments[i].start | segments[i].file_offset) & (grain - 1))
            layer->whole_pages = 0;
    }
}

int fdstash_layer_new(fdstash_map *map, fdstash_file *const *files, size_t count,
                      fdstash_layer *backing, fdstash_layer **out)
{
    const fdstash_segment *segments = fdstash_map_segments(map);
    for (size_t i = 0; i < fdstash_map_count(map); i++)
        if ((segments[i].kind & ~(uint32_t)FDSTASH_READONLY) == FDSTASH_DATA &&
            segments[i].file >= count)
            return -EINVAL;
    fdstash_layer *layer = malloc(sizeof(*layer) + count * sizeof(layer->files[0]));
    if (!layer)
        return -ENOMEM;
    atomic_init(&layer->references, 1);
    layer->map = map;
    layer->size = fdstash_map_size(map);
    layer->backing = backing;
    layer->count = count;
    for (size_t i = 0; i < count; i++) {
        layer->files[i] = files[i];
        fdstash_file_ref(files[i]);
    }
    if (backing)
        layer_ref(backing);
    survey(layer);
    *out = layer;
    return 0;
}

void layer_require(struct fdstash_layer *layer)
{
    const fdstash_segment *segments = fdstash_map_segments(layer->map);
    for (size_t i = 0; i < layer->count; i++)
        atomic_store(&layer->files[i]->required_size, 0);
    for (size_t i = 0; i < fdstash_map_count(layer->map); i++) {
        if ((segments[i].kind & ~(uint32_t)FDSTASH_READONLY) != FDSTASH_DATA)
            continue;
        struct fdstash_file *file = layer->files[segments[i].file];
        uint64_t end = segments[i].file_offset + segments[i].length;
        if (atomic_load(&file->required_size) < end)
            atomic_store(&file->required_size, end);
    }
}

void layer_ref(struct fdstash_layer *layer)
{
    atomic_fetch_add(&layer->references, 1);
}

void fdstash_layer_unref(fdstash_layer *layer)
{
    while (layer && atomic_fetch_sub(&layer->references, 1) == 1) {
        fdstash_layer *backing = layer->backing;
        for (size_t i = 0; i < layer->count; i++)
            fdstash_file_unref(layer->files[i]);
        fdstash_map_free(layer->map);
        free(layer);
        layer = backing;
    }
}
