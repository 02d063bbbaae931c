/* image_io.c: the synchronous data path: through the map to the files. */
#include <errno.h>

#include "image.h"

#define KIND(segment) ((segment)->kind & ~(uint32_t)FDSTASH_READONLY)

static int sum_lengths(const fdstash_iovec *iov, int count, uint64_t *total)
{
    uint64_t sum = 0;
    if (count < 0)
        return -EINVAL;
    for (int i = 0; i < count; i++)
        if (__builtin_add_overflow(sum, iov[i].length, &sum))
            return -EINVAL;
    if (sum > INT64_MAX)
        return -EINVAL;
    *total = sum;
    return 0;
}

/* ------------------------------------------------------------------ reads -- */

static int64_t read_layer(const struct fdstash_layer *layer, struct iov_cursor *at, uint64_t length,
                          uint64_t offset);

static int64_t read_segment(const struct fdstash_layer *layer, const fdstash_segment *segment,
                            struct iov_cursor *at)
{
    int64_t got;
    switch (KIND(segment)) {
    case FDSTASH_DATA:
        got =
            hostfile_readv(layer->files[segment->file], at, segment->length, segment->file_offset);
        /* The file is shorter than when the map was made: bytes are missing. */
        return got >= 0 && (uint64_t)got < segment->length ? -EIO : got;
    case FDSTASH_HOLE:
        if (layer->backing && segment->start < layer->backing->size) {
            uint64_t rest = layer->backing->size - segment->start;
            uint64_t part = rest < segment->length ? rest : segment->length;
            got = read_layer(layer->backing, at, part, segment->start);
            if (got < 0)
                return got;
            iov_copy(at, NULL, segment->length - part, IOV_ZERO);
            return (int64_t)segment->length;
        }
        /* fallthrough */
    case FDSTASH_ZERO:
        iov_copy(at, NULL, segment->length, IOV_ZERO);
        return (int64_t)segment->length;
    default:
        return -EACCES;
    }
}

static int64_t read_layer(const struct fdstash_layer *layer, struct iov_cursor *at, uint64_t length,
                          uint64_t offset)
{
    uint64_t done = 0;
    while (done < length) {
        fdstash_segment segment;
        int rc = fdstash_map_lookup(layer->map, offset + done, length - done, &segment);
        if (rc < 0)
            return rc;
        int64_t got = read_segment(layer, &segment, at);
        if (got < 0)
            return got;
        done += segment.length;
    }
    return (int64_t)done;
}

int64_t fdstash_image_preadv(fdstash_image *image, const fdstash_iovec *iov, int count,
                             uint64_t offset)
{
    struct iov_cursor at = {iov, count, 0};
    uint64_t length;
    int64_t rc = sum_lengths(iov, count, &length);
    if (rc < 0)
        return rc;
    int ticket = image_enter(image, FDSTASH_READS);
    if (ticket < 0)
        return ticket;
    const struct fdstash_layer *layer = atomic_load(&image->layer);
    if (offset >= layer->size)
        length = 0;
    else if (length > layer->size - offset)
        length = layer->size - offset;
    rc = read_layer(layer, &at, length, offset);
    fdstash_image_leave(image, ticket, FDSTASH_READS);
    return rc;
}

int64_t fdstash_image_pread(fdstash_image *image, void *buffer, uint64_t length, uint64_t offset)
{
    fdstash_iovec iov = {buffer, length};
    return fdstash_image_preadv(image, &iov, 1, offset);
}

/* ----------------------------------------------------------------- writes -- */

struct write_request {
    int ticket;
    uint32_t class_bit;
    struct fdstash_layer *layer;
    uint32_t flags; /* of the image */
};

/* Enters with the class that the request has in the layer it meets. */
static int begin_write(fdstash_image *image, uint64_t length, uint64_t offset,
                       struct write_request *request)
{
    int whole = ((offset | length) & (hostfile_write_grain() - 1)) == 0;
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
    request->flags = atomic_load(&image->flags);
    int rc = 0;
    if (!(request->flags & FDSTASH_WRITABLE))
        rc = -EBADF;
    else if (offset > request->layer->size || length > request->layer->size - offset)
        rc = -ENOSPC;
    if (rc < 0)
        fdstash_image_leave(image, request->ticket, request->class_bit);
    return rc;
}

static void end_write(fdstash_image *image, const struct write_request *request)
{
    fdstash_image_leave(image, request->ticket, request->class_bit);
}

/* Whether every byte of the range may be changed. `zeroing` may pass over what
 * is zero already. */
static int check_writable(const struct fdstash_layer *layer, uint64_t length, uint64_t offset,
                          int zeroing)
{
    if (layer->all_writable)
        return 0;
    while (length > 0) {
        fdstash_segment segment;
        int rc = fdstash_map_lookup(layer->map, offset, length, &segment);
        if (rc < 0)
            return rc;
        if (KIND(&segment) == FDSTASH_DENIED)
            return -EACCES;
        if (segment.kind != FDSTASH_DATA && !(zeroing && KIND(&segment) == FDSTASH_ZERO))
            return -EROFS;
        offset += segment.length;
        length -= segment.length;
    }
    return 0;
}

