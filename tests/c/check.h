/* check.h: assertions that stay in release builds and say what was found. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s: not true: %s\n", __FILE__, __LINE__, __func__,             \
                    #condition);                                                                   \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#define CHECK_EQUAL(found, wanted)                                                                 \
    do {                                                                                           \
        long long found_ = (long long)(found);                                                     \
        long long wanted_ = (long long)(wanted);                                                   \
        if (found_ != wanted_) {                                                                   \
            fprintf(stderr, "%s:%d: %s: %s is %lld, not %lld\n", __FILE__, __LINE__, __func__,     \
                    #found, found_, wanted_);                                                      \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* Runs a test function and names it. */
#define RUN(test)                                                                                  \
    do {                                                                                           \
        printf("%s\n", #test);                                                                     \
        fflush(stdout);                                                                            \
        test();                                                                                    \
    } while (0)

#endif
