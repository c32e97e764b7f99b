/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

/* Timers. */

static const int64_t ms = 1000000;

typedef struct clock_alarm {
    weir_timer *timer;
    char name;
    unsigned fired;
    uint64_t turn; /* of the loop, when it fired last */
    int64_t at;    /* likewise, ns */
    int64_t again; /* restart inside the callback with this delay; 0: do not */
    bool stops, drops;
    weir_loop *loop;
} clock_alarm;

static char log_of_names[64];

static uint64_t turn_of(weir_loop *loop) {
    weir_loop_stats stats = { .size = sizeof stats };
    test_ok(weir_loop_get_stats(loop, &stats));
    return stats.turns;
}

static void ring(weir_timer *timer, void *userdata) {
    clock_alarm *it = userdata;
    size_t length = strlen(log_of_names);
    if (it->name != '\0' && length + 1 < sizeof log_of_names)
        log_of_names[length] = it->name;
    it->fired++;
    it->turn = turn_of(it->loop);
    it->at = test_now_ns();
    if (it->again > 0)
        test_ok(weir_timer_start(timer, it->again, 0));
    if (it->stops)
        test_ok(weir_timer_stop(timer));
    if (it->drops)
        it->timer = weir_timer_unref(it->timer);
}

static void make(test_fixture *f, clock_alarm *it, char name) {
    *it = (clock_alarm){ .name = name, .loop = f->loop };
    memset(log_of_names, 0, sizeof log_of_names);
    test_ok(weir_timer_new(f->loop, ring, it, &it->timer));
}

static uint32_t started(test_fixture *f) {
    return test_loop_stats(f).timers_started;
}

static void timers_fire_in_the_order_of_their_times(void **state) {
    test_fixture *f = *state;
    clock_alarm a, b, c, d;
    make(f, &a, 'a');
    make(f, &b, 'b');
    make(f, &c, 'c');
    make(f, &d, 'd');
    test_ok(weir_timer_start(a.timer, 30 * ms, 0));
    test_ok(weir_timer_start(b.timer, 10 * ms, 0));
    test_ok(weir_timer_start(c.timer, 40 * ms, 0));
    test_ok(weir_timer_start(d.timer, 20 * ms, 0));
    test_sleep_ms(50); /* all due at once: the order holds all the same */
    test_ok(weir_loop_run(f->loop));
    assert_string_equal(log_of_names, "bdac");
    weir_timer_unref(a.timer);
    weir_timer_unref(b.timer);
    weir_timer_unref(c.timer);
    weir_timer_unref(d.timer);
}

static void a_timer_does_not_fire_early(void **state) {
    test_fixture *f = *state;
    clock_alarm a;
    make(f, &a, 'a');
    for (int i = 1; i <= 5; i++) {
        int64_t start = test_now_ns();
        test_ok(weir_timer_start(a.timer, i * 3 * ms, 0));
        test_ok(weir_loop_run(f->loop));
        assert_true(a.at - start >= i * 3 * ms);
    }
    assert_int_equal(a.fired, 5);
    weir_timer_unref(a.timer);
}

/* ---- the next turn ----------------------------------------------------------------------------------- */

static clock_alarm second_alarm;
static uint64_t turn_of_start;

static void start_second_in_timer(weir_timer *timer, void *userdata) {
    (void)timer, (void)userdata;
    turn_of_start = turn_of(second_alarm.loop);
    test_ok(weir_timer_start(second_alarm.timer, 0, 0));
}

static void start_second_in_post(weir_loop *loop, void *userdata) {
    (void)loop;
    start_second_in_timer(NULL, userdata);
}

static void start_second_in_stream(witness *w, char event, const weir_slice *slice) {
    (void)w, (void)slice;
    if (event == 'd')
        start_second_in_timer(NULL, NULL);
}

static void no_delay_in_a_timers_callback_is_the_next_turn(void **state) {
    test_fixture *f = *state;
    weir_timer *first;
    make(f, &second_alarm, 'b');
    test_ok(weir_timer_new(f->loop, start_second_in_timer, NULL, &first));
    test_ok(weir_timer_start(first, 0, 0));
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(second_alarm.fired, 1);
    assert_true(second_alarm.turn > turn_of_start);
    weir_timer_unref(first);
    weir_timer_unref(second_alarm.timer);
}

