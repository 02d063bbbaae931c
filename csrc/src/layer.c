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
        uint32_t kind = segments[i].kind & ~(uint32_t)FDSTASH_READONLY;
        /* Where a table's clusters are is looked at by each request. */
        uint64_t place = kind == FDSTASH_DATA ? segments[i].file_offset : 0;
        if (kind != FDSTASH_DATA && kind != FDSTASH_TABLE)
            continue;
        if ((segments[i].start | place) & (grain - 1))
            layer->whole_pages = 0;
    }
}

static int is_sound(const fdstash_segment *segment, size_t files, fdstash_table *const *tables,
                    size_t table_count)
{
    switch (segment->kind & ~(uint32_t)FDSTASH_READONLY) {
    case FDSTASH_DATA:
        return segment->file < files;
    case FDSTASH_TABLE:
        return segment->file < table_count && table_file(tables[segment->file]) < files &&
               table_size(tables[segment->file]) == segment->length;
    default:
        return 1;
    }
}

int fdstash_layer_new(fdstash_map *map, fdstash_file *const *files, size_t count,
                      fdstash_table *const *tables, size_t table_count, fdstash_layer *backing,
                      fdstash_layer **out)
{
    const fdstash_segment *segments = fdstash_map_segments(map);
    for (size_t i = 0; i < fdstash_map_count(map); i++)
        if (!is_sound(&segments[i], count, tables, table_count))
            return -EINVAL;
    fdstash_layer *layer = malloc(sizeof(*layer) + count * sizeof(layer->files[0]));
    fdstash_table **kept = malloc((table_count + 1) * sizeof(fdstash_table *));
    if (!layer || !kept) {
        free(layer);
        free(kept);
        return -ENOMEM;
    }
    atomic_init(&layer->references, 1);
    atomic_init(&layer->dirty, 0);
    layer->map = map;
    layer->size = fdstash_map_size(map);
    layer->backing = backing;
    layer->tables = kept;
    layer->table_count = table_count;
    for (size_t i = 0; i < table_count; i++)
        kept[i] = tables[i];
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

void fdstash_layer_set_dirty(fdstash_layer *layer, int dirty)
{
    atomic_store(&layer->dirty, dirty != 0);
}

int fdstash_layer_lookup(fdstash_layer *layer, uint64_t offset, uint64_t limit,
                         fdstash_segment *out)
{
    int rc = layer_lookup(layer, offset, limit, out);
    return rc < 0 ? rc : 0;
}

int layer_lookup(const struct fdstash_layer *layer, uint64_t offset, uint64_t limit,
                 fdstash_segment *out)
{
    int rc = fdstash_map_lookup(layer->map, offset, limit, out);
    if (rc < 0 || (out->kind & ~(uint32_t)FDSTASH_READONLY) != FDSTASH_TABLE)
        return rc;
    uint32_t readonly = out->kind & FDSTASH_READONLY;
    /* A table starts where its segment does; file_offset counts from there. */
    table_lookup(layer->tables[out->file], out->file_offset, out->length, out);
    out->kind |= readonly;
    return 1;
}

const struct fdstash_layer *layer_resolve(const struct fdstash_layer *layer, uint64_t offset,
                                          uint64_t limit, fdstash_segment *out)
{
    while (layer_lookup(layer, offset, limit, out) >= 0) {
        const struct fdstash_layer *backing = layer->backing;
        if ((out->kind & ~(uint32_t)FDSTASH_READONLY) != FDSTASH_HOLE || !backing ||
            offset >= backing->size)
            return layer;
        uint64_t rest = backing->size - offset;
        limit = rest < out->length ? rest : out->length;
        layer = backing;
    }
    return NULL;
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
        for (size_t i = 0; i < layer->table_count; i++)
            fdstash_table_free(layer->tables[i]);
        free(layer->tables);
        fdstash_map_free(layer->map);
        free(layer);
        layer = backing;
    }
}
