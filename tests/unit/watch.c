/* SPDX-License-Identifier: MIT */
/* Watches over a kernel that does what the test says: what is polled when, and what is heard. */
#include <poll.h>
#include <pthread.h>

#include "loop/loop.h"
#include "scripted/scripted.h"
#include "support/support.h"

static test_fixture f;
static const weir__tuning tuning = { .no_self_test = true };

enum { FD = 7, IN = WEIR_WATCH_READ, OUT = WEIR_WATCH_WRITE };

static struct {
    weir_watch *watch;
    unsigned count;
    int events; /* the last ones */
    void (*then)(void);
} it;

static void hear(weir_watch *watch, int events, void *userdata) {
    assert_ptr_equal(userdata, &it);
    assert_true(it.watch == NULL || watch == it.watch);
    it.count++;
    it.events = events;
    if (it.then != NULL)
        it.then();
}

static int setup(void **state) {
    (void)state;
    memset(&it, 0, sizeof it);
    script_begin();
    script_answer_cancels(true);
    test_open(&f, &tuning, NULL);
    test_ok(weir_watch_new(f.loop, FD, hear, &it, &it.watch));
    return 0;
}

static int teardown(void **state) {
    (void)state;
    it.watch = weir_watch_unref(it.watch);
    test_close(&f);
    script_end();
    return 0;
}

static void turn(void) {
    assert_true(weir_loop_run_once(f.loop, 0) >= 0);
}

static script_entry *expect_poll(unsigned events) {
    script_entry *entry = script_find(IORING_OP_POLL_ADD, FD);
    assert_non_null(entry);
    assert_int_equal(entry->sqe.len, 0);
    assert_int_equal(entry->sqe.poll32_events, events);
    return entry;
}

static void expect_none(void) {
    assert_null(script_find(IORING_OP_POLL_ADD, FD));
}

/* Started, and its poll is under way. */
static script_entry *start(int events) {
    test_ok(weir_watch_start(it.watch, events));
    turn();
    return expect_poll((events & IN ? POLLIN : 0U) | (events & OUT ? POLLOUT : 0U));
}

static void heard(unsigned count, int events) {
    assert_int_equal(it.count, count);
    if (count > 0)
        assert_int_equal(it.events, events);
}

/* ---- again and again --------------------------------------------------------------------------------- */

static void watch_is_heard_again_as_long_as_it_is_so(void **state) {
    (void)state;
    script_entry *entry = start(IN);
    for (unsigned i = 1; i <= 5; i++) {
        unsigned enters = script_last_enter().count;
        script_complete(entry, POLLIN, 0);
        turn();
        heard(i, IN);
        expect_none(); /* not before the callback is over */
        turn();
        entry = expect_poll(POLLIN);
        assert_int_equal(script_last_enter().count, enters + 2); /* one a turn, as without a watch */
    }
    assert_null(script_find(IORING_OP_ASYNC_CANCEL, -1));
}

static void watch_translates_every_event(void **state) {
    (void)state;
    static const int events[][2] = { { POLLIN, IN },
                                     { POLLOUT, OUT },
                                     { POLLIN | POLLOUT | POLLRDHUP, IN | OUT },
                                     { POLLERR, WEIR_WATCH_ERROR },
                                     { POLLNVAL, WEIR_WATCH_ERROR },
                                     { POLLHUP | POLLIN, WEIR_WATCH_HANGUP | IN } };
    script_entry *entry = start(IN | OUT);
    for (unsigned i = 0; i < sizeof events / sizeof *events; i++) {
        script_complete(entry, events[i][0], 0);
        turn();
        heard(i + 1, events[i][1]);
        turn();
        entry = expect_poll(POLLIN | POLLOUT);
    }
}

static void watch_of_nothing_hears_errors(void **state) {
    (void)state;
    script_entry *entry = start(0);
    script_complete(entry, POLLHUP | POLLIN, 0);
    turn();
    heard(1, WEIR_WATCH_HANGUP);
}

