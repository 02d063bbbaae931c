/* heldfs.c: a FUSE file system over a folder whose opens can be held, and whose transfers
 * can fail.
 *
 * heldfs BACKING MOUNTPOINT. Orders come as lines on standard input and each is
 * answered on standard output with the number of opens that wait:
 *   hold      opens wait from now on; reads and writes go on
 *   release   opens are answered again, those that wait too
 *   refuse N  as release, but opens fail with errno N (0: no longer)
 *   break OFFSET LENGTH N   reads and writes that touch these bytes of any file fail
 *             with errno N (0: no longer)
 *   count     nothing changes
 * At the end of standard input it detaches and ends, so that nothing outlives
 * the test process. */

#define _GNU_SOURCE
#define FUSE_USE_VERSION 312
#include <fuse.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static int root = -1;
static const char *mountpoint;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int held;
static int waiting;
static int refusal;
static struct {
    long long offset, length;
    int error;
} broken;

/* Waits while opens are held; -errno where they are refused. */
static int pass_gate(void)
{
    pthread_mutex_lock(&mutex);
    waiting++;
    while (held)
        pthread_cond_wait(&changed, &mutex);
    waiting--;
    const int error = refusal;
    pthread_mutex_unlock(&mutex);
    return -error;
}

static const char *relative(const char *path)
{
    return path[1] ? path + 1 : ".";
}

static int outcome(int result)
{
    return result < 0 ? -errno : 0;
}

static int fs_getattr(const char *path, struct stat *out, struct fuse_file_info *info)
{
    return outcome(info ? fstat((int)info->fh, out)
                        : fstatat(root, relative(path), out, AT_SYMLINK_NOFOLLOW));
}

