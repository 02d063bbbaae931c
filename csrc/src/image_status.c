/* image_status.c: what a range holds, as block status tells it. */
#include "image.h"

/* Whether there was room for it. */
static int append(fdstash_status *status, uint64_t length, uint32_t bits)
{
    fdstash_status_run *last = status->count > 0 ? &status->runs[status->count - 1] : NULL;
    if (last && last->bits == bits) {
        last->length += length;
    } else {
        if (status->count == status->capacity)
            return 0;
        status->runs[status->count++] = (fdstash_status_run){.length = length, .bits = bits};
    }
    status->covered += length;
    return 1;
}

/* The bits of a run, which may get shorter; -FDSTASH_NEEDS; other errors. */
static int look(const struct fdstash_layer *layer, fdstash_segment *run)
{
    int data;
    switch (KIND_OF(run) & ~(uint32_t)FDSTASH_COPY) {
    case FDSTASH_DATA: {
        int rc = fdstash_file_run(layer->files[run->file], run->file_offset, run->length,
                                  &run->length, &data);
        if (rc < 0)
            return rc;
        return data ? 0 : FDSTASH_STATUS_HOLE | FDSTASH_STATUS_ZERO;
    }
    case FDSTASH_ZERO:
    case FDSTASH_HOLE:
        return FDSTASH_STATUS_HOLE | FDSTASH_STATUS_ZERO;
    case FDSTASH_UNKNOWN:
    case FDSTASH_BAD:
        return -FDSTASH_NEEDS;
    default:
        return 0;
    }
}

int fdstash_image_status_on(fdstash_image *image, uint64_t length, uint64_t offset,
                            fdstash_status *status, fdstash_need *need)
{
    const struct fdstash_layer *top = atomic_load(&image->layer);
    while (status->covered < length) {
        fdstash_segment run;
        const struct fdstash_layer *layer =
            layer_resolve(top, offset + status->covered, length - status->covered, &run);
        if (!layer)
            break;
        int bits = look(layer, &run);
        if (bits == -FDSTASH_NEEDS)
            return need_driver(need, layer, &run, status->covered);
        if (bits < 0)
            return bits;
        if (!append(status, run.length, (uint32_t)bits))
            break;
    }
    return 0;
}
