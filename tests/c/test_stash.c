/* The stash: who owns a descriptor at each moment, and what a name holds. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "descriptors.h"
#include "fdstash.h"

/* A new file that nothing else has open; tells descriptors apart by inode. */
static int new_file(void)
{
    char name[] = "/tmp/fdstash-test-XXXXXX";
    int fd = mkostemp(name, O_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_EQUAL(unlink(name), 0);
    return fd;
}

static ino_t inode_of(int fd)
{
    struct stat st;
    CHECK_EQUAL(fstat(fd, &st), 0);
    return st.st_ino;
}

static int is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

static void check_safe(int fd)
{
    CHECK(fd >= 3);
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
}

static int reopened(int fd, int flags)
{
    char path[40];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int again = open(path, flags | O_CLOEXEC);
    CHECK(again >= 0);
    return again;
}

static void give_then_take_hands_the_same_descriptor_over(void)
{
    FDStash stash;
    int fd = new_file();
    fdstash_init(&stash);
    CHECK_EQUAL(fdstash_give(&stash, "disk.img", fd), 0);
    CHECK_EQUAL(fdstash_count(&stash), 1);
    CHECK_EQUAL(fdstash_take(&stash, "disk.img"), fd);
    CHECK_EQUAL(fdstash_count(&stash), 0);
    CHECK(is_open(fd));
    CHECK_EQUAL(fdstash_take(&stash, "disk.img"), -ENOENT);
    fdstash_cleanup(&stash);
    CHECK(is_open(fd));
    close(fd);
}

static void give_replaces_and_closes_what_the_name_held(void)
{
    FDStash stash;
    int first = new_file();
    int second = new_file();
    int third = new_file();
    int other = new_file();
    fdstash_init(&stash);
    CHECK_EQUAL(fdstash_give(&stash, "a", first), 0);
    CHECK_EQUAL(fdstash_add(&stash, "a", second), 0);
    CHECK_EQUAL(fdstash_give(&stash, "b", other), 0);
    CHECK_EQUAL(fdstash_give(&stash, "a", third), 0);
    CHECK(!is_open(first));
    CHECK(!is_open(second));
    CHECK(is_open(other));
    CHECK_EQUAL(fdstash_count(&stash), 2);
    CHECK_EQUAL(fdstash_take(&stash, "a"), third);
    CHECK_EQUAL(fdstash_take(&stash, "a"), -ENOENT);
    close(third);
    fdstash_cleanup(&stash);
    CHECK(!is_open(other));
}

static void cleanup_closes_all_and_the_stash_serves_again(void)
{
    FDStash stash;
    int before = open_descriptors();
    fdstash_init(&stash);
    for (int i = 0; i < 100; i++) {
        char name[16];
        snprintf(name, sizeof(name), "extent-%d", i % 50);
        CHECK_EQUAL(fdstash_add(&stash, name, new_file()), 0);
    }
    CHECK_EQUAL(fdstash_count(&stash), 50);
    CHECK_EQUAL(open_descriptors(), before + 100);
    fdstash_cleanup(&stash);
    CHECK_EQUAL(open_descriptors(), before);
    CHECK_EQUAL(fdstash_count(&stash), 0);
    CHECK_EQUAL(fdstash_take(&stash, "extent-0"), -ENOENT);
    fdstash_cleanup(&stash);

    int fd = new_file();
    CHECK_EQUAL(fdstash_give(&stash, "extent-0", fd), 0);
    CHECK_EQUAL(fdstash_take(&stash, "extent-0"), fd);
    close(fd);
    fdstash_cleanup(&stash);
}

static void empty_stash_knows_no_name(void)
{
    FDStash stash;
    int fds[1];
    size_t bytes = 99;
    fdstash_init(&stash);
    CHECK_EQUAL(fdstash_take(&stash, "x"), -ENOENT);
    CHECK_EQUAL(fdstash_dup(&stash, "x"), -ENOENT);
    CHECK_EQUAL(fdstash_find(&stash, "x", O_RDWR), -ENOENT);
    CHECK_EQUAL(fdstash_dup_all(&stash, "x", fds, 1), 0);
    char *names = fdstash_names(&stash, &bytes);
    CHECK(names != NULL);
    CHECK_EQUAL(bytes, 0);
    fdstash_free(names);
    fdstash_cleanup(&stash);
}

static void refused_descriptor_stays_the_callers(void)
{
    FDStash stash;
    int fd = new_file();
    int held = new_file();
    fdstash_init(&stash);
    CHECK_EQUAL(fdstash_give(&stash, "x", held), 0);
    CHECK_EQUAL(fdstash_give(&stash, "", fd), -EINVAL);
    CHECK_EQUAL(fdstash_give(&stash, NULL, fd), -EINVAL);
    CHECK_EQUAL(fdstash_add(&stash, "", fd), -EINVAL);
    CHECK_EQUAL(fdstash_give(&stash, "x", -1), -EBADF);
    int closed = dup(fd);
    close(closed);
    CHECK_EQUAL(fdstash_give(&stash, "x", closed), -EBADF);
    CHECK(is_open(fd));
    CHECK_EQUAL(fdstash_take(&stash, "x"), held);
    close(fd);
    close(held);
    fdstash_cleanup(&stash);
}

static void names_are_compared_whole_and_bytewise(void)
{
    FDStash stash;
    static const char *const names[] = {"a", "A", "a/b", "./a", "a ", "\xff\xfe", "lock:a"};
    enum { NAMES = sizeof(names) / sizeof(names[0]) };
    int fds[NAMES];
    fdstash_init(&stash);
    for (int i = 0; i < NAMES; i++) {
        fds[i] = new_file();
        CHECK_EQUAL(fdstash_give(&stash, names[i], fds[i]), 0);
    }
    CHECK_EQUAL(fdstash_count(&stash), NAMES);
    for (int i = NAMES - 1; i >= 0; i--) {
        CHECK_EQUAL(fdstash_take(&stash, names[i]), fds[i]);
        close(fds[i]);
    }
    fdstash_cleanup(&stash);
}

static void names_are_listed_once_each(void)
{
    FDStash stash;
    size_t bytes = 0;
    fdstash_init(&stash);
    CHECK_EQUAL(fdstash_add(&stash, "one", new_file()), 0);
    CHECK_EQUAL(fdstash_add(&stash, "two", new_file()), 0);
    CHECK_EQUAL(fdstash_add(&stash, "one", new_file()), 0);
    char *names = fdstash_names(&stash, &bytes);
    CHECK(names != NULL);
    CHECK_EQUAL(bytes, 8);
    CHECK(memcmp(names, "one\0two", 8) == 0);
    fdstash_free(names);
    fdstash_cleanup(&stash);
}

static void dup_leaves_the_original_in_the_stash(void)
{
    FDStash stash;
    int before = open_descriptors();
    int fd = new_file();
    ino_t inode = inode_of(fd);
    fdstash_init(&stash);
    CHECK_EQUAL(fdstash_give(&stash, "x", fd), 0);
    int copy = fdstash_dup(&stash, "x");
    CHECK(copy != fd);
    check_safe(copy);
    CHECK_EQUAL(inode_of(copy), inode);
    close(copy);
    CHECK_EQUAL(fdstash_take(&stash, "x"), fd);
    close(fd);
    fdstash_cleanup(&stash);
    CHECK_EQUAL(open_descriptors(), before);
}

static void add_keeps_the_order_in_which_descriptors_came(void)
{
    FDStash stash;
    int fds[40];
    int copies[40];
    fdstash_init(&stash);
    for (int i = 0; i < 40; i++) {
        char other[16];
        fds[i] = new_file();
        CHECK_EQUAL(fdstash_add(&stash, "x", fds[i]), 0);
        /* The table grows on the way. */
        snprintf(other, sizeof(other), "other-%d", i);
        CHECK_EQUAL(fdstash_add(&stash, other, new_file()), 0);
    }
    CHECK_EQUAL(fdstash_dup_all(&stash, "x", copies, 40), 40);
    for (int i = 0; i < 40; i++) {
        check_safe(copies[i]);
        CHECK_EQUAL(inode_of(copies[i]), inode_of(fds[i]));
        close(copies[i]);
    }
    for (int i = 0; i < 40; i++) {
        int copy = fdstash_dup(&stash, "x");
        CHECK_EQUAL(inode_of(copy), inode_of(fds[i]));
        close(copy);
        CHECK_EQUAL(fdstash_take(&stash, "x"), fds[i]);
        close(fds[i]);
    }
    CHECK_EQUAL(fdstash_dup(&stash, "x"), -ENOENT);
    fdstash_cleanup(&stash);
}

static void dup_all_is_all_or_nothing(void)
{
    FDStash stash;
    int fds[3] = {-7, -7, -7};
    struct rlimit limit;
    struct rlimit lowered;
    fdstash_init(&stash);
    for (int i = 0; i < 3; i++)
        CHECK_EQUAL(fdstash_add(&stash, "x", new_file()), 0);
    int before = open_descriptors();

    CHECK_EQUAL(fdstash_dup_all(&stash, "x", fds, 2), 3);
    CHECK_EQUAL(fds[0], -7);
    CHECK_EQUAL(open_descriptors(), before);

    /* Room for one more number only. */
    int free_number = fcntl(0, F_DUPFD, 3);
    close(free_number);
    int next = fcntl(0, F_DUPFD, free_number + 1);
    close(next);
    CHECK_EQUAL(getrlimit(RLIMIT_NOFILE, &limit), 0);
    lowered = limit;
    lowered.rlim_cur = (rlim_t)next;
    CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &lowered), 0);
    int rc = fdstash_dup_all(&stash, "x", fds, 3);
    CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &limit), 0);
    CHECK_EQUAL(rc, -EMFILE);
    CHECK_EQUAL(open_descriptors(), before);
    fdstash_cleanup(&stash);
}

