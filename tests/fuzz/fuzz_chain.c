/* SPDX-License-Identifier: MIT */

/*
 * A chain, done anything with, is what a plain array of bytes would be: what is shown, taken, written and found is there, in
 * order, once; refused calls change nothing; what is tidy pins little; slices that were taken stay what they were; and
 * nothing is left in the end. Memory fails now and then.
 */

#include "base/fork.h"
#include "fuzz/fuzz.h"
#include "memory/chain.h"

enum { BUFFER = 4096, BUFFERS = 16, LIMIT = 3 * BUFFER, HELD = 8, STEPS = 300 };

typedef struct held {
    weir_slice slice;
    uint8_t *copy;
} held;

static struct {
    fuzz_memory memory;
    weir_allocator allocator; /* memory's, but it fails */
    unsigned fail_in;         /* the allocation that fails; 0: none */
    weir_pool *pool;
    weir__range_cache cache;
    weir__chain chain;
    weir__pool_buffer posted; /* size 0: none */
    uint32_t offset;
    bool has_parted;
    uint8_t model[LIMIT];
    size_t size;
    held held[HELD];
    unsigned next_held, wraps, releases;
    uint8_t next;
} w;

static void *alloc(size_t size, size_t alignment, void *userdata) {
    if (w.fail_in > 0 && --w.fail_in == 0)
        return NULL;
    return fuzz_alloc(size, alignment, userdata);
}

static void *map(size_t size) {
    return aligned_alloc(BUFFER, size);
}

static void unmap(void *memory, size_t size) {
    (void)size;
    free(memory);
}

static void ignore(void *host) {
    (void)host;
}

/* The kernel writes past every poison. Few values, so that something is found. */
__attribute__((no_sanitize("address"))) static void write_bytes(uint8_t *to, size_t size) {
    for (volatile size_t i = 0; i < size; i++)
        to[i] = "ab\n"[w.next++ % 7 % 3];
}

static bool is_no_memory(int64_t r) {
    return r == -ENOMEM || r == -ENOBUFS;
}

/* ---- the model ---------------------------------------------------------------------------------------- */

static void forget(size_t size) {
    memmove(w.model, w.model + size, w.size - size);
    w.size -= size;
}

static void compare(void) {
    const weir__sendq *queue = &w.chain.queue;
    const weir__range *last = NULL;
    size_t at = 0;
    unsigned count = 0;
    FUZZ_CHECK(queue->bytes == w.size);
    for (const weir__range *range = queue->first; range != NULL; last = range, range = range->next, count++) {
        FUZZ_CHECK(range->size > 0 && range->size <= w.size - at);
        FUZZ_CHECK(memcmp(range->data, w.model + at, range->size) == 0);
        at += range->size;
    }
    FUZZ_CHECK(at == w.size && count == queue->count && last == queue->last);
    FUZZ_CHECK(weir__pool_is_consistent(w.pool));
}

/* Ranges in a row in one block hold it together. */
static void check_tidy(void) {
    uint64_t pinned = 0;
    for (const weir__range *range = w.chain.queue.first; range != NULL;) {
        const weir_block *owner = range->owner;
        pinned += owner->capacity;
        while (range != NULL && range->owner == owner)
            range = range->next;
    }
    FUZZ_CHECK(pinned <= 8 * w.size);
}

static void drop_held(held *h) {
    if (h->copy == NULL)
        return;
    FUZZ_CHECK(memcmp(h->slice.data, h->copy, h->slice.size) == 0);
    weir_slice_unref(&h->slice);
    free(h->copy);
    h->copy = NULL;
}

static void hold(const weir_slice *slice) {
    held *h = &w.held[w.next_held++ % HELD];
    drop_held(h);
    *h = (held){ .slice = *slice, .copy = fuzz_copy(slice->data, slice->size) };
}

/* ---- steps -------------------------------------------------------------------------------------------- */

static void push(const weir_slice *slice) {
    uint8_t *copy = fuzz_copy(slice->data, slice->size);
    int r = weir__chain_push(&w.chain, slice);
    if (slice->size > w.chain.limit - w.size) {
        FUZZ_CHECK(r == -EMSGSIZE);
    } else if (r < 0) {
        FUZZ_CHECK(is_no_memory(r));
    } else {
        memcpy(w.model + w.size, copy, slice->size);
        w.size += slice->size;
    }
    free(copy);
}

