/* A stash that many threads use at once. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include "check.h"
#include "descriptors.h"
#include "fdstash.h"

enum { THREADS = 8, ROUNDS = 4000, SHARED_NAMES = 5 };

static FDStash contended;

/* Gives, takes, dups and lists under names that all threads fight for. A
 * descriptor that two of them owned would be closed twice. */
static void *fight(void *seed)
{
    unsigned state = (unsigned)(size_t)seed;
    for (int i = 0; i < ROUNDS; i++) {
        char name[16];
        snprintf(name, sizeof(name), "n%d", rand_r(&state) % SHARED_NAMES);
        int fd;
        size_t bytes;
        int fds[64];
        switch (rand_r(&state) % 6) {
        case 0:
            fd = open("/dev/null", O_RDWR | O_CLOEXEC);
            CHECK_EQUAL(fdstash_give(&contended, name, fd), 0);
            break;
        case 1:
            fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
            CHECK_EQUAL(fdstash_add(&contended, name, fd), 0);
            break;
        case 2:
            fd = fdstash_take(&contended, name);
            CHECK(fd >= 0 || fd == -ENOENT);
            if (fd >= 0)
                CHECK_EQUAL(close(fd), 0);
            break;
        case 3:
            fd = fdstash_find(&contended, name, O_RDWR);
            CHECK(fd >= 0 || fd == -ENOENT || fd == -EACCES);
            if (fd >= 0) {
                CHECK_EQUAL(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDWR);
                CHECK_EQUAL(close(fd), 0);
            }
            break;
        case 4:
            fd = fdstash_dup_all(&contended, name, fds, 64);
            CHECK(fd >= 0);
            for (int k = 0; fd <= 64 && k < fd; k++)
                CHECK_EQUAL(close(fds[k]), 0);
            break;
        default: {
            char *names = fdstash_names(&contended, &bytes);
            CHECK(names != NULL);
            CHECK(bytes <= 3 * SHARED_NAMES);
            fdstash_free(names);
            CHECK(fdstash_count(&contended) <= SHARED_NAMES);
            break;
        }
        }
    }
    return NULL;
}

static void threads_neither_lose_nor_share_descriptors(void)
{
    int before = open_descriptors();
    pthread_t threads[THREADS];
    fdstash_init(&contended);
    for (size_t i = 0; i < THREADS; i++)
        CHECK_EQUAL(pthread_create(&threads[i], NULL, fight, (void *)(i + 1)), 0);
    for (size_t i = 0; i < THREADS; i++)
        CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
    fdstash_cleanup(&contended);
    CHECK_EQUAL(open_descriptors(), before);
}

static void *take_all(void *taken)
{
    int fd;
    for (int empty = 0; empty < 3;) {
        fd = fdstash_take(&contended, "prize");
        if (fd == -ENOENT) {
            empty++;
            continue;
        }
        CHECK_EQUAL(close(fd), 0);
        ++*(int *)taken;
    }
    return NULL;
}

static void each_descriptor_is_taken_once(void)
{
    enum { PRIZES = 500 };
    pthread_t threads[THREADS];
    int taken[THREADS] = {0};
    int sum = 0;
    fdstash_init(&contended);
    for (int i = 0; i < PRIZES; i++)
        CHECK_EQUAL(fdstash_add(&contended, "prize", open("/dev/null", O_RDONLY | O_CLOEXEC)), 0);
    for (size_t i = 0; i < THREADS; i++)
        CHECK_EQUAL(pthread_create(&threads[i], NULL, take_all, &taken[i]), 0);
    for (size_t i = 0; i < THREADS; i++) {
        CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
        sum += taken[i];
    }
    CHECK_EQUAL(sum, PRIZES);
    fdstash_cleanup(&contended);
}

int main(void)
{
    RUN(threads_neither_lose_nor_share_descriptors);
    RUN(each_descriptor_is_taken_once);
    return 0;
}