static void watch_that_the_kernel_refuses_is_told_and_stops(void **state) {
    (void)state;
    static const int errors[] = { -EBADF, -ENOMEM, -EPERM };
    for (unsigned i = 0; i < 3; i++) {
        script_complete(start(IN), errors[i], 0);
        turn();
        heard(i + 1, WEIR_WATCH_FAILED);
        turn();
        expect_none();
        assert_int_equal(test_loop_stats(&f).watches_started, 0);
        assert_int_equal(weir_loop_is_idle(f.loop), 1);
    }
}

static void start_again(void) {
    it.then = NULL;
    test_ok(weir_watch_start(it.watch, OUT));
}

static void watch_that_failed_may_be_started_in_its_callback(void **state) {
    (void)state;
    script_entry *entry = start(IN);
    it.then = start_again;
    script_complete(entry, -ENOMEM, 0);
    turn();
    turn();
    script_complete(expect_poll(POLLOUT), POLLOUT, 0);
    turn();
    heard(2, OUT);
}

/* ---- other events ------------------------------------------------------------------------------------ */

static void watch_changes_its_mind(void **state) {
    (void)state;
    script_entry *entry = start(IN);
    test_ok(weir_watch_start(it.watch, OUT));
    turn();
    assert_false(entry->is_live);
    turn();
    script_complete(expect_poll(POLLOUT), POLLOUT, 0);
    turn();
    heard(1, OUT);
    assert_int_equal(test_loop_stats(&f).watches_started, 1);
}

static void what_is_not_wanted_any_more_is_not_heard(void **state) {
    (void)state;
    script_entry *entry = start(IN);
    script_complete(entry, POLLIN, 0);
    test_ok(weir_watch_start(it.watch, OUT));
    turn();
    heard(0, 0);
    turn();
    expect_poll(POLLOUT);
}

static void what_is_wanted_still_is_heard_at_once(void **state) {
    (void)state;
    script_entry *entry = start(IN | OUT);
    script_complete(entry, POLLIN | POLLOUT, 0);
    test_ok(weir_watch_start(it.watch, IN));
    turn();
    heard(1, IN);
    turn();
    expect_poll(POLLIN);
}

static void watch_that_wants_the_same_is_left_alone(void **state) {
    (void)state;
    script_entry *entry = start(IN);
    test_ok(weir_watch_start(it.watch, OUT));
    test_ok(weir_watch_start(it.watch, IN));
    turn();
    expect_none();
    assert_true(entry->is_live);
}

static void change_in_the_callback_cancels_nothing(void **state) {
    (void)state;
    script_entry *entry = start(IN);
    it.then = start_again;
    script_complete(entry, POLLIN, 0);
    turn();
    turn();
    expect_poll(POLLOUT);
    assert_null(script_find(IORING_OP_ASYNC_CANCEL, -1));
}

/* ---- stopping ---------------------------------------------------------------------------------------- */

static void watch_stopped_before_its_turn_asks_nothing(void **state) {
    (void)state;
    test_ok(weir_watch_start(it.watch, IN));
    test_ok(weir_watch_stop(it.watch));
    turn();
    expect_none();
    test_ok(weir_watch_start(it.watch, IN));
    test_ok(weir_watch_stop(it.watch));
    test_ok(weir_watch_start(it.watch, OUT));
    turn();
    expect_poll(POLLOUT);
}

/* It has become ready, and nobody has heard of it yet. */
static void watch_stopped_too_late_for_the_kernel_is_not_heard(void **state) {
    (void)state;
    script_entry *entry = start(IN);
    script_complete(entry, POLLIN, 0);
    test_ok(weir_watch_stop(it.watch));
    turn();
    turn();
    heard(0, 0);
    expect_none();
    assert_int_equal(weir_loop_is_idle(f.loop), 1);
}

