/* SPDX-License-Identifier: MIT */
/* Timers, on a clock that the test moves. */
#include "loop/loop.h"

#include <pthread.h>

#include "scripted/scripted.h"
#include "support/support.h"

static test_fixture f;
static const weir__tuning tuning = { .no_self_test = true };

enum { MS = 1000000 };

/* A timer that tells its name, and may do something more. */
typedef struct chime {
    weir_timer *timer;
    char name;
    unsigned fired;
    void (*then)(struct chime *chime);
    struct chime *other;
} chime;

static chime chimes[64];
static char story[128];

static int setup(void **state) {
    (void)state;
    memset(chimes, 0, sizeof chimes);
    memset(story, 0, sizeof story);
    script_begin();
    script_answer_cancels(true);
    test_open(&f, &tuning, NULL);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof chimes / sizeof *chimes; i++)
        weir_timer_unref(chimes[i].timer);
    test_close(&f);
    script_end();
    return 0;
}

static void ring(weir_timer *timer, void *userdata) {
    chime *c = userdata;
    assert_ptr_equal(timer, c->timer);
    size_t length = strlen(story);
    assert_true(length + 1 < sizeof story);
    story[length] = c->name;
    c->fired++;
    if (c->then != NULL)
        c->then(c);
}

static chime *make(char name) {
    chime *c = chimes;
    while (c->timer != NULL)
        c++;
    c->name = name;
    test_ok(weir_timer_new(f.loop, ring, c, &c->timer));
    return c;
}

static chime *start(char name, int64_t delay_ms, int64_t repeat_ms) {
    chime *c = make(name);
    test_ok(weir_timer_start(c->timer, delay_ms * MS, repeat_ms * MS));
    return c;
}

/* One turn, @ms later. */
static void after(int64_t ms) {
    script_advance_ns(ms * MS);
    assert_true(weir_loop_run_once(f.loop, 0) >= 0);
}

/* ---- in order --------------------------------------------------------------------------------------- */

static void timers_fire_in_order_of_time(void **state) {
    (void)state;
    start('c', 30, 0);
    start('a', 10, 0);
    start('d', 40, 0);
    start('b', 20, 0);
    after(100);
    assert_string_equal(story, "abcd");
}

static void timer_fires_when_due_and_not_before(void **state) {
    (void)state;
    start('a', 10, 0);
    after(9);
    assert_string_equal(story, "");
    after(1);
    assert_string_equal(story, "a");
    after(100);
    assert_string_equal(story, "a"); /* once */
}

static void loop_sleeps_until_the_next_timer(void **state) {
    (void)state;
    start('a', 10, 0);
    start('b', 30, 0);
    int64_t begun = weir__sys_now();
    test_ok(weir_loop_run(f.loop));
    assert_string_equal(story, "ab");
    assert_int_equal(weir__sys_now() - begun, 30 * MS);
    assert_int_equal(test_loop_stats(&f).turns, 2);
}

static void repeating_timer_keeps_its_beat(void **state) {
    (void)state;
    start('r', 10, 20);
    after(12); /* late by two */
    assert_string_equal(story, "r");
    after(17);
    assert_string_equal(story, "r");
    after(1); /* at 30: its beat does not drift */
    assert_string_equal(story, "rr");
}

static void late_timer_fires_once_and_not_for_each_period_missed(void **state) {
    (void)state;
    start('r', 10, 10);
    after(95);
    assert_string_equal(story, "r");
    after(9);
    assert_string_equal(story, "r");
    after(1); /* a period after it was late */
    assert_string_equal(story, "rr");
}

static void timer_started_again_is_moved(void **state) {
    (void)state;
    chime *c = start('a', 10, 0);
    test_ok(weir_timer_start(c->timer, 50 * MS, 0));
    after(20);
    assert_string_equal(story, "");
    test_ok(weir_timer_start(c->timer, 5 * MS, 0)); /* and back */
    after(5);
    assert_string_equal(story, "a");
    assert_int_equal(test_loop_stats(&f).timers_started, 0);
}

static void timer_pushed_forward_at_every_read_never_fires(void **state) {
    (void)state;
    chime *c = start('i', 10, 0);
    uint64_t allocations = atomic_load(&f.memory.allocations);
    for (int i = 0; i < 1000; i++) {
        after(9);
        test_ok(weir_timer_start(c->timer, 10 * MS, 0));
    }
    assert_string_equal(story, "");
    assert_int_equal(atomic_load(&f.memory.allocations), allocations);
    after(10);
    assert_string_equal(story, "i");
}

