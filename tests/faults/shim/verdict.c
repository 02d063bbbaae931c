/* verdict.c: which calls fail. Nothing here locks or allocates, and bookkeeping
 * leaves errno alone. */

#define _GNU_SOURCE
#include "verdict.h"

#include <errno.h>
#include <link.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_FAULTS 4
#define MAX_TRACE 4096
/* A pause that nobody ends must not hang a test run. */
#define LONGEST_PAUSE_MS 60000

static const char *const kind_names[] = {
#define X(id, name) name,
    KINDS(X)
#undef X
};

/* Names that stand for more than the kind of that name; all others stand for
 * their kind alone. */
static const struct {
    const char *name;
    uint64_t kinds;
} groups[] = {
    {"any", ALL_KINDS & ~BIT(KIND_MALLOC)},
    {"dup", BIT(KIND_DUP) | BIT(KIND_DUPFD)},
    {"fcntl", FCNTL_KINDS},
    {"stat", BIT(KIND_FSTAT) | BIT(KIND_STATX) | BIT(KIND_FSTATFS)},
    {"sync", BIT(KIND_FSYNC) | BIT(KIND_FDATASYNC) | BIT(KIND_SYNC_RANGE)},
    {"memory", MEMORY_KINDS},
};
#define GROUP_COUNT (sizeof(groups) / sizeof(groups[0]))

static uint64_t kinds_of_class(const char *name)
{
    for (size_t i = 0; i < GROUP_COUNT; i++)
        if (strcmp(name, groups[i].name) == 0)
            return groups[i].kinds;
    for (int i = 0; i < KIND_COUNT; i++)
        if (strcmp(name, kind_names[i]) == 0)
            return BIT(i);
    return 0;
}

/* ------------------------------------------------------- the armed thread -- */

struct fault {
    uint64_t kinds;
    long position; /* of the first call to fail; -1: none */
    long times;    /* how many calls from there on */
    int action;    /* errno, or enum faultshim_action */
    long seen;
    long fired;
};

__thread int faultshim_armed;

static __thread struct {
    int faults;
    struct fault fault[MAX_FAULTS];
    long counts[KIND_COUNT];
    long traced;
    uint8_t trace[MAX_TRACE];
} self;

static atomic_uintptr_t within_start;
static atomic_uintptr_t within_end;
static atomic_int paused;
static atomic_int resumed;

static void sleep_ms(long milliseconds)
{
    const struct timespec span = {.tv_sec = milliseconds / 1000,
                                  .tv_nsec = milliseconds % 1000 * 1000000};
    nanosleep(&span, NULL);
}

static void pause_here(void)
{
    const int saved = errno;
    const int seen = atomic_load(&resumed);
    atomic_fetch_add(&paused, 1);
    for (long waited = 0; waited < LONGEST_PAUSE_MS && atomic_load(&resumed) == seen; waited++)
        sleep_ms(1);
    atomic_fetch_sub(&paused, 1);
    errno = saved;
}

int faultshim_judge(enum kind kind)
{
    int action = 0;
    self.counts[kind]++;
    if (self.traced < MAX_TRACE)
        self.trace[self.traced] = (uint8_t)kind;
    self.traced++;
    for (int i = 0; i < self.faults; i++) {
        struct fault *fault = &self.fault[i];
        if (!(fault->kinds & BIT(kind)))
            continue;
        const long at = fault->seen++;
        if (fault->position < 0 || at < fault->position || at - fault->position >= fault->times)
            continue;
        fault->fired++;
        action = fault->action;
    }
    if (action != FAULTSHIM_PAUSE)
        return action;
    pause_here();
    return 0;
}

/* Memory calls may be restricted to one library, since the interpreter on the
 * same thread allocates as it pleases. */
int faultshim_judge_memory(enum kind kind, const void *caller)
{
    const uintptr_t end = atomic_load_explicit(&within_end, memory_order_relaxed);
    const uintptr_t at = (uintptr_t)caller;
    if (end != 0 && (at < atomic_load_explicit(&within_start, memory_order_relaxed) || at >= end))
        return 0;
    return faultshim_judge(kind);
}

/* ------------------------------------------------------------ rules by path -- */

static struct rule {
    atomic_int live;
    int error;         /* 0: only a delay */
    long milliseconds; /* 0: only a refusal */
    char text[256];
} rules[8];
#define RULE_COUNT (sizeof(rules) / sizeof(rules[0]))
static atomic_int rule_count;
static atomic_int rule_generation;
static atomic_long path_hits;
static atomic_long path_waiting;

/* The path asked for, or what a link of /proc/self/fd stands for. */
static int names(const struct rule *rule, const char *path)
{
    static const char links[] = "/proc/self/fd/";
    char target[4096];
    if (strstr(path, rule->text))
        return 1;
    if (strncmp(path, links, sizeof(links) - 1) != 0)
        return 0;
    const ssize_t length = readlink(path, target, sizeof(target) - 1);
    if (length < 0)
        return 0;
    target[length] = '\0';
    return strstr(target, rule->text) != NULL;
}

static void delay(long milliseconds)
{
    const int generation = atomic_load(&rule_generation);
    atomic_fetch_add(&path_waiting, 1);
    for (; milliseconds > 0 && atomic_load(&rule_generation) == generation; milliseconds--)
        sleep_ms(1);
    atomic_fetch_sub(&path_waiting, 1);
}

