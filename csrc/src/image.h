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
    _Atomic int marked;           /* the header is, as written to */
    uint64_t epoch;               /* of the process that opened it */
};

/* As gate_enter and gate_try_enter; a forked child is shut out. */
int image_enter(struct fdstash_image *image, uint32_t class_bit);
int image_try_enter(struct fdstash_image *image, uint32_t class_bit);

/* A request that changes bytes. */
struct write_request {
    int ticket;
    uint32_t class_bit;
    struct fdstash_layer *layer;
    uint32_t flags; /* of the image */
    int durable;
};

enum begin_how {
    BEGIN_UNALIGNED = 1, /* with the class of unaligned writes in any case */
    BEGIN_TRY = 2        /* -EAGAIN where the gate holds it */
};

/* Enters with the class that the request has in the layer it meets. -EBADF, -ENOSPC. */
int image_begin_write(struct fdstash_image *image, uint64_t length, uint64_t offset, uint32_t flags,
                      uint32_t how, struct write_request *request);
/* The same for a caller that has entered. */
int image_look_at_write(struct fdstash_image *image, uint64_t length, uint64_t offset,
                        uint32_t flags, struct write_request *request);
void image_end_write(struct fdstash_image *image, const struct write_request *request);
enum { UNALIGNED_AFTER_ALL = -FDSTASH_NEEDS - 1 };

/* Whether a run may be written where it is: 0, why not, -FDSTASH_NEEDS, or
 * UNALIGNED_AFTER_ALL: begin again, unaligned. in_table is what layer_lookup said. */
int image_check_run(const fdstash_segment *run, int in_table, uint32_t class_bit);
/* The same of every byte of the range. What may not be written at all comes before
 * what needs the driver: then nothing is written. */
int image_check_in_place(const struct write_request *request, uint64_t length, uint64_t offset);
/* As fdstash_image_zero or, with trimming, fdstash_image_trim, for a request that has
 * begun. */
int image_change_space(const struct write_request *request, int trimming, uint64_t length,
                       uint64_t offset, uint32_t flags);
/* As fdstash_image_flush, for who has entered with the class of flushes. */
int image_flush_entered(struct fdstash_image *image);
/* Notes what the driver is needed for; returns -FDSTASH_NEEDS. */
int need_driver(fdstash_need *need, const struct fdstash_layer *layer, const fdstash_segment *run,
                uint64_t done);

#define KIND_OF(segment) ((segment)->kind & ~(uint32_t)FDSTASH_READONLY)

#endif
