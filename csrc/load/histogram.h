/* histogram.h: how often which time was seen, to three significant digits. A leaf.
 *
 * Log-linear, in the layout of HdrHistogram with a lowest value of 1: values below 2,048
 * have a counter each; from there on each power of two is divided into 1,024. */
#ifndef FDSTASH_HISTOGRAM_H
#define FDSTASH_HISTOGRAM_H

#include <stdint.h>

enum {
    HISTOGRAM_HALF_BITS = 10, /* each power of two has 2^10 counters */
    HISTOGRAM_BUCKETS = 32,
    HISTOGRAM_COUNTERS = (HISTOGRAM_BUCKETS + 1) << HISTOGRAM_HALF_BITS
};

struct histogram {
    uint64_t counters[HISTOGRAM_COUNTERS];
    uint64_t max;
    uint64_t sum;
};

/* The counter of a value; the last one for those that are too large. */
uint32_t histogram_counter(uint64_t value);
/* The lowest value of a counter. */
uint64_t histogram_lowest(uint32_t counter);
void histogram_record(struct histogram *histogram, uint64_t value);

#endif
