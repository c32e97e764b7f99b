/* SPDX-License-Identifier: MIT */

/*
 * Slices with any ranges, and a kernel that says anything of its buffers. Completions that cannot be are refused and
 * change nothing; parts are what is inside; what is referenced stays as it was; the books balance after each step;
 * nothing is left in the end, whichever goes first, the pool or its slices.
 */

#include "base/fork.h"
#include "fuzz/fuzz.h"
#include "memory/block.h"

enum { BUFFER = 4096, BUFFERS = 16, HELD = 24, STEPS = 400 };

typedef struct held {
    weir_slice slice;
    uint8_t *copy;
} held;

typedef struct posted {
    uint8_t *data;
    uint32_t offset;
    uint16_t id;
} posted;

typedef struct world {
    fuzz_memory memory;
    weir_pool *pool;
    bool is_incremental, is_withdrawn;
    posted posted[BUFFERS]; /* in the order of the ring */
    unsigned posted_count;
    held owned[HELD], borrowed[HELD];
    unsigned owned_count, borrowed_count;
    uint8_t next;
    unsigned drops, wraps, releases;
    uint64_t payload;
} world;

static world w;

static void *map(size_t size) {
    w.payload += size;
    return aligned_alloc(BUFFER, size);
}

static void unmap(void *memory, size_t size) {
    w.payload -= size;
    free(memory);
}

static void wake(void *host) {
    (void)host;
}

static void drop(void *host) {
    (void)host;
    w.drops++;
}

/* The kernel writes past every poison. */
__attribute__((no_sanitize("address"))) static void kernel_write(uint8_t *to, size_t size) {
    for (volatile size_t i = 0; i < size; i++)
        to[i] = w.next++;
}

/* ---- slices ------------------------------------------------------------------------------------------- */

static void hold(held *list, unsigned *count, const weir_slice *slice) {
    FUZZ_CHECK(*count < HELD);
    list[(*count)++] = (held){ .slice = *slice, .copy = fuzz_copy(slice->data, slice->size) };
}

static void check(const held *h) {
    FUZZ_CHECK(h->slice.size == 0 || memcmp(h->slice.data, h->copy, h->slice.size) == 0);
}

static void forget(held *list, unsigned *count, unsigned index) {
    free(list[index].copy);
    list[index] = list[--*count];
}

static void unref(unsigned index) {
    held *h = &w.owned[index];
    check(h);
    weir_slice_unref(&h->slice);
    FUZZ_CHECK(h->slice.data == NULL && h->slice.size == 0 && h->slice.owner == NULL);
    weir_slice_unref(&h->slice);
    forget(w.owned, &w.owned_count, index);
}

static void released(const void *data, size_t size, void *userdata) {
    FUZZ_CHECK(userdata == &w && size > 0);
    free((void *)(uintptr_t)data);
    w.releases++;
}

/* One that is there, of our own or borrowed; NULL: none. */
static const held *pick(fuzz_input *input) {
    unsigned all = w.owned_count + w.borrowed_count;
    if (all == 0)
        return NULL;
    unsigned index = (unsigned)fuzz_take(input, 1) % all;
    return index < w.owned_count ? &w.owned[index] : &w.borrowed[index - w.owned_count];
}

static void part(fuzz_input *input, const weir_slice *whole) {
    weir_slice slice = { .data = (const uint8_t *)"untouched", .size = 9 };
    size_t offset = (size_t)fuzz_number(input), size = (size_t)fuzz_number(input);
    if (fuzz_take(input, 1) % 2 == 0 && whole->size > 0) {
        offset %= whole->size + 1;
        size %= whole->size - offset + 1;
    }
    size_t end;
    bool is_inside = !__builtin_add_overflow(offset, size, &end) && end <= whole->size;
    FUZZ_CHECK(weir_slice_sub(whole, offset, size, &slice) == (is_inside ? 0 : -ERANGE));
    if (!is_inside) {
        FUZZ_CHECK(slice.size == 9 && slice.owner == NULL);
    } else if (size == 0) {
        FUZZ_CHECK(slice.data == NULL && slice.size == 0 && slice.owner == NULL);
    } else {
        FUZZ_CHECK(slice.data == whole->data + offset && slice.size == size && slice.owner == whole->owner);
        hold(w.owned, &w.owned_count, &slice);
    }
}

