/* The swap: all files or none, and the way back. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "check.h"
#include "descriptors.h"
#include "images.h"

#define COUNT 3
#define EXTENT ((uint64_t)16384)
#define EVERY_ROUTE (FDSTASH_ROUTE_SETFL | FDSTASH_ROUTE_PROC | FDSTASH_ROUTE_PATH)

static struct small_file files[COUNT];
static fdstash_image *image;
static fdstash_swap *swap;
static fdstash_failure failure;
static int at_rest;

static void begin(void)
{
    fdstash_file *handles[COUNT];
    for (int i = 0; i < COUNT; i++) {
        make_file(&files[i], EXTENT);
        handles[i] = files[i].file;
    }
    image = make_image(files, COUNT, EXTENT, 0);
    CHECK_EQUAL(fdstash_swap_new(handles, COUNT, &swap), 0);
    for (size_t i = 0; i < COUNT; i++)
        fdstash_swap_set_path(swap, i, AT_FDCWD, files[i].path, 0);
    at_rest = open_descriptors();
}

static void end(void)
{
    CHECK_EQUAL(open_descriptors(), at_rest);
    fdstash_swap_free(swap);
    drop_image(image);
    for (int i = 0; i < COUNT; i++)
        drop_file(&files[i]);
}

static int access_of(int i)
{
    fdstash_file_status status;
    CHECK_EQUAL(fdstash_file_get_status(files[i].file, &status), 0);
    return status.flags & O_ACCMODE;
}

static void check_all(int access)
{
    for (int i = 0; i < COUNT; i++)
        CHECK_EQUAL(access_of(i), access);
}

static void change_to(int flags, uint32_t routes)
{
    fdstash_swap_want(swap, flags, routes);
    int rc = fdstash_swap_acquire(swap, 0, &failure);
    if (rc == -EINPROGRESS) /* /tmp on a file system that may wait for a server */
        rc = fdstash_swap_acquire(swap, 1, &failure);
    CHECK_EQUAL(rc, 0);
    CHECK_EQUAL(fdstash_swap_prove(swap, &failure), 0);
    CHECK_EQUAL(fdstash_swap_exchange(swap, &failure), 0);
    fdstash_swap_settle(swap);
}

static void the_exchange_undoes_itself(void)
{
    begin();
    change_to(O_RDONLY, EVERY_ROUTE);
    CHECK_EQUAL(fdstash_swap_changed(swap), COUNT);
    CHECK_EQUAL(fdstash_swap_classes(swap), FDSTASH_WRITES | FDSTASH_UNALIGNED_WRITES);
    check_all(O_RDONLY);
    CHECK_EQUAL(open_descriptors(), at_rest + COUNT + 1); /* the old ones, and the spare */
    CHECK_EQUAL(fdstash_swap_exchange(swap, &failure), 0);
    CHECK_EQUAL(fdstash_swap_changed(swap), 0);
    check_all(O_RDWR);
    fdstash_swap_finish(swap, NULL);
    end();
}

