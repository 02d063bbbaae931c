/* A load over an image: what holds it, watches it and moves it from other threads. */
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "check.h"
#include "fdstash_load.h"
#include "images.h"

enum { BLOCK = 1024, COUNT = 64, SLICE_NS = 1000000 };
#define SIZE ((uint64_t)BLOCK * COUNT)
#define PATIENCE_NS INT64_C(30000000000)

struct setting {
    struct small_file file;
    fdstash_image *image;
    fdstash_queue *queue, *next;
    fdstash_load_plan plan;
    fdstash_load *load;
    char memory[4 * BLOCK];
    uint32_t generations[COUNT];
    int left; /* how often run has said so */
};

static fdstash_queue *make_queue(fdstash_image *image)
{
    fdstash_queue *queue;
    int why;
    CHECK_EQUAL(fdstash_queue_new(image, 4, FDSTASH_ENGINE_SYNC, 0, &queue, &why), 0);
    return queue;
}

static void begin(struct setting *setting)
{
    memset(setting, 0, sizeof(*setting));
    make_file(&setting->file, SIZE);
    setting->image = make_image(&setting->file, 1, SIZE, 0);
    setting->queue = make_queue(setting->image);
    setting->plan = (fdstash_load_plan){.memory = setting->memory,
                                        .blocks = COUNT,
                                        .block = BLOCK,
                                        .stride = 1,
                                        .seed = 1,
                                        .read_percent = 50,
                                        .depth = 4};
}

static void make_load(struct setting *setting)
{
    CHECK_EQUAL(fdstash_load_new(setting->queue, &setting->plan, &setting->load), 0);
}

static void end(struct setting *setting)
{
    fdstash_queue_free(setting->queue);
    fdstash_load_free(setting->load);
    drop_image(setting->image);
    drop_file(&setting->file);
}

static void *run(void *argument)
{
    struct setting *setting = argument;
    int state = FDSTASH_LOAD_GOES_ON;
    while (state != FDSTASH_LOAD_ENDED) {
        state = fdstash_load_run(setting->load, SLICE_NS);
        CHECK(state >= 0 || state == -EINTR);
        if (state == FDSTASH_LOAD_LEFT) {
            setting->left++;
            fdstash_load_attach(setting->load, setting->next);
        }
    }
    return NULL;
}

static fdstash_load_totals totals_of(const struct setting *setting)
{
    fdstash_load_totals totals;
    fdstash_load_report(setting->load, &totals);
    return totals;
}

/* Until so many more reads or writes have completed. */
static void await(const struct setting *setting, int kind, uint64_t more)
{
    uint64_t until = totals_of(setting).requests[kind] + more;
    while (totals_of(setting).requests[kind] < until)
        usleep(100);
}

/* A first generation of every block. */
static void fill(struct setting *setting)
{
    struct fdstash_load_plan plan = setting->plan;
    setting->plan.pattern = FDSTASH_LOAD_SEQUENTIAL;
    setting->plan.read_percent = 0;
    setting->plan.requests = COUNT;
    make_load(setting);
    run(setting);
    fdstash_load_free(setting->load);
    setting->plan = plan;
}

static void writes_are_held_from_another_thread(void)
{
    static struct setting setting;
    pthread_t thread;
    begin(&setting);
    setting.plan.generations = setting.generations;
    setting.plan.flush_every = 16;
    fill(&setting);
    make_load(&setting);
    CHECK_EQUAL(pthread_create(&thread, NULL, run, &setting), 0);
    for (int i = 0; i < 20; i++) {
        await(&setting, FDSTASH_LOAD_WRITES, 50);
        CHECK_EQUAL(fdstash_load_hold_writes(setting.load, 1, PATIENCE_NS), 0);
        uint64_t writes = totals_of(&setting).requests[FDSTASH_LOAD_WRITES];
        await(&setting, FDSTASH_LOAD_READS, 50);
        CHECK_EQUAL(totals_of(&setting).requests[FDSTASH_LOAD_WRITES], writes);
        CHECK_EQUAL(fdstash_load_hold_writes(setting.load, 0, 0), 0);
    }
    fdstash_load_stop(setting.load);
    pthread_join(thread, NULL);
    fdstash_load_totals totals = totals_of(&setting);
    CHECK_EQUAL(totals.failed, 0);
    CHECK_EQUAL(totals.wrong, 0);
    CHECK(totals.requests[FDSTASH_LOAD_FLUSHES] > 0);
    end(&setting);
}

