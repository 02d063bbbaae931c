/* log.c: which files are watched, and the log of what became of them. */

#define _GNU_SOURCE
#include "writelog.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Out of the way of the numbers that the program under test looks at. */
#define LOG_DESCRIPTOR 500

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static const char *folder;
static size_t folder_length;
static int log_fd = -1;

/* Raw calls below: the names in libc are this library's own. */
static void say(const char *text)
{
    syscall(SYS_write, 2, text, strlen(text));
}

void writelog_refuse(const char *what)
{
    say("writelog: ");
    say(what);
    say("\n");
    abort();
}

static void start(void)
{
    const char *path = getenv(WRITELOG_FILE);
    folder = getenv(WRITELOG_FOLDER);
    if (folder == NULL || path == NULL)
        return;
    folder_length = strlen(folder);
    const int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    log_fd = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, LOG_DESCRIPTOR);
    if (log_fd < 0)
        writelog_refuse("the log cannot be opened");
    close(fd);
}

uint64_t writelog_name(int fd, char *name)
{
    char link[32];
    char target[NAME_ROOM];
    const int saved = errno;
    pthread_once(&once, start);
    if (log_fd < 0)
        return 0;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    const ssize_t length = readlink(link, target, sizeof(target));
    errno = saved;
    if (length <= (ssize_t)folder_length + 1 || length == (ssize_t)sizeof(target) ||
        memcmp(target, folder, folder_length) != 0 || target[folder_length] != '/')
        return 0;
    const size_t rest = (size_t)length - folder_length - 1;
    memcpy(name, target + folder_length + 1, rest);
    return rest;
}

static void put(const void *data, size_t length)
{
    const char *at = data;
    while (length > 0) {
        const long done = syscall(SYS_write, log_fd, at, length);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            writelog_refuse("the log cannot be written");
        at += done;
        length -= (size_t)done;
    }
}

void writelog_append(enum record_kind kind, uint32_t flags, uint64_t offset, uint64_t length,
                     const char *name, uint64_t name_length, const struct iovec *vector, int count)
{
    const int saved = errno;
    const struct record record = {kind, flags, offset, length, name_length};
    pthread_mutex_lock(&order);
    put(&record, sizeof(record));
    put(name, name_length);
    for (int i = 0; i < count && length > 0; i++) {
        const size_t part = vector[i].iov_len < length ? vector[i].iov_len : length;
        put(vector[i].iov_base, part);
        length -= part;
    }
    pthread_mutex_unlock(&order);
    errno = saved;
}
