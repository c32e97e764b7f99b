/* SPDX-License-Identifier: MIT */
/* Signals over a kernel that does what the test says: masks, signalfds, and what is heard. */
#include <signal.h>

#include <poll.h>
#include <pthread.h>

#include "loop/loop.h"
#include "scripted/scripted.h"
#include "support/support.h"

static test_fixture f;
static const weir__tuning tuning = { .no_self_test = true };

enum { NUMBER = SIGTERM };

typedef struct ear {
    weir_signal *signal;
    unsigned count;
    void (*then)(struct ear *ear);
} ear;

static ear a, b;
static unsigned fds; /* open, with a loop and nothing else */

static void hear(weir_signal *signal, int number, void *userdata) {
    ear *e = userdata;
    assert_true(e->signal == NULL || signal == e->signal);
    assert_int_equal(number, NUMBER);
    e->count++;
    if (e->then != NULL)
        e->then(e);
}

static int setup(void **state) {
    (void)state;
    memset(&a, 0, sizeof a);
    memset(&b, 0, sizeof b);
    script_begin();
    script_answer_cancels(true);
    test_open(&f, &tuning, NULL);
    fds = script_fds_open();
    test_ok(weir_signal_new(f.loop, NUMBER, hear, &a, &a.signal));
    test_ok(weir_signal_new(f.loop, NUMBER, hear, &b, &b.signal));
    assert_false(script_is_blocked(NUMBER));
    assert_int_equal(script_fds_open(), fds); /* both only when it is started */
    return 0;
}

static int teardown(void **state) {
    (void)state;
    a.signal = weir_signal_unref(a.signal);
    b.signal = weir_signal_unref(b.signal);
    test_close(&f);
    script_end();
    return 0;
}

static void turn(void) {
    assert_true(weir_loop_run_once(f.loop, 0) >= 0);
}

/* The poll of a signalfd, which is the descriptor opened last. */
static script_entry *find_poll(void) {
    for (int fd = 1000; fd < 1100; fd++) {
        script_entry *entry = script_find(IORING_OP_POLL_ADD, fd);
        if (entry != NULL && entry->sqe.len == 0) { /* not the waker's */
            assert_int_equal(entry->sqe.poll32_events, POLLIN);
            return entry;
        }
    }
    return NULL;
}

static script_entry *start(ear *e) {
    test_ok(weir_signal_start(e->signal));
    turn();
    script_entry *entry = find_poll();
    assert_non_null(entry);
    return entry;
}

static void stop(ear *e) {
    test_ok(weir_signal_stop(e->signal));
}

/* ---- hearing ----------------------------------------------------------------------------------------- */

static void signal_is_heard_each_time(void **state) {
    (void)state;
    script_entry *entry = start(&a);
    assert_true(script_is_blocked(NUMBER));
    assert_int_equal(script_fds_open(), fds + 1);
    for (unsigned i = 1; i <= 3; i++) {
        script_raise(NUMBER);
        script_complete(entry, POLLIN, 0);
        turn();
        assert_int_equal(a.count, i);
        turn();
        entry = find_poll();
        assert_non_null(entry);
        assert_int_equal(a.count, i);
    }
}

static void signals_that_are_queued_come_one_in_a_turn(void **state) {
    (void)state;
    script_entry *entry = start(&a);
    script_raise(NUMBER);
    script_raise(NUMBER);
    script_complete(entry, POLLIN, 0);
    turn();
    assert_int_equal(a.count, 1);
    turn();
    script_complete(find_poll(), POLLIN, 0);
    turn();
    assert_int_equal(a.count, 2);
}

static void signal_that_somebody_else_has_read_is_not_heard(void **state) {
    (void)state;
    script_entry *entry = start(&a);
    script_complete(entry, POLLIN, 0);
    turn();
    assert_int_equal(a.count, 0);
    turn();
    assert_non_null(find_poll()); /* and it goes on */
}

static void signal_does_not_keep_run_going(void **state) {
    (void)state;
    start(&a);
    test_ok(weir_loop_run(f.loop));
    assert_int_equal(weir_loop_is_idle(f.loop), 1);
    assert_int_equal(test_loop_stats(&f).signals_started, 1);
    assert_int_equal(test_loop_stats(&f).watches_started, 0);
}

/* ---- the mask ---------------------------------------------------------------------------------------- */

static void stop_unblocks_what_start_blocked(void **state) {
    (void)state;
    script_entry *entry = start(&a);
    stop(&a);
    assert_false(script_is_blocked(NUMBER));
    assert_int_equal(script_fds_open(), fds); /* at once */
    assert_int_equal(test_loop_stats(&f).signals_started, 0);
    stop(&a);
    turn();
    assert_false(entry->is_live);
    assert_null(find_poll());
}

