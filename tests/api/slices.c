/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

/* Slices: what keeps bytes readable, for how long, and who may hold them where. */

static weir_slice kept[256];
static unsigned kept_count;
static int keep_result;

static void ref_all(witness *w, char event, const weir_slice *slice) {
    (void)w;
    if (event == 'd')
        weir_slice_ref(slice, &kept[kept_count++]);
}

static void keep_all(witness *w, char event, const weir_slice *slice) {
    (void)w;
    if (event == 'd')
        keep_result = weir_slice_keep(slice, &kept[kept_count++]);
}

static void drop_all(void) {
    while (kept_count > 0)
        weir_slice_unref(&kept[--kept_count]);
}

/* ---- a reference ------------------------------------------------------------------------------------- */

static void a_referenced_slice_stays_readable_beyond_its_callback(void **state) {
    test_fixture *f = *state;
    static witness w;
    static uint8_t data[1000];
    int peer = witness_pair(f, &w, true, NULL);
    w.hook = ref_all;
    for (unsigned i = 0; i < 40; i++) {
        test_fill(i, 0, data, sizeof data);
        peer_send(peer, data, sizeof data);
        run_until(f, w.size == (i + 1) * sizeof data);
    }
    size_t position = 0;
    for (unsigned i = 0; i < kept_count; i++)
        for (size_t j = 0; j < kept[i].size; j++, position++)
            assert_int_equal(kept[i].data[j], test_byte(position / sizeof data, position % sizeof data));
    assert_int_equal(position, w.size);
    drop_all();
    close(peer);
}

static void unref_empties_the_variable_so_twice_does_nothing(void **state) {
    test_fixture *f = *state;
    weir_pool *pool = weir_loop_get_pool(f->loop);
    weir_slice slice, same;
    test_ok(weir_slice_copy(pool, "hello", 5, &slice));
    weir_slice_ref(&slice, &same);
    assert_ptr_equal(same.data, slice.data);
    weir_slice_unref(&slice);
    assert_null(slice.data);
    assert_int_equal(slice.size, 0);
    assert_null(slice.owner);
    weir_slice_unref(&slice);
    weir_slice_unref(NULL);
    assert_memory_equal(same.data, "hello", 5);
    assert_true(test_pool_stats(f).block_bytes > 0);
    weir_slice_unref(&same);
    assert_int_equal(test_pool_stats(f).block_bytes, 0);
}

static void a_slice_may_be_narrowed_in_place(void **state) {
    test_fixture *f = *state;
    weir_slice slice;
    test_ok(weir_slice_copy(weir_loop_get_pool(f->loop), "hello", 5, &slice));
    slice.data += 2;
    slice.size -= 3;
    assert_memory_equal(slice.data, "ll", 2);
    weir_slice_unref(&slice);
    assert_int_equal(test_pool_stats(f).block_bytes, 0);
}

static void uncounted_bytes_cannot_be_referenced(void **state) {
    test_fixture *f = *state;
    weir_slice hand = { (const uint8_t *)"abc", 3, NULL }, empty = { 0 }, out = { (const uint8_t *)"x", 7, NULL };
#ifndef WEIR_MISUSE_ABORTS
    weir_slice_ref(&hand, &out);
    assert_null(out.data);
    assert_int_equal(out.size, 0);
    out.size = 7;
    assert_int_equal(weir_slice_keep(&hand, &out), -EINVAL);
    assert_int_equal(weir_slice_sub(&hand, 0, 1, &out), -EINVAL);
    assert_int_equal(out.size, 7);
#endif
    weir_slice_ref(&empty, &out); /* the empty slice is accepted by everything */
    assert_int_equal(out.size, 0);
    test_ok(weir_slice_keep(&empty, &out));
    test_ok(weir_slice_sub(&empty, 0, 0, &out));
    weir_slice_unref(&out);
    test_ok(weir_slice_copy(weir_loop_get_pool(f->loop), hand.data, hand.size, &out)); /* so it is counted */
    assert_memory_equal(out.data, "abc", 3);
    weir_slice_unref(&out);
}

/* ---- parts ------------------------------------------------------------------------------------------- */

static void a_part_holds_the_whole(void **state) {
    test_fixture *f = *state;
    weir_slice slice, part, out = { (const uint8_t *)"x", 7, NULL };
    test_ok(weir_slice_copy(weir_loop_get_pool(f->loop), "hello", 5, &slice));
    test_ok(weir_slice_sub(&slice, 1, 3, &part));
    assert_ptr_equal(part.data, slice.data + 1);
    assert_int_equal(part.size, 3);
    assert_int_equal(weir_slice_sub(&slice, 3, 3, &out), -ERANGE);
    assert_int_equal(weir_slice_sub(&slice, 6, 0, &out), -ERANGE);
    assert_int_equal(weir_slice_sub(&slice, SIZE_MAX, 2, &out), -ERANGE);
    assert_int_equal(weir_slice_sub(&slice, 2, SIZE_MAX, &out), -ERANGE);
    assert_int_equal(out.size, 7);
    test_ok(weir_slice_sub(&slice, 5, 0, &out));
    assert_int_equal(out.size, 0);
    weir_slice_unref(&slice);
    assert_memory_equal(part.data, "ell", 3);
    weir_slice_unref(&part);
    assert_int_equal(test_pool_stats(f).block_bytes, 0);
}

