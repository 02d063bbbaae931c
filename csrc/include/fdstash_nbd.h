/* fdstash_nbd.h: for C programs. All declarations are in fdstash_nbd_api.h. */
#ifndef FDSTASH_NBD_H
#define FDSTASH_NBD_H

#include "fdstash.h"

#ifdef __cplusplus
extern "C" {
#endif

#include "fdstash_nbd_api.h"

#ifdef __cplusplus
}
#endif

#endif