static void pushing_a_timer_forward_touches_no_other(void **state) {
    (void)state;
    chime *c = start('i', 10, 0);
    for (int i = 0; i < 9; i++)
        start('x', 20 + i, 0);
    weir__heap_node *before[10];
    memcpy(before, f.loop->timers.nodes, sizeof before);
    test_ok(weir_timer_start(c->timer, 1000 * MS, 0));
    assert_memory_equal(before, f.loop->timers.nodes, sizeof before);
}

static void timer_for_ever_away_does_not_overflow(void **state) {
    (void)state;
    chime *c = make('a');
    test_ok(weir_timer_start(c->timer, INT64_MAX, INT64_MAX));
    after(1000);
    assert_string_equal(story, "");
    test_ok(weir_timer_start(c->timer, 0, INT64_MAX));
    after(1);
    after(1);
    assert_string_equal(story, "a");
}

/* ---- from inside ------------------------------------------------------------------------------------ */

static void stop_self(chime *c) {
    test_ok(weir_timer_stop(c->timer));
}

static void repeating_timer_may_stop_itself(void **state) {
    (void)state;
    start('r', 10, 10)->then = stop_self;
    after(10);
    after(10);
    assert_string_equal(story, "r");
    assert_int_equal(weir_loop_is_idle(f.loop), 1);
}

static void stop_other(chime *c) {
    test_ok(weir_timer_stop(c->other->timer));
}

static void timer_stopped_in_the_turn_it_is_due_does_not_fire(void **state) {
    (void)state;
    chime *a = start('a', 10, 0);
    a->then = stop_other;
    a->other = start('b', 20, 0);
    after(100);
    assert_string_equal(story, "a");
}

static void drop_self(chime *c) {
    c->timer = weir_timer_unref(c->timer);
}

static void timer_may_be_dropped_in_its_own_callback(void **state) {
    (void)state;
    start('a', 10, 10)->then = drop_self;
    after(10);
    after(10);
    assert_string_equal(story, "a");
    assert_int_equal(test_loop_stats(&f).timers_started, 0);
}

static void drop_other(chime *c) {
    c->other->timer = weir_timer_unref(c->other->timer);
}

static void timer_dropped_in_the_turn_it_is_due_does_not_fire(void **state) {
    (void)state;
    chime *a = start('a', 10, 0);
    a->then = drop_other;
    a->other = start('b', 20, 0);
    after(100);
    assert_string_equal(story, "a");
}

static void start_self_at_once(chime *c) {
    if (c->fired < 20)
        test_ok(weir_timer_start(c->timer, 0, 0));
}

/* A timer of no delay that starts itself used to run for a whole turn's worth of events before anything else
 * did. */
static void timer_started_in_a_callback_fires_in_a_later_turn(void **state) {
    (void)state;
    start('a', 0, 0)->then = start_self_at_once;
    after(1);
    assert_string_equal(story, "a");
    after(1);
    assert_string_equal(story, "aa");
    after(1);
    assert_string_equal(story, "aaa");
}

static void start_later(chime *c) {
    test_ok(weir_timer_start(c->timer, 5 * MS, 0));
}

static void timer_may_start_itself_again(void **state) {
    (void)state;
    start('a', 10, 0)->then = start_later;
    after(10);
    assert_string_equal(story, "a");
    assert_int_equal(test_loop_stats(&f).timers_started, 1);
    after(4);
    assert_string_equal(story, "a");
    after(1);
    assert_string_equal(story, "aa");
}

static void stop_loop(chime *c) {
    (void)c;
    weir_loop_stop(f.loop);
}

static void loop_stopped_by_a_timer_returns(void **state) {
    (void)state;
    start('a', 10, 10)->then = stop_loop;
    test_ok(weir_loop_run(f.loop));
    assert_string_equal(story, "a");
    test_ok(weir_loop_run(f.loop));
    assert_string_equal(story, "aa");
}

static void turn_has_a_limit_of_timers(void **state) {
    (void)state;
    weir_loop_options options = { .max_turn_events = 3 };
    test_close(&f);
    test_open_options(&f, &tuning, &options);
    for (int i = 0; i < 7; i++)
        start((char)('a' + i), 10 + i, 0);
    after(100);
    assert_string_equal(story, "abc");
    assert_true(weir_loop_run_once(f.loop, 1000 * MS) >= 0); /* goes on without sleeping */
    assert_int_equal(script_last_enter().wait, 0);
    assert_string_equal(story, "abcdef");
    after(0);
    assert_string_equal(story, "abcdefg");
}