static void keep(const weir_slice *whole) {
    weir_slice slice;
    int r = weir_slice_keep(whole, &slice);
    FUZZ_CHECK(r == 0 || r == -ENOBUFS);
    if (r < 0)
        return;
    FUZZ_CHECK(slice.size == whole->size);
    FUZZ_CHECK(slice.size == 0 || memcmp(slice.data, whole->data, slice.size) == 0);
    FUZZ_CHECK(slice.size == 0 || slice.owner->capacity <= 8 * slice.size);
    if (slice.size > 0)
        hold(w.owned, &w.owned_count, &slice);
}

static void make(fuzz_input *input) {
    weir_slice slice;
    uint8_t *data;
    size_t size = (size_t)fuzz_number(input);
    if (fuzz_take(input, 1) % 2 == 0)
        size %= 2 * BUFFER;
    int r = weir_slice_new(w.pool, size, &data, &slice);
    FUZZ_CHECK(size == 0 ? r == -EINVAL : r == 0 || r == -ENOBUFS);
    if (r < 0)
        return;
    FUZZ_CHECK(slice.data == data && slice.size == size);
    kernel_write(data, size);
    hold(w.owned, &w.owned_count, &slice);
}

static void wrap(fuzz_input *input) {
    weir_slice slice;
    size_t size = 1 + (size_t)fuzz_take(input, 1);
    uint8_t *data = malloc(size);
    FUZZ_CHECK(data != NULL);
    kernel_write(data, size);
    FUZZ_CHECK(weir_slice_wrap(w.pool, data, size, released, &w, &slice) == 0);
    w.wraps++;
    hold(w.owned, &w.owned_count, &slice);
}

/* Bytes that nobody counts. */
static void uncounted(fuzz_input *input) {
    static const uint8_t bytes[] = "uncounted";
    weir_slice slice, from = { .data = bytes, .size = fuzz_take(input, 1) % sizeof bytes };
    FUZZ_CHECK(weir_slice_keep(&from, &slice) == (from.size > 0 ? -EINVAL : 0));
    FUZZ_CHECK(weir_slice_sub(&from, 0, from.size, &slice) == (from.size > 0 ? -EINVAL : 0));
    weir_slice_ref(&from, &slice);
    FUZZ_CHECK(slice.owner == NULL && slice.size == 0);
    int r = weir_slice_copy(w.pool, bytes, from.size, &slice);
    FUZZ_CHECK(from.size == 0 ? r == -EINVAL : r == 0 || r == -ENOBUFS);
    if (r == 0)
        hold(w.owned, &w.owned_count, &slice);
}

/* ---- the kernel --------------------------------------------------------------------------------------- */

static void publish(void) {
    weir__pool_buffer buffer;
    if (w.posted_count == BUFFERS || !weir__pool_publish(w.pool, &buffer))
        return;
    FUZZ_CHECK(buffer.size == BUFFER);
    for (unsigned i = 0; i < w.posted_count; i++)
        FUZZ_CHECK(w.posted[i].id != buffer.id && w.posted[i].data != buffer.data);
    w.posted[w.posted_count++] = (posted){ .data = buffer.data, .id = buffer.id };
}

static void commit(fuzz_input *input) {
    uint32_t how = (uint32_t)fuzz_take(input, 1);
    uint32_t id = how % 8 == 7 ? (uint32_t)fuzz_number(input) : (uint32_t)fuzz_take(input, 1) % BUFFERS;
    if (how % 8 < 5 && w.posted_count > 0)
        id = w.posted[0].id;
    size_t bytes = how / 8 % 2 == 0 ? (size_t)fuzz_take(input, 2) % (BUFFER + 2) : (size_t)fuzz_number(input);
    bool more = how / 16 % 2 == 0 && w.is_incremental;
    if (how / 32 == 7)
        more = !more;
    unsigned place = 0;
    while (place < w.posted_count && w.posted[place].id != id)
        place++;
    posted *p = place < w.posted_count ? &w.posted[place] : NULL;
    bool can_be = p != NULL && bytes <= BUFFER - p->offset;
    if (can_be)
        can_be = w.is_incremental ? place == 0 && !(more && bytes == BUFFER - p->offset) : !more;
    weir_slice slice;
    if (can_be)
        kernel_write(p->data + p->offset, bytes);
    FUZZ_CHECK(weir__pool_commit(w.pool, id, bytes, more, &slice) == (can_be ? 0 : -EILSEQ));
    if (!can_be)
        return;
    FUZZ_CHECK(slice.data == p->data + p->offset && slice.size == bytes);
    p->offset += (uint32_t)bytes;
    if (!more) {
        memmove(p, p + 1, (w.posted_count - place - 1) * sizeof *p);
        w.posted_count--;
    }
    if (w.borrowed_count < HELD)
        hold(w.borrowed, &w.borrowed_count, &slice);
}