/* ---- keep -------------------------------------------------------------------------------------------- */

static void keep_references_large_slices_and_copies_small_ones(void **state) {
    test_fixture *f = *state;
    weir_pool *pool = weir_loop_get_pool(f->loop);
    weir_slice slice, part, out;
    uint8_t *data;
    test_ok(weir_slice_new(pool, 8000, &data, &slice));
    test_fill(1, 0, data, 8000);
    test_ok(weir_slice_sub(&slice, 16, 1000, &part)); /* an eighth */
    test_ok(weir_slice_keep(&part, &out));
    assert_ptr_equal(out.data, part.data);
    weir_slice_unref(&out);
    part.size--;
    test_ok(weir_slice_keep(&part, &out)); /* less */
    assert_ptr_not_equal(out.data, part.data);
    assert_int_equal(out.size, 999);
    weir_slice_unref(&slice);
    weir_slice_unref(&part);
    assert_int_equal(test_differs(1, 16, out.data, 999), -1);
    assert_true(test_pool_stats(f).block_bytes < 2000); /* the large one is gone */
    weir_slice_unref(&out);
}

/* What kept slices occupy is never more than eight times what was kept. */
static void kept_bytes_bound_what_is_occupied(void **state) {
    (void)state;
    static const size_t sizes[] = { 8, 40, 400, 2048, 5000 };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        test_fixture f;
        static witness w;
        static uint8_t data[5000];
        const weir_pool_options options = { .size = sizeof options, .buffer_bytes = 16384 };
        test_open(&f, NULL, &options);
        int peer = witness_pair(&f, &w, true, NULL);
        w.hook = keep_all;
        for (unsigned n = 0; n < 60; n++) {
            test_fill(i, n * sizes[i], data, sizes[i]);
            peer_send(peer, data, sizes[i]);
            run_until(&f, w.size == (n + 1) * sizes[i]);
            test_ok(keep_result);
        }
        size_t position = 0;
        for (unsigned n = 0; n < kept_count; n++) {
            assert_int_equal(test_differs(i, position, kept[n].data, kept[n].size), -1);
            position += kept[n].size;
        }
        weir_pool_stats stats = test_pool_stats(&f);
        assert_true(stats.pinned_bytes + stats.block_bytes <= 8 * position + 16384); /* + the one that fills */
        drop_all();
        close(peer);
        test_close(&f);
    }
}

/* ---- blocks and wrapped memory ----------------------------------------------------------------------- */

static void the_budget_bounds_blocks_and_leaves_receiving_its_share(void **state) {
    (void)state;
    test_fixture f;
    static witness w;
    const weir_pool_options options = {
        .size = sizeof options, .budget_bytes = 1 << 20, .buffer_bytes = 16384, .window_bytes = 65536
    };
    weir_slice slices[64], out = { (const uint8_t *)"x", 7, NULL };
    unsigned count = 0;
    uint8_t *data = NULL;
    int r = 0;
    test_open(&f, NULL, &options);
    int peer = witness_pair(&f, &w, false, NULL);
    weir_pool *pool = weir_loop_get_pool(f.loop);
    while (count < 64 && (r = weir_slice_new(pool, 32768, &data, &slices[count])) == 0)
        count++;
    assert_int_equal(r, -ENOBUFS);
    assert_true(count * 32768 <= (3 << 20) / 4 && count >= 20); /* of what the reserve leaves */
    data = NULL;
    assert_int_equal(weir_slice_new(pool, 32768, &data, &out), -ENOBUFS);
    assert_null(data);
    assert_int_equal(weir_slice_copy(pool, slices[0].data, 32768, &out), -ENOBUFS);
    assert_int_equal(weir_slice_new(pool, SIZE_MAX, &data, &out), -ENOBUFS);
    assert_int_equal(weir_slice_new(pool, SIZE_MAX - 8, &data, &out), -ENOBUFS);
    assert_int_equal(out.size, 7);
    static uint8_t much[100000];
    assert_int_equal(weir_stream_write(w.stream, much, 32768), -ENOBUFS); /* a copied write counts as well */
    assert_int_equal(weir_stream_get_queued(w.stream), 0);
    weir_pool_stats stats = test_pool_stats(&f);
    assert_true(stats.used_bytes <= stats.budget_bytes);
    peer_send(peer, much, sizeof much); /* and yet it receives */
    run_until(&f, w.size == sizeof much);
    weir_slice_unref(&slices[--count]);
    test_ok(weir_slice_new(pool, 32768, &data, &out));
    weir_slice_unref(&out);
    while (count > 0)
        weir_slice_unref(&slices[--count]);
    close(peer);
    test_close(&f);
}

