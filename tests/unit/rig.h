/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TESTS_UNIT_RIG_H
#define WEIR_TESTS_UNIT_RIG_H

/* A backend alone, io_uring's or (unit/epoll_rig.h) epoll's, between a scripted kernel and owners of operations that
 * write down what they are told. */

#include <poll.h>

#include "backend/epoll.h"
#include "backend/uring.h"
#include "base/fork.h"
#include "scripted/scripted.h"
#include "support/support.h"

enum { BUFFER = 4096, MAX_TOLD = 64 };

typedef struct told {
    int32_t result;
    bool is_final, is_late;
    uint8_t bytes[32]; /* the first ones, as they were inside the call */
    const uint8_t *data;
    size_t size;
} told;

typedef struct owner {
    weir__op op;
    told told[MAX_TOLD];
    unsigned count, finals, read;                        /* told, of them final, looked at by the test */
    void (*then)(struct owner *owner, const told *last); /* called inside the completion */
    weir_slice slice;                                    /* valid in then */
} owner;

typedef struct rig {
    test_memory memory;
    weir_pool *pool;
    weir__waker *waker;
    weir__backend *backend;
    script_entry *wake; /* the poll of the waker's descriptor */
} rig;

typedef struct rig_options {
    bool is_classic, is_epoll;
    unsigned budget, window; /* in buffers; 0: 16 and 4 */
    unsigned reserve;        /* private blocks, on top of the budget */
    weir__tuning tuning;
    uint32_t buffer_bytes; /* default BUFFER */
} rig_options;

static rig r;

static inline void owner_told(weir__op *op, const weir__completion *completion) {
    owner *o = WEIR__CONTAINER(op, owner, op);
    assert_int_equal(o->finals, 0); /* nothing comes after the last */
    assert_true(o->count < MAX_TOLD);
    assert_true(!completion->final || weir__op_is_idle(op));
    told *last = &o->told[o->count++];
    *last = (told){ .result = completion->result,
                    .is_final = completion->final,
                    .is_late = completion->is_late,
                    .data = completion->slice.data,
                    .size = completion->slice.size };
    memcpy(last->bytes, last->data != NULL ? last->data : last->bytes,
           last->size < sizeof last->bytes ? last->size : sizeof last->bytes);
    o->finals += completion->final;
    o->slice = completion->slice;
    if (o->then != NULL)
        o->then(o, last);
}

static inline void owner_init(owner *o) {
    memset(o, 0, sizeof *o);
    weir__op_init(&o->op, owner_told);
}

static inline void owners_init(owner *owners, unsigned count) {
    for (unsigned i = 0; i < count; i++)
        owner_init(&owners[i]);
}

/* What the owner was told next. */
static inline const told *next_told(owner *o) {
    assert_true(o->read < o->count);
    return &o->told[o->read++];
}

static inline void told_nothing_more(const owner *o) {
    assert_int_equal(o->read, o->count);
}

static inline void told_bytes(owner *o, const char *bytes) {
    const told *t = next_told(o);
    assert_false(t->is_final);
    assert_int_equal(t->result, strlen(bytes));
    assert_int_equal(t->size, strlen(bytes));
    assert_memory_equal(t->bytes, bytes, strlen(bytes));
}

static inline void told_result(owner *o, int32_t result) {
    const told *t = next_told(o);
    assert_false(t->is_final);
    assert_int_equal(t->result, result);
}

static inline void told_final(owner *o, int32_t result) {
    const told *t = next_told(o);
    assert_true(t->is_final);
    assert_int_equal(t->result, result);
    told_nothing_more(o);
    assert_true(weir__op_is_idle(&o->op));
    o->finals = 0; /* it may be started again */
}

/* ---- turns ------------------------------------------------------------------------------------------ */

/* Hand over to the kernel what was started. */
static inline void rig_submit(void) {
    test_ok(r.backend->verbs->wait(r.backend, 0));
    assert_true(weir__pool_is_consistent(r.pool));
}

/* Take what the kernel said. */
static inline unsigned rig_dispatch(void) {
    unsigned count = r.backend->verbs->dispatch(r.backend, 10000);
    assert_true(weir__pool_is_consistent(r.pool));
    return count;
}

