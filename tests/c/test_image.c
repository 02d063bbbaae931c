/* The data path: requests that cross files, ends, kinds and alignments. */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "descriptors.h"
#include "images.h"

#define EXTENT ((uint64_t)8192 + 512)
#define COUNT 3
#define SIZE (EXTENT * COUNT)

static struct small_file files[COUNT];
static unsigned char model[SIZE], found[SIZE + 64];

static fdstash_image *begin(uint64_t skip)
{
    for (int i = 0; i < COUNT; i++)
        make_file(&files[i], EXTENT + skip);
    memset(model, 0, sizeof(model));
    return make_image(files, COUNT, EXTENT, skip);
}

static void end(fdstash_image *image)
{
    memset(found, 0xee, sizeof(found));
    CHECK_EQUAL(fdstash_image_pread(image, found, sizeof(found), 0), SIZE);
    CHECK_EQUAL(memcmp(found, model, SIZE), 0);
    drop_image(image);
    for (int i = 0; i < COUNT; i++)
        drop_file(&files[i]);
}

static void writes_of_any_place_and_length_are_read_back(void)
{
    fdstash_image *image = begin(512);
    unsigned state = 1;
    for (int i = 0; i < 2000; i++) {
        unsigned char data[5000];
        state = state * 1103515245u + 12345u;
        uint64_t offset = (state >> 8) % SIZE;
        state = state * 1103515245u + 12345u;
        uint64_t length = (state >> 8) % sizeof(data);
        if (length > SIZE - offset)
            length = SIZE - offset;
        memset(data, i, sizeof(data));
        switch (i % 4) {
        case 0:
            CHECK_EQUAL(fdstash_image_zero(image, length, offset, i & 8 ? FDSTASH_UNMAP : 0), 0);
            memset(model + offset, 0, length);
            break;
        case 1: {
            uint64_t half = length / 2;
            fdstash_iovec iov[] = {{data, half}, {data, 0}, {data, length - half}};
            CHECK_EQUAL(fdstash_image_pwritev(image, iov, 3, offset, FDSTASH_FUA), length);
            memset(model + offset, i & 0xff, length);
            break;
        }
        default:
            CHECK_EQUAL(fdstash_image_pwrite(image, data, length, offset, 0), length);
            memset(model + offset, i & 0xff, length);
        }
    }
    CHECK_EQUAL(fdstash_image_flush(image), 0);
    end(image);
}

static void the_end_of_the_image_is_kept(void)
{
    fdstash_image *image = begin(0);
    CHECK_EQUAL(fdstash_image_pread(image, found, 100, SIZE - 10), 10);
    CHECK_EQUAL(fdstash_image_pread(image, found, 100, SIZE), 0);
    CHECK_EQUAL(fdstash_image_pread(image, found, 100, UINT64_MAX - 10), 0);
    CHECK_EQUAL(fdstash_image_pwrite(image, "0123456789a", 11, SIZE - 10, 0), -ENOSPC);
    CHECK_EQUAL(fdstash_image_pwrite(image, "x", 1, UINT64_MAX, 0), -ENOSPC);
    CHECK_EQUAL(fdstash_image_zero(image, 11, SIZE - 10, 0), -ENOSPC);
    fdstash_iovec huge[] = {{found, SIZE_MAX}, {found, SIZE_MAX}};
    CHECK_EQUAL(fdstash_image_preadv(image, huge, 2, 0), -EINVAL);
    fdstash_image_set_flags(image, 0);
    CHECK_EQUAL(fdstash_image_pwrite(image, "x", 1, 0, 0), -EBADF);
    end(image);
}

static void a_file_that_shrank_is_an_error_and_not_zeros(void)
{
    fdstash_image *image = begin(0);
    CHECK_EQUAL(truncate(files[1].path, 100), 0);
    CHECK_EQUAL(fdstash_image_pread(image, found, SIZE, 0), -EIO);
    CHECK_EQUAL(fdstash_image_pread(image, found, EXTENT, 0), EXTENT);
    CHECK_EQUAL(truncate(files[1].path, (off_t)EXTENT), 0);
    end(image);
}

