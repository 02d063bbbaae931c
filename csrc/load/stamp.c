/* stamp.c: see stamp.h. */
#include "stamp.h"

#include <string.h>

struct stamp {
    uint64_t offset;
    uint64_t generation;
};

void stamp_fill(char *memory, uint64_t length, uint64_t offset, uint32_t generation)
{
    for (uint64_t at = 0; at < length; at += sizeof(struct stamp)) {
        struct stamp stamp = {offset + at, generation};
        memcpy(memory + at, &stamp, sizeof(stamp));
    }
}

int stamp_holds(const char *memory, uint64_t length, uint64_t offset, uint32_t generation)
{
    struct stamp first;
    uint64_t wrong = 0;
    memcpy(&first, memory, sizeof(first));
    uint64_t wanted = generation ? generation : first.generation;
    for (uint64_t at = 0; at < length; at += sizeof(struct stamp)) {
        struct stamp stamp;
        memcpy(&stamp, memory + at, sizeof(stamp));
        wrong |= (stamp.offset ^ (offset + at)) | (stamp.generation ^ wanted);
    }
    return wrong == 0 && wanted != 0;
}
