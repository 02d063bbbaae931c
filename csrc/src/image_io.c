/* image_io.c: reads and writes: through the map to the files. */
#include <errno.h>

#include "image.h"

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

/* A position in a request: buffers, and the bytes that are done. */
struct progress {
    struct iov_cursor at;
    uint64_t done;
    fdstash_need *need;
};

static struct progress begin(const fdstash_iovec *iov, int count, uint64_t done, fdstash_need *need)
{
    struct progress progress = {{iov, count, 0}, done, need};
    iov_advance(&progress.at, done);
    return progress;
}

/* ------------------------------------------------------------------ reads -- */

static int read_layer(const struct fdstash_layer *layer, struct progress *progress, uint64_t length,
                      uint64_t offset);

static void fill_zeros(struct progress *progress, uint64_t length)
{
    iov_copy(&progress->at, NULL, length, IOV_ZERO);
    progress->done += length;
}

static int read_run(const struct fdstash_layer *layer, const fdstash_segment *run,
                    struct progress *progress)
{
    switch (KIND_OF(run) & ~(uint32_t)FDSTASH_COPY) {
    case FDSTASH_DATA: {
        int64_t got =
            hostfile_readv(layer->files[run->file], &progress->at, run->length, run->file_offset);
        if (got < 0)
            return (int)got;
        progress->done += (uint64_t)got;
        /* The file is shorter than when the map was made: bytes are missing. */
        return (uint64_t)got < run->length ? -EIO : 0;
    }
    case FDSTASH_HOLE:
        if (layer->backing && run->start < layer->backing->size) {
            uint64_t rest = layer->backing->size - run->start;
            uint64_t part = rest < run->length ? rest : run->length;
            int rc = read_layer(layer->backing, progress, part, run->start);
            if (rc == 0)
                fill_zeros(progress, run->length - part);
            return rc;
        }
        /* fallthrough */
    case FDSTASH_ZERO:
        fill_zeros(progress, run->length);
        return 0;
    case FDSTASH_DENIED:
        return -EACCES;
    default:
        return need_driver(progress->need, layer, run, progress->done);
    }
}

static int read_layer(const struct fdstash_layer *layer, struct progress *progress, uint64_t length,
                      uint64_t offset)
{
    uint64_t end = offset + length;
    while (offset < end) {
        fdstash_segment run;
        int rc = layer_lookup(layer, offset, end - offset, &run);
        if (rc >= 0)
            rc = read_run(layer, &run, progress);
        if (rc < 0)
            return rc;
        offset += run.length;
    }
    return 0;
}

int64_t fdstash_image_read_on(fdstash_image *image, const fdstash_iovec *iov, int count,
                              uint64_t offset, uint64_t done, fdstash_need *need)
{
    uint64_t length;
    int rc = sum_lengths(iov, count, &length);
    if (rc < 0)
        return rc;
    struct progress progress = begin(iov, count, done, need);
    const struct fdstash_layer *layer = atomic_load(&image->layer);
    if (offset >= layer->size)
        length = 0;
    else if (length > layer->size - offset)
        length = layer->size - offset;
    if (done < length)
        rc = read_layer(layer, &progress, length - done, offset + done);
    return rc < 0 ? rc : (int64_t)length;
}

int64_t fdstash_image_preadv(fdstash_image *image, const fdstash_iovec *iov, int count,
                             uint64_t offset)
{
    fdstash_need need;
    int ticket = image_enter(image, FDSTASH_READS);
    if (ticket < 0)
        return ticket;
    int64_t rc = fdstash_image_read_on(image, iov, count, offset, 0, &need);
    fdstash_image_leave(image, ticket, FDSTASH_READS);
    return rc;
}

int64_t fdstash_image_pread(fdstash_image *image, void *buffer, uint64_t length, uint64_t offset)
{
    fdstash_iovec iov = {buffer, length};
    return fdstash_image_preadv(image, &iov, 1, offset);
}

