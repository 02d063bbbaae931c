/* image.h: an open image as the data path sees it. Public calls are in
 * fdstash_api.h. */
#ifndef FDSTASH_IMAGE_H
#define FDSTASH_IMAGE_H

#include <stdatomic.h>

#include "gate.h"
#include "layer.h"

struct fdstash_image {
    struct gate gate;
    /* Loaded only between enter and leave: the switch waits for both phases. */
    struct fdstash_layer *_Atomic layer;
    _Atomic uint32_t flags; /* enum fdstash_image_flags */
    _Atomic uint64_t size;
    _Atomic uint32_t whole_pages; /* of the current layer */
    uint64_t epoch;               /* of the process that opened it */
};

/* As gate_enter; a forked child is shut out. */
int image_enter(struct fdstash_image *image, uint32_t class_bit);

/* A request that changes bytes. */
struct write_request {
    int ticket;
    uint32_t class_bit;
    struct fdstash_layer *layer;
    uint32_t flags; /* of the image */
    int durable;
};

/* Enters with the class that the request has in the layer it meets; `unaligned`:
 * with that of unaligned writes in any case. -EBADF, -ENOSPC. */
int image_begin_write(struct fdstash_image *image, uint64_t length, uint64_t offset, uint32_t flags,
                      int unaligned, struct write_request *request);
/* The same for a caller that has entered. */
int image_look_at_write(struct fdstash_image *image, uint64_t length, uint64_t offset,
                        uint32_t flags, struct write_request *request);
void image_end_write(struct fdstash_image *image, const struct write_request *request);
/* Notes what the driver is needed for; returns -FDSTASH_NEEDS. */
int need_driver(fdstash_need *need, const struct fdstash_layer *layer, const fdstash_segment *run,
                uint64_t done);

#define KIND_OF(segment) ((segment)->kind & ~(uint32_t)FDSTASH_READONLY)

#endif