static int64_t write_layer(const struct fdstash_layer *layer, struct iov_cursor *at,
                           uint64_t length, uint64_t offset, int rwf_flags)
{
    uint64_t done = 0;
    while (done < length) {
        fdstash_segment segment;
        int rc = fdstash_map_lookup(layer->map, offset + done, length - done, &segment);
        if (rc < 0)
            return rc;
        int64_t put = hostfile_writev(layer->files[segment.file], at, segment.length,
                                      segment.file_offset, rwf_flags);
        if (put < 0)
            return put;
        done += segment.length;
    }
    return (int64_t)done;
}

static int is_durable(const struct write_request *request, uint32_t flags)
{
    return (flags & FDSTASH_FUA) || (request->flags & FDSTASH_DSYNC);
}

int64_t fdstash_image_pwritev(fdstash_image *image, const fdstash_iovec *iov, int count,
                              uint64_t offset, uint32_t flags)
{
    struct iov_cursor at = {iov, count, 0};
    struct write_request request;
    uint64_t length;
    int64_t rc = sum_lengths(iov, count, &length);
    if (rc == 0)
        rc = begin_write(image, length, offset, &request);
    if (rc < 0)
        return rc;
    rc = check_writable(request.layer, length, offset, 0);
    if (rc == 0)
        rc = write_layer(request.layer, &at, length, offset,
                         is_durable(&request, flags) ? RWF_DSYNC : 0);
    end_write(image, &request);
    return rc;
}

int64_t fdstash_image_pwrite(fdstash_image *image, const void *buffer, uint64_t length,
                             uint64_t offset, uint32_t flags)
{
    fdstash_iovec iov = {(void *)(uintptr_t)buffer, length};
    return fdstash_image_pwritev(image, &iov, 1, offset, flags);
}

/* ------------------------------------------------------- zero, trim, flush -- */

typedef int space_call(struct fdstash_file *file, const fdstash_segment *segment, int unmap,
                       int durable);

static int zero_part(struct fdstash_file *file, const fdstash_segment *segment, int unmap,
                     int durable)
{
    return hostfile_zero(file, segment->length, segment->file_offset, unmap, durable);
}

static int trim_part(struct fdstash_file *file, const fdstash_segment *segment, int unmap,
                     int durable)
{
    (void)unmap;
    (void)durable;
    return hostfile_trim(file, segment->length, segment->file_offset);
}

static int change_space(fdstash_image *image, uint64_t length, uint64_t offset, uint32_t flags,
                        space_call *change)
{
    struct write_request request;
    int rc = begin_write(image, length, offset, &request);
    if (rc < 0)
        return rc;
    rc = check_writable(request.layer, length, offset, 1);
    while (rc == 0 && length > 0) {
        fdstash_segment segment;
        rc = fdstash_map_lookup(request.layer->map, offset, length, &segment);
        if (rc == 0 && KIND(&segment) == FDSTASH_DATA)
            rc = change(request.layer->files[segment.file], &segment, (flags & FDSTASH_UNMAP) != 0,
                        is_durable(&request, flags));
        offset += segment.length;
        length -= segment.length;
    }
    end_write(image, &request);
    return rc;
}

int fdstash_image_zero(fdstash_image *image, uint64_t length, uint64_t offset, uint32_t flags)
{
    return change_space(image, length, offset, flags, zero_part);
}

int fdstash_image_trim(fdstash_image *image, uint64_t length, uint64_t offset)
{
    return change_space(image, length, offset, 0, trim_part);
}

/* Every file is tried, so that one bad file leaves no other unflushed. What a
 * file has to report is latched first, and so found in one place. */
static void flush_layers(const struct fdstash_layer *layer)
{
    for (; layer; layer = layer->backing) {
        for (size_t i = 0; i < layer->count; i++) {
            int rc = hostfile_flush_dirty(layer->files[i]);
            if (rc < 0)
                hostfile_latch(layer->files[i], -rc);
        }
    }
}

static int collect_latched(const struct fdstash_layer *layer, int take)
{
    int first_error = 0;
    for (; layer; layer = layer->backing) {
        for (size_t i = 0; i < layer->count; i++) {
            struct fdstash_file *file = layer->files[i];
            int rc = take ? fdstash_file_take_latched(file) : -atomic_load(&file->latched);
            if (rc < 0 && !first_error)
                first_error = rc;
        }
    }
    return first_error;
}

static int flush(fdstash_image *image, int take)
{
    int ticket = image_enter(image, FDSTASH_FLUSHES);
    if (ticket < 0)
        return ticket;
    const struct fdstash_layer *layer = atomic_load(&image->layer);
    if (!(atomic_load(&image->flags) & FDSTASH_NO_FLUSH))
        flush_layers(layer);
    /* A swap may just have put the description that knows of an error out of
     * reach of fdatasync: it holds this class until it has latched the error. */
    gate_wait_open(&image->gate, FDSTASH_FLUSHES);
    int rc = collect_latched(layer, take);
    fdstash_image_leave(image, ticket, FDSTASH_FLUSHES);
    return rc;
}

int fdstash_image_flush(fdstash_image *image)
{
    return flush(image, 1);
}

int fdstash_image_sync(fdstash_image *image)
{
    return flush(image, 0);
}
