/*
 * The only program of the tests' guest, its init: loads what drives virtio disks, then writes
 * stamped sectors to the disk under test from several processes and reads them back.
 *
 * Every sector holds its own number and the generation of the write that made it, over and over;
 * generation 0 is a sector of zeros. Which generation each sector has goes to the disk "account"
 * at the end, 32 bits for each, for the host to compare.
 *
 * Talks to the host on the serial line. Before the writes of each round it says "guest: writes",
 * before the reads "guest: reads", and waits for a line; while it reads nothing is written. "end"
 * ends the rounds. Its last words are "guest: done" with what it did, or "guest: failed".
 *
 * WRITES (of each process in each round) and SEED come from the kernel's command line.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define SECTOR 512
#define WORKERS 4
/* Sectors that one process owns in a row: no whole number of pages, so that two share some. */
#define STRIPE 100
#define LONGEST 64
/* Sectors of one read of the last look at the whole disk. */
#define LOOK 512
#define TAG (UINT64_C(0xfd57) << 48)

struct counts {
    uint64_t writes, zeroes, reads, sectors_read, flushes;
};

/* Shared with the workers. */
static struct counts *counts;
static uint32_t *generations; /* of each sector */

static uint64_t sectors;
static int disk = -1;
static uint8_t *buffer; /* LOOK sectors, aligned to a page; each worker has its own copy */
static uint64_t chance;

static void end_of_guest(const char *last_words) __attribute__((noreturn));

static void end_of_guest(const char *last_words)
{
    printf("guest: %s\n", last_words);
    tcdrain(STDOUT_FILENO);
    reboot(RB_AUTOBOOT);
    for (;;)
        pause();
}

/* Ends the process, which is a worker or the guest. */
static void fail(const char *format, ...) __attribute__((noreturn))
__attribute__((format(printf, 1, 2)));

static void fail(const char *format, ...)
{
    va_list arguments;

    printf("guest: WRONG: ");
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    if (getpid() == 1)
        end_of_guest("failed");
    _exit(1);
}

static uint64_t number_of(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);

    return text ? strtoull(text, NULL, 10) : otherwise;
}

/* xorshift64*. */
static uint64_t below(uint64_t limit)
{
    chance ^= chance >> 12;
    chance ^= chance << 25;
    chance ^= chance >> 27;
    return ((chance * UINT64_C(2685821657736338717)) >> 32) % limit;
}

static void *shared(size_t length)
{
    void *made = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (made == MAP_FAILED)
        fail("mmap of %zu: %s", length, strerror(errno));
    return made;
}

/* -- the machine */

static void open_console(void)
{
    struct termios line;
    int console;

    mkdir("/dev", 0755);
    mkdir("/sys", 0755);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    console = open("/dev/ttyS0", O_RDWR | O_NOCTTY);
    for (int fd = 0; console >= 0 && fd <= 2; fd++)
        dup2(console, fd);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (tcgetattr(STDIN_FILENO, &line) == 0) {
        line.c_lflag &= ~(ECHO | ECHONL);
        tcsetattr(STDIN_FILENO, TCSANOW, &line);
    }
}

/* Files /modules/0, 1 and so on, in the order in which they need each other. */
static void load_modules(void)
{
    char path[64];

    for (int number = 0;; number++) {
        int fd;

        snprintf(path, sizeof path, "/modules/%d", number);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            return;
        if (syscall(SYS_finit_module, fd, "", 0) < 0)
            fail("%s: %s", path, strerror(errno));
        close(fd);
    }
}

/* Opens the virtio disk that has this serial number. */
static int open_disk(const char *serial)
{
    char path[64], text[64];

    for (int tries = 0; tries < 3000; tries++) {
        for (char letter = 'a'; letter <= 'd'; letter++) {
            ssize_t got;
            int fd;

            snprintf(path, sizeof path, "/sys/block/vd%c/serial", letter);
            fd = open(path, O_RDONLY | O_CLOEXEC);
            if (fd < 0)
                continue;
            got = read(fd, text, sizeof text - 1);
            close(fd);
            text[got > 0 ? got : 0] = '\0';
            if (strncmp(text, serial, strlen(serial)) != 0)
                continue;
            snprintf(path, sizeof path, "/dev/vd%c", letter);
            fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
            if (fd < 0 && errno != ENOENT)
                fail("%s: %s", path, strerror(errno));
            if (fd >= 0)
                return fd;
        }
        usleep(10000);
    }
    fail("there is no disk %s", serial);
}

/* -- the load */

static void stamp(uint64_t sector, uint64_t length, uint32_t generation)
{
    uint64_t *word = (uint64_t *)buffer;

    for (uint64_t n = 0; n < length; n++)
        for (int pair = 0; pair < SECTOR / 16; pair++) {
            *word++ = generation ? TAG | (sector + n) : 0;
            *word++ = generation;
        }
}

static void verify(uint64_t sector, uint64_t length)
{
    const uint64_t *word = (const uint64_t *)buffer;
    ssize_t got = pread(disk, buffer, length * SECTOR, (off_t)(sector * SECTOR));

    if (got != (ssize_t)(length * SECTOR))
        fail("read of %" PRIu64 " sectors at %" PRIu64 ": %s", length, sector,
             got < 0 ? strerror(errno) : "short");
    for (uint64_t n = 0; n < length; n++) {
        uint64_t generation = generations[sector + n];
        uint64_t where = generation ? TAG | (sector + n) : 0;

        for (int pair = 0; pair < SECTOR / 16; pair++, word += 2)
            if (word[0] != where || word[1] != generation)
                fail("sector %" PRIu64 " byte %d: generation %" PRIu64 " is wanted, found %" PRIu64
                     " of %" PRIx64,
                     sector + n, pair * 16, generation, word[1], word[0]);
    }
    __atomic_fetch_add(&counts->reads, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&counts->sectors_read, length, __ATOMIC_RELAXED);
}

