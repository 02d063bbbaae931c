/* cluster_table.c: pages of packed entries; readers take no lock.
 *
 * An entry is one atomic word, kind and host offset together, so a reader sees a
 * cluster as it was or as it is. A page that is taken out of the table is freed
 * only two generations of the image's requests later: until then a request may
 * be reading it. */
#include "cluster_table.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#define KIND_BITS 6
#define KIND_MASK ((UINT64_C(1) << KIND_BITS) - 1)
#define OFFSET_LIMIT (UINT64_C(1) << (63 - KIND_BITS))
#define MAX_PAGES (UINT64_C(1) << 28)

struct page {
    struct page *next; /* retired after this one */
    uint64_t retired;  /* the generation in which it was */
    uint32_t pins;     /* entries that are not on disk yet: must stay */
    _Atomic uint8_t touched;
    _Atomic uint64_t entries[];
};

/* In place of a page whose clusters are all holes, as most are in a large disk. */
static struct page all_holes;

struct fdstash_table {
    uint64_t size; /* bytes of guest disk */
    uint64_t clusters;
    uint32_t cluster_bits;
    uint32_t page_entries;
    uint32_t file;
    fdstash_entry_layout layout;
    uint64_t page_count;
    uint64_t loaded;              /* pages in memory */
    uint64_t hand;                /* where the search for a page to evict goes on */
    struct page *oldest, *newest; /* retired */
    struct page *_Atomic pages[];
};

static uint64_t pack(uint32_t kind, uint64_t offset)
{
    return offset << KIND_BITS | kind;
}

/* ------------------------------------------------------------------- life -- */

static int is_sound(const fdstash_entry_layout *layout)
{
    if ((layout->width != 4 && layout->width != 8) || layout->rule_count > FDSTASH_MAX_RULES ||
        layout->part_count < 1 || layout->part_count > FDSTASH_MAX_PARTS)
        return 0;
    for (uint32_t i = 0; i < layout->part_count; i++)
        if (layout->parts[i].shift <= -64 || layout->parts[i].shift >= 64)
            return 0;
    for (uint32_t i = 0; i < layout->rule_count; i++)
        if (layout->rules[i].kind > KIND_MASK)
            return 0;
    return layout->unit > 0;
}

int fdstash_table_new(uint64_t size, uint32_t cluster_bits, uint32_t page_entries, uint32_t file,
                      const fdstash_entry_layout *layout, fdstash_table **out)
{
    if (size == 0 || size > INT64_MAX || cluster_bits < 9 || cluster_bits > 40 ||
        page_entries == 0 || page_entries > (1u << 24) || !is_sound(layout))
        return -EINVAL;
    uint64_t clusters = ((size - 1) >> cluster_bits) + 1;
    uint64_t page_count = (clusters - 1) / page_entries + 1;
    if (page_count > MAX_PAGES)
        return -EFBIG;
    /* calloc: pages of the array that are never touched take no memory. */
    fdstash_table *table = calloc(1, sizeof(*table) + page_count * sizeof(table->pages[0]));
    if (!table)
        return -ENOMEM;
    table->size = size;
    table->clusters = clusters;
    table->cluster_bits = cluster_bits;
    table->page_entries = page_entries;
    table->file = file;
    table->layout = *layout;
    table->page_count = page_count;
    *out = table;
    return 0;
}

static void free_retired(fdstash_table *table, uint64_t generation)
{
    while (table->oldest && table->oldest->retired + 2 <= generation) {
        struct page *page = table->oldest;
        table->oldest = page->next;
        if (!table->oldest)
            table->newest = NULL;
        free(page);
    }
}

static void retire(fdstash_table *table, struct page *page, uint64_t generation)
{
    if (!page || page == &all_holes)
        return;
    page->next = NULL;
    page->retired = generation;
    if (table->newest)
        table->newest->next = page;
    else
        table->oldest = page;
    table->newest = page;
    table->loaded--;
}

void fdstash_table_free(fdstash_table *table)
{
    if (!table)
        return;
    /* UINT64_MAX would wrap in retired + 2. */
    free_retired(table, UINT64_MAX - 2);
    for (uint64_t i = 0; i < table->page_count; i++) {
        struct page *page = atomic_load_explicit(&table->pages[i], memory_order_relaxed);
        if (page != &all_holes)
            free(page);
    }
    free(table);
}

uint64_t table_size(const fdstash_table *table)
{
    return table->size;
}

uint32_t table_file(const fdstash_table *table)
{
    return table->file;
}

uint64_t fdstash_table_loaded(const fdstash_table *table)
{
    return table->loaded;
}

