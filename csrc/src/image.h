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

#endif
