/* Cluster tables: decoding, runs, changes, eviction, and requests through them. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "cluster_table.h"
#include "images.h"

#define CLUSTER UINT64_C(65536)
#define ENTRIES 4
#define FILE_BYTES (64 * CLUSTER)

/* As hosted sparse VMDK has them: sectors; 0 is a hole, 1 zeros. */
static const fdstash_entry_layout sectors = {
    .width = 4,
    .rule_count = 2,
    .part_count = 1,
    .rules = {{.mask = 0xffffffff, .value = 0, .kind = FDSTASH_HOLE},
              {.mask = 0xffffffff, .value = 1, .kind = FDSTASH_ZERO}},
    .parts = {{.mask = 0xffffffff}},
    .unit = 512,
};

static fdstash_table *make_table(uint64_t clusters, const fdstash_entry_layout *layout)
{
    fdstash_table *table;
    CHECK_EQUAL(fdstash_table_new(clusters * CLUSTER, 16, ENTRIES, 0, layout, &table), 0);
    return table;
}

static fdstash_segment look(fdstash_table *table, uint64_t offset, uint64_t limit)
{
    fdstash_segment run = {0};
    table_lookup(table, offset, limit, &run);
    return run;
}

static void load(fdstash_table *table, uint64_t page, const uint32_t *raw, uint64_t generation)
{
    CHECK_EQUAL(fdstash_table_load(table, page, raw, ENTRIES * 4, FILE_BYTES, generation), 0);
}

static void runs_are_merged_where_the_host_is_contiguous(void)
{
    fdstash_table *table = make_table(10, &sectors);
    uint32_t first[ENTRIES] = {128, 256, 384, 1024};
    uint32_t second[ENTRIES] = {1152, 0, 0, 1};
    fdstash_segment run = look(table, 5, 1 << 30);
    CHECK_EQUAL(run.kind, FDSTASH_UNKNOWN);
    CHECK_EQUAL(run.length, 4 * CLUSTER - 5);
    load(table, 0, first, 0);
    load(table, 1, second, 0);
    CHECK_EQUAL(fdstash_table_load(table, 2, NULL, 0, FILE_BYTES, 0), 0);
    CHECK_EQUAL(fdstash_table_loaded(table), 2);

    run = look(table, 100, 1 << 30);
    CHECK_EQUAL(run.kind, FDSTASH_DATA);
    CHECK_EQUAL(run.length, 3 * CLUSTER - 100);
    CHECK_EQUAL(run.file_offset, CLUSTER + 100);
    CHECK_EQUAL(look(table, 100, 50).length, 50);
    run = look(table, 3 * CLUSTER, 1 << 30); /* over the end of a page */
    CHECK_EQUAL(run.length, 2 * CLUSTER);
    CHECK_EQUAL(run.file_offset, 1024 * 512);
    run = look(table, 5 * CLUSTER, 1 << 30);
    CHECK_EQUAL(run.kind, FDSTASH_HOLE);
    CHECK_EQUAL(run.length, 2 * CLUSTER);
    CHECK_EQUAL(look(table, 7 * CLUSTER, 1 << 30).kind, FDSTASH_ZERO);
    run = look(table, 8 * CLUSTER, 1 << 30);
    CHECK_EQUAL(run.kind, FDSTASH_HOLE);
    CHECK_EQUAL(run.length, 2 * CLUSTER); /* the disk ends inside the page */
    fdstash_table_free(table);
}

static void entries_beyond_the_file_are_bad(void)
{
    fdstash_table *table = make_table(4, &sectors);
    uint32_t raw[ENTRIES] = {FILE_BYTES / 512 - 128, FILE_BYTES / 512 - 127, 0xffffffff, 2};
    load(table, 0, raw, 0);
    CHECK_EQUAL(look(table, 0, 1).kind, FDSTASH_DATA);
    CHECK_EQUAL(look(table, CLUSTER, 1).kind, FDSTASH_BAD);
    CHECK_EQUAL(look(table, 2 * CLUSTER, 1).kind, FDSTASH_BAD);
    CHECK_EQUAL(look(table, 3 * CLUSTER, 1).kind, FDSTASH_DATA);
    fdstash_table_free(table);
}