static inline void rig_turn(void) {
    rig_submit();
    rig_dispatch();
}

static inline weir_pool_stats rig_pool_stats(void) {
    weir_pool_stats stats = { .size = sizeof stats };
    test_ok(weir_pool_get_stats(r.pool, &stats));
    return stats;
}

/* ---- life ------------------------------------------------------------------------------------------- */

static inline void rig_make(const rig_options *options) {
    static bool is_installed;
    if (!is_installed)
        is_installed = weir__fork_install(weir__sys_wiped_page());
    memset(&r, 0, sizeof r);
    test_memory_init(&r.memory);
    test_ok(weir__waker_new(&r.memory.allocator, &r.waker));
    uint32_t buffer = options->buffer_bytes > 0 ? options->buffer_bytes : BUFFER;
    weir__pool_config config = {
        .allocator = &r.memory.allocator,
        .owner = &r,
        .generation = weir__fork_generation(),
        .incremental = !options->is_classic,
        .budget_bytes =
            (uint64_t)(options->budget > 0 ? options->budget : 16) * buffer + (uint64_t)options->reserve * BUFFER,
        .reserve_bytes = (uint64_t)options->reserve * BUFFER,
        .buffer_bytes = buffer,
        .window_bytes = (options->window > 0 ? options->window : 4) * buffer,
        .page_bytes = weir__sys_page_bytes(),
        .map = weir__sys_map_private,
        .unmap = weir__sys_unmap,
        .wake = weir__waker_wake,
        .drop = weir__waker_unref,
        .host = r.waker,
    };
    weir__waker_ref(r.waker);
    test_ok(weir__pool_new(&config, &r.pool));
    if (options->is_epoll) {
        test_ok(weir__epoll_new(&r.memory.allocator, r.pool, r.waker, &r.backend));
        return;
    }
    uint32_t mode = options->is_classic ? WEIR_BACKEND_URING_CLASSIC : WEIR_BACKEND_URING_INCREMENTAL;
    test_ok(weir__uring_new(&r.memory.allocator, mode, &options->tuning, r.pool, r.waker, &r.backend));
}

/* Made, enabled, and its own poll submitted. */
static inline void rig_open(const rig_options *options) {
    rig_make(options);
    test_ok(r.backend->verbs->enable(r.backend));
    rig_submit();
    r.wake = script_expect(IORING_OP_POLL_ADD, atomic_load(&r.waker->fd));
    rig_dispatch();
}

static inline void rig_open_default(void) {
    rig_open(&(rig_options){ 0 });
}

static inline void rig_free(void) {
    r.backend->verbs->free(r.backend);
    weir__waker_close(r.waker);
    weir__waker_unref(r.waker);
}

/* No operation is under way: nothing may be left. */
static inline void rig_close(void) {
    script_answer_cancels(true);
    assert_true(r.backend->verbs->is_quiet(r.backend));
    test_ok(r.backend->verbs->close(r.backend));
    rig_free();
    assert_int_equal(atomic_load(&r.memory.live_blocks), 0);
    assert_int_equal(atomic_load(&r.memory.live_bytes), 0);
    assert_int_equal(script_mapped(), 0);
}

/* Cancel what is under way first. */
static inline void rig_cancel_and_close(owner *owners, unsigned count) {
    script_answer_cancels(true);
    for (unsigned i = 0; i < count; i++)
        r.backend->verbs->cancel(r.backend, &owners[i].op);
    rig_turn();
    rig_turn();
    for (unsigned i = 0; i < count; i++)
        assert_true(weir__op_is_idle(&owners[i].op));
    rig_close();
}

/* Start a receive and have it submitted. */
static inline script_entry *rig_receive(owner *o, int fd) {
    r.backend->verbs->receive(r.backend, &o->op, fd, 0, false);
    rig_submit();
    return script_expect(IORING_OP_RECV, fd);
}

static inline int rig_setup(void **state) {
    (void)state;
    script_begin();
    return 0;
}

static inline int rig_teardown(void **state) {
    (void)state;
    script_end();
    return 0;
}

#define rig_test(function) cmocka_unit_test_setup_teardown(function, rig_setup, rig_teardown)

#endif