static void stopped_watch_is_taken_back_in_the_next_turn(void **state) {
    (void)state;
    script_entry *entry = start(IN);
    test_ok(weir_watch_stop(it.watch));
    test_ok(weir_watch_stop(it.watch));
    assert_int_equal(test_loop_stats(&f).watches_started, 0);
    assert_int_equal(weir_loop_is_idle(f.loop),
                     0); /* run does not return before the kernel has given the file up */
    unsigned enters = script_last_enter().count;
    test_ok(weir_loop_run(f.loop));
    assert_int_equal(script_last_enter().count, enters + 1);
    assert_false(entry->is_live);
    assert_int_equal(weir_loop_is_idle(f.loop), 1);
    heard(0, 0);
}

/*
 * The application stops the watch, closes the descriptor and gets its number again for another file. The poll that is under
 * way is of the old one: what it says counts for nothing, and the new file has a poll of its own.
 */
static void new_file_with_the_old_number_is_not_mistaken(void **state) {
    (void)state;
    for (int is_late = 0; is_late <= 1; is_late++) {
        script_entry *old = start(IN);
        test_ok(weir_watch_stop(it.watch));
        test_ok(weir_watch_start(it.watch, IN));
        if (is_late)
            script_complete(old, POLLIN | POLLHUP, 0);
        turn();
        assert_false(old->is_live);
        heard(0, 0);
        turn();
        script_entry *new = expect_poll(POLLIN);
        script_complete(new, POLLIN, 0);
        turn();
        heard(1, IN);
        it.count = 0;
        test_ok(weir_watch_stop(it.watch));
        turn();
    }
}

static void stop_it(void) {
    test_ok(weir_watch_stop(it.watch));
}

static void watch_may_stop_itself(void **state) {
    (void)state;
    script_entry *entry = start(IN);
    it.then = stop_it;
    script_complete(entry, POLLIN, 0);
    test_ok(weir_loop_run(f.loop)); /* returns */
    heard(1, IN);
    expect_none();
    assert_int_equal(weir_loop_is_idle(f.loop), 1);
}

static void stop_and_start_it(void) {
    it.then = NULL;
    test_ok(weir_watch_stop(it.watch));
    test_ok(weir_watch_start(it.watch, IN));
}

static void watch_may_stop_and_start_itself(void **state) {
    (void)state;
    script_entry *entry = start(IN);
    it.then = stop_and_start_it;
    script_complete(entry, POLLIN, 0);
    turn();
    turn();
    script_complete(expect_poll(POLLIN), POLLIN, 0);
    turn();
    heard(2, IN);
}

/* ---- references --------------------------------------------------------------------------------------- */

static void drop_it(void) {
    it.watch = weir_watch_unref(it.watch);
}

static void watch_may_be_dropped_in_its_own_callback(void **state) {
    (void)state;
    uint64_t live = atomic_load(&f.memory.live_blocks);
    script_entry *entry = start(IN);
    it.then = drop_it;
    script_complete(entry, POLLIN, 0);
    turn();
    heard(1, IN);
    expect_none();
    assert_int_equal(atomic_load(&f.memory.live_blocks), live - 1);
    assert_int_equal(weir_loop_is_idle(f.loop), 1);
}

/* The kernel's two completions, in either order, and only then the memory. */
static void dropped_watch_stays_until_the_kernel_has_forgotten_it(void **state) {
    (void)state;
    for (int target_first = 0; target_first <= 1; target_first++) {
        if (it.watch == NULL)
            test_ok(weir_watch_new(f.loop, FD, hear, &it, &it.watch));
        script_entry *entry = start(IN);
        uint64_t live = atomic_load(&f.memory.live_blocks);
        script_answer_cancels(false);
        drop_it();
        turn();
        script_entry *cancel = script_find(IORING_OP_ASYNC_CANCEL, -1);
        assert_true(cancel != NULL && cancel->sqe.addr == entry->sqe.user_data);
        script_complete(target_first ? entry : cancel, target_first ? POLLIN : 0, 0);
        turn();
        assert_int_equal(atomic_load(&f.memory.live_blocks), live);
        script_complete(target_first ? cancel : entry, target_first ? -ENOENT : -ECANCELED, 0);
        turn();
        assert_int_equal(atomic_load(&f.memory.live_blocks), live - 1);
        heard(0, 0);
        script_answer_cancels(true);
    }
}

