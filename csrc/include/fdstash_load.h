/* fdstash_load.h: for C programs. All declarations are in fdstash_load_api.h. */
#ifndef FDSTASH_LOAD_H
#define FDSTASH_LOAD_H

#include "fdstash.h"

#ifdef __cplusplus
extern "C" {
#endif

#include "fdstash_load_api.h"

#ifdef __cplusplus
}
#endif

#endif
