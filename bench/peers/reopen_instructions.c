/* reopen_instructions.c: the C side of a reopen, alone, for callgrind to count.
 *
 *     reopen_instructions FOLDER setfl|proc FILES
 *
 * Makes the calls that the Python package makes for a switch of the cache mode,
 * in its order. The function `counted` is one reopen; it is run there and back
 * once everything has been done before, so that nothing is done for the first
 * time in it. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fdstash.h"
#include "must.h"

#define FILE_BYTES 65536
#define EVERY_ROUTE (FDSTASH_ROUTE_SETFL | FDSTASH_ROUTE_PROC | FDSTASH_ROUTE_PATH)
#define UNCOUNTED 4
#define COUNTED 2

struct subject {
    size_t count;
    fdstash_file **files;
    char **paths;
    fdstash_image *image;
    fdstash_swap *swap;
    uint8_t *routes;
    int *close_errors;
};

static void reopen(struct subject *s, int flags)
{
    fdstash_failure failure;
    fdstash_swap_want(s->swap, flags, EVERY_ROUTE);
    check(fdstash_swap_acquire(s->swap, 0, &failure), "acquire");
    check(fdstash_swap_prove(s->swap, &failure), "prove");
    check(fdstash_image_hold(s->image, fdstash_swap_classes(s->swap), 1, 30000000000), "hold");
    fdstash_image_in_flight(s->image);
    fdstash_image_hold(s->image, FDSTASH_FLUSHES, 0, 0);
    check(fdstash_swap_exchange(s->swap, &failure), "exchange");
    fdstash_image_set_flags(s->image, FDSTASH_WRITABLE);
    fdstash_swap_settle(s->swap);
    fdstash_image_release(s->image);
    fdstash_swap_routes(s->swap, s->routes);
    must(fdstash_swap_changed(s->swap) == s->count, "not every file was changed");
    fdstash_swap_finish(s->swap, s->close_errors);
}

__attribute__((noinline)) static void counted(struct subject *s, int flags)
{
    reopen(s, flags);
}

static void make_files(struct subject *s, const char *folder)
{
    static const char bytes[FILE_BYTES] = {1};
    for (size_t i = 0; i < s->count; i++) {
        char path[4096];
        snprintf(path, sizeof(path), "%s/%zu", folder, i);
        s->paths[i] = strdup(path);
        int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        must(fd >= 0, path);
        must(write(fd, bytes, sizeof(bytes)) == (ssize_t)sizeof(bytes), path);
        close(fd);
        fd = (int)check(fdstash_open_path(AT_FDCWD, path, O_RDWR, 0), path);
        check(fdstash_file_new(fd, 0, &s->files[i]), path);
    }
}

static void make_image(struct subject *s)
{
    fdstash_segment *segments = calloc(s->count, sizeof(*segments));
    fdstash_map *map;
    fdstash_layer *layer;
    size_t failed;
    must(segments != NULL, "memory");
    for (size_t i = 0; i < s->count; i++)
        segments[i] = (fdstash_segment){
            .start = i * FILE_BYTES,
            .length = FILE_BYTES,
            .file = (uint32_t)i,
            .kind = FDSTASH_DATA,
        };
    check(fdstash_map_new(segments, s->count, &map, &failed), "map");
    check(fdstash_layer_new(map, s->files, s->count, NULL, 0, NULL, &layer), "layer");
    check(fdstash_image_new(layer, FDSTASH_WRITABLE, &s->image), "image");
    check(fdstash_swap_new(s->files, s->count, &s->swap), "swap");
    for (size_t i = 0; i < s->count; i++)
        fdstash_swap_set_path(s->swap, i, AT_FDCWD, s->paths[i], 0);
    free(segments);
    fdstash_layer_unref(layer);
}

static void prepare(struct subject *s, int by_proc)
{
    for (size_t i = 0; by_proc && i < s->count; i++)
        fdstash_file_mark_shared(s->files[i]);
}

int main(int argc, char **argv)
{
    must(argc == 4, "usage: reopen_instructions FOLDER setfl|proc FILES");
    int by_proc = strcmp(argv[2], "proc") == 0;
    struct subject s = {.count = strtoul(argv[3], NULL, 10)};
    s.files = calloc(s.count, sizeof(fdstash_file *));
    s.paths = calloc(s.count, sizeof(char *));
    s.routes = calloc(s.count, sizeof(uint8_t));
    s.close_errors = calloc(s.count, sizeof(int));
    must(s.files && s.paths && s.routes && s.close_errors, "memory");
    make_files(&s, argv[1]);
    make_image(&s);
    for (int turn = 0; turn < UNCOUNTED + COUNTED; turn++) {
        int flags = O_RDWR | (turn % 2 ? 0 : O_DIRECT);
        prepare(&s, by_proc);
        if (turn < UNCOUNTED)
            reopen(&s, flags);
        else
            counted(&s, flags);
        for (size_t i = 0; i < s.count; i++)
            must(s.routes[i] == (by_proc ? FDSTASH_ROUTE_PROC : FDSTASH_ROUTE_SETFL), "route");
    }
    fdstash_swap_free(s.swap);
    fdstash_image_close(s.image);
    fdstash_image_free(s.image);
    for (size_t i = 0; i < s.count; i++) {
        fdstash_file_unref(s.files[i]);
        free(s.paths[i]);
    }
    free(s.files);
    free(s.paths);
    free(s.routes);
    free(s.close_errors);
    return 0;
}