/* ----------------------------------------------------------------- decode -- */

static uint64_t raw_entry(const fdstash_entry_layout *layout, const unsigned char *raw)
{
    uint64_t value = 0;
    for (uint32_t i = 0; i < layout->width; i++) {
        uint32_t shift = 8 * (layout->big_endian ? layout->width - 1 - i : i);
        value |= (uint64_t)raw[i] << shift;
    }
    return value;
}

/* What an entry says; FDSTASH_BAD for an offset that no file can have. */
static uint64_t decode(const fdstash_entry_layout *layout, uint64_t value, uint64_t cluster,
                       uint64_t file_size)
{
    uint32_t kind = FDSTASH_DATA;
    uint64_t index = 0;
    uint64_t offset, end;
    for (uint32_t i = 0; i < layout->rule_count; i++) {
        if ((value & layout->rules[i].mask) == layout->rules[i].value) {
            kind = layout->rules[i].kind;
            break;
        }
    }
    if (kind == FDSTASH_ZERO || kind == FDSTASH_HOLE || kind == FDSTASH_BAD)
        return pack(kind, 0);
    for (uint32_t i = 0; i < layout->part_count; i++) {
        uint64_t part = value & layout->parts[i].mask;
        int32_t shift = layout->parts[i].shift;
        index |= shift < 0 ? part >> -shift : part << shift;
    }
    if (__builtin_mul_overflow(index, layout->unit, &offset) ||
        __builtin_add_overflow(offset, layout->base, &offset) || offset >= OFFSET_LIMIT)
        return pack(FDSTASH_BAD, 0);
    /* How long compressed data is only its reader can tell. */
    end = kind == FDSTASH_COMPRESSED ? offset + 1 : offset + cluster;
    return offset < layout->first || end > file_size ? pack(FDSTASH_BAD, 0) : pack(kind, offset);
}

static struct page *new_page(const fdstash_table *table)
{
    struct page *page =
        malloc(sizeof(*page) + (size_t)table->page_entries * sizeof(page->entries[0]));
    if (!page)
        return NULL;
    page->next = NULL;
    page->retired = 0;
    page->pins = 0;
    atomic_init(&page->touched, 1);
    return page;
}

int fdstash_table_load(fdstash_table *table, uint64_t number, const void *raw, size_t bytes,
                       uint64_t file_size, uint64_t generation)
{
    const fdstash_entry_layout *layout = &table->layout;
    struct page *page = &all_holes;
    free_retired(table, generation);
    if (number >= table->page_count)
        return -ERANGE;
    struct page *before = atomic_load_explicit(&table->pages[number], memory_order_relaxed);
    if (before && before != &all_holes && before->pins > 0)
        return -EBUSY;
    if (raw) {
        if (bytes != (size_t)table->page_entries * layout->width)
            return -EINVAL;
        page = new_page(table);
        if (!page)
            return -ENOMEM;
        for (uint32_t i = 0; i < table->page_entries; i++) {
            uint64_t value = raw_entry(layout, (const unsigned char *)raw + i * layout->width);
            atomic_init(&page->entries[i],
                        decode(layout, value, UINT64_C(1) << table->cluster_bits, file_size));
        }
        table->loaded++;
    }
    atomic_store_explicit(&table->pages[number], page, memory_order_release);
    retire(table, before, generation);
    return 0;
}

/* ------------------------------------------------------------------ lookup -- */

static uint64_t entry_at(fdstash_table *table, uint64_t cluster, uint64_t *run)
{
    uint64_t number = cluster / table->page_entries;
    uint32_t index = (uint32_t)(cluster % table->page_entries);
    struct page *page = atomic_load_explicit(&table->pages[number], memory_order_acquire);
    if (!page || page == &all_holes) {
        *run = table->page_entries - index;
        return pack(page ? FDSTASH_HOLE : FDSTASH_UNKNOWN, 0);
    }
    /* Stored only where it changes, or every core would want the line. */
    if (!atomic_load_explicit(&page->touched, memory_order_relaxed))
        atomic_store_explicit(&page->touched, 1, memory_order_relaxed);
    *run = 1;
    return atomic_load_explicit(&page->entries[index], memory_order_acquire);
}

