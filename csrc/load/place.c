/* place.c: which block comes next, and where it is; see load.h. */
#include "load.h"

enum { SECTOR = 512 };

/* SplitMix64: short, and good enough for places on a disk. */
uint64_t load_random(struct fdstash_load *load)
{
    uint64_t z = (load->random += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static uint64_t next_block(struct fdstash_load *load)
{
    const fdstash_load_plan *plan = &load->plan;
    uint64_t block = load->next_block;
    if (plan->pattern == FDSTASH_LOAD_RANDOM)
        return ((load_random(load) >> 32) * plan->blocks) >> 32;
    if (plan->pattern == FDSTASH_LOAD_SEQUENTIAL)
        load->next_block = block + 1 < plan->blocks ? block + 1 : 0;
    else if (block + plan->stride < plan->blocks)
        load->next_block = block + plan->stride;
    else
        load->next_block = (block + 1) % plan->stride % plan->blocks;
    return block;
}

uint64_t load_idle_block(struct fdstash_load *load)
{
    uint64_t block = next_block(load);
    uint32_t *generations = load->plan.generations;
    if (!generations)
        return block;
    for (uint64_t tries = 0; tries < load->plan.blocks; tries++) {
        if (!(generations[block] & (uint32_t)LOAD_BLOCK_BUSY)) {
            generations[block] |= (uint32_t)LOAD_BLOCK_BUSY;
            return block;
        }
        block = block + 1 < load->plan.blocks ? block + 1 : 0;
    }
    return UINT64_MAX;
}

uint64_t load_offset(const struct fdstash_load *load, uint64_t block)
{
    const fdstash_load_plan *plan = &load->plan;
    return plan->cells ? plan->cells[block].offset : plan->offset + block * plan->block;
}

uint64_t load_length(const struct fdstash_load *load, uint64_t block)
{
    const fdstash_load_plan *plan = &load->plan;
    return plan->cells ? plan->cells[block].length : plan->block;
}

uint64_t load_skew(const struct fdstash_load *load, uint64_t block)
{
    uint64_t length = load_length(load, block);
    return (load_offset(load, block) | length) % SECTOR != 0 && length < load->plan.block;
}

int load_is_writable(const struct fdstash_load *load, uint64_t block)
{
    return !load->plan.cells || load->plan.cells[block].writable;
}