static void find_wants_the_access_mode_and_o_direct(void)
{
    static const int modes[] = {O_RDONLY, O_WRONLY, O_RDWR};
    FDStash stash;
    int fd = new_file();
    int before = open_descriptors();
    fdstash_init(&stash);
    CHECK_EQUAL(fdstash_find(&stash, "x", O_RDONLY), -ENOENT);
    for (int i = 0; i < 3; i++) {
        CHECK_EQUAL(fdstash_add(&stash, "x", reopened(fd, modes[i])), 0);
        for (int k = 0; k < 3; k++) {
            int found = fdstash_find(&stash, "x", modes[k]);
            if (k > i) {
                CHECK_EQUAL(found, -EACCES);
                continue;
            }
            check_safe(found);
            CHECK_EQUAL(fcntl(found, F_GETFL) & O_ACCMODE, modes[k]);
            close(found);
        }
    }
    CHECK_EQUAL(fdstash_find(&stash, "x", O_RDWR | O_DIRECT), -EACCES);
    /* Flags that say nothing about the kind are not compared. */
    int found = fdstash_find(&stash, "x", O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    CHECK(found >= 0);
    close(found);
    CHECK_EQUAL(fdstash_count(&stash), 1);
    fdstash_cleanup(&stash);
    CHECK_EQUAL(open_descriptors(), before);

    char path[40];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int direct = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (direct >= 0) { /* not every file system for temporary files bears it */
        CHECK_EQUAL(fdstash_add(&stash, "x", reopened(fd, O_RDWR)), 0);
        CHECK_EQUAL(fdstash_add(&stash, "x", direct), 0);
        found = fdstash_find(&stash, "x", O_RDWR | O_DIRECT);
        CHECK(fcntl(found, F_GETFL) & O_DIRECT);
        close(found);
        CHECK_EQUAL(fdstash_find(&stash, "x", O_RDONLY | O_DIRECT), -EACCES);
        fdstash_cleanup(&stash);
    }
    close(fd);
}

static void find_never_returns_a_bare_path(void)
{
    FDStash stash;
    fdstash_init(&stash);
    CHECK_EQUAL(fdstash_give(&stash, "x", open("/", O_PATH | O_CLOEXEC)), 0);
    CHECK_EQUAL(fdstash_find(&stash, "x", O_RDONLY), -EACCES);
    fdstash_cleanup(&stash);
}

static void low_numbers_are_moved_up(void)
{
    FDStash stash;
    int before = open_descriptors();
    int saved = fcntl(0, F_DUPFD_CLOEXEC, 10);
    int fd = new_file();
    ino_t inode = inode_of(fd);
    CHECK_EQUAL(dup2(fd, 0), 0);
    close(fd);
    fdstash_init(&stash);
    CHECK_EQUAL(fdstash_give(&stash, "x", 0), 0);
    CHECK(!is_open(0));
    int taken = fdstash_take(&stash, "x");
    check_safe(taken);
    CHECK_EQUAL(inode_of(taken), inode);
    close(taken);
    CHECK_EQUAL(dup2(saved, 0), 0);
    close(saved);
    fdstash_cleanup(&stash);
    CHECK_EQUAL(open_descriptors(), before);
}

static void what_is_given_becomes_close_on_exec(void)
{
    FDStash stash;
    int fd = new_file();
    CHECK_EQUAL(fcntl(fd, F_SETFD, 0), 0);
    fdstash_init(&stash);
    CHECK_EQUAL(fdstash_give(&stash, "x", fd), 0);
    CHECK_EQUAL(fdstash_take(&stash, "x"), fd);
    check_safe(fd);
    close(fd);
    fdstash_cleanup(&stash);
}

/* The time for one more must not grow with what is there. */
static void thousands_of_names_are_kept_apart(void)
{
    enum { NAMES = 20000 };
    FDStash stash;
    struct rlimit limit;
    CHECK_EQUAL(getrlimit(RLIMIT_NOFILE, &limit), 0);
    int names = limit.rlim_cur < NAMES + 100 ? (int)limit.rlim_cur - 100 : NAMES;
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    fdstash_init(&stash);
    for (int i = 0; i < names; i++) {
        char name[32];
        snprintf(name, sizeof(name), "disk-f%06d.vmdk", i);
        CHECK_EQUAL(fdstash_give(&stash, name, fcntl(null, F_DUPFD_CLOEXEC, 3)), 0);
    }
    CHECK_EQUAL(fdstash_count(&stash), names);
    for (int i = names - 1; i >= 0; i--) {
        char name[32];
        snprintf(name, sizeof(name), "disk-f%06d.vmdk", i);
        int fd = fdstash_take(&stash, name);
        CHECK(fd >= 0);
        close(fd);
    }
    CHECK_EQUAL(fdstash_count(&stash), 0);
    fdstash_cleanup(&stash);
    close(null);
}

int main(void)
{
    RUN(give_then_take_hands_the_same_descriptor_over);
    RUN(give_replaces_and_closes_what_the_name_held);
    RUN(cleanup_closes_all_and_the_stash_serves_again);
    RUN(empty_stash_knows_no_name);
    RUN(refused_descriptor_stays_the_callers);
    RUN(names_are_compared_whole_and_bytewise);
    RUN(names_are_listed_once_each);
    RUN(dup_leaves_the_original_in_the_stash);
    RUN(add_keeps_the_order_in_which_descriptors_came);
    RUN(dup_all_is_all_or_nothing);
    RUN(find_wants_the_access_mode_and_o_direct);
    RUN(find_never_returns_a_bare_path);
    RUN(low_numbers_are_moved_up);
    RUN(what_is_given_becomes_close_on_exec);
    RUN(thousands_of_names_are_kept_apart);
    return 0;
}