static void end_dispatch(void) {
    while (w.borrowed_count > 0) {
        check(&w.borrowed[0]);
        forget(w.borrowed, &w.borrowed_count, 0);
    }
    weir__pool_end_dispatch(w.pool);
}

static void withdraw(void) {
    if (w.is_withdrawn)
        return;
    end_dispatch();
    weir__pool_withdraw(w.pool);
    w.is_withdrawn = true;
    w.is_incremental = false;
    w.posted_count = 0;
}

/* ---- steps -------------------------------------------------------------------------------------------- */

static void step_slices(fuzz_input *input, uint64_t which) {
    weir_slice slice;
    if (w.owned_count == HELD)
        unref(0);
    const held *h = pick(input);
    switch (which) {
    case 0:
        make(input);
        break;
    case 1:
        wrap(input);
        break;
    case 2:
        uncounted(input);
        break;
    case 3:
        if (w.owned_count > 0)
            unref((unsigned)fuzz_take(input, 1) % w.owned_count);
        break;
    default:
        if (h == NULL)
            break;
        if (which == 4) {
            part(input, &h->slice);
        } else if (which == 5) {
            keep(&h->slice);
        } else {
            weir_slice_ref(&h->slice, &slice);
            FUZZ_CHECK(memcmp(&slice, &h->slice, sizeof slice) == 0);
            hold(w.owned, &w.owned_count, &slice);
        }
    }
}

static void step(fuzz_input *input) {
    uint64_t which = fuzz_take(input, 1) % 16;
    switch (which) {
    case 7:
    case 8:
        publish();
        break;
    case 9:
    case 10:
    case 11:
        commit(input);
        break;
    case 12:
        end_dispatch();
        break;
    case 13:
        weir__pool_starve(w.pool);
        weir__pool_set_parked(w.pool, (uint32_t)fuzz_take(input, 1));
        break;
    case 14:
        weir__pool_trim(w.pool);
        break;
    case 15:
        if (fuzz_take(input, 1) == 0xFF)
            withdraw();
        else
            weir__pool_collect(w.pool);
        break;
    default:
        step_slices(input, which);
    }
    FUZZ_CHECK(weir__pool_is_consistent(w.pool));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input input = { data, size };
    static uint8_t page[BUFFER] __attribute__((aligned(BUFFER)));
    if (weir__fork_word == NULL)
        FUZZ_CHECK(weir__fork_install(page));
    memset(&w, 0, sizeof w);
    fuzz_memory_init(&w.memory);
    uint32_t budget =
        (1 + (uint32_t)fuzz_take(&input, 1) % BUFFERS) * BUFFER + (uint32_t)fuzz_take(&input, 2) % BUFFER;
    const weir_pool_options options = {
        .size = sizeof options,
        .budget_bytes = budget,
        .buffer_bytes = BUFFER,
        .window_bytes = BUFFER * (1 + (uint32_t)fuzz_take(&input, 1) % (budget / BUFFER)),
    };
    w.is_incremental = fuzz_take(&input, 1) % 2 == 0;
    weir__pool_config config = {
        .allocator = &w.memory.allocator,
        .owner = &w,
        .generation = weir__fork_generation(),
        .incremental = w.is_incremental,
        .page_bytes = BUFFER,
        .map = map,
        .unmap = unmap,
        .wake = wake,
        .drop = drop,
        .host = &w,
    };
    FUZZ_CHECK(weir__pool_configure(&options, BUFFER, &config) == 0);
    FUZZ_CHECK(weir__pool_new(&config, &w.pool) == 0);
    bool pool_first = fuzz_take(&input, 1) % 2 == 0;
    for (unsigned steps = 0; input.size > 0 && steps < STEPS; steps++)
        step(&input);
    end_dispatch();
    if (pool_first)
        weir__pool_close(w.pool);
    while (w.owned_count > 0)
        unref(w.owned_count - 1);
    if (!pool_first)
        weir__pool_close(w.pool);
    FUZZ_CHECK(w.drops == 1 && w.wraps == w.releases && w.payload == 0);
    FUZZ_CHECK(w.memory.live_blocks == 0 && w.memory.live_bytes == 0);
    return 0;
}