void fdstash_iov_fill(const fdstash_iovec *iov, int count, uint64_t at, const void *data,
                      uint64_t length)
{
    struct progress progress = begin(iov, count, at, NULL);
    iov_copy(&progress.at, (void *)(uintptr_t)data, length, IOV_FROM_MEMORY);
}

/* ----------------------------------------------------------------- writes -- */

/* Writes what may be written where it is, up to what may not. */
static int write_layer(const struct write_request *request, struct progress *progress,
                       uint64_t length, uint64_t offset)
{
    const struct fdstash_layer *layer = request->layer;
    uint64_t end = offset + length;
    while (offset < end) {
        fdstash_segment run;
        int rc = layer_lookup(layer, offset, end - offset, &run);
        if (rc >= 0)
            rc = image_check_run(&run, rc, request->class_bit);
        if (rc == -FDSTASH_NEEDS)
            return need_driver(progress->need, layer, &run, progress->done);
        if (rc < 0)
            return rc;
        int64_t put = hostfile_writev(layer->files[run.file], &progress->at, run.length,
                                      run.file_offset, request->durable ? RWF_DSYNC : 0);
        if (put < 0)
            return (int)put;
        progress->done += run.length;
        offset += run.length;
    }
    return 0;
}

int64_t fdstash_image_write_on(fdstash_image *image, const fdstash_iovec *iov, int count,
                               uint64_t offset, uint64_t done, uint32_t flags, fdstash_need *need)
{
    struct write_request request = {.class_bit = FDSTASH_UNALIGNED_WRITES};
    uint64_t length;
    int rc = sum_lengths(iov, count, &length);
    if (rc == 0)
        rc = image_look_at_write(image, length, offset, flags, &request);
    if (rc < 0)
        return rc;
    struct progress progress = begin(iov, count, done, need);
    if (done < length)
        rc = write_layer(&request, &progress, length - done, offset + done);
    return rc < 0 ? rc : (int64_t)length;
}

/* All or nothing until the first write: what needs the driver is found before. */
static int write_mapped(const struct write_request *request, const fdstash_iovec *iov, int count,
                        uint64_t length, uint64_t offset)
{
    fdstash_need need;
    struct progress progress = begin(iov, count, 0, &need);
    int rc = image_check_in_place(request, length, offset);
    if (rc < 0)
        return rc;
    return write_layer(request, &progress, length, offset);
}

int64_t fdstash_image_pwritev(fdstash_image *image, const fdstash_iovec *iov, int count,
                              uint64_t offset, uint32_t flags)
{
    uint64_t length;
    int rc = sum_lengths(iov, count, &length);
    uint32_t how = 0;
    while (rc == 0) {
        struct write_request request;
        rc = image_begin_write(image, length, offset, flags, how, &request);
        if (rc < 0)
            break;
        rc = write_mapped(&request, iov, count, length, offset);
        image_end_write(image, &request);
        if (rc == 0)
            return (int64_t)length;
        if (rc == UNALIGNED_AFTER_ALL && !how) {
            how = BEGIN_UNALIGNED;
            rc = 0;
        }
    }
    return rc;
}

int64_t fdstash_image_pwrite(fdstash_image *image, const void *buffer, uint64_t length,
                             uint64_t offset, uint32_t flags)
{
    fdstash_iovec iov = {(void *)(uintptr_t)buffer, length};
    return fdstash_image_pwritev(image, &iov, 1, offset, flags);
}

int64_t fdstash_file_pwrite_from(fdstash_file *file, const fdstash_iovec *iov, int count,
                                 uint64_t at, uint64_t length, uint64_t offset, uint32_t flags)
{
    struct progress progress = begin(iov, count, at, NULL);
    return hostfile_writev(file, &progress.at, length, offset, flags & FDSTASH_FUA ? RWF_DSYNC : 0);
}