static void a_watch_counts_each_request_once(void)
{
    static struct setting setting;
    static uint64_t counters[FDSTASH_LOAD_COUNTERS];
    uint64_t max, sum, count = 0;
    begin(&setting);
    setting.plan.requests = 1000;
    make_load(&setting);
    CHECK_EQUAL(fdstash_load_watch(setting.load, 0, 1), 0);
    CHECK_EQUAL(fdstash_load_watch(setting.load, 0, 1), 0);
    run(&setting);
    fdstash_load_watch(setting.load, 0, 0);
    fdstash_load_histogram(setting.load, FDSTASH_LOAD_MARKED, counters, &max, &sum);
    for (int i = 0; i < FDSTASH_LOAD_COUNTERS; i++)
        count += counters[i];
    CHECK_EQUAL(count, 1000);
    end(&setting);
}

static void it_goes_on_with_the_image_that_comes_after_a_closed_one(void)
{
    static struct setting setting;
    pthread_t thread;
    begin(&setting);
    setting.plan.pause_ns = 100000;
    make_load(&setting);
    fdstash_image *first = setting.image;
    fdstash_queue *former = setting.queue;
    CHECK_EQUAL(pthread_create(&thread, NULL, run, &setting), 0);
    await(&setting, FDSTASH_LOAD_READS, 50);
    fdstash_image_close(first);
    while (totals_of(&setting).failed < 5)
        usleep(100);
    CHECK_EQUAL(totals_of(&setting).error, -ESHUTDOWN);
    setting.image = make_image(&setting.file, 1, SIZE, 0);
    setting.next = setting.queue = make_queue(setting.image);
    fdstash_load_leave(setting.load);
    uint64_t moved = totals_of(&setting).bytes[0];
    while (totals_of(&setting).bytes[0] == moved)
        usleep(100);
    uint64_t failed = totals_of(&setting).failed;
    await(&setting, FDSTASH_LOAD_READS, 50);
    CHECK_EQUAL(totals_of(&setting).failed, failed);
    fdstash_load_stop(setting.load);
    pthread_join(thread, NULL);
    CHECK_EQUAL(setting.left, 1);
    fdstash_queue_free(former);
    fdstash_image_free(first);
    end(&setting);
}

static void a_baseline_is_read_before_it_is_written(void)
{
    static struct setting setting;
    static char baseline[2 * BLOCK];
    static const fdstash_load_cell cells[] = {{100, 1000, 1}, {5000, 7, 1}};
    static char found[SIZE];
    begin(&setting);
    setting.plan.generations = setting.generations;
    setting.plan.cells = cells;
    setting.plan.blocks = 2;
    CHECK_EQUAL(fdstash_load_new(setting.queue, &setting.plan, &setting.load), -EINVAL);
    setting.plan.baseline = baseline;
    setting.plan.read_percent = 0;
    setting.plan.requests = 400;
    CHECK_EQUAL(fdstash_image_pwrite(setting.image, "x", 1, 5006, 0), 1);
    make_load(&setting);
    run(&setting);
    fdstash_load_totals totals = totals_of(&setting);
    CHECK(totals.requests[FDSTASH_LOAD_WRITES] > 0);
    CHECK(totals.requests[FDSTASH_LOAD_READS] > totals.requests[FDSTASH_LOAD_WRITES]);
    CHECK(totals.wrong > 0);
    CHECK_EQUAL(totals.wrong_offset, 5000);
    CHECK_EQUAL(totals.failed, 0);
    CHECK_EQUAL(fdstash_image_pread(setting.image, found, SIZE, 0), SIZE);
    CHECK_EQUAL(found[5006], 'x');
    end(&setting);
}

int main(void)
{
    RUN(writes_are_held_from_another_thread);
    RUN(a_watch_counts_each_request_once);
    RUN(it_goes_on_with_the_image_that_comes_after_a_closed_one);
    RUN(a_baseline_is_read_before_it_is_written);
    return 0;
}