/* Bytes from the kernel; of another stream in between if @gap. */
static void receive(size_t size, bool gap, bool retires) {
    weir_slice slice;
    if (w.posted.size == 0) {
        if (!weir__pool_publish(w.pool, &w.posted)) {
            w.posted.size = 0;
            return;
        }
        w.offset = 0;
    }
    size = size % (BUFFER - w.offset) + 1;
    bool more = w.offset + size < BUFFER && !retires;
    write_bytes((uint8_t *)w.posted.data + w.offset, size);
    FUZZ_CHECK(weir__pool_commit(w.pool, w.posted.id, size, more, &slice) == 0);
    w.offset += (uint32_t)size;
    if (!more)
        w.posted.size = 0;
    if (!gap)
        push(&slice);
}

static void released(const void *data, size_t size, void *userdata) {
    (void)size, (void)userdata;
    free((void *)(uintptr_t)data);
    w.releases++;
}

static void push_made(fuzz_input *input, uint64_t how) {
    uint8_t bytes[256];
    weir_slice slice = { .data = bytes, .size = fuzz_take(input, 1) };
    write_bytes(bytes, sizeof bytes);
    if (how == 0 || slice.size == 0) {
        push(&slice);
        return;
    }
    void *copy = how == 1 ? fuzz_copy(bytes, slice.size) : NULL;
    int r = how == 1 ? weir_slice_wrap(w.pool, copy, slice.size, released, NULL, &slice)
                     : weir_slice_copy(w.pool, bytes, slice.size, &slice);
    if (r < 0) {
        FUZZ_CHECK(is_no_memory(r));
        free(copy);
        return;
    }
    w.wraps += how == 1;
    push(&slice);
    weir_slice_unref(&slice);
}

/* What a call that reaches so far may say. */
static bool may_say(int r, size_t offset, size_t size) {
    size_t end;
    if (__builtin_add_overflow(offset, size, &end) || end > w.chain.limit)
        return r == -EMSGSIZE;
    return end > w.size ? r == -EAGAIN : r == 0 || is_no_memory(r);
}

static void look(fuzz_input *input) {
    const weir_slice *slice = NULL;
    size_t offset = (size_t)fuzz_number(input), size = (size_t)fuzz_number(input);
    int r = weir__chain_peek(&w.chain, offset, size, &slice);
    FUZZ_CHECK(may_say(r, offset, size));
    FUZZ_CHECK(r < 0 || (slice->size == size && (size == 0 || memcmp(slice->data, w.model + offset, size) == 0)));
}

static void take(fuzz_input *input) {
    weir_slice slice;
    size_t size = (size_t)fuzz_number(input);
    int r = weir__chain_take(&w.chain, size, &slice);
    FUZZ_CHECK(may_say(r, 0, size));
    if (r < 0)
        return;
    FUZZ_CHECK(slice.size == size && (size == 0 || memcmp(slice.data, w.model, size) == 0));
    forget(size);
    if (size > 0)
        hold(&slice);
}

/* As a stream does: all or nothing, behind what is queued. */
static void move(fuzz_input *input) {
    weir__sendq queue = { 0 };
    uint64_t copied;
    size_t size = w.size > 0 ? (size_t)fuzz_take(input, 2) % (w.size + 1) : 0, at = 0;
    if (w.has_parted || weir__sendq_copy(&queue, &w.cache, w.pool, "!", 1) < 0)
        return;
    int r = weir__sendq_join(&queue, &w.cache, w.pool, w.chain.queue.first, size, &copied);
    FUZZ_CHECK(r >= 0 || is_no_memory(r));
    FUZZ_CHECK(queue.bytes == (r < 0 ? 1 : 1 + size));
    for (const weir__range *range = queue.first; range != NULL; at += range->size, range = range->next)
        for (size_t i = 0; i < range->size; i++)
            FUZZ_CHECK(range->data[i] == (at + i == 0 ? '!' : w.model[at + i - 1]));
    if (r >= 0) {
        weir__chain_drop(&w.chain, size);
        forget(size);
    }
    weir__sendq_clear(&queue, &w.cache);
}

