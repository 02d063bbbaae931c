/* image_request.c: the beginning and the end of a request that changes bytes, and
 * whether a write may be made where its bytes are. */
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
                      uint32_t how, struct write_request *request)
{
    int whole = !(how & BEGIN_UNALIGNED) && ((offset | length) & (hostfile_write_grain() - 1)) == 0;
    uint32_t whole_pages = atomic_load(&image->whole_pages);
    for (;;) {
        request->class_bit = whole && whole_pages ? FDSTASH_WRITES : FDSTASH_UNALIGNED_WRITES;
        request->ticket = how & BEGIN_TRY ? image_try_enter(image, request->class_bit)
                                          : image_enter(image, request->class_bit);
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

/* 0: data that may be written where it is; else why not. */
int image_check_run(const fdstash_segment *run, int in_table, uint32_t class_bit)
{
    if (KIND_OF(run) == FDSTASH_DENIED)
        return -EACCES;
    if (run->kind & FDSTASH_READONLY)
        return -EROFS;
    if (run->kind != FDSTASH_DATA)
        return in_table ? -FDSTASH_NEEDS : -EROFS;
    if (class_bit == FDSTASH_WRITES && in_table &&
        (run->file_offset & (hostfile_write_grain() - 1)))
        return UNALIGNED_AFTER_ALL;
    return 0;
}

int image_check_in_place(const struct write_request *request, uint64_t length, uint64_t offset)
{
    uint64_t end = offset + length;
    int found = 0;
    /* The write is durable when its cluster's entry is on disk, too. */
    if (request->durable && atomic_load(&request->layer->dirty))
        return -FDSTASH_NEEDS;
    if (request->layer->all_writable)
        return 0;
    while (offset < end) {
        fdstash_segment run;
        int rc = layer_lookup(request->layer, offset, end - offset, &run);
        if (rc >= 0)
            rc = image_check_run(&run, rc, request->class_bit);
        if (rc == -FDSTASH_NEEDS)
            found = rc;
        else if (rc < 0)
            return rc;
        offset += run.length;
    }
    return found;
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
