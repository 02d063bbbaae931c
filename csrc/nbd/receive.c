/* receive.c: from bytes to requests. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "connection.h"

static void end_input(struct fdstash_nbd *nbd)
{
    nbd->input_ended = 1;
    nbd->start = nbd->end = 0;
    nbd->skip = 0;
    if (nbd->receiving)
        nbd_give_back(nbd, nbd->receiving);
    nbd->receiving = NULL;
}

/* ---------------------------------------------------------------- parsing -- */

static size_t unparsed(const struct fdstash_nbd *nbd)
{
    return nbd->end - nbd->start;
}

/* The payload of a refused write: whether that is over. */
static int skip_payload(struct fdstash_nbd *nbd)
{
    uint64_t part = nbd->skip < unparsed(nbd) ? nbd->skip : unparsed(nbd);
    nbd->start += (size_t)part;
    nbd->skip -= part;
    return nbd->skip == 0;
}

/* The payload of a write: whether it is complete, and begun. */
static int fill_payload(struct fdstash_nbd *nbd)
{
    struct nbd_request *request = nbd->receiving;
    uint64_t part = nbd->missing < unparsed(nbd) ? nbd->missing : unparsed(nbd);
    memcpy(request->buffer + (request->header.length - nbd->missing), nbd->received + nbd->start,
           (size_t)part);
    nbd->start += (size_t)part;
    nbd->missing -= part;
    if (nbd->missing > 0)
        return 0;
    nbd->receiving = NULL;
    nbd_begin(nbd, request);
    return 1;
}

/* Whether the caller is to be asked before the request. */
static int asks(struct fdstash_nbd *nbd, const struct nbd_header *header, fdstash_nbd_event *event)
{
    if (nbd->change_asked || !nbd_changes(header) ||
        __atomic_load_n(nbd->plan.marked, __ATOMIC_ACQUIRE))
        return 0;
    nbd->change_asked = 1;
    *event = (fdstash_nbd_event){.kind = FDSTASH_NBD_CHANGE,
                                 .command = header->command,
                                 .offset = header->offset,
                                 .length = header->length};
    return 1;
}

enum next { NEXT_TAKEN, NEXT_ASKS, NEXT_WAITS };

static enum next take_next(struct fdstash_nbd *nbd, const struct nbd_header *header,
                           fdstash_nbd_event *event)
{
    uint32_t error = nbd_refusal(nbd, header);
    if (error == NBD_OK && asks(nbd, header, event))
        return NEXT_ASKS;
    if (error == NBD_OK && nbd->change_asked)
        error = nbd_error_of(nbd->change_error);
    struct nbd_request *request = nbd_take(nbd, header, &error);
    if (!request)
        return NEXT_WAITS;
    nbd->change_asked = 0;
    nbd->change_error = 0;
    nbd->start += NBD_REQUEST_SIZE;
    if (error != NBD_OK) {
        if (header->command == NBD_CMD_WRITE)
            nbd->skip = header->length;
        nbd_reply_error(nbd, request, error);
    } else if (header->command == NBD_CMD_WRITE) {
        nbd->receiving = request;
        nbd->missing = header->length;
    } else {
        nbd_begin(nbd, request);
    }
    return NEXT_TAKEN;
}

int nbd_parse(struct fdstash_nbd *nbd, unsigned most, fdstash_nbd_event *event)
{
    nbd->stalled = 0;
    nbd->more = 0;
    for (unsigned taken = 0;; taken++) {
        if (nbd->skip > 0 && !skip_payload(nbd))
            return 0;
        if (nbd->receiving && !fill_payload(nbd))
            return 0;
        struct nbd_header header;
        if (unparsed(nbd) < NBD_REQUEST_SIZE)
            return 0;
        if (taken == most) {
            nbd->more = 1;
            return 0;
        }
        if (!nbd_decode(nbd->received + nbd->start, &header) || header.command == NBD_CMD_DISC) {
            end_input(nbd);
            return 0;
        }
        enum next next = take_next(nbd, &header, event);
        nbd->stalled = next == NEXT_WAITS;
        if (next != NEXT_TAKEN)
            return next == NEXT_ASKS;
    }
}

/* -------------------------------------------------------------- receiving -- */

int nbd_may_receive(const struct fdstash_nbd *nbd)
{
    return !nbd->input_ended && !nbd->stalled && !nbd->more;
}

static void make_room(struct fdstash_nbd *nbd)
{
    size_t rest = unparsed(nbd);
    if (nbd->start > 0 && rest > 0)
        memmove(nbd->received, nbd->received + nbd->start, rest);
    nbd->start = 0;
    nbd->end = rest;
}

int nbd_receive(struct fdstash_nbd *nbd, int wait)
{
    struct iovec parts[2];
    struct msghdr message = {.msg_iov = parts};
    uint64_t direct = nbd->receiving ? nbd->missing : 0;
    make_room(nbd);
    if (direct > 0)
        parts[message.msg_iovlen++] = (struct iovec){
            nbd->receiving->buffer + (nbd->receiving->header.length - direct), (size_t)direct};
    parts[message.msg_iovlen++] =
        (struct iovec){nbd->received + nbd->end, NBD_RECEIVE_SIZE - nbd->end};
    ssize_t count;
    do
        count = recvmsg(nbd->plan.socket, &message, wait ? 0 : MSG_DONTWAIT);
    while (count < 0 && errno == EINTR);
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return 0;
    if (count <= 0) {
        /* What has been received is still to be served. */
        nbd->input_ended = 1;
        if (nbd->receiving)
            nbd_give_back(nbd, nbd->receiving);
        nbd->receiving = NULL;
        nbd->skip = 0;
        return 1;
    }
    uint64_t to_payload = (uint64_t)count < direct ? (uint64_t)count : direct;
    if (direct > 0)
        nbd->missing -= to_payload;
    nbd->end += (size_t)count - (size_t)to_payload;
    return 1;
}
