/* images.h: small images over files that only the test has. */
#ifndef IMAGES_H
#define IMAGES_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"
#include "fdstash.h"

struct small_file {
    char path[64];
    fdstash_file *file;
};

static inline void make_file(struct small_file *out, uint64_t size)
{
    snprintf(out->path, sizeof(out->path), "/tmp/fdstash-test-XXXXXX");
    int fd = mkostemp(out->path, O_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_EQUAL(ftruncate(fd, (off_t)size), 0);
    close(fd);
    fd = fdstash_open_path(AT_FDCWD, out->path, O_RDWR, 0);
    CHECK(fd >= 3);
    CHECK_EQUAL(fdstash_file_new(fd, 0, &out->file), 0);
}

static inline void drop_file(struct small_file *file)
{
    CHECK_EQUAL(fdstash_file_unref(file->file), 0);
    unlink(file->path);
}

/* `count` files in a row, each `size` bytes of the disk, `skip` bytes into its file. */
static inline fdstash_image *make_image(const struct small_file *files, uint32_t count,
                                        uint64_t size, uint64_t skip)
{
    fdstash_segment segments[8] = {{0}};
    fdstash_file *handles[8];
    fdstash_map *map;
    fdstash_layer *layer;
    fdstash_image *image;
    size_t failed;
    for (uint32_t i = 0; i < count; i++) {
        segments[i] =
            (fdstash_segment){.start = i * size, .length = size, .file_offset = skip, .file = i};
        handles[i] = files[i].file;
    }
    CHECK_EQUAL(fdstash_map_new(segments, count, &map, &failed), 0);
    CHECK_EQUAL(fdstash_layer_new(map, handles, count, NULL, 0, NULL, &layer), 0);
    CHECK_EQUAL(fdstash_image_new(layer, FDSTASH_WRITABLE, &image), 0);
    fdstash_layer_unref(layer);
    return image;
}

static inline void drop_image(fdstash_image *image)
{
    fdstash_image_close(image);
    fdstash_image_free(image);
}

#endif