static void find(fuzz_input *input) {
    static const uint8_t long_one[100] = "aaaa";
    static const char *const needles[] = { "\n", "a\n", "b\na", "abab", "\n\n\n", "bb\nab" };
    uint64_t which = fuzz_take(input, 1) % 8, from = fuzz_take(input, 1);
    const void *needle = which < 6 ? (const void *)needles[which] : which == 6 ? long_one : w.model;
    size_t size = which < 6 ? strlen(needles[which]) : which == 6 ? sizeof long_one : w.size < 3 ? 1 : 3;
    size_t offset = from % 2 == 0 ? 0 : (size_t)from;
    const uint8_t *found = offset <= w.size ? memmem(w.model + offset, w.size - offset, needle, size) : NULL;
    FUZZ_CHECK(weir__chain_find(&w.chain, offset, needle, size) == (found != NULL ? found - w.model : -EAGAIN));
}

static void tidy(void) {
    int r = weir__chain_tidy(&w.chain);
    FUZZ_CHECK(r == 0 || is_no_memory(r));
    if (r == 0)
        check_tidy();
}

static void step(fuzz_input *input) {
    uint64_t how = fuzz_take(input, 1), which = how % 16;
    if (w.has_parted && (which < 7 || which == 9))
        which = 7; /* nothing comes any more, and nothing is tidied */
    switch (which) {
    case 0:
    case 1:
    case 2:
    case 3:
        receive((size_t)fuzz_take(input, 2) >> (how / 64 * 3), how / 16 % 4 == 1, how / 16 % 4 == 2);
        break;
    case 4:
    case 5:
    case 6:
        push_made(input, which - 4);
        break;
    case 7:
        look(input);
        break;
    case 8:
        take(input);
        break;
    case 9:
        tidy();
        weir__pool_end_dispatch(w.pool);
        break;
    case 10:
        if (w.size > 0) {
            size_t size = (size_t)fuzz_take(input, 1) % (w.size + 1);
            weir__chain_drop(&w.chain, size);
            forget(size);
        }
        break;
    case 11:
        move(input);
        break;
    case 12:
    case 13:
        find(input);
        break;
    case 14:
        w.fail_in = how / 16 % 8;
        break;
    default:
        if (how == 0xFF && !w.has_parted) {
            weir__chain_part(&w.chain);
            w.has_parted = true;
        } else {
            drop_held(&w.held[how / 16 % HELD]);
        }
    }
    weir__chain_release(&w.chain);
    compare();
}

static void open_world(fuzz_input *input) {
    static uint8_t page[BUFFER] __attribute__((aligned(BUFFER)));
    if (weir__fork_word == NULL)
        FUZZ_CHECK(weir__fork_install(page));
    memset(&w, 0, sizeof w);
    fuzz_memory_init(&w.memory);
    w.allocator = w.memory.allocator;
    w.allocator.alloc = alloc;
    const weir_pool_options options = { .size = sizeof options,
                                        .budget_bytes = (4 + fuzz_take(input, 1) % BUFFERS) * BUFFER,
                                        .buffer_bytes = BUFFER,
                                        .window_bytes = BUFFER };
    weir__pool_config config = {
        .allocator = &w.allocator,
        .owner = &w,
        .generation = weir__fork_generation(),
        .incremental = true,
        .page_bytes = BUFFER,
        .map = map,
        .unmap = unmap,
        .wake = ignore,
        .drop = ignore,
        .host = &w,
    };
    FUZZ_CHECK(weir__pool_configure(&options, BUFFER, &config) == 0);
    FUZZ_CHECK(weir__pool_new(&config, &w.pool) == 0);
    w.cache = (weir__range_cache){ .allocator = &w.allocator, .owner = &w };
    weir__chain_init(&w.chain, 1 + fuzz_take(input, 2) % LIMIT, &w.cache, w.pool);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input input = { data, size };
    open_world(&input);
    for (unsigned steps = 0; input.size > 0 && steps < STEPS; steps++)
        step(&input);
    w.fail_in = 0;
    weir__chain_clear(&w.chain);
    weir__chain_release(&w.chain);
    for (unsigned i = 0; i < HELD; i++)
        drop_held(&w.held[i]);
    weir__pool_end_dispatch(w.pool);
    weir__pool_close(w.pool);
    weir__range_cache_deinit(&w.cache);
    FUZZ_CHECK(w.wraps == w.releases);
    FUZZ_CHECK(w.memory.live_blocks == 0 && w.memory.live_bytes == 0);
    return 0;
}