static int fs_open(const char *path, struct fuse_file_info *info)
{
    const int refused = pass_gate();
    if (refused)
        return refused;
    const int fd = openat(root, relative(path), (info->flags & ~O_DIRECT) | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    info->fh = (uint64_t)fd;
    return 0;
}

static int fs_create(const char *path, mode_t mode, struct fuse_file_info *info)
{
    const int refused = pass_gate();
    if (refused)
        return refused;
    const int flags = (info->flags & ~O_DIRECT) | O_CREAT | O_CLOEXEC;
    const int fd = openat(root, relative(path), flags, mode);
    if (fd < 0)
        return -errno;
    info->fh = (uint64_t)fd;
    return 0;
}

/* 0, or -errno of a transfer that touches what is broken. */
static int transfer_fault(size_t size, off_t offset)
{
    pthread_mutex_lock(&mutex);
    const int touches =
        offset < broken.offset + broken.length && offset + (off_t)size > broken.offset;
    const int error = touches ? broken.error : 0;
    pthread_mutex_unlock(&mutex);
    return -error;
}

static int fs_read(const char *path, char *buffer, size_t size, off_t offset,
                   struct fuse_file_info *info)
{
    (void)path;
    const int fault = transfer_fault(size, offset);
    if (fault)
        return fault;
    const ssize_t done = pread((int)info->fh, buffer, size, offset);
    return done < 0 ? -errno : (int)done;
}

static int fs_write(const char *path, const char *buffer, size_t size, off_t offset,
                    struct fuse_file_info *info)
{
    (void)path;
    const int fault = transfer_fault(size, offset);
    if (fault)
        return fault;
    const ssize_t done = pwrite((int)info->fh, buffer, size, offset);
    return done < 0 ? -errno : (int)done;
}

static int fs_fsync(const char *path, int data_only, struct fuse_file_info *info)
{
    (void)path;
    return outcome(data_only ? fdatasync((int)info->fh) : fsync((int)info->fh));
}

static int fs_release(const char *path, struct fuse_file_info *info)
{
    (void)path;
    return outcome(close((int)info->fh));
}

static int fs_truncate(const char *path, off_t size, struct fuse_file_info *info)
{
    if (info)
        return outcome(ftruncate((int)info->fh, size));
    const int fd = openat(root, relative(path), O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    const int result = outcome(ftruncate(fd, size));
    close(fd);
    return result;
}

static int fs_fallocate(const char *path, int mode, off_t offset, off_t length,
                        struct fuse_file_info *info)
{
    (void)path;
    return outcome(fallocate((int)info->fh, mode, offset, length));
}

static int fs_readdir(const char *path, void *buffer, fuse_fill_dir_t fill, off_t offset,
                      struct fuse_file_info *info, enum fuse_readdir_flags flags)
{
    (void)offset;
    (void)info;
    (void)flags;
    const int fd = openat(root, relative(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    if (folder == NULL)
        return -errno;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;)
        if (fill(buffer, entry->d_name, NULL, 0, 0) != 0)
            break;
    closedir(folder);
    return 0;
}

static int fs_unlink(const char *path)
{
    return outcome(unlinkat(root, relative(path), 0));
}

static int fs_rmdir(const char *path)
{
    return outcome(unlinkat(root, relative(path), AT_REMOVEDIR));
}

static int fs_mkdir(const char *path, mode_t mode)
{
    return outcome(mkdirat(root, relative(path), mode));
}

static int fs_rename(const char *from, const char *to, unsigned flags)
{
    return outcome(renameat2(root, relative(from), root, relative(to), flags));
}

static int fs_symlink(const char *target, const char *path)
{
    return outcome(symlinkat(target, root, relative(path)));
}

static int fs_readlink(const char *path, char *buffer, size_t size)
{
    const ssize_t length = readlinkat(root, relative(path), buffer, size - 1);
    if (length < 0)
        return -errno;
    buffer[length] = '\0';
    return 0;
}

static int fs_chmod(const char *path, mode_t mode, struct fuse_file_info *info)
{
    (void)info;
    return outcome(fchmodat(root, relative(path), mode, 0));
}

static int fs_chown(const char *path, uid_t owner, gid_t group, struct fuse_file_info *info)
{
    (void)info;
    return outcome(fchownat(root, relative(path), owner, group, AT_SYMLINK_NOFOLLOW));
}

static int fs_statfs(const char *path, struct statvfs *out)
{
    (void)path;
    return outcome(fstatvfs(root, out));
}

static const struct fuse_operations operations = {
    .getattr = fs_getattr,
    .open = fs_open,
    .create = fs_create,
    .read = fs_read,
    .write = fs_write,
    .fsync = fs_fsync,
    .release = fs_release,
    .truncate = fs_truncate,
    .fallocate = fs_fallocate,
    .readdir = fs_readdir,
    .unlink = fs_unlink,
    .rmdir = fs_rmdir,
    .mkdir = fs_mkdir,
    .rename = fs_rename,
    .symlink = fs_symlink,
    .readlink = fs_readlink,
    .chmod = fs_chmod,
    .chown = fs_chown,
    .statfs = fs_statfs,
};

static void obey(const char *order)
{
    pthread_mutex_lock(&mutex);
    if (strcmp(order, "hold\n") == 0) {
        held = 1;
    } else if (strcmp(order, "release\n") == 0) {
        held = 0;
    } else if (strncmp(order, "refuse ", 7) == 0) {
        held = 0;
        refusal = atoi(order + 7);
    } else if (strncmp(order, "break ", 6) == 0) {
        sscanf(order + 6, "%lld %lld %d", &broken.offset, &broken.length, &broken.error);
    }
    pthread_cond_broadcast(&changed);
    printf("%d\n", waiting);
    fflush(stdout);
    pthread_mutex_unlock(&mutex);
}

static void *take_orders(void *unused)
{
    char order[64];
    (void)unused;
    while (fgets(order, sizeof(order), stdin) != NULL)
        obey(order);
    umount2(mountpoint, MNT_DETACH);
    _exit(0);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* it may be stopped when the test process dies */
    root = open(argv[1], O_PATH | O_DIRECTORY | O_CLOEXEC);
    mountpoint = argv[2];
    umask(0);
    char *words[] = {argv[0], "-o", "allow_other,default_permissions,fsname=fdstash-heldfs", NULL};
    struct fuse_args arguments = FUSE_ARGS_INIT(3, words);
    struct fuse *fuse = fuse_new(&arguments, &operations, sizeof(operations), NULL);
    if (root < 0 || fuse == NULL || fuse_mount(fuse, mountpoint) != 0)
        return 1;
    pthread_t thread;
    if (pthread_create(&thread, NULL, take_orders, NULL) != 0)
        return 1;
    puts("ready");
    fflush(stdout);
    /* Every held open keeps a thread, and reads and writes must still find one. */
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    fuse_loop_cfg_set_max_threads(config, 256);
    const int result = fuse_loop_mt(fuse, config);
    fuse_unmount(fuse);
    return result != 0;
}
