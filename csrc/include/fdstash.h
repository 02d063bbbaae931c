/* fdstash.h: for C programs. The declarations are in the three files that it includes. */
#ifndef FDSTASH_H
#define FDSTASH_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "fdstash_api.h"
#include "fdstash_queue_api.h"
#include "fdstash_swap_api.h"

#ifdef __cplusplus
}
#endif

#endif
