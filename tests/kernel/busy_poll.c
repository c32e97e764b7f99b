/* SPDX-License-Identifier: MIT */

/* Busy polling on a real kernel: what comes while a loop spins is seen, whichever way it comes, and a loop for which nothing
 * comes does not spin. No time is asserted, only what was counted: when a loop spins is for tests/unit/spin.c. */

#include <sched.h>

#include "kernel/scribe.h"

enum { OURS = 1, THEIRS = 2, SIZE = 64, ROUNDS = 300 };

/* Longer than a time slice: also who waits for the processor that the loop spins on is heard in the end. */
enum { LONGEST_NS = 10 * MS };

static test_fixture f;

static void open_loop(uint32_t busy_poll, uint32_t flags) {
    weir_loop_options options = { .busy_poll = busy_poll, .busy_poll_ns = LONGEST_NS, .flags = flags };
    test_open_options(&f, NULL, &options);
}

/* ---- a peer that answers ---------------------------------------------------------------------------------- */

/* Asks again and again, when it has its answer: there is never more than one message under way. Some questions come late
 * enough for the loop to have begun to spin, others maybe at once: a peer that a send wakes may run before that returns. */
static void *ask(void *userdata) {
    uint8_t bytes[SIZE];
    int fd = *(const int *)userdata;
    for (unsigned round = 0; round < ROUNDS; round++) {
        memset(bytes, (int)round, sizeof bytes);
        if (round % 16 == 0)
            test_sleep_ms(2);
        if (send(fd, bytes, sizeof bytes, MSG_NOSIGNAL) != sizeof bytes ||
            recv(fd, bytes, sizeof bytes, MSG_WAITALL) != sizeof bytes || bytes[SIZE - 1] != (uint8_t)round)
            return userdata; /* which is not NULL */
    }
    shutdown(fd, SHUT_RDWR);
    return NULL;
}

static void echo(weir_stream *stream, const weir_slice *slice, void *userdata) {
    (void)userdata;
    assert_true(weir_stream_write_slice(stream, slice) >= 0);
}

static void answer_end(weir_stream *stream, void *userdata) {
    (void)userdata;
    test_ok(weir_stream_close(stream));
}

static const weir_stream_callbacks callbacks = { .size = sizeof callbacks, .on_data = echo, .on_end = answer_end };

static void every_question_is_answered(uint32_t busy_poll, bool is_tcp) {
    pthread_t thread;
    weir_stream *stream;
    void *failed;
    int fds[2];
    open_loop(busy_poll, 0);
    test_pair(is_tcp, fds);
    test_ok(weir_stream_adopt(f.loop, fds[1], NULL, &stream));
    test_ok(weir_stream_start(stream, &callbacks, NULL));
    test_ok(pthread_create(&thread, NULL, ask, &fds[0]));
    test_ok(weir_loop_run(f.loop));
    test_ok(pthread_join(thread, &failed));
    assert_null(failed);
    close(fds[0]);
    weir_loop_stats stats = test_loop_stats(&f);
    assert_int_equal(stats.bytes_in, ROUNDS * SIZE);
    assert_true(stats.spins_paid <= stats.spins);
    if (busy_poll == WEIR_BUSY_POLL_FIXED)
        assert_true(stats.spins_paid >= 1);
    test_close(&f);
}

static void what_comes_while_it_spins_is_seen(void **state) {
    (void)state;
    for (int is_tcp = 0; is_tcp <= 1; is_tcp++) {
        every_question_is_answered(WEIR_BUSY_POLL_FIXED, is_tcp);
        every_question_is_answered(WEIR_BUSY_POLL_ADAPTIVE, is_tcp);
    }
}

/* ---- other threads ---------------------------------------------------------------------------------------- */

enum { POSTS = TIMES(500, 200) };

static _Atomic(unsigned) posts_run;

static void count_post(weir_loop *loop, void *userdata) {
    (void)userdata;
    if (atomic_fetch_add(&posts_run, 1) + 1 == POSTS)
        weir_loop_stop(loop);
}

/* Each one when the one before has run: all of them must end a spin, or a sleep, by themselves. */
static void *post_one_by_one(void *userdata) {
    weir_loop *loop = userdata;
    for (unsigned i = 0; i < POSTS; i++) {
        while (atomic_load(&posts_run) != i)
            sched_yield();
        if (i % 16 == 0)
            test_sleep_ms(2);
        if (weir_loop_post(loop, count_post, NULL) < 0)
            return userdata;
    }
    return NULL;
}

static void posts_are_seen_while_it_spins_and_while_it_sleeps(void **state) {
    (void)state;
    pthread_t thread;
    void *failed;
    open_loop(WEIR_BUSY_POLL_FIXED, WEIR_LOOP_KEEP_RUNNING);
    atomic_store(&posts_run, 0);
    test_ok(pthread_create(&thread, NULL, post_one_by_one, f.loop));
    test_ok(weir_loop_run(f.loop));
    test_ok(pthread_join(thread, &failed));
    assert_null(failed);
    weir_loop_stats stats = test_loop_stats(&f);
    assert_int_equal(stats.posts, POSTS);
    assert_true(stats.spins_paid >= 1);
    assert_true(stats.wakes < POSTS); /* of the others nobody had to be woken for */
    test_close(&f);
}

/* ---- nothing ---------------------------------------------------------------------------------------------- */

static void on_timer(weir_timer *timer, void *userdata) {
    (void)timer;
    ++*(unsigned *)userdata;
}

/* Timers come and go, and the loop's own second passes: it spun once, since it had never slept, and that was it. */
static void idle_loop_does_not_spin(void **state) {
    (void)state;
    weir_timer *timer;
    unsigned fired = 0;
    open_loop(WEIR_BUSY_POLL_FIXED, WEIR_LOOP_KEEP_RUNNING);
    test_ok(weir_timer_new(f.loop, on_timer, &fired, &timer));
    test_run_for_ms(&f, 50);
    uint64_t spins = test_loop_stats(&f).spins, spun_ns = test_loop_stats(&f).spun_ns;
    test_ok(weir_timer_start(timer, 20 * MS, 20 * MS));
    test_run_for_ms(&f, 1300);
    assert_true(fired > 2);
    assert_int_equal(test_loop_stats(&f).spins, spins);
    assert_int_equal(test_loop_stats(&f).spun_ns, spun_ns);
    weir_timer_unref(timer);
    test_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_comes_while_it_spins_is_seen),
        cmocka_unit_test(posts_are_seen_while_it_spins_and_while_it_sleeps),
        cmocka_unit_test(idle_loop_does_not_spin),
    };
    return cmocka_run_group_tests_name("busy-poll", tests, first_thread, NULL);
}
