/* What a map accepts, what it refuses, and what a lookup finds in it. */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "fdstash.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define MIB (UINT64_C(1) << 20)

static fdstash_segment data(uint64_t start, uint64_t length, uint32_t file, uint64_t file_offset)
{
    fdstash_segment segment = {.start = start,
                               .length = length,
                               .file_offset = file_offset,
                               .file = file,
                               .kind = FDSTASH_DATA};
    return segment;
}

static fdstash_segment of_kind(uint64_t start, uint64_t length, uint32_t kind)
{
    fdstash_segment segment = {.start = start, .length = length, .kind = kind};
    return segment;
}

static fdstash_map *accepted(const fdstash_segment *segments, size_t count)
{
    fdstash_map *map = NULL;
    size_t failed = 0;
    CHECK_EQUAL(fdstash_map_new(segments, count, &map, &failed), 0);
    CHECK(map != NULL);
    CHECK_EQUAL(fdstash_map_count(map), count);
    return map;
}

static void check_refused(const fdstash_segment *segments, size_t count, size_t index)
{
    fdstash_map *map = NULL;
    size_t failed = SIZE_MAX;
    CHECK_EQUAL(fdstash_map_new(segments, count, &map, &failed), -EINVAL);
    CHECK_EQUAL(failed, index);
    CHECK(map == NULL);
}

static void check_found(const fdstash_map *map, uint64_t offset, uint64_t limit,
                        fdstash_segment wanted)
{
    fdstash_segment found;
    memset(&found, 0xff, sizeof(found));
    CHECK_EQUAL(fdstash_map_lookup(map, offset, limit, &found), 0);
    CHECK_EQUAL(found.start, wanted.start);
    CHECK_EQUAL(found.length, wanted.length);
    CHECK_EQUAL(found.kind, wanted.kind);
    if ((wanted.kind & ~(uint32_t)FDSTASH_READONLY) == FDSTASH_DATA) {
        CHECK_EQUAL(found.file, wanted.file);
        CHECK_EQUAL(found.file_offset, wanted.file_offset);
    }
}

static void empty_map_has_no_bytes(void)
{
    fdstash_segment found;
    fdstash_map *map = accepted(NULL, 0);
    CHECK_EQUAL(fdstash_map_size(map), 0);
    CHECK_EQUAL(fdstash_map_lookup(map, 0, 1, &found), -ERANGE);
    fdstash_map_free(map);
}

static void lookup_cuts_at_segment_and_limit(void)
{
    fdstash_segment segments[] = {
        data(0, 1000, 0, 512),
        of_kind(1000, 24, FDSTASH_ZERO),
        data(1024, 4096, 7, 0),
    };
    fdstash_map *map = accepted(segments, COUNT(segments));
    fdstash_segment found;

    CHECK_EQUAL(fdstash_map_size(map), 5120);
    check_found(map, 0, UINT64_MAX, data(0, 1000, 0, 512));
    check_found(map, 0, 1000, data(0, 1000, 0, 512));
    check_found(map, 0, 999, data(0, 999, 0, 512));
    check_found(map, 999, 5000, data(999, 1, 0, 1511));
    check_found(map, 1000, 5000, of_kind(1000, 24, FDSTASH_ZERO));
    check_found(map, 1023, 5000, of_kind(1023, 1, FDSTASH_ZERO));
    check_found(map, 1024, 1, data(1024, 1, 7, 0));
    check_found(map, 5119, UINT64_MAX, data(5119, 1, 7, 4095));
    CHECK_EQUAL(fdstash_map_lookup(map, 5120, 1, &found), -ERANGE);
    CHECK_EQUAL(fdstash_map_lookup(map, UINT64_MAX, 1, &found), -ERANGE);
    fdstash_map_free(map);
}

static void kinds_and_flags_come_back_as_given(void)
{
    fdstash_segment segments[] = {
        of_kind(0, 1, FDSTASH_ZERO),
        of_kind(1, 1, FDSTASH_HOLE),
        of_kind(2, 1, FDSTASH_DENIED),
        of_kind(3, 1, FDSTASH_DATA | FDSTASH_READONLY),
    };
    fdstash_map *map = accepted(segments, COUNT(segments));
    for (size_t i = 0; i < COUNT(segments); i++)
        check_found(map, i, 1, segments[i]);
    fdstash_map_free(map);
}

static void map_keeps_its_own_copy(void)
{
    fdstash_segment segments[] = {data(0, 4096, 3, 0)};
    fdstash_map *map = accepted(segments, 1);
    memset(segments, 0, sizeof(segments));
    check_found(map, 0, 4096, data(0, 4096, 3, 0));
    fdstash_map_free(map);
}