static void watch_dropped_before_it_is_started_is_gone(void **state) {
    (void)state;
    uint64_t live = atomic_load(&f.memory.live_blocks);
    turn();
    weir_watch_ref(it.watch);
    weir_watch_unref(it.watch);
    assert_int_equal(atomic_load(&f.memory.live_blocks), live);
    drop_it();
    assert_int_equal(atomic_load(&f.memory.live_blocks), live - 1);
}

static void watch_wants_memory(void **state) {
    (void)state;
    weir_watch *watch = NULL;
    uint64_t live = atomic_load(&f.memory.live_blocks);
    atomic_store(&f.memory.fail_at, atomic_load(&f.memory.allocations) + 1);
    assert_int_equal(weir_watch_new(f.loop, FD, hear, &it, &watch), -ENOMEM);
    assert_null(watch);
    assert_int_equal(atomic_load(&f.memory.live_blocks), live);
    uint64_t allocations = atomic_load(&f.memory.allocations);
    script_entry *entry = start(IN);
    for (int i = 0; i < 10; i++) { /* and then nothing more */
        script_complete(entry, POLLIN, 0);
        turn();
        turn();
        entry = expect_poll(POLLIN);
    }
    assert_int_equal(atomic_load(&f.memory.allocations), allocations);
}

static void *drop_on_a_thread(void *unused) {
    (void)unused;
    drop_it();
    return NULL;
}

static void drop_elsewhere(void) {
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, drop_on_a_thread, NULL), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

/* ThreadSanitizer adds a thread of its own to the first one: before anybody counts. */
static int begin_threads(void **state) {
    (void)state;
    drop_elsewhere();
    return 0;
}

static void watch_dropped_on_another_thread_is_not_heard(void **state) {
    (void)state;
    script_entry *entry = start(IN);
    uint64_t live = atomic_load(&f.memory.live_blocks);
    script_complete(entry, POLLIN, 0);
    drop_elsewhere();
    turn();
    heard(0, 0);
    assert_int_equal(weir_loop_is_idle(f.loop), 1);
    assert_int_equal(atomic_load(&f.memory.live_blocks), live - 1);
}

static void watch_dropped_on_another_thread_after_the_close_is_freed(void **state) {
    (void)state;
    start(IN);
    test_ok(weir_loop_close(f.loop));
    uint64_t live = atomic_load(&f.memory.live_blocks);
    drop_elsewhere();
    assert_int_equal(atomic_load(&f.memory.live_blocks), live - 1);
}

/* ---- the loop's end ----------------------------------------------------------------------------------- */

enum { POINTS = 7 };

/* As far as that, from a watch that was never started to one that was stopped and started again. */
static void come_to(int point) {
    script_entry *entry = NULL;
    if (point >= 1)
        test_ok(weir_watch_start(it.watch, IN));
    if (point >= 2) {
        turn();
        entry = expect_poll(POLLIN);
    }
    if (point == 3)
        script_complete(entry, POLLIN, 0);
    if (point >= 4)
        test_ok(weir_watch_stop(it.watch));
    if (point == 5)
        test_ok(weir_watch_start(it.watch, OUT));
    if (point == 6)
        turn();
}