static void entries_are_decoded_as_described(void)
{
    /* Big-endian words of 8 bytes whose number is in two parts. */
    const fdstash_entry_layout scattered = {
        .width = 8,
        .big_endian = 1,
        .rule_count = 3,
        .part_count = 2,
        .rules = {{.mask = UINT64_C(0xf) << 60, .value = 0, .kind = FDSTASH_HOLE},
                  {.mask = UINT64_C(1) << 62,
                   .value = UINT64_C(1) << 62,
                   .kind = FDSTASH_COMPRESSED},
                  {.mask = UINT64_C(1) << 63, .value = 0, .kind = FDSTASH_DATA | FDSTASH_COPY}},
        .parts = {{.mask = UINT64_C(0xfff) << 48, .shift = -48}, {.mask = 0xffff, .shift = 12}},
        .unit = 4096,
        .base = 8192,
    };
    const unsigned char raw[ENTRIES][8] = {
        {0},
        {0x40, 3},
        {0x20, 1, 0, 0, 0, 0, 0, 0},
        {0x80, 16, 0, 0, 0, 0, 0, 0},
    };
    fdstash_cluster found[ENTRIES];
    fdstash_table *table = make_table(4, &scattered);
    CHECK_EQUAL(fdstash_table_load(table, 0, raw, sizeof(raw), FILE_BYTES, 0), 0);
    CHECK_EQUAL(fdstash_table_get(table, 0, 4, found), 0);
    CHECK_EQUAL(found[0].kind, FDSTASH_HOLE);
    CHECK_EQUAL(found[1].kind, FDSTASH_COMPRESSED);
    CHECK_EQUAL(found[1].offset, 3 * 4096 + 8192);
    CHECK_EQUAL(found[2].kind, FDSTASH_DATA | FDSTASH_COPY);
    CHECK_EQUAL(found[2].offset, 4096 + 8192);
    CHECK_EQUAL(found[3].kind, FDSTASH_DATA);
    CHECK_EQUAL(found[3].offset, 16 * 4096 + 8192);
    fdstash_table_free(table);
}

static void clusters_are_set_in_pages_that_are_there(void)
{
    fdstash_table *table = make_table(10, &sectors);
    CHECK_EQUAL(fdstash_table_set(table, 0, 1, FDSTASH_DATA, CLUSTER), -ENOENT);
    CHECK_EQUAL(fdstash_table_load(table, 0, NULL, 0, FILE_BYTES, 0), 0);
    CHECK_EQUAL(fdstash_table_set(table, 3, 2, FDSTASH_DATA, CLUSTER), -ENOENT);
    CHECK_EQUAL(look(table, 3 * CLUSTER, 1).kind, FDSTASH_HOLE);
    CHECK_EQUAL(fdstash_table_load(table, 1, NULL, 0, FILE_BYTES, 0), 0);
    CHECK_EQUAL(fdstash_table_set(table, 3, 2, FDSTASH_DATA, CLUSTER), 0);
    CHECK_EQUAL(look(table, 3 * CLUSTER, 1 << 30).length, 2 * CLUSTER);
    CHECK_EQUAL(look(table, 4 * CLUSTER, 1).file_offset, 2 * CLUSTER);
    CHECK_EQUAL(look(table, 2 * CLUSTER, 1 << 30).length, CLUSTER);
    CHECK_EQUAL(fdstash_table_set(table, 9, 2, FDSTASH_ZERO, 0), -ERANGE);
    CHECK_EQUAL(fdstash_table_pin(table, 1, 1), 0);
    CHECK_EQUAL(fdstash_table_load(table, 1, NULL, 0, FILE_BYTES, 0), -EBUSY);
    CHECK_EQUAL(fdstash_table_evict(table, 10, 0), 1); /* page 0; page 1 is pinned */
    CHECK_EQUAL(look(table, 0, 1).kind, FDSTASH_UNKNOWN);
    CHECK_EQUAL(look(table, 4 * CLUSTER, 1).kind, FDSTASH_DATA);
    fdstash_table_free(table);
}

static void pages_that_were_read_of_late_stay(void)
{
    fdstash_table *table = make_table(40, &sectors);
    uint32_t raw[ENTRIES] = {128, 256, 384, 512};
    for (uint64_t page = 0; page < 10; page++)
        load(table, page, raw, page);
    CHECK_EQUAL(fdstash_table_evict(table, 4, 10), 4); /* all were new: the hand went round */
    for (int round = 0; round < 3; round++) {
        CHECK_EQUAL(look(table, 9 * ENTRIES * CLUSTER, 1).kind, FDSTASH_DATA);
        CHECK_EQUAL(fdstash_table_evict(table, 1, 11), 1);
    }
    CHECK_EQUAL(look(table, 9 * ENTRIES * CLUSTER, 1).kind, FDSTASH_DATA);
    CHECK_EQUAL(fdstash_table_loaded(table), 3);
    fdstash_table_free(table);
}

