/* lock.c: QEMU's byte-range locks. Permission n in use is a shared OFD lock on
 * byte 100+n, permission n not shared with others one on byte 200+n; a conflict
 * is seen by asking whether an exclusive lock would be refused. Reading the
 * lock table this way needs only a descriptor that can read. */
#include "fdstash.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define USED_BASE 100
#define UNSHARED_BASE 200

static int lock_call(int fd, int command, short type, int byte, short *found)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    int rc;
    do
        rc = fcntl(fd, command, &lock);
    while (rc < 0 && errno == EINTR);
    if (rc < 0)
        return -errno;
    if (found)
        *found = lock.l_type;
    return 0;
}

/* Sets (F_RDLCK) or drops (F_UNLCK) the bytes of mask. With F_RDLCK *done is
 * what was set, so that a failure half-way can be taken back. */
static int set_bytes(int fd, short type, int base, uint32_t mask, uint32_t *done, int *byte)
{
    int first_error = 0;
    for (int n = 0; mask >> n; n++) {
        if (!(mask >> n & 1))
            continue;
        int rc = lock_call(fd, F_OFD_SETLK, type, base + n, NULL);
        if (rc < 0) {
            if (byte)
                *byte = base + n;
            if (type != F_UNLCK)
                return rc;
            if (!first_error)
                first_error = rc;
        } else if (done) {
            *done |= (uint32_t)1 << n;
        }
    }
    return first_error;
}

/* -EAGAIN where another description holds one of the bytes. */
static int test_bytes(int fd, int base, uint32_t mask, int *byte)
{
    for (int n = 0; mask >> n; n++) {
        if (!(mask >> n & 1))
            continue;
        short found = F_UNLCK;
        int rc = lock_call(fd, F_OFD_GETLK, F_WRLCK, base + n, &found);
        if (rc == 0 && found != F_UNLCK)
            rc = -EAGAIN;
        if (rc < 0) {
            *byte = base + n;
            return rc;
        }
    }
    return 0;
}

static int acquire_one(int fd, uint32_t perm, uint32_t unshared, int *byte)
{
    uint32_t set_perm = 0;
    uint32_t set_unshared = 0;
    /* Set first and ask then: two that come at once may both be refused, but
     * never both be let in. */
    int rc = set_bytes(fd, F_RDLCK, USED_BASE, perm, &set_perm, byte);
    if (rc == 0)
        rc = set_bytes(fd, F_RDLCK, UNSHARED_BASE, unshared, &set_unshared, byte);
    if (rc == 0)
        rc = test_bytes(fd, UNSHARED_BASE, perm, byte);
    if (rc == 0)
        rc = test_bytes(fd, USED_BASE, unshared, byte);
    if (rc < 0) {
        set_bytes(fd, F_UNLCK, USED_BASE, set_perm, NULL, NULL);
        set_bytes(fd, F_UNLCK, UNSHARED_BASE, set_unshared, NULL, NULL);
    }
    return rc;
}

int fdstash_lock_acquire(const int *fds, size_t count, uint32_t perm, uint32_t unshared,
                         uint32_t have_perm, uint32_t have_unshared, size_t *failed, int *byte)
{
    perm &= ~have_perm;
    unshared &= ~have_unshared;
    for (size_t i = 0; i < count; i++) {
        int rc = acquire_one(fds[i], perm, unshared, byte);
        if (rc < 0) {
            *failed = i;
            fdstash_lock_release(fds, i, perm, unshared);
            return rc;
        }
    }
    return 0;
}

int fdstash_lock_release(const int *fds, size_t count, uint32_t perm, uint32_t unshared)
{
    int first_error = 0;
    for (size_t i = 0; i < count; i++) {
        int rc = set_bytes(fds[i], F_UNLCK, USED_BASE, perm, NULL, NULL);
        int rc2 = set_bytes(fds[i], F_UNLCK, UNSHARED_BASE, unshared, NULL, NULL);
        if (!first_error)
            first_error = rc ? rc : rc2;
    }
    return first_error;
}