static void no_delay_in_a_data_callback_is_the_next_turn(void **state) {
    test_fixture *f = *state;
    static witness w;
    make(f, &second_alarm, 'b');
    int peer = witness_pair(f, &w, false, NULL);
    w.hook = start_second_in_stream;
    peer_send(peer, "x", 1);
    run_until(f, second_alarm.fired == 1);
    assert_true(second_alarm.turn > turn_of_start);
    weir_timer_unref(second_alarm.timer);
    close(peer);
}

static void no_delay_in_a_post_is_the_next_turn(void **state) {
    test_fixture *f = *state;
    make(f, &second_alarm, 'b');
    test_ok(weir_loop_post(f->loop, start_second_in_post, NULL));
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(second_alarm.fired, 1);
    assert_true(second_alarm.turn > turn_of_start);
    weir_timer_unref(second_alarm.timer);
}

/* ---- repeating --------------------------------------------------------------------------------------- */

static void a_repeating_timer_fires_again_and_again(void **state) {
    test_fixture *f = *state;
    clock_alarm a;
    make(f, &a, 'a');
    int64_t start = test_now_ns();
    test_ok(weir_timer_start(a.timer, 0, 5 * ms));
    run_until(f, a.fired >= 6);
    assert_true(a.at - start >= 5 * 5 * ms);
    assert_int_equal(started(f), 1);
    weir_timer_unref(a.timer);
    assert_int_equal(started(f), 0);
}

static void a_late_timer_fires_once_not_once_a_period(void **state) {
    test_fixture *f = *state;
    clock_alarm a;
    make(f, &a, 'a');
    test_ok(weir_timer_start(a.timer, 10 * ms, 10 * ms));
    test_sleep_ms(105);
    run_turns(f, 3);
    assert_true(a.fired >= 1 && a.fired <= 2); /* ten periods are over */
    weir_timer_unref(a.timer);
}

static void a_timer_that_does_not_repeat_stops(void **state) {
    test_fixture *f = *state;
    clock_alarm a;
    make(f, &a, 'a');
    test_ok(weir_timer_start(a.timer, 0, 5 * ms));
    test_ok(weir_timer_start(a.timer, 0, 0)); /* moved, and the repetition is gone */
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(a.fired, 1);
    assert_int_equal(started(f), 0);
    weir_timer_unref(a.timer);
}

/* ---- in their own callback --------------------------------------------------------------------------- */

static void stop_in_its_own_callback_ends_a_repetition(void **state) {
    test_fixture *f = *state;
    clock_alarm a;
    make(f, &a, 'a');
    a.stops = true;
    test_ok(weir_timer_start(a.timer, 0, 1 * ms));
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(a.fired, 1);
    weir_timer_unref(a.timer);
}

static void unref_in_its_own_callback_ends_a_repetition(void **state) {
    test_fixture *f = *state;
    clock_alarm a;
    make(f, &a, 'a');
    a.drops = true;
    test_ok(weir_timer_start(a.timer, 0, 1 * ms));
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(a.fired, 1);
    assert_null(a.timer);
}

static void start_in_its_own_callback_starts_it_again(void **state) {
    test_fixture *f = *state;
    clock_alarm a;
    make(f, &a, 'a');
    a.again = 2 * ms;
    test_ok(weir_timer_start(a.timer, 0, 0));
    run_until(f, a.fired == 3);
    a.again = 0;
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(a.fired, 4);
    weir_timer_unref(a.timer);
}

/* ---- stopping ---------------------------------------------------------------------------------------- */

static clock_alarm victim;

static void stop_the_victim(weir_timer *timer, void *userdata) {
    (void)timer, (void)userdata;
    test_ok(weir_timer_stop(victim.timer));
}

static void a_due_timer_that_another_one_stops_does_not_fire(void **state) {
    test_fixture *f = *state;
    weir_timer *killer;
    make(f, &victim, 'v');
    test_ok(weir_timer_new(f->loop, stop_the_victim, NULL, &killer));
    test_ok(weir_timer_start(killer, 1 * ms, 0));
    test_ok(weir_timer_start(victim.timer, 2 * ms, 0));
    test_sleep_ms(5); /* both are due in the same turn */
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(victim.fired, 0);
    weir_timer_unref(killer);
    weir_timer_unref(victim.timer);
}

