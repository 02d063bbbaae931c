/* reply.c: replies, and how they are sent. */
#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "connection.h"

enum { MOST_PARTS = 128 };

/* ----------------------------------------------------------------- making -- */

static void push(struct fdstash_nbd *nbd, struct nbd_request *request)
{
    if (nbd->broken) {
        nbd_give_back(nbd, request);
        return;
    }
    request->next = NULL;
    if (nbd->replies.first)
        nbd->replies.last->next = request;
    else
        nbd->replies.first = request;
    nbd->replies.last = request;
}

static void begin_simple(struct nbd_request *request, uint32_t error)
{
    unsigned char *at = request->head;
    at = nbd_put32(at, NBD_SIMPLE_REPLY_MAGIC);
    at = nbd_put32(at, error);
    memcpy(at, &request->header.cookie, 8);
    request->head_length = 16;
    request->body_length = 0;
}

/* A reply of one chunk. Where the rest of the head goes. */
static unsigned char *begin_chunk(struct nbd_request *request, uint16_t type, uint32_t head,
                                  uint32_t body)
{
    unsigned char *at = request->head;
    at = nbd_put32(at, NBD_STRUCTURED_REPLY_MAGIC);
    at = nbd_put16(at, NBD_REPLY_FLAG_DONE);
    at = nbd_put16(at, type);
    memcpy(at, &request->header.cookie, 8);
    at = nbd_put32(at + 8, head + body);
    request->head_length = 20 + head;
    request->body_length = body;
    return at;
}

/* Of the replies of these two, clients expect chunks. */
static int is_structured(const struct fdstash_nbd *nbd, const struct nbd_request *request)
{
    return (nbd->plan.flags & FDSTASH_NBD_STRUCTURED) &&
           (request->header.command == NBD_CMD_READ ||
            request->header.command == NBD_CMD_BLOCK_STATUS);
}

void nbd_reply_error(struct fdstash_nbd *nbd, struct nbd_request *request, uint32_t error)
{
    if (is_structured(nbd, request)) {
        unsigned char *at = begin_chunk(request, NBD_REPLY_ERROR, 6, 0);
        nbd_put16(nbd_put32(at, error), 0);
    } else {
        begin_simple(request, error);
    }
    push(nbd, request);
}

static void reply_read(const struct fdstash_nbd *nbd, struct nbd_request *request, int zeros)
{
    const struct nbd_header *header = &request->header;
    if (!is_structured(nbd, request)) {
        begin_simple(request, NBD_OK);
        request->body_length = header->length;
    } else if (header->length == 0) {
        begin_chunk(request, NBD_REPLY_NONE, 0, 0);
    } else if (zeros && !(header->flags & NBD_CMD_FLAG_DF)) {
        unsigned char *at = begin_chunk(request, NBD_REPLY_OFFSET_HOLE, 12, 0);
        nbd_put32(nbd_put64(at, header->offset), header->length);
    } else {
        unsigned char *at = begin_chunk(request, NBD_REPLY_OFFSET_DATA, 8, header->length);
        nbd_put64(at, header->offset);
    }
}

/* Descriptors take the place of the runs, which are longer. */
static void reply_status(const struct fdstash_nbd *nbd, struct nbd_request *request)
{
    const fdstash_status *status = &request->status;
    unsigned char *to = (unsigned char *)request->buffer;
    for (uint32_t i = 0; i < status->count; i++) {
        fdstash_status_run run = status->runs[i];
        to = nbd_put32(nbd_put32(to, (uint32_t)run.length), run.bits);
    }
    unsigned char *at =
        begin_chunk(request, NBD_REPLY_BLOCK_STATUS, 4, status->count * NBD_DESCRIPTOR_SIZE);
    nbd_put32(at, nbd->plan.context);
}

void nbd_reply_done(struct fdstash_nbd *nbd, struct nbd_request *request, int zeros)
{
    uint16_t command = request->header.command;
    if (command == NBD_CMD_BLOCK_STATUS && request->status.count == 0) {
        nbd_reply_error(nbd, request, NBD_EINVAL);
        return;
    }
    if (command == NBD_CMD_READ)
        reply_read(nbd, request, zeros);
    else if (command == NBD_CMD_BLOCK_STATUS)
        reply_status(nbd, request);
    else
        begin_simple(request, NBD_OK);
    push(nbd, request);
}

/* ---------------------------------------------------------------- sending -- */

static int gather(const struct fdstash_nbd *nbd, struct iovec *parts)
{
    uint64_t skip = nbd->sent;
    int count = 0;
    for (struct nbd_request *reply = nbd->replies.first; reply && count + 2 <= MOST_PARTS;
         reply = reply->next) {
        struct iovec both[2] = {{reply->head, reply->head_length},
                                {reply->buffer, reply->body_length}};
        for (int i = 0; i < 2; i++) {
            uint64_t part = skip < both[i].iov_len ? skip : both[i].iov_len;
            skip -= part;
            if (both[i].iov_len > part)
                parts[count++] =
                    (struct iovec){(char *)both[i].iov_base + part, both[i].iov_len - part};
        }
    }
    return count;
}

static void pop_first(struct fdstash_nbd *nbd)
{
    struct nbd_request *reply = nbd->replies.first;
    nbd->replies.first = reply->next;
    nbd_give_back(nbd, reply);
}

static void advance(struct fdstash_nbd *nbd, uint64_t bytes)
{
    nbd->sent += bytes;
    while (nbd->replies.first) {
        uint64_t length =
            (uint64_t)nbd->replies.first->head_length + nbd->replies.first->body_length;
        if (nbd->sent < length)
            break;
        nbd->sent -= length;
        pop_first(nbd);
    }
}

void nbd_send(struct fdstash_nbd *nbd)
{
    struct iovec parts[MOST_PARTS];
    while (nbd->replies.first) {
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)gather(nbd, parts)};
        ssize_t sent = sendmsg(nbd->plan.socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        if (sent < 0) {
            nbd_break(nbd);
            return;
        }
        advance(nbd, (uint64_t)sent);
    }
}

void nbd_break(struct fdstash_nbd *nbd)
{
    nbd->broken = 1;
    nbd->sent = 0;
    while (nbd->replies.first)
        pop_first(nbd);
}
