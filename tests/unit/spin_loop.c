/* SPDX-License-Identifier: MIT */
/* A loop that spins before it sleeps: what it does meanwhile, what ends it, and what it costs. Time passes only where the
 * script lets it, 100 ns at each pause of a spin. */
#include <poll.h>

#include "loop/loop.h"
#include "scripted/scripted.h"
#include "support/support.h"

enum { US = 1000, MS = 1000 * US, SPIN = 50 * US, PAUSES = SPIN / SCRIPT_PAUSE_NS };

static const weir__tuning tuning = { .no_self_test = true };
static test_fixture f;
static script_entry *wake; /* the poll of the waker, which completes without more ado */

static void open_loop(uint32_t busy_poll, uint32_t backend) {
    weir_loop_options options = { .busy_poll = busy_poll, .backend = backend, .flags = WEIR_LOOP_KEEP_RUNNING };
    script_begin();
    script_answer_cancels(true);
    test_open_options(&f, &tuning, &options);
    assert_true(weir_loop_run_once(f.loop, 0) >= 0);
    wake = script_live(0);
}

static int setup(void **state) {
    (void)state;
    open_loop(WEIR_BUSY_POLL_FIXED, WEIR_BACKEND_URING_INCREMENTAL);
    return 0;
}

static int setup_epoll(void **state) {
    (void)state;
    open_loop(WEIR_BUSY_POLL_FIXED, WEIR_BACKEND_EPOLL);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    script_on_pause(NULL, NULL);
    test_close(&f);
    script_end();
    return 0;
}

static void run(int64_t timeout_ns) {
    assert_true(weir_loop_run_once(f.loop, timeout_ns) >= 0);
}

/* Something came long ago, so that a gap begins now. */
static void begin_gap(void) {
    script_complete(wake, POLLIN, IORING_CQE_F_MORE);
    run(0);
}

/* ---- what happens in a spin ------------------------------------------------------------------------- */

static unsigned due; /* the pause in which it happens */

static bool is_due(void) {
    return due > 0 && --due == 0;
}

static void complete_wake(void *userdata) {
    (void)userdata;
    if (is_due())
        script_complete(wake, POLLIN, IORING_CQE_F_MORE);
}

static unsigned posts_run;

static void count_post(weir_loop *loop, void *userdata) {
    (void)loop, (void)userdata;
    posts_run++;
}

static void post(void *userdata) {
    (void)userdata;
    if (is_due())
        test_ok(weir_loop_post(f.loop, count_post, NULL));
}

static void stop(void *userdata) {
    (void)userdata;
    if (is_due())
        weir_loop_stop(f.loop);
}

static void in_pause(unsigned which, void (*hook)(void *userdata)) {
    due = which;
    script_on_pause(hook, NULL);
}

/* ---- io_uring --------------------------------------------------------------------------------------- */

static void spin_makes_no_system_call_and_is_followed_by_a_sleep(void **state) {
    (void)state;
    begin_gap();
    unsigned enters = script_last_enter().count, pauses = script_pauses();
    int64_t begun = weir__sys_now();
    run(MS);
    assert_int_equal(script_last_enter().count - enters, 1);
    assert_int_equal(script_last_enter().wait, 1);
    assert_int_equal(script_last_enter().timeout_ns, MS - SPIN);
    assert_int_equal(script_pauses() - pauses, PAUSES);
    assert_int_equal(weir__sys_now() - begun, MS); /* as long as was asked for, in all */
    weir_loop_stats stats = test_loop_stats(&f);
    assert_int_equal(stats.spins, 1);
    assert_int_equal(stats.spins_paid, 0);
    assert_int_equal(stats.spun_ns, SPIN);
}

static void completion_ends_a_spin(void **state) {
    (void)state;
    begin_gap();
    unsigned enters = script_last_enter().count, pauses = script_pauses();
    in_pause(10, complete_wake);
    run(MS);
    assert_int_equal(script_last_enter().count, enters); /* it lies in the queue already */
    assert_int_equal(script_pauses() - pauses, 10);
    assert_int_equal(script_completions(), 0);
    assert_int_equal(test_loop_stats(&f).spins_paid, 1);
}

static void deferred_work_ends_a_spin_and_is_fetched_by_one_enter(void **state) {
    (void)state;
    begin_gap();
    script_defer(true);
    unsigned enters = script_last_enter().count, pauses = script_pauses();
    in_pause(10, complete_wake);
    run(MS);
    assert_int_equal(script_last_enter().count - enters, 1);
    assert_int_equal(script_last_enter().wait, 0);
    assert_int_equal(script_pauses() - pauses, 10);
    assert_int_equal(script_completions(), 0);
    assert_int_equal(test_loop_stats(&f).spins_paid, 1);
    script_defer(false);
}

