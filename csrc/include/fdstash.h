/* fdstash.h: for C programs. All declarations are in fdstash_api.h. */
#ifndef FDSTASH_H
#define FDSTASH_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "fdstash_api.h"

#ifdef __cplusplus
}
#endif

#endif
