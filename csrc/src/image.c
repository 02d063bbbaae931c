/* image.c: an image's life, its gate, and the switch to another layer. */
#include "image.h"

#include <errno.h>
#include <stdlib.h>

#include "owned.h"

static void describe(struct fdstash_image *image, struct fdstash_layer *layer)
{
    layer_require(layer);
    atomic_store(&image->size, layer->size);
    atomic_store(&image->whole_pages, (uint32_t)layer->whole_pages);
}

int fdstash_image_new(fdstash_layer *layer, uint32_t flags, fdstash_image **out)
{
    fdstash_image *image = aligned_alloc(64, (sizeof(*image) + 63) / 64 * 64);
    if (!image)
        return -ENOMEM;
    gate_init(&image->gate);
    layer_ref(layer);
    atomic_init(&image->layer, layer);
    atomic_init(&image->flags, flags);
    atomic_init(&image->marked, 0);
    image->epoch = owned_epoch();
    describe(image, layer);
    *out = image;
    return 0;
}

int image_enter(struct fdstash_image *image, uint32_t class_bit)
{
    if (image->epoch != owned_epoch())
        return -ESHUTDOWN;
    return gate_enter(&image->gate, class_bit);
}

int image_try_enter(struct fdstash_image *image, uint32_t class_bit)
{
    if (image->epoch != owned_epoch())
        return -ESHUTDOWN;
    return gate_try_enter(&image->gate, class_bit);
}

int fdstash_image_enter(fdstash_image *image, uint32_t class_bit)
{
    return image_enter(image, class_bit);
}

void fdstash_image_leave(fdstash_image *image, int ticket, uint32_t class_bit)
{
    gate_leave(&image->gate, ticket, class_bit);
}

void fdstash_image_close(fdstash_image *image)
{
    /* In a forked child the counts are those of threads that are not there. */
    if (image->epoch != owned_epoch())
        return;
    gate_shut(&image->gate);
    fdstash_layer_unref(atomic_exchange(&image->layer, NULL));
}

void fdstash_image_free(fdstash_image *image)
{
    if (!image)
        return;
    fdstash_layer_unref(atomic_load(&image->layer));
    /* In a forked child threads that are not there still seem to wait. */
    if (image->epoch == owned_epoch())
        gate_destroy(&image->gate);
    free(image);
}

uint64_t fdstash_image_size(fdstash_image *image)
{
    return atomic_load(&image->size);
}

uint32_t fdstash_image_flags(fdstash_image *image)
{
    return atomic_load(&image->flags);
}

void fdstash_image_set_flags(fdstash_image *image, uint32_t flags)
{
    atomic_store(&image->flags, flags);
}

void fdstash_image_set_marked(fdstash_image *image, int marked)
{
    atomic_store(&image->marked, marked != 0);
}

int fdstash_image_is_marked(const fdstash_image *image)
{
    return atomic_load_explicit(&image->marked, memory_order_acquire);
}

int fdstash_image_hold(fdstash_image *image, uint32_t mask, int drain, int64_t timeout_ns)
{
    return gate_hold(&image->gate, mask, drain, timeout_ns);
}

void fdstash_image_release(fdstash_image *image)
{
    gate_release(&image->gate);
}

uint64_t fdstash_image_in_flight(fdstash_image *image)
{
    return gate_in_flight(&image->gate);
}

fdstash_layer *fdstash_image_switch(fdstash_image *image, fdstash_layer *layer)
{
    layer_ref(layer);
    fdstash_layer *old = atomic_exchange(&image->layer, layer);
    describe(image, layer);
    return old;
}

int fdstash_image_grace(fdstash_image *image, int64_t timeout_ns)
{
    return gate_grace(&image->gate, timeout_ns);
}

uint64_t fdstash_image_generation(fdstash_image *image)
{
    return gate_generation(&image->gate);
}