static void stop_is_fine_for_one_that_was_not_started(void **state) {
    test_fixture *f = *state;
    clock_alarm a;
    make(f, &a, 'a');
    test_ok(weir_timer_stop(a.timer));
    test_ok(weir_timer_start(a.timer, 3600 * 1000 * ms, 0));
    assert_int_equal(started(f), 1);
    test_ok(weir_timer_stop(a.timer));
    test_ok(weir_timer_stop(a.timer));
    assert_int_equal(started(f), 0);
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(a.fired, 0);
    weir_timer_unref(a.timer);
}

static void the_last_unref_stops_a_timer_and_no_other_does(void **state) {
    test_fixture *f = *state;
    clock_alarm a;
    make(f, &a, 'a');
    assert_ptr_equal(weir_timer_ref(a.timer), a.timer);
    test_ok(weir_timer_start(a.timer, 1 * ms, 0));
    assert_null(weir_timer_unref(a.timer));
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(a.fired, 1);
    test_ok(weir_timer_start(a.timer, 1 * ms, 0));
    weir_timer_unref(a.timer);
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(a.fired, 1);
}

/* ---- another thread ---------------------------------------------------------------------------------- */

static clock_alarm *post_saw;
static unsigned fired_at_post;

static void after_unref(weir_loop *loop, void *userdata) {
    (void)loop;
    post_saw = userdata;
    fired_at_post = post_saw->fired;
}

static void *unref_elsewhere(void *userdata) {
    clock_alarm *a = userdata;
    test_sleep_ms(20);
    weir_timer_unref(a->timer);
    assert_int_equal(weir_loop_post(a->loop, after_unref, a), 0);
    return NULL;
}

static void unref_on_another_thread_ends_a_timer(void **state) {
    test_fixture *f = *state;
    clock_alarm a;
    pthread_t thread;
    make(f, &a, 'a');
    test_ok(weir_timer_start(a.timer, 0, 100000));
    run_turns(f, 1); /* bound to this thread */
    post_saw = NULL;
    assert_int_equal(pthread_create(&thread, NULL, unref_elsewhere, &a), 0);
    test_ok(weir_loop_run(f->loop)); /* returns: nothing is started any more */
    assert_int_equal(pthread_join(thread, NULL), 0);
    test_ok(weir_loop_run(f->loop)); /* the post may have come only now */
    assert_ptr_equal(post_saw, &a);
    assert_int_equal(a.fired, fired_at_post); /* the post was after the last one */
    assert_int_equal(started(f), 0);
}

static void *only_unref(void *timer) {
    return weir_timer_unref(timer);
}

static void unref_on_another_thread_may_come_after_the_loops_close(void **state) {
    test_fixture *f = *state;
    clock_alarm a;
    pthread_t thread;
    make(f, &a, 'a');
    test_ok(weir_timer_start(a.timer, 3600 * 1000 * ms, 0));
    test_ok(weir_loop_close(f->loop));
    assert_int_equal(weir_timer_start(a.timer, 0, 0), -ESHUTDOWN);
    assert_int_equal(pthread_create(&thread, NULL, only_unref, a.timer), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(a.fired, 0);
}

/* ---- many, far and often ----------------------------------------------------------------------------- */

static void a_timer_that_is_pushed_forward_fires_once_and_not_before(void **state) {
    test_fixture *f = *state;
    clock_alarm a;
    make(f, &a, 'a');
    run_turns(f, 2); /* buffers are there */
    uint64_t allocations = atomic_load(&f->memory.allocations);
    int64_t last = 0;
    for (int i = 0; i < 20000; i++) {
        last = test_now_ns();
        test_ok(weir_timer_start(a.timer, 40 * ms, 0));
        if (i % 1000 == 0)
            run_turns(f, 1);
        if (a.fired > 0 && test_now_ns() - last >= 40 * ms)
            a.fired = 0; /* this machine is that slow */
    }
    assert_int_equal(atomic_load(&f->memory.allocations), allocations);
    assert_int_equal(a.fired, 0);
    assert_int_equal(started(f), 1);
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(a.fired, 1);
    assert_true(a.at - last >= 40 * ms);
    weir_timer_unref(a.timer);
}

static void a_timer_that_is_pulled_closer_fires_then(void **state) {
    test_fixture *f = *state;
    clock_alarm a;
    make(f, &a, 'a');
    test_ok(weir_timer_start(a.timer, 3600 * 1000 * ms, 0));
    test_ok(weir_timer_start(a.timer, 5 * ms, 0));
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(a.fired, 1);
    weir_timer_unref(a.timer);
}

static void a_thousand_timers_in_any_order_fire_in_theirs(void **state) {
    test_fixture *f = *state;
    enum { COUNT = 1000 };
    static clock_alarm all[COUNT];
    static int64_t earliest[COUNT], latest[COUNT]; /* when it is due */
    uint64_t random = 7;
    for (int i = 0; i < COUNT; i++) {
        make(f, &all[i], '\0');
        test_ok(weir_timer_start(all[i].timer, (int64_t)(test_random(&random) % 60) * ms, 0));
    }
    for (int i = 0; i < COUNT; i++) {
        int64_t delay = (int64_t)(test_random(&random) % 30) * ms;
        earliest[i] = test_now_ns() + delay;
        test_ok(weir_timer_start(all[i].timer, delay, 0));
        latest[i] = test_now_ns() + delay;
    }
    for (int i = 0; i < COUNT; i += 3)
        all[i].timer = weir_timer_unref(all[i].timer);
    test_ok(weir_loop_run(f->loop));
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(all[i].fired, i % 3 != 0);
        weir_timer_unref(all[i].timer);
    }
    for (int i = 0; i < COUNT; i++)
        for (int j = 0; j < COUNT; j += 97)
            if (i % 3 != 0 && j % 3 != 0 && latest[i] < earliest[j])
                assert_true(all[i].at <= all[j].at);
}

