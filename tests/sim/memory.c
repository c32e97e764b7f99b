/* SPDX-License-Identifier: MIT */
#include <stdlib.h>

#include "sim/program.h"

/* What the application allocates, keeps and lends. */

static void *app_alloc(size_t size, size_t alignment, void *userdata) {
    (void)userdata;
    if (app.may_fail && sim_fault(SIM_NO_MEMORY))
        return NULL;
    void *memory = aligned_alloc(alignment, (size + alignment - 1) & ~(alignment - 1));
    memset(memory, 0xA5, size);
    app.live_blocks++;
    app.live_bytes += size;
    return memory;
}

static void app_free(void *memory, size_t size, size_t alignment, void *userdata) {
    (void)alignment, (void)userdata;
    memset(memory, 0x5A, size);
    free(memory);
    app.live_blocks--;
    app.live_bytes -= size;
}

const weir_allocator counting_allocator = { .size = sizeof counting_allocator,
                                            .alloc = app_alloc,
                                            .free = app_free };

/* ---- held slices ------------------------------------------------------------------------------------ */

void check_held(const held *h) {
    int64_t at = test_differs(h->seed, h->position, h->slice.data, h->size);
    sim_require(at < 0, "a held slice of connection %llu changed at byte %lld", (unsigned long long)h->seed,
                (long long)at);
}

void drop_held(size_t index) {
    check_held(&app.held[index]);
    weir_slice slice = app.held[index].slice;
    app.held[index] = app.held[--app.held_count];
    weir_slice_unref(&slice);
}

void hold(const connection *c, const weir_slice *slice, bool keep) {
    if (app.held_count == MOST_HELD)
        drop_held((size_t)sim_random(app.held_count));
    held *h = &app.held[app.held_count];
    *h = (held){ .seed = c->in_seed, .position = c->app_read, .size = slice->size };
    weir_slice none;
    sim_require(weir_slice_sub(slice, 1, slice->size, &none) == -ERANGE, "a part beyond the whole");
    if (!keep && sim_random(2) == 0) {
        size_t offset = (size_t)sim_random(slice->size);
        h->position += offset;
        h->size = (size_t)sim_random(slice->size - offset) + 1;
        sim_require(weir_slice_sub(slice, offset, h->size, &h->slice) == 0 && h->slice.size == h->size,
                    "no part of a slice");
    } else if (!keep)
        weir_slice_ref(slice, &h->slice);
    else if (weir_slice_keep(slice, &h->slice) < 0)
        return;
    if (keep && slice->size > 0)
        sim_require((h->slice.data != slice->data) == (slice->size < (slice->owner->capacity + 7) / 8),
                    "what was kept pins more than eight times its size, or was copied for nothing");
    app.held_count++;
}

/* ---- frames ----------------------------------------------------------------------------------------- */

/* The first byte of a frame says how many follow: the peer's pattern is as good a message as any. */
void open_chain(connection *c) {
    int r = weir_chain_new(app.loop, app.buffer_bytes + 256, &c->chain);
    sim_require(r == 0 || r == -ENOMEM || r == -ESHUTDOWN, "chain_new said %s", weir_error_name(r));
    if (r < 0)
        c->chain = NULL;
    c->parsed = c->app_read;
}

static bool lacks_memory(int r) {
    return r == -ENOMEM || r == -ENOBUFS;
}

/* Take one frame off. Return: there was one. */
static bool take_frame(connection *c) {
    const weir_slice *first;
    weir_slice frame;
    int r = weir_chain_peek(c->chain, 0, 1, &first);
    sim_require(r == 0 || (r == -EAGAIN && weir_chain_get_size(c->chain) == 0), "peek said %s",
                weir_error_name(r));
    if (r < 0)
        return false;
    size_t size = 1 + (size_t)first->data[0];
    bool is_there = size <= weir_chain_get_size(c->chain);
    if (is_there && sim_random(4) == 0) {
        sim_require(weir_chain_drop(c->chain, size) == 0, "drop failed");
        c->parsed += size;
        return true;
    }
    r = weir_chain_take(c->chain, size, &frame);
    sim_require(r == (is_there ? 0 : -EAGAIN) || (is_there && lacks_memory(r)), "take said %s",
                weir_error_name(r));
    if (r < 0)
        return false;
    int64_t at = test_differs(c->in_seed, c->parsed, frame.data, size);
    sim_require(frame.size == size && at < 0, "connection %llu: byte %lld of a chain is not what the peer wrote",
                (unsigned long long)c->number, (long long)at);
    weir_slice_unref(&frame);
    c->parsed += size;
    sim_event(SIM_EVENT_FRAME);
    return true;
}

void parse(connection *c, const weir_slice *slice) {
    int r = weir_chain_push(c->chain, slice);
    bool was_short = weir_chain_get_size(c->chain) > 256; /* something could not be taken before */
    sim_require(r == 0 || lacks_memory(r) || (r == -EMSGSIZE && was_short), "push said %s", weir_error_name(r));
    if (r < 0) {
        c->chain = weir_chain_unref(c->chain);
        return;
    }
    while (take_frame(c))
        ;
    sim_require(weir_chain_get_size(c->chain) == c->app_read - c->parsed, "a chain has lost or found bytes");
}

void released(const void *data, size_t size, void *userdata) {
    sim_require(!sim.is_other_thread, "external memory was released on another thread");
    released_anywhere(data, size, userdata);
}

void released_anywhere(const void *data, size_t size, void *userdata) {
    lent *it = &app.external[(uintptr_t)userdata];
    sim_require(data != NULL && it->memory == data, "external memory was released twice");
    memset(it->memory, 0x5A, size); /* whoever still looks at it shall notice */
    free(it->memory);
    it->by->lent--;
    *it = (lent){ 0 };
    app.external_released++;
}
