/* stamp.h: blocks that tell where they are and of which generation. A leaf.
 *
 * Each 16 bytes hold their own place in the guest and the generation of the block, so
 * that bytes of another place, an older write or a torn one are known for what they are. */
#ifndef FDSTASH_STAMP_H
#define FDSTASH_STAMP_H

#include <stdint.h>

/* length is a multiple of 16; memory may be anywhere. */
void stamp_fill(char *memory, uint64_t length, uint64_t offset, uint32_t generation);
/* Whether it holds that generation; 0 stands for any one, but the same throughout. */
int stamp_holds(const char *memory, uint64_t length, uint64_t offset, uint32_t generation);

#endif
