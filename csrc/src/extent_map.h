/* extent_map.h: guest offset -> (file, offset, kind). Public calls are in
 * fdstash_api.h. A leaf; does no I/O. */
#ifndef FDSTASH_EXTENT_MAP_H
#define FDSTASH_EXTENT_MAP_H

#include "fdstash.h"

/* The segments of a map, in order, for a layer's checks. */
const fdstash_segment *fdstash_map_segments(const fdstash_map *map);

#endif