static void each_kind_of_segment_does_what_it_says(void)
{
    struct small_file file, below;
    fdstash_map *map;
    fdstash_layer *backing, *layer;
    fdstash_image *image;
    size_t failed;
    make_file(&file, 8192);
    make_file(&below, 4096);
    CHECK_EQUAL(fdstash_file_pwrite(below.file, "below", 5, 0, 0), 5);
    fdstash_segment base[] = {{0, 4096, 0, 0, FDSTASH_DATA}};
    CHECK_EQUAL(fdstash_map_new(base, 1, &map, &failed), 0);
    CHECK_EQUAL(fdstash_layer_new(map, &below.file, 1, NULL, 0, NULL, &backing), 0);
    fdstash_segment segments[] = {
        {0, 8192, 0, 0, FDSTASH_HOLE},
        {8192, 4096, 0, 0, FDSTASH_ZERO},
        {12288, 4096, 0, 0, FDSTASH_DATA | FDSTASH_READONLY},
        {16384, 4096, 4096, 0, FDSTASH_DATA},
        {20480, 4096, 0, 0, FDSTASH_DENIED},
    };
    CHECK_EQUAL(fdstash_map_new(segments, 5, &map, &failed), 0);
    CHECK_EQUAL(fdstash_layer_new(map, &file.file, 1, NULL, 0, backing, &layer), 0);
    CHECK_EQUAL(fdstash_image_new(layer, FDSTASH_WRITABLE, &image), 0);
    fdstash_layer_unref(layer);
    fdstash_layer_unref(backing);

    memset(found, 0xee, sizeof(found));
    CHECK_EQUAL(fdstash_image_pread(image, found, 12288, 0), 12288);
    CHECK_EQUAL(memcmp(found, "below\0", 6), 0);
    for (size_t i = 5; i < 12288; i++)
        CHECK_EQUAL(found[i], 0);
    CHECK_EQUAL(fdstash_image_pread(image, found, 1, 20480), -EACCES);
    CHECK_EQUAL(fdstash_image_pwrite(image, "x", 1, 0, 0), -EROFS);
    CHECK_EQUAL(fdstash_image_pwrite(image, "x", 1, 8192, 0), -EROFS);
    CHECK_EQUAL(fdstash_image_zero(image, 4096, 8192, 0), 0);
    CHECK_EQUAL(fdstash_image_pwrite(image, "x", 1, 12288, 0), -EROFS);
    /* Nothing of a request that meets a read-only extent is written. */
    CHECK_EQUAL(fdstash_image_pwrite(image, "xy", 2, 16383, 0), -EROFS);
    CHECK_EQUAL(fdstash_image_pwrite(image, "data", 4, 16384, 0), 4);
    CHECK_EQUAL(fdstash_image_pwrite(image, "x", 1, 20480, 0), -EACCES);
    CHECK_EQUAL(fdstash_image_pread(image, found, 4, 16384), 4);
    CHECK_EQUAL(memcmp(found, "data", 4), 0);
    drop_image(image);
    drop_file(&file);
    drop_file(&below);
}

static void a_closed_image_refuses_and_holds_no_descriptor(void)
{
    int before = open_descriptors();
    fdstash_image *image = begin(0);
    for (int i = 0; i < COUNT; i++)
        drop_file(&files[i]);
    CHECK_EQUAL(open_descriptors(), before + COUNT);
    fdstash_image_close(image);
    CHECK_EQUAL(open_descriptors(), before);
    CHECK_EQUAL(fdstash_image_pread(image, found, 1, 0), -ESHUTDOWN);
    CHECK_EQUAL(fdstash_image_flush(image), -ESHUTDOWN);
    fdstash_image_close(image);
    fdstash_image_free(image);
}

int main(void)
{
    RUN(writes_of_any_place_and_length_are_read_back);
    RUN(the_end_of_the_image_is_kept);
    RUN(a_file_that_shrank_is_an_error_and_not_zeros);
    RUN(each_kind_of_segment_does_what_it_says);
    RUN(a_closed_image_refuses_and_holds_no_descriptor);
    return 0;
}
