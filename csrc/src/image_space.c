/* image_space.c: zeroing and trimming through the map. */
#include <errno.h>

#include "image.h"

/* What to do with a run: leave it as it is, change its bytes in place, or why not. */
enum { LEAVE = 0, CHANGE = 1 };

static int has_backing(const struct fdstash_layer *layer, const fdstash_segment *run)
{
    return KIND_OF(run) == FDSTASH_HOLE && layer->backing && run->start < layer->backing->size;
}

static int decide_zero(const struct fdstash_layer *layer, const fdstash_segment *run, int in_table,
                       uint32_t flags)
{
    uint32_t kind = KIND_OF(run);
    if (kind == FDSTASH_DENIED)
        return -EACCES;
    if (kind == FDSTASH_ZERO || (kind == FDSTASH_HOLE && !has_backing(layer, run)))
        return LEAVE;
    if (run->kind & FDSTASH_READONLY)
        return -EROFS;
    if (kind != FDSTASH_DATA)
        return in_table ? -FDSTASH_NEEDS : -EROFS;
    /* Only the driver can give clusters back. */
    return in_table && (flags & FDSTASH_UNMAP) ? -FDSTASH_NEEDS : CHANGE;
}

static int decide_trim(const struct fdstash_layer *layer, const fdstash_segment *run, int in_table,
                       uint32_t flags)
{
    (void)layer;
    (void)flags;
    uint32_t kind = KIND_OF(run);
    if (kind == FDSTASH_DENIED)
        return -EACCES;
    if (kind == FDSTASH_ZERO)
        return LEAVE;
    if ((run->kind & FDSTASH_READONLY) || (kind == FDSTASH_HOLE && !in_table))
        return -EROFS;
    if (kind == FDSTASH_HOLE)
        return LEAVE;
    return in_table ? -FDSTASH_NEEDS : CHANGE;
}

static int zero_run(struct fdstash_file *file, const fdstash_segment *run, uint32_t flags,
                    int durable)
{
    return hostfile_zero(file, run->length, run->file_offset, flags, durable);
}

static int trim_run(struct fdstash_file *file, const fdstash_segment *run, uint32_t flags,
                    int durable)
{
    (void)flags;
    (void)durable;
    return hostfile_trim(file, run->length, run->file_offset);
}

/* What a call does with each run. */
struct change {
    int (*decide)(const struct fdstash_layer *layer, const fdstash_segment *run, int in_table,
                  uint32_t flags);
    int (*carry_out)(struct fdstash_file *file, const fdstash_segment *run, uint32_t flags,
                     int durable);
};

static const struct change zero = {decide_zero, zero_run};
static const struct change trim = {decide_trim, trim_run};

/* Decides over the range; what may not be changed at all comes before what needs
 * the driver, so that nothing is changed then. */
static int decide(const struct write_request *request, const struct change *change, uint64_t length,
                  uint64_t offset, uint32_t flags)
{
    uint64_t end = offset + length;
    int found = 0;
    while (offset < end) {
        fdstash_segment run;
        int rc = layer_lookup(request->layer, offset, end - offset, &run);
        if (rc >= 0)
            rc = change->decide(request->layer, &run, rc, flags);
        if (rc == -FDSTASH_NEEDS)
            found = rc;
        else if (rc < 0)
            return rc;
        offset += run.length;
    }
    return found;
}

/* Carries out, up to what needs the driver. */
static int walk(const struct write_request *request, const struct change *change, uint64_t length,
                uint64_t offset, uint64_t done, uint32_t flags, fdstash_need *need)
{
    struct fdstash_layer *layer = request->layer;
    while (done < length) {
        fdstash_segment run;
        int rc = layer_lookup(layer, offset + done, length - done, &run);
        if (rc >= 0)
            rc = change->decide(layer, &run, rc, flags);
        if (rc == -FDSTASH_NEEDS)
            return need_driver(need, layer, &run, done);
        if (rc == CHANGE)
            rc = change->carry_out(layer->files[run.file], &run, flags, request->durable);
        if (rc < 0)
            return rc;
        done += run.length;
    }
    return 0;
}

int image_change_space(const struct write_request *request, int trimming, uint64_t length,
                       uint64_t offset, uint32_t flags)
{
    const struct change *change = trimming ? &trim : &zero;
    fdstash_need need;
    if (request->durable && atomic_load(&request->layer->dirty))
        return -FDSTASH_NEEDS;
    int rc = decide(request, change, length, offset, flags);
    return rc < 0 ? rc : walk(request, change, length, offset, 0, flags, &need);
}

static int change_space(fdstash_image *image, int trimming, uint64_t length, uint64_t offset,
                        uint32_t flags)
{
    struct write_request request;
    int rc = image_begin_write(image, length, offset, flags, 0, &request);
    if (rc < 0)
        return rc;
    rc = image_change_space(&request, trimming, length, offset, flags);
    image_end_write(image, &request);
    return rc;
}

static int change_on(fdstash_image *image, const struct change *change, uint64_t length,
                     uint64_t offset, uint64_t done, uint32_t flags, fdstash_need *need)
{
    struct write_request request = {.class_bit = FDSTASH_UNALIGNED_WRITES};
    int rc = image_look_at_write(image, length, offset, flags, &request);
    return rc < 0 ? rc : walk(&request, change, length, offset, done, flags, need);
}

int fdstash_image_zero(fdstash_image *image, uint64_t length, uint64_t offset, uint32_t flags)
{
    return change_space(image, 0, length, offset, flags);
}

int fdstash_image_trim(fdstash_image *image, uint64_t length, uint64_t offset)
{
    return change_space(image, 1, length, offset, 0);
}

int fdstash_image_zero_on(fdstash_image *image, uint64_t length, uint64_t offset, uint64_t done,
                          uint32_t flags, fdstash_need *need)
{
    return change_on(image, &zero, length, offset, done, flags, need);
}

int fdstash_image_trim_on(fdstash_image *image, uint64_t length, uint64_t offset, uint64_t done,
                          fdstash_need *need)
{
    return change_on(image, &trim, length, offset, done, 0, need);
}
