/* stash.h: named descriptors. Public calls are in fdstash_api.h. A leaf. */
#ifndef FDSTASH_STASH_H
#define FDSTASH_STASH_H

#include "fdstash.h"

#endif