static void nonsense_is_refused(void)
{
    fdstash_table *table;
    fdstash_entry_layout layout = sectors;
    CHECK_EQUAL(fdstash_table_new(0, 16, 4, 0, &layout, &table), -EINVAL);
    CHECK_EQUAL(fdstash_table_new(CLUSTER, 8, 4, 0, &layout, &table), -EINVAL);
    CHECK_EQUAL(fdstash_table_new(CLUSTER, 16, 0, 0, &layout, &table), -EINVAL);
    CHECK_EQUAL(fdstash_table_new(INT64_MAX, 9, 1, 0, &layout, &table), -EFBIG);
    layout.width = 3;
    CHECK_EQUAL(fdstash_table_new(CLUSTER, 16, 4, 0, &layout, &table), -EINVAL);
    table = make_table(4, &sectors);
    CHECK_EQUAL(fdstash_table_load(table, 1, NULL, 0, 0, 0), -ERANGE);
    CHECK_EQUAL(fdstash_table_load(table, 0, "x", 1, 0, 0), -EINVAL);
    fdstash_table_free(table);
}

/* ------------------------------------------------- requests through a table -- */

static struct small_file file;
static unsigned char data[4 * 65536], found[4 * 65536];

static fdstash_image *make_sparse(fdstash_table **table, fdstash_layer **layer)
{
    fdstash_segment segments[] = {{0, 10 * CLUSTER, 0, 0, FDSTASH_TABLE}};
    fdstash_map *map;
    fdstash_image *image;
    size_t failed;
    make_file(&file, FILE_BYTES);
    *table = make_table(10, &sectors);
    CHECK_EQUAL(fdstash_map_new(segments, 1, &map, &failed), 0);
    CHECK_EQUAL(fdstash_layer_new(map, &file.file, 1, table, 1, NULL, layer), 0);
    CHECK_EQUAL(fdstash_image_new(*layer, FDSTASH_WRITABLE, &image), 0);
    fdstash_layer_unref(*layer);
    return image;
}