static void wrapped_memory_is_released_with_its_last_reference(void **state) {
    test_fixture *f = *state;
    static witness w;
    static const uint8_t memory[] = "somebody else's";
    weir_slice slice, second, third;
    char got[15];
    lent it = { 0 };
    int peer = witness_pair(f, &w, false, NULL);
    weir_pool *pool = weir_loop_get_pool(f->loop);
    test_ok(weir_slice_wrap(pool, memory, 15, lent_release, &it, &slice));
    assert_ptr_equal(slice.data, memory);
    test_ok(weir_slice_keep(&slice, &second)); /* it pins nothing of ours: never copied */
    assert_ptr_equal(second.data, memory);
    test_ok(weir_slice_sub(&slice, 3, 5, &third));
    assert_int_equal(test_pool_stats(f).block_bytes, 0);
    assert_int_equal(weir_stream_write_slice(w.stream, &slice), WEIR_WRITE_OK);
    weir_slice_unref(&slice);
    weir_slice_unref(&second);
    run_until(f, weir_stream_get_queued(w.stream) == 0);
    peer_receive(peer, got, 15);
    assert_memory_equal(got, memory, 15);
    assert_int_equal(it.releases, 0);
    weir_slice_unref(&third);
    assert_int_equal(it.releases, 1);
    assert_ptr_equal(it.data, memory);
    assert_int_equal(it.size, 15);                                  /* all of it, whatever slice was the last */
    test_ok(weir_slice_wrap(pool, memory, 15, NULL, NULL, &slice)); /* memory that is always there */
    weir_slice_unref(&slice);
    close(peer);
}

/* ---- beyond the loop --------------------------------------------------------------------------------- */

static void *drop_elsewhere(void *userdata) {
    (void)userdata;
    drop_all();
    return NULL;
}

static void slices_stay_good_when_the_loop_is_gone(void **state) {
    (void)state;
    for (int elsewhere = 0; elsewhere <= 1; elsewhere++) {
        test_fixture f;
        static witness w;
        static uint8_t data[1000];
        lent it = { 0 };
        weir_slice copy;
        pthread_t thread;
        test_open(&f, NULL, NULL);
        int peer = witness_pair(&f, &w, true, NULL);
        w.hook = ref_all;
        test_fill(3, 0, data, sizeof data);
        peer_send(peer, data, sizeof data);
        run_until(&f, w.size == sizeof data);
        weir_pool *pool = weir_loop_get_pool(f.loop);
        test_ok(weir_slice_copy(pool, "hello", 5, &kept[kept_count++]));
        test_ok(weir_slice_wrap(pool, data, sizeof data, lent_release, &it, &kept[kept_count++]));
        test_ok(weir_loop_close(f.loop));
        weir_loop_unref(f.loop);
        close(peer);
        assert_true(atomic_load(&f.memory.live_blocks) > 0);
        size_t position = 0;
        for (unsigned i = 0; i + 2 < kept_count; i++) {
            assert_int_equal(test_differs(3, position, kept[i].data, kept[i].size), -1);
            position += kept[i].size;
        }
        assert_int_equal(position, sizeof data);
        weir_slice_ref(&kept[0], &copy); /* more of them, too */
        weir_slice_unref(&kept[0]);
        kept[0] = copy;
        test_ok(weir_slice_keep(&kept[0], &copy));
        weir_slice_unref(&copy);
        if (elsewhere) {
            assert_int_equal(pthread_create(&thread, NULL, drop_elsewhere, NULL), 0);
            assert_int_equal(pthread_join(thread, NULL), 0);
        } else {
            drop_all();
        }
        assert_int_equal(it.releases, 1);
        assert_int_equal(atomic_load(&f.memory.live_blocks), 0);
    }
}

static void one_slice_goes_to_many_streams(void **state) {
    test_fixture *f = *state;
    enum { COUNT = 20 };
    static witness w[COUNT];
    static uint8_t got[50000];
    weir_slice slice;
    uint8_t *data;
    int peers[COUNT];
    test_ok(weir_slice_new(weir_loop_get_pool(f->loop), sizeof got, &data, &slice));
    test_fill(8, 0, data, sizeof got);
    for (int i = 0; i < COUNT; i++) {
        peers[i] = witness_pair(f, &w[i], i % 2, NULL);
        assert_int_equal(weir_stream_write_slice(w[i].stream, &slice), WEIR_WRITE_OK);
    }
    weir_slice_unref(&slice);
    for (int i = 0; i < COUNT; i++)
        run_until(f, weir_stream_get_queued(w[i].stream) == 0);
    for (int i = 0; i < COUNT; i++) {
        peer_receive(peers[i], got, sizeof got);
        assert_int_equal(test_differs(8, 0, got, sizeof got), -1);
        close(peers[i]);
    }
    assert_int_equal(test_loop_stats(f).bytes_copied, 0);
    assert_int_equal(test_pool_stats(f).block_bytes, 0);
}

