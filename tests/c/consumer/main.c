/* A program that knows fdstash.h and nothing else of this project. */
#include <errno.h>
#include <fcntl.h>
#include <fdstash.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    FDStash stash;
    int uring_error;
    uint32_t setup, bound_setup;

    if (argc != 2 || strcmp(fdstash_version(), argv[1]) != 0)
        return 1;
    fdstash_init(&stash);
    int fd = open("/dev/null", O_RDONLY);
    if (fdstash_give(&stash, "null", fd) != 0)
        return 2;
    int taken = fdstash_take(&stash, "null");
    if (taken < 3 || close(taken) != 0)
        return 3;
    if (fdstash_take(&stash, "null") != -ENOENT)
        return 4;
    fdstash_cleanup(&stash);
    /* Whatever the library itself links must have come along. */
    if (fdstash_uring_probe(&uring_error, &setup, &bound_setup) < 0)
        return 5;
    printf("fdstash %s\n", fdstash_version());
    return 0;
}