static int obey_rules(const char *path)
{
    const int saved = errno;
    int error = 0;
    for (size_t i = 0; i < RULE_COUNT; i++) {
        if (!atomic_load(&rules[i].live) || !names(&rules[i], path))
            continue;
        const int wanted = rules[i].error;
        atomic_fetch_add(&path_hits, 1);
        delay(rules[i].milliseconds);
        if (wanted != 0)
            error = wanted;
    }
    errno = saved;
    return error;
}

int open_verdict(const char *path)
{
    const int action = verdict(KIND_OPENAT);
    if (action != 0)
        return action;
    if (path == NULL || atomic_load_explicit(&rule_count, memory_order_relaxed) == 0)
        return 0;
    return obey_rules(path);
}

static int add_rule(const char *text, long milliseconds, int error)
{
    if (strlen(text) >= sizeof(rules[0].text))
        return -ENAMETOOLONG;
    for (size_t i = 0; i < RULE_COUNT; i++) {
        if (atomic_load(&rules[i].live))
            continue;
        strcpy(rules[i].text, text);
        rules[i].milliseconds = milliseconds;
        rules[i].error = error;
        atomic_store(&rules[i].live, 1);
        atomic_fetch_add(&rule_count, 1);
        return 0;
    }
    return -ENOSPC;
}

/* ------------------------------------------------------------- the controls -- */

EXPORT int faultshim_also(const char *call_class, long position, int action, long times)
{
    const uint64_t kinds = kinds_of_class(call_class);
    const int part = action == FAULTSHIM_SHORT || action == FAULTSHIM_EOF;
    if (kinds == 0 || position < -1 || times < 1 || action < FAULTSHIM_PAUSE)
        return -EINVAL;
    if (part && (kinds & ~TRANSFER_KINDS) != 0)
        return -EINVAL;
    if (self.faults == MAX_FAULTS)
        return -ENOSPC;
    self.fault[self.faults++] =
        (struct fault){.kinds = kinds, .position = position, .times = times, .action = action};
    return 0;
}

EXPORT int faultshim_arm(const char *call_class, long position, int action)
{
    faultshim_armed = 0;
    self.faults = 0;
    self.traced = 0;
    memset(self.counts, 0, sizeof(self.counts));
    const int result = faultshim_also(call_class, position, action, 1);
    faultshim_armed = result == 0;
    return result;
}

EXPORT long faultshim_disarm(void)
{
    long fired = 0;
    faultshim_armed = 0;
    for (int i = 0; i < self.faults; i++)
        fired += self.fault[i].fired;
    return fired;
}

EXPORT long faultshim_count(const char *call_class)
{
    const uint64_t kinds = kinds_of_class(call_class);
    long total = 0;
    for (int i = 0; i < KIND_COUNT; i++)
        if (kinds & BIT(i))
            total += self.counts[i];
    return kinds ? total : -EINVAL;
}

EXPORT const char *faultshim_class(int index)
{
    if (index < 0 || index >= KIND_COUNT + (int)GROUP_COUNT)
        return NULL;
    return index < KIND_COUNT ? kind_names[index] : groups[index - KIND_COUNT].name;
}

EXPORT const char *faultshim_traced(long index)
{
    return index >= 0 && index < self.traced && index < MAX_TRACE ? kind_names[self.trace[index]]
                                                                  : NULL;
}

EXPORT long faultshim_trace_length(void)
{
    return self.traced;
}

struct search {
    const char *text;
    uintptr_t start;
    uintptr_t end;
};

static int look_at_library(struct dl_phdr_info *info, size_t size, void *context)
{
    struct search *search = context;
    (void)size;
    if (strstr(info->dlpi_name, search->text) == NULL)
        return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        if (header->p_type != PT_LOAD)
            continue;
        const uintptr_t start = info->dlpi_addr + header->p_vaddr;
        if (search->start == 0 || start < search->start)
            search->start = start;
        if (start + header->p_memsz > search->end)
            search->end = start + header->p_memsz;
    }
    return 1;
}

EXPORT int faultshim_within(const char *library)
{
    struct search search = {.text = library};
    if (library != NULL && dl_iterate_phdr(look_at_library, &search) == 0)
        return -ENOENT;
    atomic_store(&within_start, search.start);
    atomic_store(&within_end, search.end);
    return 0;
}

EXPORT int faultshim_paused(void)
{
    return atomic_load(&paused);
}

EXPORT void faultshim_resume(void)
{
    atomic_fetch_add(&resumed, 1);
}

EXPORT int faultshim_delay(const char *text, long milliseconds)
{
    return milliseconds > 0 ? add_rule(text, milliseconds, 0) : -EINVAL;
}

EXPORT int faultshim_refuse(const char *text, int error)
{
    return error > 0 ? add_rule(text, 0, error) : -EINVAL;
}

EXPORT void faultshim_clear(void)
{
    atomic_store(&rule_count, 0);
    for (size_t i = 0; i < RULE_COUNT; i++)
        atomic_store(&rules[i].live, 0);
    atomic_fetch_add(&rule_generation, 1);
    atomic_store(&path_hits, 0);
}

EXPORT long faultshim_path_hits(void)
{
    return atomic_load(&path_hits);
}

EXPORT long faultshim_path_waiting(void)
{
    return atomic_load(&path_waiting);
}