static void one_file_that_cannot_be_opened_changes_none(void)
{
    char moved[80];
    begin();
    snprintf(moved, sizeof(moved), "%s.moved", files[2].path);
    CHECK_EQUAL(rename(files[2].path, moved), 0);
    fdstash_swap_want(swap, O_RDONLY, FDSTASH_ROUTE_PATH);
    int rc = fdstash_swap_acquire(swap, 1, &failure);
    CHECK_EQUAL(rc, -ENOENT);
    CHECK_EQUAL(failure.index, 2);
    CHECK_EQUAL(failure.step, FDSTASH_STEP_OPEN);
    CHECK_EQUAL(failure.error, ENOENT);
    check_all(O_RDWR);
    CHECK_EQUAL(open_descriptors(), at_rest);

    /* Another file in its place is not it. */
    int fd = open(files[2].path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    CHECK_EQUAL(ftruncate(fd, (off_t)EXTENT), 0);
    close(fd);
    at_rest = open_descriptors();
    CHECK_EQUAL(fdstash_swap_acquire(swap, 1, &failure), -ESTALE);
    CHECK_EQUAL(failure.step, FDSTASH_STEP_IDENTITY);
    CHECK_EQUAL(rename(moved, files[2].path), 0);
    change_to(O_RDONLY, FDSTASH_ROUTE_PATH);
    check_all(O_RDONLY);
    fdstash_swap_finish(swap, NULL);
    end();
}

static void an_unlinked_file_is_reopened_all_the_same(void)
{
    begin();
    for (int i = 0; i < COUNT; i++)
        CHECK_EQUAL(unlink(files[i].path), 0);
    change_to(O_RDONLY, EVERY_ROUTE);
    check_all(O_RDONLY);
    fdstash_swap_finish(swap, NULL);
    change_to(O_RDWR, EVERY_ROUTE);
    check_all(O_RDWR);
    fdstash_swap_finish(swap, NULL);
    end();
}

static void a_number_above_the_limit_is_found_before_the_exchange(void)
{
    struct rlimit limit, low;
    fdstash_file_status status;
    begin();
    CHECK_EQUAL(getrlimit(RLIMIT_NOFILE, &limit), 0);
    fdstash_swap_want(swap, O_RDONLY, EVERY_ROUTE);
    int rc = fdstash_swap_acquire(swap, 1, &failure);
    CHECK_EQUAL(rc, 0);
    CHECK_EQUAL(fdstash_file_get_status(files[1].file, &status), 0);
    low = limit;
    low.rlim_cur = (rlim_t)status.fd;
    CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &low), 0);
    rc = fdstash_swap_prove(swap, &failure);
    CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &limit), 0);
    CHECK_EQUAL(rc, -EMFILE);
    CHECK_EQUAL(failure.step, FDSTASH_STEP_LIMIT);
    fdstash_swap_finish(swap, NULL);
    check_all(O_RDWR);
    end();
}

static _Atomic int stop;

static void *load(void *unused)
{
    unsigned char wrote[512], read[512];
    unsigned state = 7;
    memset(wrote, 0x5a, sizeof(wrote));
    while (!stop) {
        state = state * 1103515245u + 12345u;
        uint64_t offset = (state >> 8) % (COUNT * EXTENT - sizeof(wrote));
        CHECK_EQUAL(fdstash_image_pwrite(image, wrote, sizeof(wrote), offset, 0), sizeof(wrote));
        CHECK_EQUAL(fdstash_image_pread(image, read, sizeof(read), offset), sizeof(read));
        CHECK_EQUAL(memcmp(wrote, read, sizeof(read)), 0);
    }
    return unused;
}

static void no_request_fails_while_files_are_swapped(void)
{
    pthread_t threads[3];
    begin();
    stop = 0;
    for (int i = 0; i < 3; i++)
        CHECK_EQUAL(pthread_create(&threads[i], NULL, load, NULL), 0);
    for (int i = 0; i < 1000; i++) {
        change_to(O_RDWR, FDSTASH_ROUTE_PATH);
        fdstash_swap_finish(swap, NULL);
    }
    stop = 1;
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    end();
}

static void a_forked_child_keeps_no_descriptor_and_is_shut_out(void)
{
    begin();
    fdstash_swap_want(swap, O_RDONLY, EVERY_ROUTE);
    CHECK_EQUAL(fdstash_swap_acquire(swap, 1, &failure), 0);
    pid_t child = fork();
    if (child == 0) {
        char byte;
        int right = open_descriptors() == at_rest - COUNT &&
                    fdstash_image_pread(image, &byte, 1, 0) == -ESHUTDOWN;
        _exit(right ? 0 : 1);
    }
    int status;
    CHECK_EQUAL(waitpid(child, &status, 0), child);
    CHECK_EQUAL(status, 0);
    CHECK_EQUAL(fdstash_swap_prove(swap, &failure), 0);
    fdstash_swap_finish(swap, NULL);
    end();
}

int main(void)
{
    RUN(the_exchange_undoes_itself);
    RUN(one_file_that_cannot_be_opened_changes_none);
    RUN(an_unlinked_file_is_reopened_all_the_same);
    RUN(a_number_above_the_limit_is_found_before_the_exchange);
    RUN(no_request_fails_while_files_are_swapped);
    RUN(a_forked_child_keeps_no_descriptor_and_is_shut_out);
    return 0;
}