/* ---- life ------------------------------------------------------------------------------------------- */

static void timer_not_started_keeps_nothing_running(void **state) {
    (void)state;
    make('a');
    test_ok(weir_loop_run(f.loop));
    chime *c = start('b', 10, 0);
    assert_int_equal(weir_loop_is_idle(f.loop), 0);
    test_ok(weir_timer_stop(c->timer));
    test_ok(weir_timer_stop(c->timer));
    assert_int_equal(weir_loop_is_idle(f.loop), 1);
    after(100);
    assert_string_equal(story, "");
}

static void timer_wants_a_loop_a_function_and_times(void **state) {
    (void)state;
    weir_timer *timer = NULL;
    assert_int_equal(weir_timer_new(NULL, ring, NULL, &timer), -EINVAL);
    assert_int_equal(weir_timer_new(f.loop, NULL, NULL, &timer), -EINVAL);
    assert_int_equal(weir_timer_new(f.loop, ring, NULL, NULL), -EINVAL);
    chime *c = make('a');
    assert_int_equal(weir_timer_start(NULL, 0, 0), -EINVAL);
    assert_int_equal(weir_timer_start(c->timer, -1, 0), -EINVAL);
    assert_int_equal(weir_timer_start(c->timer, 0, -1), -EINVAL);
    assert_int_equal(weir_timer_stop(NULL), -EINVAL);
    assert_null(weir_timer_ref(NULL));
    assert_null(weir_timer_unref(NULL));
    assert_int_equal(weir_loop_is_idle(f.loop), 1);
}

static void timer_without_memory_is_not_made(void **state) {
    (void)state;
    weir_timer *timer = NULL;
    uint64_t live = atomic_load(&f.memory.live_blocks);
    atomic_store(&f.memory.fail_at, atomic_load(&f.memory.allocations) + 1);
    assert_int_equal(weir_timer_new(f.loop, ring, NULL, &timer), -ENOMEM);
    assert_null(timer);
    assert_int_equal(atomic_load(&f.memory.live_blocks), live);
    for (int i = 0; i < 63; i++)
        make('x'); /* with the loop's own, all places of the heap */
    atomic_store(&f.memory.fail_at, atomic_load(&f.memory.allocations) + 2);
    assert_int_equal(weir_timer_new(f.loop, ring, NULL, &timer), -ENOMEM);
    assert_null(timer);
    assert_int_equal(atomic_load(&f.memory.failed), 2);
}

static void timer_never_fires_after_the_close(void **state) {
    (void)state;
    chime *c = start('a', 10, 10);
    test_ok(weir_loop_close(f.loop));
    script_advance_ns(100 * MS);
    assert_int_equal(weir_timer_start(c->timer, 0, 0), -ESHUTDOWN);
    weir_timer *timer = NULL;
    assert_int_equal(weir_timer_new(f.loop, ring, NULL, &timer), -ESHUTDOWN);
    assert_string_equal(story, "");
    assert_int_equal(test_loop_stats(&f).timers_started, 0);
}

/*
 * The loop's own timeouts lie in the same heap and stay. Taking a timer out moves another one into its place,
 * and may move that one's parent down, to where was looked already: that timer used to be left in, to fire
 * during the close or to be freed by another thread while it lay there.
 */
static void close_stops_every_timer_whatever_else_is_in_the_heap(void **state) {
    (void)state;
    start('a', 1, 0);
    start('b', 100, 0);
    start('c', 10, 0);
    start('d', 101, 0);
    start('e', 102, 0);
    test_ok(weir_loop_drain(f.loop, 11 * MS)); /* its grace is the loop's own */
    test_ok(weir_loop_close(f.loop));
    assert_int_equal(test_loop_stats(&f).timers_started, 0);
    assert_int_equal(f.loop->timers.count, 0);
}

/* The same for any heap. */
static void close_stops_every_timer_at_random(void **state) {
    (void)state;
    enum { MOST = 40, OWN = 6 };
    uint64_t random = 5;
    for (int round = 0; round < 200; round++) {
        weir__timeout own[OWN];
        size_t count = 1 + test_random(&random) % MOST;
        for (size_t i = 0; i < OWN; i++)
            test_ok(weir__timeout_init(f.loop, &own[i], NULL));
        for (size_t i = 0; i < count; i++) {
            if (i < OWN)
                weir__timeout_set(f.loop, &own[i], (int64_t)(test_random(&random) % 1000) * MS);
            start('x', (int64_t)(test_random(&random) % 1000), 0);
        }
        weir__loop_stop_timers(f.loop);
        assert_int_equal(test_loop_stats(&f).timers_started, 0);
        for (size_t i = 0; i < OWN; i++)
            weir__timeout_deinit(f.loop, &own[i]);
        assert_int_equal(f.loop->timers.count, 0);
        for (size_t i = 0; i < count; i++)
            chimes[i].timer = weir_timer_unref(chimes[i].timer);
    }
}