static void a_timer_that_never_comes_keeps_run_going_until_it_is_stopped(void **state) {
    test_fixture *f = *state;
    clock_alarm far, soon;
    make(f, &far, 'f');
    make(f, &soon, 's');
    test_ok(weir_timer_start(far.timer, INT64_MAX, INT64_MAX));
    assert_int_equal(weir_loop_is_idle(f->loop), 0);
    test_ok(weir_timer_start(soon.timer, 5 * ms, 0));
    run_until(f, soon.fired == 1);
    assert_int_equal(weir_loop_run_once(f->loop, 5 * ms), 1);
    test_ok(weir_timer_stop(far.timer));
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(far.fired, 0);
    weir_timer_unref(far.timer);
    weir_timer_unref(soon.timer);
}

static void a_timer_may_outlive_its_loops_handle(void **state) {
    (void)state;
    test_memory memory;
    test_memory_init(&memory);
    weir_loop_options options = { .size = sizeof options, .allocator = &memory.allocator };
    weir_loop *loop;
    weir_timer *timer;
    unsigned never = 0;
    test_ok(weir_loop_new(&options, &loop));
    test_ok(weir_timer_new(loop, ring, &never, &timer));
    test_ok(weir_timer_start(timer, 1, 0));
    test_ok(weir_loop_close(loop));
    weir_loop_unref(loop);
    assert_int_equal(weir_timer_start(timer, 0, 0), -ESHUTDOWN);
    assert_null(weir_timer_unref(timer));
    assert_int_equal(atomic_load(&memory.live_blocks), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        loop_test(timers_fire_in_the_order_of_their_times),
        loop_test(a_timer_does_not_fire_early),
        loop_test(no_delay_in_a_timers_callback_is_the_next_turn),
        loop_test(no_delay_in_a_data_callback_is_the_next_turn),
        loop_test(no_delay_in_a_post_is_the_next_turn),
        loop_test(a_repeating_timer_fires_again_and_again),
        loop_test(a_late_timer_fires_once_not_once_a_period),
        loop_test(a_timer_that_does_not_repeat_stops),
        loop_test(stop_in_its_own_callback_ends_a_repetition),
        loop_test(unref_in_its_own_callback_ends_a_repetition),
        loop_test(start_in_its_own_callback_starts_it_again),
        loop_test(a_due_timer_that_another_one_stops_does_not_fire),
        loop_test(stop_is_fine_for_one_that_was_not_started),
        loop_test(the_last_unref_stops_a_timer_and_no_other_does),
        loop_test(unref_on_another_thread_ends_a_timer),
        loop_test(unref_on_another_thread_may_come_after_the_loops_close),
        loop_test(a_timer_that_is_pushed_forward_fires_once_and_not_before),
        loop_test(a_timer_that_is_pulled_closer_fires_then),
        loop_test(a_thousand_timers_in_any_order_fire_in_theirs),
        loop_test(a_timer_that_never_comes_keeps_run_going_until_it_is_stopped),
        cmocka_unit_test(a_timer_may_outlive_its_loops_handle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