static void close_ends_a_watch_at_every_point(void **state) {
    (void)state;
    for (int point = 0; point < POINTS; point++) {
        for (int is_dropped = 0; is_dropped <= 1; is_dropped++) {
            come_to(point);
            if (is_dropped)
                drop_it();
            test_ok(weir_loop_close(f.loop));
            heard(0, 0);
            if (!is_dropped) {
                assert_int_equal(weir_watch_start(it.watch, IN), -ESHUTDOWN);
                test_ok(weir_watch_stop(it.watch));
            }
            assert_int_equal(test_loop_stats(&f).watches_started, 0);
            assert_int_equal(weir_loop_is_idle(f.loop), 1);
            assert_int_equal(teardown(NULL), 0); /* nothing is left */
            assert_int_equal(setup(NULL), 0);
        }
    }
}

static void watch_keeps_run_going_only_while_it_is_started(void **state) {
    (void)state;
    test_ok(weir_loop_run(f.loop));
    script_entry *entry = start(IN);
    assert_int_equal(weir_loop_run_once(f.loop, 0), 1);
    assert_int_equal(test_loop_stats(&f).watches_started, 1);
    test_ok(weir_loop_drain(f.loop, WEIR_NEVER));
    test_ok(weir_loop_run(f.loop)); /* a loop that drains waits for streams, not for watches */
    script_complete(entry, POLLIN, 0);
    turn();
    heard(1, IN);
}

static void draining_loop_lets_go_of_stopped_watches(void **state) {
    (void)state;
    script_entry *entry = start(IN);
    test_ok(weir_loop_drain(f.loop, WEIR_NEVER));
    test_ok(weir_loop_run(f.loop));
    assert_true(entry->is_live); /* as the watch goes on */
    test_ok(weir_watch_stop(it.watch));
    test_ok(weir_loop_run(f.loop));
    assert_false(entry->is_live);
}

static void watch_goes_on_when_the_grace_is_over(void **state) {
    (void)state;
    script_entry *entry = start(IN);
    weir_watch *another = NULL;
    test_ok(weir_loop_drain(f.loop, 0));
    turn();
    script_advance_ns(1000);
    turn();
    assert_int_equal(weir_watch_new(f.loop, FD, hear, &it, &another), -ESHUTDOWN);
    script_complete(entry, POLLIN, 0);
    turn();
    heard(1, IN);
    turn();
    expect_poll(POLLIN);
}

#define watch_test(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        watch_test(watch_is_heard_again_as_long_as_it_is_so),
        watch_test(watch_translates_every_event),
        watch_test(watch_of_nothing_hears_errors),
        watch_test(watch_that_the_kernel_refuses_is_told_and_stops),
        watch_test(watch_that_failed_may_be_started_in_its_callback),
        watch_test(watch_changes_its_mind),
        watch_test(what_is_not_wanted_any_more_is_not_heard),
        watch_test(what_is_wanted_still_is_heard_at_once),
        watch_test(watch_that_wants_the_same_is_left_alone),
        watch_test(change_in_the_callback_cancels_nothing),
        watch_test(watch_stopped_before_its_turn_asks_nothing),
        watch_test(watch_stopped_too_late_for_the_kernel_is_not_heard),
        watch_test(stopped_watch_is_taken_back_in_the_next_turn),
        watch_test(new_file_with_the_old_number_is_not_mistaken),
        watch_test(watch_may_stop_itself),
        watch_test(watch_may_stop_and_start_itself),
        watch_test(watch_may_be_dropped_in_its_own_callback),
        watch_test(dropped_watch_stays_until_the_kernel_has_forgotten_it),
        watch_test(watch_dropped_before_it_is_started_is_gone),
        watch_test(watch_wants_memory),
        watch_test(watch_dropped_on_another_thread_is_not_heard),
        watch_test(watch_dropped_on_another_thread_after_the_close_is_freed),
        watch_test(close_ends_a_watch_at_every_point),
        watch_test(watch_keeps_run_going_only_while_it_is_started),
        watch_test(draining_loop_lets_go_of_stopped_watches),
        watch_test(watch_goes_on_when_the_grace_is_over),
    };
    return cmocka_run_group_tests_name("watch", tests, begin_threads, NULL);
}
