/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

/* The way of a byte, once everything is warm: it allocates nothing, copies nothing, and enters the kernel about once a
 * turn. */

enum { STREAMS = 6, LARGEST = 20000 };

static weir_timer *idle_timers[STREAMS];

static void too_idle(weir_timer *timer, void *userdata) {
    (void)timer, (void)userdata;
    fail_msg("an idle timeout of a minute is over");
}

/* Echo by sending the received slice, with an idle timeout that each read pushes forward. */
static void echo(witness *w, char event, const weir_slice *slice) {
    if (event != 'd')
        return;
    assert_int_equal(weir_stream_write_slice(w->stream, slice), WEIR_WRITE_OK);
    test_ok(weir_timer_start(*(weir_timer **)w->userdata, INT64_C(60000000000), 0));
}

static void exchange(test_fixture *f, const int *peers, size_t size) {
    static uint8_t data[LARGEST], got[LARGEST];
    size_t have[STREAMS] = { 0 }, all = 0;
    for (int i = 0; i < STREAMS; i++) {
        test_fill((uint64_t)i, size, data, size);
        peer_send(peers[i], data, size);
    }
    while (all < STREAMS * size) {
        assert_true(weir_loop_run_once(f->loop, 1000 * 1000) >= 0);
        for (int i = 0; i < STREAMS; i++) {
            int n = have[i] < size ? peer_poll(peers[i], got, size - have[i]) : 0;
            if (n > 0) {
                assert_int_equal(test_differs((uint64_t)i, size + have[i], got, (size_t)n), -1);
                have[i] += (size_t)n;
                all += (size_t)n;
            }
        }
    }
}

static void echoes_allocate_nothing_and_copy_nothing(void **state) {
    test_fixture *f = *state;
    static const size_t sizes[] = { 40, 1000, 4096, LARGEST };
    static witness w[STREAMS];
    int peers[STREAMS];
    for (int i = 0; i < STREAMS; i++) {
        peers[i] = witness_pair(f, &w[i], i % 2, NULL);
        test_ok(weir_timer_new(f->loop, too_idle, NULL, &idle_timers[i]));
        w[i].hook = echo;
        w[i].userdata = &idle_timers[i];
    }
    for (unsigned round = 0; round < 100; round++) /* warm */
        exchange(f, peers, sizes[round % 4]);
    weir_loop_stats before = test_loop_stats(f), after;
    uint64_t allocations = atomic_load(&f->memory.allocations);
    for (unsigned round = 0; round < 1000; round++)
        exchange(f, peers, sizes[round % 4]);
    after = test_loop_stats(f);
    assert_int_equal(atomic_load(&f->memory.allocations) - allocations, 0);
    assert_int_equal(after.bytes_copied, 0);
    assert_true(after.slices - before.slices >= 1000 * STREAMS);
    assert_int_equal(after.bytes_in, after.bytes_out);
    uint64_t turns = after.turns - before.turns, enters = after.enters - before.enters;
    assert_true(turns > 0);
    assert_true(enters <= turns + turns / 20 + 5);
    for (int i = 0; i < STREAMS; i++) {
        close(peers[i]);
        weir_timer_unref(idle_timers[i]);
    }
}

/* An echo costs two completions, and several streams share a turn: so there are fewer turns than messages. */
static void a_turn_serves_many_streams(void **state) {
    test_fixture *f = *state;
    static witness w[STREAMS];
    int peers[STREAMS];
    for (int i = 0; i < STREAMS; i++) {
        peers[i] = witness_pair(f, &w[i], true, NULL);
        test_ok(weir_timer_new(f->loop, too_idle, NULL, &idle_timers[i]));
        w[i].hook = echo;
        w[i].userdata = &idle_timers[i];
    }
    run_turns(f, 5);
    weir_loop_stats before = test_loop_stats(f), after;
    for (unsigned round = 0; round < 200; round++)
        exchange(f, peers, 100);
    after = test_loop_stats(f);
    assert_true(after.enters - before.enters < 200 * STREAMS);
    assert_true(after.completions - before.completions <= 2 * 200 * STREAMS + 50);
    assert_int_equal(after.rearms - before.rearms, 0);
    for (int i = 0; i < STREAMS; i++) {
        close(peers[i]);
        weir_timer_unref(idle_timers[i]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        loop_test(echoes_allocate_nothing_and_copy_nothing),
        loop_test(a_turn_serves_many_streams),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
