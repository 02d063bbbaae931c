/* image_flush.c: what was written is made durable, and what went wrong is told. */
#include "image.h"

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

static int flush_entered(fdstash_image *image, int take, int files_alone)
{
    const struct fdstash_layer *layer = atomic_load(&image->layer);
    if (!files_alone && atomic_load(&layer->dirty))
        return -FDSTASH_NEEDS;
    if (!(atomic_load(&image->flags) & FDSTASH_NO_FLUSH))
        flush_layers(layer);
    /* A swap may just have put the description that knows of an error out of
     * reach of fdatasync: it holds this class until it has latched the error. */
    gate_wait_open(&image->gate, FDSTASH_FLUSHES);
    return collect_latched(layer, take);
}

static int flush(fdstash_image *image, int take, int files_alone)
{
    int ticket = image_enter(image, FDSTASH_FLUSHES);
    if (ticket < 0)
        return ticket;
    int rc = flush_entered(image, take, files_alone);
    fdstash_image_leave(image, ticket, FDSTASH_FLUSHES);
    return rc;
}

int image_flush_entered(struct fdstash_image *image)
{
    return flush_entered(image, 1, 0);
}

int fdstash_image_flush(fdstash_image *image)
{
    return flush(image, 1, 0);
}

int fdstash_image_flush_files(fdstash_image *image)
{
    return flush(image, 1, 1);
}

int fdstash_image_sync(fdstash_image *image)
{
    return flush(image, 0, 1);
}
