/* extent_map.c: a sorted array of segments and a binary search. */
#include "extent_map.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct fdstash_map {
    size_t count;
    fdstash_segment segments[];
};

static int is_sound(const fdstash_segment *segment, uint64_t expected_start)
{
    uint32_t kind = segment->kind & ~(uint32_t)FDSTASH_READONLY;
    uint64_t end;
    if (segment->start != expected_start || segment->length == 0 || kind > FDSTASH_TABLE)
        return 0;
    /* Offsets go to the kernel as off_t. */
    if (__builtin_add_overflow(segment->start, segment->length, &end) || end > INT64_MAX)
        return 0;
    return !__builtin_add_overflow(segment->file_offset, segment->length, &end) && end <= INT64_MAX;
}

int fdstash_map_new(const fdstash_segment *segments, size_t count, fdstash_map **out,
                    size_t *failed)
{
    uint64_t end = 0;
    for (size_t i = 0; i < count; i++) {
        if (!is_sound(&segments[i], end)) {
            *failed = i;
            return -EINVAL;
        }
        end += segments[i].length;
    }
    fdstash_map *map = malloc(sizeof(*map) + count * sizeof(*segments));
    if (!map)
        return -ENOMEM;
    map->count = count;
    if (count)
        memcpy(map->segments, segments, count * sizeof(*segments));
    *out = map;
    return 0;
}

void fdstash_map_free(fdstash_map *map)
{
    free(map);
}

size_t fdstash_map_count(const fdstash_map *map)
{
    return map->count;
}

const fdstash_segment *fdstash_map_segments(const fdstash_map *map)
{
    return map->segments;
}

uint64_t fdstash_map_size(const fdstash_map *map)
{
    if (map->count == 0)
        return 0;
    const fdstash_segment *last = &map->segments[map->count - 1];
    return last->start + last->length;
}

int fdstash_map_lookup(const fdstash_map *map, uint64_t offset, uint64_t limit,
                       fdstash_segment *out)
{
    size_t low = 0;
    size_t high = map->count;
    if (offset >= fdstash_map_size(map))
        return -ERANGE;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (map->segments[middle].start <= offset)
            low = middle;
        else
            high = middle;
    }
    const fdstash_segment *segment = &map->segments[low];
    uint64_t skip = offset - segment->start;
    *out = *segment;
    out->start = offset;
    out->file_offset = segment->file_offset + skip;
    out->length = segment->length - skip;
    if (out->length > limit)
        out->length = limit;
    return 0;
}
