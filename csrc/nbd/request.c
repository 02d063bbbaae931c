/* request.c: what a request asks for, and what became of it. */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "connection.h"

enum {
    PAGE = 4096,
    CACHE_STEP = 1048576, /* bytes that NBD_CMD_CACHE reads at once */
    MOST_RUNS = 4096,     /* that one reply to NBD_CMD_BLOCK_STATUS tells */
    TELL_EVERY_NS = 100000000
};

/* --------------------------------------------------------------- refusing -- */

uint32_t nbd_error_of(int error)
{
    switch (error) {
    case 0:
        return NBD_OK;
    case EPERM:
    case EACCES:
    case EROFS:
    case EBADF:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    case EOVERFLOW:
        return NBD_EOVERFLOW;
    case EOPNOTSUPP:
        return NBD_ENOTSUP;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}

/* Flags that a command may bear: FUA every one, where it was offered. */
static uint16_t flags_of(const struct fdstash_nbd *nbd, uint16_t command)
{
    uint16_t any = nbd->plan.flags & FDSTASH_NBD_WRITABLE ? NBD_CMD_FLAG_FUA : 0;
    switch (command) {
    case NBD_CMD_READ:
        return any | (nbd->plan.flags & FDSTASH_NBD_STRUCTURED ? NBD_CMD_FLAG_DF : 0);
    case NBD_CMD_WRITE_ZEROES:
        return any | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
    case NBD_CMD_BLOCK_STATUS:
        return any | NBD_CMD_FLAG_REQ_ONE;
    default:
        return any;
    }
}

static int writes(uint16_t command)
{
    return command == NBD_CMD_WRITE || command == NBD_CMD_TRIM || command == NBD_CMD_WRITE_ZEROES;
}

static uint32_t range_error(const struct fdstash_nbd *nbd, const struct nbd_header *header)
{
    uint64_t size = fdstash_image_size(nbd->image);
    if (header->offset <= size && header->length <= size - header->offset)
        return NBD_OK;
    return writes(header->command) ? NBD_ENOSPC : NBD_EINVAL;
}

uint32_t nbd_refusal(const struct fdstash_nbd *nbd, const struct nbd_header *header)
{
    uint16_t command = header->command;
    if (atomic_load_explicit(&nbd->stopping, memory_order_acquire) != NBD_GOES_ON)
        return NBD_ESHUTDOWN;
    if (writes(command) && !(nbd->plan.flags & FDSTASH_NBD_WRITABLE))
        return NBD_EPERM;
    if (command >= NBD_COMMANDS || (header->flags & ~flags_of(nbd, command)))
        return NBD_EINVAL;
    if (command == NBD_CMD_FLUSH)
        return header->length || header->offset ? NBD_EINVAL : NBD_OK;
    if (command == NBD_CMD_BLOCK_STATUS &&
        (!(nbd->plan.flags & FDSTASH_NBD_ALLOCATION) || header->length == 0))
        return NBD_EINVAL;
    if (command == NBD_CMD_READ && header->length > nbd->plan.largest)
        return NBD_EOVERFLOW;
    if (command == NBD_CMD_WRITE && header->length > nbd->plan.largest)
        return NBD_EINVAL;
    return range_error(nbd, header);
}

/* ----------------------------------------------------------------- memory -- */

static uint64_t memory_for(const struct nbd_header *header)
{
    switch (header->command) {
    case NBD_CMD_READ:
    case NBD_CMD_WRITE:
        return header->length;
    case NBD_CMD_CACHE:
        return header->length < CACHE_STEP ? header->length : CACHE_STEP;
    case NBD_CMD_BLOCK_STATUS:
        return (header->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : MOST_RUNS) * sizeof(fdstash_status_run);
    default:
        return 0;
    }
}

static void drop_buffer(struct fdstash_nbd *nbd, struct nbd_request *request)
{
    nbd->memory -= request->capacity;
    free(request->buffer);
    request->buffer = NULL;
    request->capacity = 0;
}

static uint64_t rounded(uint64_t size)
{
    uint64_t capacity = PAGE;
    while (capacity < size)
        capacity *= 2;
    return capacity;
}

/* Whether the limit bears it, once free slots have given up theirs. */
static int has_room(struct fdstash_nbd *nbd, uint64_t capacity)
{
    for (struct nbd_request *idle = nbd->free_slots;
         idle && nbd->memory + capacity > nbd->plan.memory; idle = idle->next)
        if (idle->buffer)
            drop_buffer(nbd, idle);
    return nbd->memory + capacity <= nbd->plan.memory;
}

struct nbd_request *nbd_take(struct fdstash_nbd *nbd, const struct nbd_header *header,
                             uint32_t *error)
{
    struct nbd_request *request = nbd->free_slots;
    uint64_t size = *error == NBD_OK ? memory_for(header) : 0;
    if (!request)
        return NULL;
    if (size > request->capacity) {
        uint64_t capacity = rounded(size);
        if (request->buffer)
            drop_buffer(nbd, request);
        if (!has_room(nbd, capacity))
            return NULL;
        request->buffer = aligned_alloc(PAGE, capacity);
        if (request->buffer) {
            request->capacity = capacity;
            nbd->memory += capacity;
        } else {
            *error = NBD_ENOMEM;
        }
    }
    nbd->free_slots = request->next;
    request->header = *header;
    request->done = 0;
    request->flushing = 0;
    return request;
}

void nbd_give_back(struct fdstash_nbd *nbd, struct nbd_request *request)
{
    request->next = nbd->free_slots;
    nbd->free_slots = request;
}

/* ------------------------------------------------------------------ doing -- */

static uint32_t change_flags(const struct nbd_header *header)
{
    uint32_t flags = header->flags & NBD_CMD_FLAG_FUA ? FDSTASH_FUA : 0;
    if (header->command != NBD_CMD_WRITE_ZEROES)
        return flags;
    if (!(header->flags & NBD_CMD_FLAG_NO_HOLE))
        flags |= FDSTASH_UNMAP;
    if (header->flags & NBD_CMD_FLAG_FAST_ZERO)
        flags |= FDSTASH_FAST;
    return flags;
}

static fdstash_request translated(struct nbd_request *request)
{
    const struct nbd_header *header = &request->header;
    fdstash_request made = {request->buffer, header->length, header->offset, FDSTASH_OP_READ, 0};
    switch (header->command) {
    case NBD_CMD_WRITE:
        made.operation = FDSTASH_OP_WRITE;
        made.flags = change_flags(header);
        break;
    case NBD_CMD_WRITE_ZEROES:
        made.operation = FDSTASH_OP_ZERO;
        made.flags = change_flags(header);
        break;
    case NBD_CMD_TRIM:
        made.operation = request->flushing ? FDSTASH_OP_FLUSH : FDSTASH_OP_TRIM;
        break;
    case NBD_CMD_FLUSH:
        made.operation = FDSTASH_OP_FLUSH;
        break;
    case NBD_CMD_CACHE:
        made.offset += request->done;
        made.length -= request->done;
        if (made.length > CACHE_STEP)
            made.length = CACHE_STEP;
        break;
    case NBD_CMD_BLOCK_STATUS:
        made.operation = FDSTASH_OP_STATUS;
        made.buffer = &request->status;
        break;
    default:
        break;
    }
    return made;
}

void nbd_begin(struct fdstash_nbd *nbd, struct nbd_request *request)
{
    const struct nbd_header *header = &request->header;
    if (header->length == 0 && header->command != NBD_CMD_FLUSH) {
        nbd_reply_done(nbd, request, 0);
        return;
    }
    if (header->command == NBD_CMD_BLOCK_STATUS)
        request->status = (fdstash_status){
            .runs = (fdstash_status_run *)(void *)request->buffer,
            .capacity = (uint32_t)(memory_for(header) / sizeof(fdstash_status_run))};
    fdstash_request wanted = translated(request);
    if (writes(header->command) && !fdstash_image_is_marked(nbd->image))
        wanted.flags |= FDSTASH_MARK;
    int id = fdstash_queue_add(nbd->queue, &wanted);
    if (id < 0) {
        nbd_reply_error(nbd, request, nbd_error_of(-id));
        return;
    }
    nbd->by_id[id] = request;
    nbd->running++;
}

static void note_failure(struct fdstash_nbd *nbd, const struct nbd_header *header, int error)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    int64_t now = (int64_t)at.tv_sec * 1000000000 + at.tv_nsec;
    int64_t *told = &nbd->told_ns[header->command];
    if (nbd->failure_waits || error == ESHUTDOWN || error == EOPNOTSUPP ||
        (*told && now - *told < TELL_EVERY_NS))
        return;
    *told = now;
    nbd->failure_waits = 1;
    nbd->failure = (fdstash_nbd_failure){.offset = header->offset,
                                         .length = header->length,
                                         .command = header->command,
                                         .error = error};
}

/* Whether there is another step to be made. */
static int goes_on(struct nbd_request *request, int64_t result)
{
    const struct nbd_header *header = &request->header;
    if (header->command == NBD_CMD_CACHE) {
        request->done += (uint64_t)result;
        return result > 0 && request->done < header->length;
    }
    if (header->command == NBD_CMD_TRIM && (header->flags & NBD_CMD_FLAG_FUA) &&
        !request->flushing) {
        request->flushing = 1;
        return 1;
    }
    return 0;
}

void nbd_completed(struct fdstash_nbd *nbd, struct nbd_request *request,
                   const fdstash_completion *completion)
{
    const struct nbd_header *header = &request->header;
    int64_t result = completion->result;
    if (header->command == NBD_CMD_READ && result >= 0 && result != (int64_t)header->length)
        result = -EIO; /* the image has become shorter meanwhile */
    if (result < 0) {
        note_failure(nbd, header, (int)-result);
        nbd_reply_error(nbd, request, nbd_error_of((int)-result));
    } else if (goes_on(request, result)) {
        nbd_begin(nbd, request);
    } else {
        nbd_reply_done(nbd, request, completion->zeros != 0);
    }
}