static void segments_must_tile_the_image(void)
{
    fdstash_segment gap_at_start[] = {data(1, 10, 0, 0)};
    fdstash_segment gap[] = {data(0, 10, 0, 0), data(11, 10, 0, 10)};
    fdstash_segment overlap[] = {data(0, 10, 0, 0), data(10, 10, 0, 0), data(19, 10, 0, 10)};
    fdstash_segment disorder[] = {data(10, 10, 0, 0), data(0, 10, 0, 10)};
    fdstash_segment twice[] = {data(0, 10, 0, 0), data(0, 10, 0, 0)};
    fdstash_segment empty[] = {data(0, 10, 0, 0), data(10, 0, 0, 0)};

    check_refused(gap_at_start, COUNT(gap_at_start), 0);
    check_refused(gap, COUNT(gap), 1);
    check_refused(overlap, COUNT(overlap), 2);
    check_refused(disorder, COUNT(disorder), 0);
    check_refused(twice, COUNT(twice), 1);
    check_refused(empty, COUNT(empty), 1);
}

static void nothing_may_wrap_around(void)
{
    fdstash_segment guest[] = {data(0, 1, 0, 0), data(1, UINT64_MAX, 0, 0)};
    fdstash_segment file[] = {data(0, 4096, 0, UINT64_MAX - 4095)};
    fdstash_segment file_off_t[] = {data(0, 4096, 0, (uint64_t)INT64_MAX - 4095 + 1)};
    fdstash_segment guest_off_t[] = {of_kind(0, (uint64_t)INT64_MAX + 1, FDSTASH_ZERO)};
    fdstash_segment sum[] = {of_kind(0, INT64_MAX, FDSTASH_ZERO), of_kind(INT64_MAX, 1, 1)};
    fdstash_segment largest[] = {of_kind(0, INT64_MAX, FDSTASH_ZERO)};

    check_refused(guest, COUNT(guest), 1);
    check_refused(file, COUNT(file), 0);
    check_refused(file_off_t, COUNT(file_off_t), 0);
    check_refused(guest_off_t, COUNT(guest_off_t), 0);
    check_refused(sum, COUNT(sum), 1);

    fdstash_map *map = accepted(largest, COUNT(largest));
    CHECK_EQUAL(fdstash_map_size(map), INT64_MAX);
    check_found(map, INT64_MAX - 1, UINT64_MAX, of_kind(INT64_MAX - 1, 1, FDSTASH_ZERO));
    fdstash_map_free(map);
}

static void unknown_kinds_are_refused(void)
{
    fdstash_segment beyond[] = {of_kind(0, 1, FDSTASH_TABLE + 1)};
    fdstash_segment flags[] = {of_kind(0, 1, 32)};
    check_refused(beyond, COUNT(beyond), 0);
    check_refused(flags, COUNT(flags), 0);
}

/* Against a plain walk through the list, at every edge. */
static void many_segments_are_found_at_every_edge(void)
{
    enum { SEGMENTS = 1000 };
    fdstash_segment *segments = calloc(SEGMENTS, sizeof(*segments));
    CHECK(segments != NULL);
    uint64_t end = 0;
    uint64_t state = 20110614;
    for (uint32_t i = 0; i < SEGMENTS; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        uint64_t length = 1 + (state >> 40) % (2 * MIB);
        segments[i] = i % 3 == 2 ? of_kind(end, length, FDSTASH_HOLE)
                                 : data(end, length, i % 500, (state >> 20) % MIB);
        end += length;
    }
    fdstash_map *map = accepted(segments, SEGMENTS);
    CHECK_EQUAL(fdstash_map_size(map), end);
    for (size_t i = 0; i < SEGMENTS; i++) {
        const fdstash_segment *is = &segments[i];
        uint64_t steps[] = {0, is->length / 2, is->length - 1};
        for (size_t k = 0; k < COUNT(steps); k++) {
            fdstash_segment wanted = *is;
            wanted.start += steps[k];
            wanted.length -= steps[k];
            wanted.file_offset += steps[k];
            check_found(map, wanted.start, UINT64_MAX, wanted);
            wanted.length = 1;
            check_found(map, wanted.start, 1, wanted);
        }
    }
    fdstash_map_free(map);
    free(segments);
}

int main(void)
{
    RUN(empty_map_has_no_bytes);
    RUN(lookup_cuts_at_segment_and_limit);
    RUN(kinds_and_flags_come_back_as_given);
    RUN(map_keeps_its_own_copy);
    RUN(segments_must_tile_the_image);
    RUN(nothing_may_wrap_around);
    RUN(unknown_kinds_are_refused);
    RUN(many_segments_are_found_at_every_edge);
    return 0;
}
