/* cluster_table.h: guest cluster -> (host offset, kind), in pages that are loaded
 * on first touch. Public calls are in fdstash_api.h. A leaf; does no I/O. */
#ifndef FDSTASH_CLUSTER_TABLE_H
#define FDSTASH_CLUSTER_TABLE_H

#include "fdstash.h"

/* The run at `offset` bytes into the table, at most limit bytes: clusters of one
 * kind, and where they hold data contiguous on the host. Sets length, kind, file
 * and file_offset of *out; start is the caller's. Any thread that is counted by
 * the gate of the image. */
void table_lookup(fdstash_table *table, uint64_t offset, uint64_t limit, fdstash_segment *out);
uint64_t table_size(const fdstash_table *table);
uint32_t table_file(const fdstash_table *table);

#endif
