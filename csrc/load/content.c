/* content.c: what blocks hold, and whether it is what they must; see load.h. */
#include <string.h>

#include "load.h"
#include "stamp.h"

static uint32_t generation_of(const struct fdstash_load *load, uint64_t block)
{
    return load->plan.generations[block] & ~(uint32_t)LOAD_BLOCK_BUSY;
}

/* Generations are 1 to LOAD_BLOCK_UNKNOWN - 1, round and round. */
static uint32_t generation_after(uint32_t generation)
{
    return generation < LOAD_BLOCK_UNKNOWN - 1 ? generation + 1 : 1;
}

void load_fill(struct fdstash_load *load, struct load_slot *slot)
{
    stamp_fill(slot->buffer, load_length(load, slot->block), load_offset(load, slot->block),
               generation_after(generation_of(load, slot->block)));
}

static int holds_what_it_must(const struct fdstash_load *load, const struct load_slot *slot)
{
    const fdstash_load_plan *plan = &load->plan;
    uint64_t length = load_length(load, slot->block);
    if (plan->baseline)
        return memcmp(slot->buffer, plan->baseline + slot->block * plan->block, length) == 0;
    uint32_t generation = generation_of(load, slot->block);
    return generation == (uint32_t)LOAD_BLOCK_UNKNOWN ||
           stamp_holds(slot->buffer, length, load_offset(load, slot->block), generation);
}

void load_check(struct fdstash_load *load, struct load_slot *slot, int64_t result)
{
    uint32_t now = generation_of(load, slot->block);
    int whole = result == (int64_t)load_length(load, slot->block);
    if (slot->kind == FDSTASH_LOAD_READS)
        slot->wrong = whole && !holds_what_it_must(load, slot);
    else if (!load->plan.baseline)
        now = whole ? generation_after(now) : (uint32_t)LOAD_BLOCK_UNKNOWN;
    load->plan.generations[slot->block] = now;
}