/* Some sectors in a row, of the stripes of one worker. */
static uint64_t somewhere(int worker, uint64_t *length)
{
    uint64_t stripes = sectors / STRIPE / WORKERS;
    uint64_t first = (below(stripes) * WORKERS + (uint64_t)worker) * STRIPE;
    uint64_t skipped = below(STRIPE);

    *length = 1 + below(STRIPE - skipped < LONGEST ? STRIPE - skipped : LONGEST);
    return first + skipped;
}

static void write_some(int worker, uint32_t generation)
{
    uint64_t length, sector = somewhere(worker, &length);
    uint64_t *counted = &counts->writes;

    if (below(8) == 0) {
        uint64_t range[2] = {sector * SECTOR, length * SECTOR};

        if (ioctl(disk, BLKZEROOUT, range) < 0)
            fail("zeroes of %" PRIu64 " sectors at %" PRIu64 ": %s", length, sector,
                 strerror(errno));
        generation = 0;
        counted = &counts->zeroes;
    } else {
        ssize_t put;

        stamp(sector, length, generation);
        put = pwrite(disk, buffer, length * SECTOR, (off_t)(sector * SECTOR));
        if (put != (ssize_t)(length * SECTOR))
            fail("write of %" PRIu64 " sectors at %" PRIu64 ": %s", length, sector,
                 put < 0 ? strerror(errno) : "short");
    }
    for (uint64_t n = 0; n < length; n++)
        generations[sector + n] = generation;
    __atomic_fetch_add(counted, 1, __ATOMIC_RELAXED);
}

static void write_round(int worker, uint64_t round, uint64_t writes)
{
    for (uint64_t n = 0; n < writes; n++) {
        write_some(worker, (uint32_t)((round * writes + n) * WORKERS + (uint64_t)worker + 1));
        if (below(2) == 0) {
            uint64_t length, sector = somewhere(worker, &length);

            verify(sector, length);
        }
    }
    if (fsync(disk) < 0)
        fail("fsync: %s", strerror(errno));
    __atomic_fetch_add(&counts->flushes, 1, __ATOMIC_RELAXED);
}

/* Of what any worker has written. */
static void read_round(int worker, uint64_t round, uint64_t reads)
{
    (void)worker;
    (void)round;
    for (uint64_t n = 0; n < reads; n++) {
        uint64_t length, sector = somewhere((int)below(WORKERS), &length);

        verify(sector, length);
    }
}

/* Says what comes and waits until the host has heard it; then does it in every worker. */
static bool phase(const char *name, void (*work)(int, uint64_t, uint64_t), uint64_t round,
                  uint64_t requests)
{
    char line[16];
    int failed = 0;

    printf("guest: %s\n", name);
    if (fgets(line, sizeof line, stdin) == NULL)
        fail("the host is gone");
    if (strcmp(line, "end\n") == 0)
        return false;
    for (int worker = 0; worker < WORKERS; worker++) {
        uint64_t seed = below(UINT64_C(1) << 32) + 1;
        pid_t pid = fork();

        if (pid < 0)
            fail("fork: %s", strerror(errno));
        if (pid == 0) {
            chance = seed;
            work(worker, round, requests);
            _exit(0);
        }
    }
    for (int worker = 0; worker < WORKERS; worker++) {
        int status;

        if (wait(&status) < 0 || status != 0)
            failed++;
    }
    if (failed)
        end_of_guest("failed");
    return true;
}

static void write_account(void)
{
    int account = open_disk("account");
    size_t length = sectors * sizeof *generations;

    if (pwrite(account, generations, length, 0) != (ssize_t)length || fsync(account) < 0)
        fail("the account: %s", strerror(errno));
}

int main(void)
{
    uint64_t size, writes, round = 0;
    char last_words[200];

    open_console();
    printf("guest: up\n");
    load_modules();
    writes = number_of("WRITES", 16);
    chance = number_of("SEED", 1) + 1;
    disk = open_disk("disk");
    if (ioctl(disk, BLKGETSIZE64, &size) < 0 || size < SECTOR * STRIPE * WORKERS)
        fail("the disk's size: %s", strerror(errno));
    sectors = size / SECTOR;
    counts = shared(sizeof *counts);
    generations = shared(sectors * sizeof *generations);
    buffer = mmap(NULL, LOOK * SECTOR, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED)
        fail("mmap: %s", strerror(errno));
    while (phase("writes", write_round, round, writes) && phase("reads", read_round, round, writes))
        round++;
    for (uint64_t sector = 0; sector < sectors; sector += LOOK)
        verify(sector, sectors - sector < LOOK ? sectors - sector : LOOK);
    write_account();
    snprintf(last_words, sizeof last_words,
             "done writes=%" PRIu64 " zeroes=%" PRIu64 " reads=%" PRIu64 " sectors_read=%" PRIu64
             " flushes=%" PRIu64,
             counts->writes, counts->zeroes, counts->reads, counts->sectors_read, counts->flushes);
    end_of_guest(last_words);
}
