/* image_request.c: the beginning and the end of a request that changes bytes. */
#include <errno.h>

#include "image.h"

static int check_write(const struct write_request *request, uint64_t length, uint64_t offset)
{
    if (!(request->flags & FDSTASH_WRITABLE))
        return -EBADF;
    if (offset > request->layer->size || length > request->layer->size - offset)
        return -ENOSPC;
    return 0;
}

int image_look_at_write(struct fdstash_image *image, uint64_t length, uint64_t offset,
                        uint32_t flags, struct write_request *request)
{
    request->layer = atomic_load(&image->layer);
    request->flags = atomic_load(&image->flags);
    request->durable = (flags & FDSTASH_FUA) || (request->flags & FDSTASH_DSYNC);
    return check_write(request, length, offset);
}

int image_begin_write(struct fdstash_image *image, uint64_t length, uint64_t offset, uint32_t flags,
                      int unaligned, struct write_request *request)
{
    int whole = !unaligned && ((offset | length) & (hostfile_write_grain() - 1)) == 0;
    uint32_t whole_pages = atomic_load(&image->whole_pages);
    for (;;) {
        request->class_bit = whole && whole_pages ? FDSTASH_WRITES : FDSTASH_UNALIGNED_WRITES;
        request->ticket = image_enter(image, request->class_bit);
        if (request->ticket < 0)
            return request->ticket;
        request->layer = atomic_load(&image->layer);
        if (request->layer->whole_pages || !whole_pages)
            break;
        /* The layer was switched for one in which the request is unaligned. */
        whole_pages = 0;
        fdstash_image_leave(image, request->ticket, request->class_bit);
    }
    int rc = image_look_at_write(image, length, offset, flags, request);
    if (rc < 0)
        image_end_write(image, request);
    return rc;
}

void image_end_write(struct fdstash_image *image, const struct write_request *request)
{
    fdstash_image_leave(image, request->ticket, request->class_bit);
}

int need_driver(fdstash_need *need, const struct fdstash_layer *layer, const fdstash_segment *run,
                uint64_t done)
{
    need->layer = (struct fdstash_layer *)(uintptr_t)layer;
    need->start = run->start;
    need->length = run->length;
    need->offset = run->file_offset;
    need->done = done;
    need->kind = KIND_OF(run);
    return -FDSTASH_NEEDS;
}
