/* record.c: what has happened, counted, and looked at meanwhile; see load.h. */
#include <errno.h>
#include <string.h>

#include "load.h"

/* --------------------------------------------------------------- counting -- */

static void halve_intervals(struct fdstash_load *load)
{
    for (int i = 0; i < FDSTASH_LOAD_INTERVALS; i += 2) {
        fdstash_load_interval a = load->intervals[i], b = load->intervals[i + 1];
        fdstash_load_interval both = {a.count + b.count, a.sum_ns + b.sum_ns,
                                      a.max_ns > b.max_ns ? a.max_ns : b.max_ns};
        load->intervals[i / 2] = both;
    }
    memset(load->intervals + FDSTASH_LOAD_INTERVALS / 2, 0, sizeof(load->intervals) / 2);
    load->width_ns *= 2;
}

static void record_interval(struct fdstash_load *load, int64_t now, uint64_t took)
{
    int64_t since = now - load->totals.started_ns;
    while (since / load->width_ns >= FDSTASH_LOAD_INTERVALS)
        halve_intervals(load);
    int index = (int)(since / load->width_ns);
    fdstash_load_interval *interval = &load->intervals[index];
    interval->count++;
    interval->sum_ns += took;
    if (took > interval->max_ns)
        interval->max_ns = took;
    load->interval_count = index + 1;
}

static void record_marks(struct fdstash_load *load, struct load_slot *slot, uint64_t took)
{
    for (int placebo = 0; placebo < 2; placebo++) {
        for (; slot->marks[placebo] > 0; slot->marks[placebo]--)
            histogram_record(&load->times[FDSTASH_LOAD_MARKED + placebo], took);
    }
}

static void record_failure(struct fdstash_load *load, const struct load_slot *slot, int64_t result)
{
    fdstash_load_totals *totals = &load->totals;
    if (totals->failed++ > 0)
        return;
    totals->error = result < 0 ? result : -EIO;
    totals->failed_offset = slot->kind == FDSTASH_LOAD_FLUSHES ? 0 : load_offset(load, slot->block);
}

int load_record(struct fdstash_load *load, struct load_slot *slot, int64_t result, int64_t now)
{
    fdstash_load_totals *totals = &load->totals;
    uint64_t took = (uint64_t)(now - slot->begun), since_due = (uint64_t)(now - slot->due);
    int is_flush = slot->kind == FDSTASH_LOAD_FLUSHES;
    load->in_flight[slot - load->slots] = 0;
    if (slot->marks[0] | slot->marks[1])
        record_marks(load, slot, took);
    totals->requests[slot->kind]++;
    if (result != (is_flush ? 0 : (int64_t)load_length(load, slot->block))) {
        record_failure(load, slot, result);
        return 0;
    }
    histogram_record(&load->times[FDSTASH_LOAD_READ_DUE + slot->kind], since_due);
    record_interval(load, now, since_due);
    if (is_flush)
        return 1;
    totals->bytes[slot->kind] += (uint64_t)result;
    if (slot->wrong && totals->wrong++ == 0)
        totals->wrong_offset = load_offset(load, slot->block);
    if (load->plan.interval_ns > 0)
        histogram_record(&load->times[FDSTASH_LOAD_READ + slot->kind], took);
    return 1;
}

void load_publish(struct fdstash_load *load, const struct load_slot *from,
                  const struct load_slot *until)
{
    for (; from != until; from = from->next) {
        struct load_slot *slot = &load->slots[from - load->slots];
        load->in_flight[from - load->slots] = 1;
        slot->marks[0] += (uint32_t)load->watched[0];
        slot->marks[1] += (uint32_t)load->watched[1];
    }
}

/* ---------------------------------------------------------------- looking -- */

static int mark(struct fdstash_load *load, int placebo)
{
    int count = 0;
    for (uint32_t i = 0; i < load->plan.depth; i++) {
        if (load->in_flight[i]) {
            load->slots[i].marks[placebo]++;
            count++;
        }
    }
    return count;
}

int fdstash_load_mark(fdstash_load *load, int placebo)
{
    pthread_mutex_lock(&load->lock);
    int count = mark(load, placebo != 0);
    pthread_mutex_unlock(&load->lock);
    return count;
}

int fdstash_load_watch(fdstash_load *load, int placebo, int on)
{
    pthread_mutex_lock(&load->lock);
    int count = (int)load->totals.in_flight;
    if (on && !load->watched[placebo != 0])
        mark(load, placebo != 0);
    load->watched[placebo != 0] = on != 0;
    pthread_mutex_unlock(&load->lock);
    return count;
}

void fdstash_load_report(fdstash_load *load, fdstash_load_totals *totals)
{
    pthread_mutex_lock(&load->lock);
    *totals = load->totals;
    pthread_mutex_unlock(&load->lock);
}

void fdstash_load_histogram(fdstash_load *load, uint32_t times, uint64_t *counters,
                            uint64_t *max_ns, uint64_t *sum_ns)
{
    /* Without a rate each request is due when it begins. */
    if (load->plan.interval_ns == 0 && (times == FDSTASH_LOAD_READ || times == FDSTASH_LOAD_WRITE))
        times -= FDSTASH_LOAD_READ;
    const struct histogram *histogram = &load->times[times < LOAD_TIMES ? times : 0];
    pthread_mutex_lock(&load->lock);
    memcpy(counters, histogram->counters, sizeof(histogram->counters));
    *max_ns = histogram->max;
    *sum_ns = histogram->sum;
    pthread_mutex_unlock(&load->lock);
}

int fdstash_load_intervals(fdstash_load *load, fdstash_load_interval *out, int64_t *width_ns)
{
    pthread_mutex_lock(&load->lock);
    int count = load->interval_count;
    memcpy(out, load->intervals, (size_t)count * sizeof(*out));
    *width_ns = load->width_ns;
    pthread_mutex_unlock(&load->lock);
    return count;
}

uint32_t fdstash_load_counter(uint64_t value_ns)
{
    return histogram_counter(value_ns);
}

uint64_t fdstash_load_lowest(uint32_t counter)
{
    return histogram_lowest(counter);
}