static void stop_leaves_blocked_what_was_so_before(void **state) {
    (void)state;
    script_block(NUMBER);
    start(&a);
    stop(&a);
    assert_true(script_is_blocked(NUMBER));
}

/* The first one blocked it and stopped; the second one's signals killed the process from then on. */
static void last_one_that_hears_it_unblocks(void **state) {
    (void)state;
    start(&a);
    start(&b);
    stop(&a);
    assert_true(script_is_blocked(NUMBER));
    test_ok(weir_signal_start(a.signal));
    stop(&b);
    assert_true(script_is_blocked(NUMBER));
    stop(&a);
    assert_false(script_is_blocked(NUMBER));
}

static void last_one_that_hears_it_leaves_blocked_what_was_so_before(void **state) {
    (void)state;
    script_block(NUMBER);
    start(&a);
    start(&b);
    stop(&a);
    stop(&b);
    assert_true(script_is_blocked(NUMBER));
}

static void another_number_is_no_heir(void **state) {
    (void)state;
    weir_signal *other;
    test_ok(weir_signal_new(f.loop, SIGUSR1, hear, &b, &other));
    start(&a);
    test_ok(weir_signal_start(other));
    stop(&a);
    assert_false(script_is_blocked(NUMBER));
    assert_true(script_is_blocked(SIGUSR1));
    weir_signal_unref(other);
    assert_false(script_is_blocked(SIGUSR1));
}

static void start_that_fails_changes_nothing(void **state) {
    (void)state;
    static const int errors[] = { -EMFILE, -ENFILE, -ENOMEM };
    for (int was_blocked = 0; was_blocked <= 1; was_blocked++) {
        if (was_blocked)
            script_block(NUMBER);
        for (size_t i = 0; i < 3; i++) {
            script_fail(SCRIPT_SIGNALFD, errors[i], 1);
            assert_int_equal(weir_signal_start(a.signal), errors[i]);
            assert_int_equal(script_is_blocked(NUMBER), was_blocked);
            assert_int_equal(test_loop_stats(&f).signals_started, 0);
        }
    }
    start(&a);
}

static void start_of_what_is_started_changes_nothing(void **state) {
    (void)state;
    start(&a);
    test_ok(weir_signal_start(a.signal));
    turn();
    assert_null(find_poll());
    assert_int_equal(script_fds_open(), fds + 1);
    stop(&a);
    assert_false(script_is_blocked(NUMBER));
}

static void signal_that_the_kernel_cannot_poll_is_stopped(void **state) {
    (void)state;
    script_entry *entry = start(&a);
    script_complete(entry, -ENOMEM, 0);
    turn();
    assert_int_equal(a.count, 0);
    assert_false(script_is_blocked(NUMBER));
    assert_int_equal(script_fds_open(), fds);
    start(&a);
}

/* ---- stopping ---------------------------------------------------------------------------------------- */

static void signal_may_stop_itself(void **state) {
    (void)state;
    script_entry *entry = start(&a);
    a.then = stop;
    script_raise(NUMBER);
    script_raise(NUMBER); /* this one has its default action */
    script_complete(entry, POLLIN, 0);
    turn();
    turn();
    assert_int_equal(a.count, 1);
    assert_false(script_is_blocked(NUMBER));
    assert_null(find_poll());
}

static void stopped_signal_that_had_come_is_not_heard(void **state) {
    (void)state;
    script_entry *entry = start(&a);
    script_raise(NUMBER);
    script_complete(entry, POLLIN, 0);
    stop(&a);
    turn();
    assert_int_equal(a.count, 0);
}

/* The old signalfd is closed, its poll is under way still, and says something. */
static void signal_that_is_started_again_polls_its_new_descriptor(void **state) {
    (void)state;
    script_entry *old = start(&a);
    stop(&a);
    test_ok(weir_signal_start(a.signal));
    script_raise(NUMBER);
    script_complete(old, POLLIN, 0);
    turn();
    assert_int_equal(a.count, 0);
    turn();
    script_entry *new = find_poll();
    assert_non_null(new);
    assert_true(new->sqe.fd != old->sqe.fd);
    script_complete(new, POLLIN, 0);
    turn();
    assert_int_equal(a.count, 1);
}

static void drop(ear *e) {
    e->signal = weir_signal_unref(e->signal);
}

static void signal_may_be_dropped_in_its_own_callback(void **state) {
    (void)state;
    uint64_t live = atomic_load(&f.memory.live_blocks);
    script_entry *entry = start(&a);
    a.then = drop;
    script_raise(NUMBER);
    script_complete(entry, POLLIN, 0);
    turn();
    assert_int_equal(a.count, 1);
    assert_false(script_is_blocked(NUMBER));
    assert_int_equal(script_fds_open(), fds);
    assert_int_equal(atomic_load(&f.memory.live_blocks), live - 1);
}

