/* mapped_instructions.c: the C side of a request through the map, alone, for callgrind.
 *
 *     mapped_instructions FOLDER raw|table read|write BYTES
 *
 * Requests of BYTES at offsets in no order, of an image of one linear segment, or
 * of a cluster table whose clusters lie in no order. The function `counted` makes
 * REQUESTS of them, after as many have been made. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fdstash.h"
#include "must.h"

#define CLUSTER_BITS 16
#define CLUSTERS 256
#define PAGE_ENTRIES 64
#define DISK_BYTES ((uint64_t)CLUSTERS << CLUSTER_BITS)
#define REQUESTS 512
/* Odd, so that every cluster is met once. */
#define STRIDE 101

static fdstash_file *make_file(const char *folder)
{
    char path[4096];
    fdstash_file *file;
    snprintf(path, sizeof(path), "%s/disk", folder);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    must(fd >= 0 && ftruncate(fd, (off_t)DISK_BYTES) == 0, path);
    close(fd);
    fd = (int)check(fdstash_open_path(AT_FDCWD, path, O_RDWR, 0), path);
    check(fdstash_file_new(fd, 0, &file), path);
    return file;
}

/* Entries of 32 bits, each a number of sectors, as in a sparse VMDK. */
static fdstash_table *make_table(void)
{
    static const fdstash_entry_layout layout = {
        .width = 4,
        .part_count = 1,
        .parts = {{.mask = UINT32_MAX}},
        .unit = 512,
    };
    fdstash_table *table;
    check(fdstash_table_new(DISK_BYTES, CLUSTER_BITS, PAGE_ENTRIES, 0, &layout, &table), "table");
    for (uint64_t page = 0; page < CLUSTERS / PAGE_ENTRIES; page++) {
        uint32_t raw[PAGE_ENTRIES];
        for (uint64_t i = 0; i < PAGE_ENTRIES; i++) {
            uint64_t place = (page * PAGE_ENTRIES + i) * STRIDE % CLUSTERS;
            raw[i] = (uint32_t)(place << (CLUSTER_BITS - 9));
        }
        check(fdstash_table_load(table, page, raw, sizeof(raw), DISK_BYTES, 0), "load");
    }
    return table;
}

static fdstash_image *make_image(fdstash_file *file, int in_table)
{
    fdstash_segment segment = {
        .length = DISK_BYTES,
        .kind = in_table ? FDSTASH_TABLE : FDSTASH_DATA,
    };
    fdstash_table *table = in_table ? make_table() : NULL;
    fdstash_map *map;
    fdstash_layer *layer;
    fdstash_image *image;
    size_t failed;
    check(fdstash_map_new(&segment, 1, &map, &failed), "map");
    check(fdstash_layer_new(map, &file, 1, &table, in_table, NULL, &layer), "layer");
    check(fdstash_image_new(layer, FDSTASH_WRITABLE, &image), "image");
    fdstash_layer_unref(layer);
    return image;
}

static void requests(fdstash_image *image, int write, void *buffer, uint64_t bytes)
{
    uint64_t places = DISK_BYTES / bytes;
    for (uint64_t i = 0; i < REQUESTS; i++) {
        uint64_t offset = i * STRIDE % places * bytes;
        int64_t done = write ? fdstash_image_pwrite(image, buffer, bytes, offset, 0)
                             : fdstash_image_pread(image, buffer, bytes, offset);
        must(check(done, "request") == (int64_t)bytes, "a short request");
    }
}

__attribute__((noinline)) static void counted(fdstash_image *image, int write, void *buffer,
                                              uint64_t bytes)
{
    requests(image, write, buffer, bytes);
}

int main(int argc, char **argv)
{
    must(argc == 5, "usage: mapped_instructions FOLDER raw|table read|write BYTES");
    int write = strcmp(argv[3], "write") == 0;
    uint64_t bytes = strtoull(argv[4], NULL, 10);
    fdstash_file *file = make_file(argv[1]);
    fdstash_image *image = make_image(file, strcmp(argv[2], "table") == 0);
    void *buffer = aligned_alloc(4096, bytes);
    must(buffer != NULL, "memory");
    memset(buffer, 1, bytes);
    requests(image, write, buffer, bytes);
    counted(image, write, buffer, bytes);
    fdstash_image_close(image);
    fdstash_image_free(image);
    fdstash_file_unref(file);
    free(buffer);
    return 0;
}