/* ---- two loops, two threads -------------------------------------------------------------------------- */

enum { FLIGHTS = 300, FLIGHT_BYTES = 3000 };

typedef struct relay {
    test_fixture fixture;
    weir_stream *out; /* of this loop */
    pthread_t thread;
    weir_slice slice;
} relay;

static relay receiver, sender;

static void send_it(weir_loop *loop, void *userdata) {
    weir_slice *slice = userdata;
    (void)loop;
    if (weir_stream_write_slice(sender.out, slice) < 0)
        abort();
    weir_slice_unref(slice);
    free(slice);
}

/* What one loop received goes out through the other, and at the same time back through its own. */
static void hand_over(witness *w, char event, const weir_slice *slice) {
    if (event != 'd')
        return;
    weir_slice *mine = malloc(sizeof *mine);
    weir_slice_ref(slice, mine);
    if (weir_loop_post(sender.fixture.loop, send_it, mine) != 0 || weir_stream_write_slice(w->stream, slice) < 0)
        abort();
}

static void *run_sender(void *userdata) {
    (void)userdata;
    return (void *)(intptr_t)(weir_loop_run(sender.fixture.loop) | weir_loop_close(sender.fixture.loop));
}

static void a_slice_is_sent_by_two_loops_at_once(void **state) {
    (void)state;
    static witness in;
    static uint8_t data[FLIGHT_BYTES], got[FLIGHT_BYTES];
    static const weir_stream_callbacks none = { .size = sizeof none };
    weir_loop_options keep = { .flags = WEIR_LOOP_KEEP_RUNNING };
    const weir_stream_options wide = { .size = sizeof wide, .queue_limit_bytes = 1 << 30 };
    int out[2];
    void *answer;
    test_open(&receiver.fixture, NULL, NULL);
    test_open_options(&sender.fixture, NULL, &keep);
    test_pair(true, out);
    test_ok(weir_stream_adopt(sender.fixture.loop, out[0], &wide, &sender.out));
    test_ok(weir_stream_start(sender.out, &none, NULL));
    int peer = witness_pair(&receiver.fixture, &in, true, NULL);
    in.hook = hand_over;
    assert_int_equal(pthread_create(&sender.thread, NULL, run_sender, NULL), 0);
    for (unsigned i = 0; i < FLIGHTS; i++) {
        test_fill(i, 0, data, sizeof data);
        peer_send(peer, data, sizeof data);
        run_until(&receiver.fixture, in.size == (i + 1) * sizeof data && weir_stream_get_queued(in.stream) == 0);
        peer_receive(peer, got, sizeof got);
        assert_int_equal(test_differs(i, 0, got, sizeof got), -1);
        peer_receive(out[1], got, sizeof got);
        assert_int_equal(test_differs(i, 0, got, sizeof got), -1);
    }
    test_ok(weir_loop_close(receiver.fixture.loop)); /* before the sender: its slices stay good */
    weir_loop_stop(sender.fixture.loop);
    assert_int_equal(pthread_join(sender.thread, &answer), 0);
    assert_int_equal((int)(intptr_t)answer, 0);
    weir_loop_unref(receiver.fixture.loop);
    weir_loop_unref(sender.fixture.loop);
    assert_int_equal(atomic_load(&receiver.fixture.memory.live_blocks), 0);
    assert_int_equal(atomic_load(&sender.fixture.memory.live_blocks), 0);
    close(peer);
    close(out[1]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        loop_test(a_referenced_slice_stays_readable_beyond_its_callback),
        loop_test(unref_empties_the_variable_so_twice_does_nothing),
        loop_test(a_slice_may_be_narrowed_in_place),
        loop_test(uncounted_bytes_cannot_be_referenced),
        loop_test(a_part_holds_the_whole),
        loop_test(keep_references_large_slices_and_copies_small_ones),
        cmocka_unit_test(kept_bytes_bound_what_is_occupied),
        cmocka_unit_test(the_budget_bounds_blocks_and_leaves_receiving_its_share),
        loop_test(wrapped_memory_is_released_with_its_last_reference),
        cmocka_unit_test(slices_stay_good_when_the_loop_is_gone),
        loop_test(one_slice_goes_to_many_streams),
        cmocka_unit_test(a_slice_is_sent_by_two_loops_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