static void a_request_says_what_it_needs_and_goes_on(void)
{
    fdstash_table *table;
    fdstash_layer *layer;
    fdstash_need need;
    fdstash_image *image = make_sparse(&table, &layer);
    fdstash_iovec iov[] = {{found, CLUSTER}, {found + CLUSTER, CLUSTER}};
    uint32_t raw[ENTRIES] = {128, 0, 1, 256};
    memset(data, 0x5a, sizeof(data));
    CHECK_EQUAL(fdstash_file_pwrite(file.file, data, CLUSTER, CLUSTER, 0), CLUSTER);
    CHECK_EQUAL(fdstash_image_pread(image, found, 10, 0), -FDSTASH_NEEDS);

    int ticket = fdstash_image_enter(image, FDSTASH_READS);
    CHECK_EQUAL(fdstash_image_read_on(image, iov, 2, 10, 0, &need), -FDSTASH_NEEDS);
    CHECK(need.layer == layer);
    CHECK_EQUAL(need.kind, FDSTASH_UNKNOWN);
    CHECK_EQUAL(need.start, 10);
    CHECK_EQUAL(need.length, 2 * CLUSTER);
    CHECK_EQUAL(need.done, 0);
    load(table, 0, raw, fdstash_image_generation(image));
    CHECK_EQUAL(fdstash_image_read_on(image, iov, 2, 10, need.done, &need), 2 * CLUSTER);
    fdstash_image_leave(image, ticket, FDSTASH_READS);
    CHECK_EQUAL(memcmp(found, data, CLUSTER - 10), 0);
    for (size_t i = CLUSTER - 10; i < 2 * CLUSTER; i++)
        CHECK_EQUAL(found[i], 0);

    /* A write that meets a hole writes nothing by itself; continued, up to it. */
    CHECK_EQUAL(fdstash_image_pwrite(image, "written", 7, CLUSTER - 4, 0), -FDSTASH_NEEDS);
    CHECK_EQUAL(fdstash_image_pread(image, found, 4, CLUSTER - 4), 4);
    CHECK_EQUAL(memcmp(found, data, 4), 0);
    fdstash_iovec written = {(void *)(uintptr_t)"written", 7};
    ticket = fdstash_image_enter(image, FDSTASH_UNALIGNED_WRITES);
    CHECK_EQUAL(fdstash_image_write_on(image, &written, 1, CLUSTER - 4, 0, 0, &need),
                -FDSTASH_NEEDS);
    CHECK_EQUAL(need.kind, FDSTASH_HOLE);
    CHECK_EQUAL(need.start, CLUSTER);
    CHECK_EQUAL(need.length, 3);
    CHECK_EQUAL(need.done, 4);
    CHECK_EQUAL(fdstash_table_set(table, 1, 1, FDSTASH_DATA, 5 * CLUSTER), 0);
    CHECK_EQUAL(fdstash_image_write_on(image, &written, 1, CLUSTER - 4, need.done, 0, &need), 7);
    fdstash_image_leave(image, ticket, FDSTASH_UNALIGNED_WRITES);
    CHECK_EQUAL(fdstash_image_pread(image, found, 7, CLUSTER - 4), 7);
    CHECK_EQUAL(memcmp(found, "written", 7), 0);

    /* What entries are not on disk makes a flush the driver's. */
    CHECK_EQUAL(fdstash_image_flush(image), 0);
    fdstash_layer_set_dirty(layer, 1);
    CHECK_EQUAL(fdstash_image_flush(image), -FDSTASH_NEEDS);
    CHECK_EQUAL(fdstash_image_pwrite(image, "x", 1, 0, FDSTASH_FUA), -FDSTASH_NEEDS);
    CHECK_EQUAL(fdstash_image_pwrite(image, "x", 1, 0, 0), 1);
    CHECK_EQUAL(fdstash_image_flush_files(image), 0);
    CHECK_EQUAL(fdstash_image_zero(image, CLUSTER, 0, FDSTASH_UNMAP), -FDSTASH_NEEDS);
    CHECK_EQUAL(fdstash_image_zero(image, CLUSTER, 0, 0), 0);
    CHECK_EQUAL(fdstash_image_trim(image, CLUSTER, 0), -FDSTASH_NEEDS);
    CHECK_EQUAL(fdstash_image_trim(image, CLUSTER, 2 * CLUSTER), 0);
    drop_image(image);
    drop_file(&file);
}

/* ---------------------------------------------- readers without any lock -- */

static _Atomic int stop;

static void *reader(void *argument)
{
    fdstash_image *image = argument;
    unsigned char buffer[16];
    while (!atomic_load(&stop)) {
        int64_t rc = fdstash_image_pread(image, buffer, sizeof(buffer), 3 * CLUSTER);
        CHECK(rc == sizeof(buffer) || rc == -FDSTASH_NEEDS);
        if (rc > 0)
            CHECK_EQUAL(buffer[0], 0x5a);
    }
    return NULL;
}

static void pages_come_and_go_under_readers(void)
{
    fdstash_table *table;
    fdstash_layer *layer;
    fdstash_image *image = make_sparse(&table, &layer);
    uint32_t raw[ENTRIES] = {128, 0, 1, 128};
    pthread_t threads[4];
    CHECK_EQUAL(fdstash_file_pwrite(file.file, data, CLUSTER, CLUSTER, 0), CLUSTER);
    for (int i = 0; i < 4; i++)
        CHECK_EQUAL(pthread_create(&threads[i], NULL, reader, image), 0);
    for (int i = 0; i < 20000; i++) {
        load(table, 0, raw, fdstash_image_generation(image));
        if (i % 3 == 0)
            fdstash_table_evict(table, 1, fdstash_image_generation(image));
        if (i % 1000 == 0)
            CHECK_EQUAL(fdstash_image_grace(image, -1), 0);
    }
    atomic_store(&stop, 1);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    drop_image(image);
    drop_file(&file);
}

int main(void)
{
    RUN(runs_are_merged_where_the_host_is_contiguous);
    RUN(entries_beyond_the_file_are_bad);
    RUN(entries_are_decoded_as_described);
    RUN(clusters_are_set_in_pages_that_are_there);
    RUN(pages_that_were_read_of_late_stay);
    RUN(nonsense_is_refused);
    RUN(a_request_says_what_it_needs_and_goes_on);
    RUN(pages_come_and_go_under_readers);
    return 0;
}
