/* receive.c: from bytes to requests. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "connection.h"

/* Nothing more comes. */
static void end_stream(struct fdstash_nbd *nbd)
{
    nbd->input_ended = 1;
    nbd->skip = 0;
    if (nbd->receiving)
        nbd_give_back(nbd, nbd->receiving);
    nbd->receiving = NULL;
}

/* And what has come is not to be looked at. */
static void end_input(struct fdstash_nbd *nbd)
{
    end_stream(nbd);
    nbd->start = nbd->end = 0;
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

/* Whether there was room for it. */
static int take_next(struct fdstash_nbd *nbd, const struct nbd_header *header)
{
    uint32_t error = nbd_refusal(nbd, header);
    struct nbd_request *request = nbd_take(nbd, header, &error);
    if (!request)
        return 0;
    nbd->start += NBD_REQUEST_SIZE;
    if (error != NBD_OK) {
        if (header->command == NBD_CMD_WRITE)
            nbd->skip = header->length;
        nbd_reply_error(nbd, request, error);
    } else if (header->command == NBD_CMD_WRITE && header->length > 0) {
        nbd->receiving = request;
        nbd->missing = header->length;
    } else {
        nbd_begin(nbd, request);
    }
    return 1;
}

void nbd_parse(struct fdstash_nbd *nbd, unsigned most)
{
    nbd->stalled = 0;
    nbd->more = 0;
    for (unsigned taken = 0;; taken++) {
        struct nbd_header header;
        if (nbd->skip > 0 && !skip_payload(nbd))
            return;
        if (nbd->receiving && !fill_payload(nbd))
            return;
        if (unparsed(nbd) < NBD_REQUEST_SIZE)
            return;
        nbd->more = taken == most;
        if (nbd->more)
            return;
        if (!nbd_decode(nbd->received + nbd->start, &header) || header.command == NBD_CMD_DISC) {
            end_input(nbd);
            return;
        }
        nbd->stalled = !take_next(nbd, &header);
        if (nbd->stalled)
            return;
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
        end_stream(nbd);
        return 1;
    }
    uint64_t to_payload = (uint64_t)count < direct ? (uint64_t)count : direct;
    if (direct > 0)
        nbd->missing -= to_payload;
    nbd->end += (size_t)count - (size_t)to_payload;
    return 1;
}
