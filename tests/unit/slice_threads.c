/* SPDX-License-Identifier: MIT */
/* The last reference may be dropped on any thread, at any time, also when the loop is gone. */
#include <pthread.h>

#include "unit/bench.h"

static bench b;

static void on_another_thread(void *(*function)(void *), void *userdata) {
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, function, userdata), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

static void *unref(void *slice) {
    weir_slice_unref(slice);
    return NULL;
}

static void unref_on_another_thread_gives_the_buffer_back(void **state) {
    (void)state;
    weir_slice mine;
    bench_open(&b, true, 4, 1);
    bench_publish(&b);
    weir_slice slice = bench_arrive(&b, BUFFER);
    weir_slice_ref(&slice, &mine);
    bench_end_dispatch(&b);
    on_another_thread(unref, &mine);
    bench_expect(&b, 0, 0, 0, 1); /* it is the loop that takes it in */
    weir__pool_collect(b.pool);
    bench_check(&b);
    bench_expect(&b, 1, 0, 0, 0);
    assert_int_equal(atomic_load(&b.wakes), 0);
    bench_close(&b);
}

static void unref_on_another_thread_wakes_while_streams_are_parked(void **state) {
    (void)state;
    weir_slice mine;
    bench_open(&b, true, 4, 1);
    bench_publish(&b);
    weir_slice slice = bench_arrive(&b, BUFFER);
    weir_slice_ref(&slice, &mine);
    bench_end_dispatch(&b);
    weir__pool_set_parked(b.pool, 1);
    on_another_thread(unref, &mine);
    assert_int_equal(atomic_load(&b.wakes), 1);
    bench_close(&b);
}

static void unref_on_another_thread_before_the_final_completion_takes_nothing(void **state) {
    (void)state;
    weir_slice mine;
    bench_open(&b, true, 4, 1);
    bench_publish(&b);
    weir_slice slice = bench_arrive(&b, 100);
    weir_slice_ref(&slice, &mine);
    on_another_thread(unref, &mine);
    bench_end_dispatch(&b);
    bench_expect(&b, 0, 0, 1, 0);
    bench_arrive(&b, BUFFER - 100);
    bench_end_dispatch(&b);
    bench_expect(&b, 1, 0, 0, 0);
    bench_close(&b);
}

static void last_unref_on_another_thread_after_the_close_frees_everything(void **state) {
    (void)state;
    weir_slice mine;
    bench_open(&b, true, 4, 2);
    bench_publish(&b);
    weir_slice slice = bench_arrive(&b, 100);
    weir_slice_ref(&slice, &mine);
    weir__pool_close(b.pool);
    assert_int_equal(atomic_load(&b.drops), 0);
    on_another_thread(unref, &mine);
    bench_is_gone(&b);
}

static pthread_t released_on;

static void note_thread(const void *data, size_t size, void *userdata) {
    (void)data, (void)size;
    released_on = pthread_self();
    ++*(unsigned *)userdata;
}

static void *unref_and_tell(void *slice) {
    weir_slice_unref(slice);
    return (void *)(uintptr_t)(pthread_equal(released_on, pthread_self()) != 0);
}

static void wrapped_memory_is_released_on_the_thread_of_the_last_unref(void **state) {
    (void)state;
    weir_slice mine, theirs;
    unsigned count = 0;
    pthread_t thread;
    void *was_there;
    bench_open(&b, true, 4, 1);
    test_ok(weir_slice_wrap(b.pool, "x", 1, note_thread, &count, &mine));
    weir_slice_ref(&mine, &theirs);
    weir_slice_unref(&mine);
    assert_int_equal(count, 0);
    assert_int_equal(pthread_create(&thread, NULL, unref_and_tell, &theirs), 0);
    assert_int_equal(pthread_join(thread, &was_there), 0);
    assert_int_equal(count, 1);
    assert_non_null(was_there);
    bench_close(&b);
}

/* ---- many ------------------------------------------------------------------------------------------- */

enum { THREADS = 3, SLOTS = 256, SLICES = 3000 };

typedef struct handover {
    weir_slice slice;
    uint64_t position;
    _Atomic(bool) is_full;
} handover;

typedef struct worker {
    handover slots[SLOTS];
    _Atomic(bool) is_over;
    _Atomic(bool) has_failed;
    uint64_t seen;
} worker;

/* Looks at the bytes, takes and drops references of its own, makes blocks, and drops what it was given. */
static void work(worker *w, handover *slot, uint64_t *random) {
    weir_slice more[3] = { 0 }, slice = slot->slice;
    uint64_t position = slot->position;
    atomic_store_explicit(&slot->is_full, false, memory_order_release);
    for (unsigned i = 0; i < test_random(random) % 4; i++)
        if (weir_slice_sub(&slice, 0, slice.size, &more[i % 3]) == 0 && i % 3 == 2)
            break;
    weir_slice kept = { 0 };
    if (weir_slice_keep(&slice, &kept) < 0)
        kept = (weir_slice){ 0 }; /* over the budget: fine */
    if (test_differs(5, position, slice.data, slice.size) >= 0 ||
        (kept.size > 0 && test_differs(5, position, kept.data, kept.size) >= 0))
        atomic_store(&w->has_failed, true);
    for (unsigned i = 0; i < 3; i++)
        weir_slice_unref(&more[i]);
    weir_slice_unref(&slice);
    weir_slice_unref(&kept);
    w->seen++;
}