static void *drop_on_a_thread(void *userdata) {
    drop(userdata);
    return NULL;
}

static void drop_elsewhere(ear *e) {
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, drop_on_a_thread, e), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

static int begin_threads(void **state) {
    (void)state;
    drop_elsewhere(&a);
    return 0;
}

/* The loop's thread stops it, whose mask it is. */
static void signal_dropped_on_another_thread_is_stopped_on_its_own(void **state) {
    (void)state;
    script_entry *entry = start(&a);
    script_raise(NUMBER);
    script_complete(entry, POLLIN, 0);
    drop_elsewhere(&a);
    assert_true(script_is_blocked(NUMBER));
    turn();
    assert_int_equal(a.count, 0);
    assert_false(script_is_blocked(NUMBER));
}

static void *start_on_a_thread(void *userdata) {
    test_ok(weir_signal_start(((ear *)userdata)->signal));
    return NULL;
}

/* Before the first run the loop is anybody's. */
static void mask_of_another_thread_is_left_alone(void **state) {
    (void)state;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, start_on_a_thread, &a), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    turn(); /* bound to this thread */
    stop(&a);
    assert_true(script_is_blocked(NUMBER));
}

/* ---- life --------------------------------------------------------------------------------------------- */

static void close_stops_signals(void **state) {
    (void)state;
    for (int point = 0; point < 4; point++) {
        script_entry *entry = NULL;
        if (point == 0)
            test_ok(weir_signal_start(a.signal));
        else
            entry = start(&a);
        if (point == 2) {
            script_raise(NUMBER);
            script_complete(entry, POLLIN, 0);
        }
        if (point == 3)
            drop(&a);
        test_ok(weir_loop_close(f.loop));
        assert_int_equal(a.count, 0);
        assert_false(script_is_blocked(NUMBER));
        assert_int_equal(test_loop_stats(&f).signals_started, 0);
        if (point < 3) {
            assert_int_equal(weir_signal_start(a.signal), -ESHUTDOWN);
            test_ok(weir_signal_stop(a.signal));
        }
        assert_int_equal(teardown(NULL), 0);
        assert_int_equal(setup(NULL), 0);
    }
}

static void signal_wants_memory(void **state) {
    (void)state;
    weir_signal *signal = NULL;
    uint64_t live = atomic_load(&f.memory.live_blocks);
    atomic_store(&f.memory.fail_at, atomic_load(&f.memory.allocations) + 1);
    assert_int_equal(weir_signal_new(f.loop, NUMBER, hear, &a, &signal), -ENOMEM);
    assert_null(signal);
    assert_int_equal(atomic_load(&f.memory.live_blocks), live);
}

static void numbers_that_cannot_be_heard_are_refused(void **state) {
    (void)state;
    for (int number = -2; number < 140; number++) {
        weir_signal *signal = NULL;
        bool is_heard = number > 0 && number <= SIGRTMAX && number != SIGKILL && number != SIGSTOP &&
                        number != SIGSEGV && number != SIGBUS && number != SIGFPE && number != SIGILL &&
                        number != SIGTRAP && number != SIGSYS && (number < 32 || number >= SIGRTMIN);
        assert_int_equal(weir_signal_new(f.loop, number, hear, &a, &signal), is_heard ? 0 : -EINVAL);
        assert_true((signal != NULL) == is_heard);
        weir_signal_unref(signal);
    }
    turn();
}

#define signal_test(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        signal_test(signal_is_heard_each_time),
        signal_test(signals_that_are_queued_come_one_in_a_turn),
        signal_test(signal_that_somebody_else_has_read_is_not_heard),
        signal_test(signal_does_not_keep_run_going),
        signal_test(stop_unblocks_what_start_blocked),
        signal_test(stop_leaves_blocked_what_was_so_before),
        signal_test(last_one_that_hears_it_unblocks),
        signal_test(last_one_that_hears_it_leaves_blocked_what_was_so_before),
        signal_test(another_number_is_no_heir),
        signal_test(start_that_fails_changes_nothing),
        signal_test(start_of_what_is_started_changes_nothing),
        signal_test(signal_that_the_kernel_cannot_poll_is_stopped),
        signal_test(signal_may_stop_itself),
        signal_test(stopped_signal_that_had_come_is_not_heard),
        signal_test(signal_that_is_started_again_polls_its_new_descriptor),
        signal_test(signal_may_be_dropped_in_its_own_callback),
        signal_test(signal_dropped_on_another_thread_is_stopped_on_its_own),
        signal_test(mask_of_another_thread_is_left_alone),
        signal_test(close_stops_signals),
        signal_test(signal_wants_memory),
        signal_test(numbers_that_cannot_be_heard_are_refused),
    };
    return cmocka_run_group_tests_name("signal", tests, begin_threads, NULL);
}