static void post_ends_a_spin_and_costs_no_wake(void **state) {
    (void)state;
    begin_gap();
    unsigned pauses = script_pauses();
    posts_run = 0;
    in_pause(3, post);
    run(MS);
    assert_int_equal(posts_run, 1);
    assert_int_equal(script_pauses() - pauses, 3);
    assert_int_equal(script_signals(), 0);
    assert_int_equal(test_loop_stats(&f).wakes, 0);
    assert_int_equal(test_loop_stats(&f).spins_paid, 1);
}

/* The moment between the last look and the sleep belongs to the waker, as it does without spinning. */
static void post_in_the_last_pause_is_not_slept_over(void **state) {
    (void)state;
    begin_gap();
    posts_run = 0;
    in_pause(PAUSES, post);
    int64_t begun = weir__sys_now();
    run(MS);
    assert_int_equal(posts_run, 1);
    assert_int_equal(weir__sys_now() - begun, SPIN);
}

static void stop_ends_a_spin(void **state) {
    (void)state;
    begin_gap();
    unsigned pauses = script_pauses();
    in_pause(7, stop);
    test_ok(weir_loop_run(f.loop));
    assert_int_equal(script_pauses() - pauses, 7);
}

static int64_t fired_at;

static void on_timer(weir_timer *timer, void *userdata) {
    (void)timer, (void)userdata;
    fired_at = weir__sys_now();
}

static void timer_that_is_due_in_a_spin_is_on_time(void **state) {
    (void)state;
    weir_timer *timer;
    test_ok(weir_timer_new(f.loop, on_timer, NULL, &timer));
    begin_gap();
    int64_t begun = weir__sys_now();
    test_ok(weir_timer_start(timer, 20 * US, 0));
    run(MS);
    assert_in_range(fired_at - begun, 20 * US, 21 * US);
    assert_int_equal(test_loop_stats(&f).spins, 1);
    /* It is no sign that more will come: the gap goes on, and the rest of its spin. */
    run(MS);
    run(MS);
    assert_in_range(test_loop_stats(&f).spun_ns, SPIN, SPIN + US);
    weir_timer_unref(timer);
}

static void idle_loop_does_not_spin(void **state) {
    (void)state;
    begin_gap();
    run(MS);
    unsigned pauses = script_pauses();
    for (int i = 0; i < 100; i++)
        run(10 * MS);
    run(INT64_C(5000) * MS);
    assert_int_equal(script_pauses(), pauses);
    assert_int_equal(test_loop_stats(&f).spins, 1);
}

/* What was started is handed over at once, and what completes in doing so is no reason to spin. */
static void what_completes_at_once_is_dispatched_without_a_spin(void **state) {
    (void)state;
    begin_gap();
    unsigned enters = script_last_enter().count;
    script_complete(wake, POLLIN, IORING_CQE_F_MORE);
    run(MS);
    assert_int_equal(script_last_enter().count, enters);
    assert_int_equal(script_completions(), 0);
    assert_int_equal(test_loop_stats(&f).spins, 0);
}

static void run_that_may_not_sleep_does_not_spin(void **state) {
    (void)state;
    begin_gap();
    for (int i = 0; i < 10; i++)
        run(0);
    assert_int_equal(script_pauses(), 0);
}

static void spin_is_no_longer_than_the_caller_waits(void **state) {
    (void)state;
    begin_gap();
    int64_t begun = weir__sys_now();
    run(5 * US);
    assert_in_range(weir__sys_now() - begun, 5 * US, 6 * US);
}

static void overflown_completions_are_fetched(void **state) {
    (void)state;
    begin_gap();
    script_overflow(true);
    unsigned enters = script_last_enter().count;
    script_complete(wake, POLLIN, IORING_CQE_F_MORE);
    run(MS);
    assert_int_equal(script_last_enter().count - enters, 1);
    assert_int_equal(script_last_enter().wait, 0);
    assert_int_equal(script_completions(), 0);
    script_overflow(false);
}

static void failed_enter_is_told(void **state) {
    (void)state;
    begin_gap();
    script_overflow(true);
    script_fail(SCRIPT_ENTER, -ENOMEM, 1);
    assert_int_equal(weir_loop_run_once(f.loop, MS), -ENOMEM);
    script_overflow(false);
    run(MS);
}

static void loop_does_not_spin_unless_it_is_asked_to(void **state) {
    (void)state;
    open_loop(WEIR_BUSY_POLL_OFF, WEIR_BACKEND_URING_INCREMENTAL);
    begin_gap();
    run(MS);
    assert_int_equal(script_pauses(), 0);
    assert_int_equal(test_loop_stats(&f).spins, 0);
    assert_int_equal(script_last_enter().timeout_ns, MS);
    (void)teardown(state);
}