static void timer_outlives_the_close_and_holds_the_loop(void **state) {
    (void)state;
    chime *c = start('a', 10, 0);
    weir_timer_ref(c->timer);
    test_ok(weir_loop_close(f.loop));
    weir_timer_unref(c->timer);
    test_ok(weir_timer_stop(c->timer));
}

/* ---- on another thread ------------------------------------------------------------------------------ */

static void *drop(void *timer) {
    weir_timer_unref(timer);
    return NULL;
}

/* ThreadSanitizer adds a thread of its own to the first one: before anybody counts. */
static int begin_threads(void **state) {
    (void)state;
    pthread_t thread;
    return pthread_create(&thread, NULL, drop, NULL) != 0 || pthread_join(thread, NULL) != 0;
}

static void drop_elsewhere(chime *c) {
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, drop, c->timer), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

/* The loop frees it in its own time, but it is nobody's any more. */
static void timer_dropped_on_another_thread_does_not_fire(void **state) {
    (void)state;
    after(1);
    chime *c = start('a', 10, 10);
    drop_elsewhere(c);
    after(10); /* due, and its end is posted: posts run after timers */
    assert_string_equal(story, "");
    assert_int_equal(test_loop_stats(&f).timers_started, 0);
    assert_int_equal(weir_loop_is_idle(f.loop), 1);
    c->timer = NULL;
}

static void timer_dropped_on_another_thread_after_the_close_is_freed(void **state) {
    (void)state;
    chime *c = start('a', 10, 10);
    test_ok(weir_loop_close(f.loop));
    uint64_t live = atomic_load(&f.memory.live_blocks);
    drop_elsewhere(c);
    assert_int_equal(atomic_load(&f.memory.live_blocks), live - 1);
    c->timer = NULL;
}

static void timer_dropped_on_another_thread_before_the_close_is_freed_by_it(void **state) {
    (void)state;
    after(1);
    chime *c = start('a', 10, 10);
    drop_elsewhere(c);
    test_ok(weir_loop_close(f.loop));
    assert_string_equal(story, "");
    c->timer = NULL;
}

#define timer_test(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        timer_test(timers_fire_in_order_of_time),
        timer_test(timer_fires_when_due_and_not_before),
        timer_test(loop_sleeps_until_the_next_timer),
        timer_test(repeating_timer_keeps_its_beat),
        timer_test(late_timer_fires_once_and_not_for_each_period_missed),
        timer_test(timer_started_again_is_moved),
        timer_test(timer_pushed_forward_at_every_read_never_fires),
        timer_test(pushing_a_timer_forward_touches_no_other),
        timer_test(timer_for_ever_away_does_not_overflow),
        timer_test(repeating_timer_may_stop_itself),
        timer_test(timer_stopped_in_the_turn_it_is_due_does_not_fire),
        timer_test(timer_may_be_dropped_in_its_own_callback),
        timer_test(timer_dropped_in_the_turn_it_is_due_does_not_fire),
        timer_test(timer_started_in_a_callback_fires_in_a_later_turn),
        timer_test(timer_may_start_itself_again),
        timer_test(loop_stopped_by_a_timer_returns),
        timer_test(turn_has_a_limit_of_timers),
        timer_test(timer_not_started_keeps_nothing_running),
        timer_test(timer_wants_a_loop_a_function_and_times),
        timer_test(timer_without_memory_is_not_made),
        timer_test(timer_never_fires_after_the_close),
        timer_test(close_stops_every_timer_whatever_else_is_in_the_heap),
        timer_test(close_stops_every_timer_at_random),
        timer_test(timer_outlives_the_close_and_holds_the_loop),
        timer_test(timer_dropped_on_another_thread_does_not_fire),
        timer_test(timer_dropped_on_another_thread_after_the_close_is_freed),
        timer_test(timer_dropped_on_another_thread_before_the_close_is_freed_by_it),
    };
    return cmocka_run_group_tests_name("timer", tests, begin_threads, NULL);
}
