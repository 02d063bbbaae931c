/* connection.h: one client in its transmission phase. All of it belongs to the thread
 * that is in fdstash_nbd_run, but for `stopping`.
 *
 * What was received is parsed into requests, those go to the queue in batches, and what
 * has completed is sent in batches, in any order. A request keeps its slot until its
 * reply was sent: who does not take replies is not read from. */
#ifndef FDSTASH_NBD_CONNECTION_H
#define FDSTASH_NBD_CONNECTION_H

#include <stdatomic.h>

#include "fdstash_nbd.h"
#include "protocol.h"

struct nbd_request {
    struct nbd_header header;
    char *buffer; /* kept from one request to the next */
    uint64_t capacity;
    uint64_t done;         /* bytes of NBD_CMD_CACHE */
    int flushing;          /* a trim is done and is being made durable */
    fdstash_status status; /* of NBD_CMD_BLOCK_STATUS */
    unsigned char head[NBD_LONGEST_HEAD];
    uint32_t head_length;
    uint32_t body_length; /* bytes of the buffer that follow the head */
    struct nbd_request *next;
};

struct nbd_list {
    struct nbd_request *first, *last;
};

struct fdstash_nbd {
    fdstash_image *image;
    fdstash_queue *queue;
    fdstash_nbd_plan plan;
    _Atomic int stopping; /* enum nbd_stop */
    int input_ended;      /* nothing more is read */
    int broken;           /* nothing more is sent */

    char *received; /* [start, end) is not parsed yet */
    size_t start, end;
    struct nbd_request *receiving; /* a write whose payload has not all come */
    uint64_t missing;              /* bytes of that */
    uint64_t skip;                 /* bytes of the payload of one that was refused */
    int stalled;                   /* the next request waits for a slot or memory */
    int more;                      /* there are requests that have not been looked at */

    uint32_t running; /* requests that are the queue's */
    struct nbd_request *slots, *free_slots;
    struct nbd_request **by_id; /* of the queue's requests */
    fdstash_completion *completions;
    uint64_t memory; /* bytes of all buffers */

    struct nbd_list replies; /* not sent yet */
    uint64_t sent;           /* bytes of the first of them */

    int failure_waits; /* to be told */
    fdstash_nbd_failure failure;
    int64_t told_ns[NBD_COMMANDS]; /* when a failure of the command was last told */
};

enum nbd_stop { NBD_GOES_ON, NBD_STOPS, NBD_ABANDONS };
enum { NBD_RECEIVE_SIZE = 131072 };

/* ---- receive.c ---- */

/* Parses what was received and hands requests to the queue, up to `most` of them. */
void nbd_parse(struct fdstash_nbd *nbd, unsigned most);
/* Receives once: whether anything came. Without `wait` only what is there. */
int nbd_receive(struct fdstash_nbd *nbd, int wait);
/* Whether there is room for more. */
int nbd_may_receive(const struct fdstash_nbd *nbd);

/* ---- request.c ---- */

/* The enum nbd_error of an errno. */
uint32_t nbd_error_of(int error);
/* Why a request is refused. */
uint32_t nbd_refusal(const struct fdstash_nbd *nbd, const struct nbd_header *header);
/* A slot, with a buffer for it unless *error says that it is refused; where there is no
 * memory at all that is in *error. NULL: not now. */
struct nbd_request *nbd_take(struct fdstash_nbd *nbd, const struct nbd_header *header,
                             uint32_t *error);
void nbd_give_back(struct fdstash_nbd *nbd, struct nbd_request *request);
/* Hands it to the queue. */
void nbd_begin(struct fdstash_nbd *nbd, struct nbd_request *request);
/* What the queue says of it: replies, or goes on with it. */
void nbd_completed(struct fdstash_nbd *nbd, struct nbd_request *request,
                   const fdstash_completion *completion);

/* ---- reply.c ---- */

void nbd_reply_error(struct fdstash_nbd *nbd, struct nbd_request *request, uint32_t error);
/* zeros: what was read is all zeros, and need not be sent. */
void nbd_reply_done(struct fdstash_nbd *nbd, struct nbd_request *request, int zeros);
/* Sends what the client takes without waiting. */
void nbd_send(struct fdstash_nbd *nbd);
/* The client is gone: nothing is sent any more. */
void nbd_break(struct fdstash_nbd *nbd);

#endif