void table_lookup(fdstash_table *table, uint64_t offset, uint64_t limit, fdstash_segment *out)
{
    uint64_t cluster_bytes = UINT64_C(1) << table->cluster_bits;
    uint64_t cluster = offset >> table->cluster_bits;
    uint64_t skip = offset & (cluster_bytes - 1);
    uint64_t run;
    uint64_t first = entry_at(table, cluster, &run);
    uint64_t count = run;
    uint32_t kind = (uint32_t)(first & KIND_MASK);
    uint64_t host = first >> KIND_BITS;
    /* A request for less needs no look at the next cluster. */
    while ((count << table->cluster_bits) - skip < limit && kind != FDSTASH_COMPRESSED &&
           kind != FDSTASH_UNKNOWN && cluster + count < table->clusters) {
        uint64_t next = entry_at(table, cluster + count, &run);
        uint64_t wanted = first;
        if (kind == FDSTASH_DATA || kind == (FDSTASH_DATA | FDSTASH_COPY))
            wanted = pack(kind, host + (count << table->cluster_bits));
        if (next != wanted)
            break;
        count += run;
    }
    out->kind = kind;
    out->file = table->file;
    out->file_offset = host + skip;
    out->length = (count << table->cluster_bits) - skip;
    if (out->length > table->size - offset)
        out->length = table->size - offset;
    if (out->length > limit)
        out->length = limit;
}

/* ----------------------------------------------------------------- changes -- */

/* A page whose entries can be set; -ENOENT where it is not loaded. */
static int page_to_change(fdstash_table *table, uint64_t number, struct page **out)
{
    struct page *page = atomic_load_explicit(&table->pages[number], memory_order_relaxed);
    if (!page)
        return -ENOENT;
    if (page == &all_holes) {
        page = new_page(table);
        if (!page)
            return -ENOMEM;
        for (uint32_t i = 0; i < table->page_entries; i++)
            atomic_init(&page->entries[i], pack(FDSTASH_HOLE, 0));
        atomic_store_explicit(&table->pages[number], page, memory_order_release);
        table->loaded++;
    }
    *out = page;
    return 0;
}

int fdstash_table_set(fdstash_table *table, uint64_t cluster, uint64_t count, uint32_t kind,
                      uint64_t offset)
{
    if (count == 0 || cluster >= table->clusters || count > table->clusters - cluster)
        return -ERANGE;
    if (offset >= OFFSET_LIMIT - (count << table->cluster_bits) || kind > KIND_MASK)
        return -EINVAL;
    struct page *page;
    /* All pages first: what follows cannot fail. */
    uint64_t last = (cluster + count - 1) / table->page_entries;
    for (uint64_t number = cluster / table->page_entries; number <= last; number++) {
        int rc = page_to_change(table, number, &page);
        if (rc < 0)
            return rc;
    }
    int is_data = kind == FDSTASH_DATA || kind == (FDSTASH_DATA | FDSTASH_COPY);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t at = cluster + i;
        page = atomic_load_explicit(&table->pages[at / table->page_entries], memory_order_relaxed);
        uint64_t host = is_data ? offset + (i << table->cluster_bits) : offset;
        atomic_store_explicit(&page->entries[at % table->page_entries], pack(kind, host),
                              memory_order_release);
    }
    return 0;
}

int fdstash_table_get(fdstash_table *table, uint64_t cluster, uint64_t count, fdstash_cluster *out)
{
    if (cluster >= table->clusters || count > table->clusters - cluster)
        return -ERANGE;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t run;
        uint64_t entry = entry_at(table, cluster + i, &run);
        if ((entry & KIND_MASK) == FDSTASH_UNKNOWN)
            return -ENOENT;
        out[i].kind = (uint32_t)(entry & KIND_MASK);
        out[i].offset = entry >> KIND_BITS;
    }
    return 0;
}

int fdstash_table_pin(fdstash_table *table, uint64_t number, int pinned)
{
    struct page *page;
    if (number >= table->page_count)
        return -ERANGE;
    int rc = page_to_change(table, number, &page);
    if (rc == 0)
        page->pins = pinned != 0;
    return rc;
}

/* The clock: a page that was read since the hand last passed stays. */
uint64_t fdstash_table_evict(fdstash_table *table, uint64_t count, uint64_t generation)
{
    uint64_t evicted = 0;
    free_retired(table, generation);
    for (uint64_t steps = 0; steps < 2 * table->page_count && evicted < count; steps++) {
        uint64_t number = table->hand;
        table->hand = number + 1 == table->page_count ? 0 : number + 1;
        struct page *page = atomic_load_explicit(&table->pages[number], memory_order_relaxed);
        if (!page || page == &all_holes || page->pins)
            continue;
        if (atomic_exchange_explicit(&page->touched, 0, memory_order_relaxed))
            continue;
        atomic_store_explicit(&table->pages[number], NULL, memory_order_release);
        retire(table, page, generation);
        evicted++;
    }
    return evicted;
}
