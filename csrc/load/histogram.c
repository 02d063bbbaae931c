/* histogram.c: see histogram.h. */
#include "histogram.h"

uint32_t histogram_counter(uint64_t value)
{
    const uint64_t linear = UINT64_C(2) << HISTOGRAM_HALF_BITS;
    /* The power of two: 0 for all values below `linear`. */
    uint32_t bucket = 63 - HISTOGRAM_HALF_BITS - (uint32_t)__builtin_clzll(value | (linear - 1));
    uint64_t counter = ((uint64_t)bucket << HISTOGRAM_HALF_BITS) + (value >> bucket);
    return counter < HISTOGRAM_COUNTERS ? (uint32_t)counter : HISTOGRAM_COUNTERS - 1;
}

uint64_t histogram_lowest(uint32_t counter)
{
    uint32_t half = counter >> HISTOGRAM_HALF_BITS;
    uint32_t bucket = half > 0 ? half - 1 : 0;
    return ((uint64_t)counter - ((uint64_t)bucket << HISTOGRAM_HALF_BITS)) << bucket;
}

void histogram_record(struct histogram *histogram, uint64_t value)
{
    histogram->counters[histogram_counter(value)]++;
    histogram->sum += value;
    if (value > histogram->max)
        histogram->max = value;
}
