/* version.c: which build this is. */
#include "fdstash.h"

#ifndef FDSTASH_VERSION
#define FDSTASH_VERSION "0"
#endif

const char *fdstash_version(void)
{
    return FDSTASH_VERSION;
}
