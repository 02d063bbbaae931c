/* protocol.h: the transmission phase of the NBD protocol, in network byte order. A leaf. */
#ifndef FDSTASH_NBD_PROTOCOL_H
#define FDSTASH_NBD_PROTOCOL_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

enum nbd_command {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
    NBD_COMMANDS = 8
};

enum nbd_command_flag {
    NBD_CMD_FLAG_FUA = 1,
    NBD_CMD_FLAG_NO_HOLE = 2,
    NBD_CMD_FLAG_DF = 4,
    NBD_CMD_FLAG_REQ_ONE = 8,
    NBD_CMD_FLAG_FAST_ZERO = 16
};

enum nbd_error {
    NBD_OK = 0,
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_EOVERFLOW = 75,
    NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108
};

enum nbd_reply_type {
    NBD_REPLY_NONE = 0,
    NBD_REPLY_OFFSET_DATA = 1,
    NBD_REPLY_OFFSET_HOLE = 2,
    NBD_REPLY_BLOCK_STATUS = 5,
    NBD_REPLY_ERROR = 32769
};

#define NBD_REQUEST_MAGIC UINT32_C(0x25609513)
#define NBD_SIMPLE_REPLY_MAGIC UINT32_C(0x67446698)
#define NBD_STRUCTURED_REPLY_MAGIC UINT32_C(0x668e33ef)
#define NBD_REPLY_FLAG_DONE 1

enum {
    NBD_REQUEST_SIZE = 28,
    NBD_LONGEST_HEAD = 32, /* of a reply, up to where data begins */
    NBD_DESCRIPTOR_SIZE = 8
};

struct nbd_header {
    uint16_t flags;
    uint16_t command;
    uint64_t cookie; /* as it came */
    uint64_t offset;
    uint32_t length;
};

static inline uint16_t nbd_get16(const void *from)
{
    uint16_t value;
    memcpy(&value, from, sizeof(value));
    return be16toh(value);
}

static inline uint32_t nbd_get32(const void *from)
{
    uint32_t value;
    memcpy(&value, from, sizeof(value));
    return be32toh(value);
}

static inline uint64_t nbd_get64(const void *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof(value));
    return be64toh(value);
}

static inline unsigned char *nbd_put16(unsigned char *to, uint16_t value)
{
    value = htobe16(value);
    memcpy(to, &value, sizeof(value));
    return to + sizeof(value);
}

static inline unsigned char *nbd_put32(unsigned char *to, uint32_t value)
{
    value = htobe32(value);
    memcpy(to, &value, sizeof(value));
    return to + sizeof(value);
}

static inline unsigned char *nbd_put64(unsigned char *to, uint64_t value)
{
    value = htobe64(value);
    memcpy(to, &value, sizeof(value));
    return to + sizeof(value);
}

/* Whether it is a request. */
static inline int nbd_decode(const char *from, struct nbd_header *header)
{
    header->flags = nbd_get16(from + 4);
    header->command = nbd_get16(from + 6);
    memcpy(&header->cookie, from + 8, sizeof(header->cookie));
    header->offset = nbd_get64(from + 16);
    header->length = nbd_get32(from + 24);
    return nbd_get32(from) == NBD_REQUEST_MAGIC;
}

#endif
