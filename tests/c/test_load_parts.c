/* The load generator's leaves: histogram and stamps. */
#include <stdint.h>
#include <string.h>

#include "check.h"
#include "histogram.h"
#include "stamp.h"

static void test_counters_are_without_gaps(void)
{
    for (uint32_t counter = 1; counter < HISTOGRAM_COUNTERS; counter++) {
        uint64_t lowest = histogram_lowest(counter);
        CHECK_EQUAL(histogram_counter(lowest), counter);
        CHECK_EQUAL(histogram_counter(lowest - 1), counter - 1);
    }
    CHECK_EQUAL(histogram_counter(0), 0);
    CHECK_EQUAL(histogram_counter(UINT64_MAX), HISTOGRAM_COUNTERS - 1);
}

static void test_three_digits(void)
{
    for (uint64_t value = 1; value < UINT64_C(1) << 42; value += value / 7 + 1) {
        uint64_t lowest = histogram_lowest(histogram_counter(value));
        CHECK(lowest <= value && (value - lowest) * 1000 <= value);
    }
}

static void test_record(void)
{
    static struct histogram histogram;
    histogram_record(&histogram, 5);
    histogram_record(&histogram, 5000);
    histogram_record(&histogram, 5);
    CHECK_EQUAL(histogram.counters[5], 2);
    CHECK_EQUAL(histogram.counters[histogram_counter(5000)], 1);
    CHECK_EQUAL(histogram.max, 5000);
    CHECK_EQUAL(histogram.sum, 5010);
}

static void test_stamps(void)
{
    char block[4096 + 1];
    char *memory = block + 1; /* nothing needs to be aligned */
    stamp_fill(memory, 4096, 8192, 3);
    CHECK(stamp_holds(memory, 4096, 8192, 3));
    CHECK(stamp_holds(memory, 4096, 8192, 0));
    CHECK(!stamp_holds(memory, 4096, 8192, 4));
    CHECK(!stamp_holds(memory, 4096, 12288, 3));
    for (int at = 0; at < 4096; at++) {
        memory[at] ^= 1;
        CHECK(!stamp_holds(memory, 4096, 8192, 3));
        CHECK(!stamp_holds(memory, 4096, 8192, 0));
        memory[at] ^= 1;
    }
    memset(memory, 0, 4096);
    CHECK(!stamp_holds(memory, 4096, 0, 0)); /* zeros are no generation */
}

int main(void)
{
    RUN(test_counters_are_without_gaps);
    RUN(test_three_digits);
    RUN(test_record);
    RUN(test_stamps);
    return 0;
}