/* Gaps of 20 us, and then of 1 ms, as a loop meets them. */
static void adaptive_loop_learns(void **state) {
    (void)state;
    open_loop(WEIR_BUSY_POLL_ADAPTIVE, WEIR_BACKEND_URING_INCREMENTAL);
    for (int i = 0; i < 200; i++) {
        in_pause(200, complete_wake);
        run(20 * US); /* asleep, nothing comes in it; but at its end */
        if (due > 0)
            script_complete(wake, POLLIN, IORING_CQE_F_MORE);
        run(0);
        script_advance_ns(40 * US); /* so that the share is no reason */
    }
    weir_loop_stats stats = test_loop_stats(&f);
    assert_in_range(stats.spins, 150, 200);
    in_pause(0, complete_wake);
    for (int i = 0; i < 200; i++) {
        run(MS);
        script_complete(wake, POLLIN, IORING_CQE_F_MORE);
        run(0);
    }
    assert_in_range(test_loop_stats(&f).spins - stats.spins, 1, 10);
    (void)teardown(state);
}

/* ---- epoll ------------------------------------------------------------------------------------------ */

static void look_over_epoll_is_a_wait_of_no_time(void **state) {
    (void)state;
    script_ready(atomic_load(&f.loop->waker->fd), EPOLLIN);
    run(0);
    unsigned waits = script_last_wait().count, pauses = script_pauses();
    run(MS);
    assert_int_equal(script_pauses() - pauses, PAUSES);
    assert_int_equal(script_last_wait().count - waits, PAUSES + 2); /* before them, and the sleep */
    assert_int_equal(script_last_wait().timeout_ns, MS - SPIN);
    run(MS);
    assert_int_equal(script_pauses() - pauses, PAUSES);
}

static void post_ends_a_spin_over_epoll(void **state) {
    (void)state;
    posts_run = 0;
    in_pause(3, post);
    run(MS);
    assert_int_equal(posts_run, 1);
    assert_int_equal(script_pauses(), 3);
    assert_int_equal(script_signals(), 0);
}

static void post_in_the_sleep(void *userdata) {
    (void)userdata;
    test_ok(weir_loop_post(f.loop, count_post, NULL));
}

/* Whichever way a loop is woken, there is a new gap then. */
static void post_that_ends_a_sleep_ends_the_gap(void **state) {
    (void)state;
    run(MS);
    assert_int_equal(test_loop_stats(&f).spins, 1);
    test_ok(weir_loop_post(f.loop, count_post, NULL));
    run(MS);
    run(MS);
    assert_int_equal(test_loop_stats(&f).spins, 2);
}

static void post_that_wakes_the_ring_ends_the_gap(void **state) {
    (void)state;
    begin_gap();
    script_on_enter(post_in_the_sleep, NULL);
    run(MS);
    script_on_enter(NULL, NULL);
    run(MS);
    assert_int_equal(test_loop_stats(&f).spins, 2);
}

#define io_uring_test(function) cmocka_unit_test_setup_teardown(function, setup, teardown)
#define epoll_test(function) cmocka_unit_test_setup_teardown(function, setup_epoll, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        io_uring_test(spin_makes_no_system_call_and_is_followed_by_a_sleep),
        io_uring_test(completion_ends_a_spin),
        io_uring_test(deferred_work_ends_a_spin_and_is_fetched_by_one_enter),
        io_uring_test(post_ends_a_spin_and_costs_no_wake),
        io_uring_test(post_in_the_last_pause_is_not_slept_over),
        io_uring_test(stop_ends_a_spin),
        io_uring_test(timer_that_is_due_in_a_spin_is_on_time),
        io_uring_test(idle_loop_does_not_spin),
        io_uring_test(what_completes_at_once_is_dispatched_without_a_spin),
        io_uring_test(run_that_may_not_sleep_does_not_spin),
        io_uring_test(spin_is_no_longer_than_the_caller_waits),
        io_uring_test(overflown_completions_are_fetched),
        io_uring_test(failed_enter_is_told),
        cmocka_unit_test(loop_does_not_spin_unless_it_is_asked_to),
        cmocka_unit_test(adaptive_loop_learns),
        epoll_test(look_over_epoll_is_a_wait_of_no_time),
        epoll_test(post_ends_a_spin_over_epoll),
        epoll_test(post_that_ends_a_sleep_ends_the_gap),
        io_uring_test(post_that_ends_a_sleep_ends_the_gap),
        io_uring_test(post_that_wakes_the_ring_ends_the_gap),
    };
    return cmocka_run_group_tests_name("spin-loop", tests, NULL, NULL);
}