static void *worker_main(void *userdata) {
    worker *w = userdata;
    uint64_t random = (uintptr_t)w;
    for (unsigned at = 0;; at = (at + 1) % SLOTS) {
        handover *slot = &w->slots[at];
        while (!atomic_load_explicit(&slot->is_full, memory_order_acquire)) {
            if (atomic_load(&w->is_over) && !atomic_load_explicit(&slot->is_full, memory_order_acquire))
                return NULL;
            weir__sys_yield();
        }
        work(w, slot, &random);
    }
}

/* One thread receives, others look at the bytes and drop them; the pool may be closed before they are through. */
static void many_threads_drop_what_one_receives(void **state) {
    (void)state;
    static worker workers[THREADS];
    static uint8_t bytes[BUFFER];
    unsigned at[THREADS] = { 0 };
    uint64_t random = 11, position = 0, given = 0, seen = 0;
    pthread_t threads[THREADS];
    memset(workers, 0, sizeof workers);
    bench_open(&b, true, 16, 4);
    weir__pool_set_parked(b.pool, 1);
    for (unsigned i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, worker_main, &workers[i]), 0);
    for (unsigned round = 0; given < SLICES; round++) {
        uint64_t before = given;
        weir__pool_collect(b.pool);
        weir__pool_buffer buffer;
        while (weir__pool_publish(b.pool, &buffer)) {
            b.by_id[buffer.id] = buffer;
            b.offset[buffer.id] = 0;
            b.ring[b.tail++] = buffer.id;
        }
        for (unsigned i = 0; i < 3 && b.head != b.tail; i++) {
            unsigned to = (unsigned)(test_random(&random) % THREADS);
            handover *slot = &workers[to].slots[at[to]];
            if (atomic_load_explicit(&slot->is_full, memory_order_acquire))
                continue;
            size_t size = 1 + test_random(&random) % weir__min_u64(bench_room(&b), 2000);
            test_fill(5, position, bytes, size);
            uint16_t id = bench_head(&b);
            script_write((uint8_t *)b.by_id[id].data + b.offset[id], bytes, size);
            b.offset[id] += (uint32_t)size;
            weir_slice slice;
            test_ok(weir__pool_commit(b.pool, id, size, b.offset[id] < BUFFER, &slice));
            b.head = (uint16_t)(b.head + (b.offset[id] == BUFFER));
            weir_slice_ref(&slice, &slot->slice);
            slot->position = position;
            atomic_store_explicit(&slot->is_full, true, memory_order_release);
            at[to] = (at[to] + 1) % SLOTS;
            position += size;
            given++;
        }
        weir__pool_end_dispatch(b.pool);
        if (round % 64 == 0)
            weir__pool_trim(b.pool);
        if (given == before)
            weir__sys_yield(); /* all of it is with the others */
    }
    weir__pool_close(b.pool);
    for (unsigned i = 0; i < THREADS; i++) {
        atomic_store(&workers[i].is_over, true);
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_false(atomic_load(&workers[i].has_failed));
        seen += workers[i].seen;
    }
    assert_int_equal(seen, given);
    bench_is_gone(&b);
}

static void *close_pool(void *pool) {
    weir__pool_close(pool);
    return NULL;
}

/* Each of the two may be the one that finds the other's end done; nothing may be freed twice or never. */
static void close_and_last_unref_may_meet(void **state) {
    (void)state;
    for (int round = 0; round < 500; round++) {
        weir_slice mine[2];
        pthread_t thread;
        bench_open(&b, true, 4, 2);
        bench_publish(&b);
        for (int i = 0; i < 2; i++) {
            weir_slice slice = bench_arrive(&b, BUFFER);
            weir_slice_ref(&slice, &mine[i]);
        }
        bench_end_dispatch(&b);
        assert_int_equal(pthread_create(&thread, NULL, close_pool, b.pool), 0);
        weir_slice_unref(&mine[0]);
        weir_slice_unref(&mine[1]);
        assert_int_equal(pthread_join(thread, NULL), 0);
        bench_is_gone(&b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        bench_test(unref_on_another_thread_gives_the_buffer_back),
        bench_test(unref_on_another_thread_wakes_while_streams_are_parked),
        bench_test(unref_on_another_thread_before_the_final_completion_takes_nothing),
        bench_test(last_unref_on_another_thread_after_the_close_frees_everything),
        bench_test(wrapped_memory_is_released_on_the_thread_of_the_last_unref),
        bench_test(many_threads_drop_what_one_receives),
        bench_test(close_and_last_unref_may_meet),
    };
    return cmocka_run_group_tests_name("slice-threads", tests, NULL, NULL);
}
