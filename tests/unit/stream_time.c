/* SPDX-License-Identifier: MIT */
/* When a peer is given up that takes nothing of a queue, and what a stream's times cost while all is well. */
#include "unit/deadline.h"

static const weir_stream_options writes = { .size = sizeof writes, .write_timeout_ns = timeout_ns };

static unsigned heap_sets; /* calls of weir__heap_set() */

void __real_weir__heap_set(weir__heap *heap, weir__heap_node *node, int64_t deadline);
void __wrap_weir__heap_set(weir__heap *heap, weir__heap_node *node, int64_t deadline);
void __wrap_weir__heap_set(weir__heap *heap, weir__heap_node *node, int64_t deadline) {
    heap_sets++;
    __real_weir__heap_set(heap, node, deadline);
}

static void a_queue_that_is_not_taken_ends_the_stream(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&writes, &fd);
    go_to(300 * ms); /* nothing is queued, and nothing is due */
    write_some(stream, 100);
    go_to(330 * ms);
    write_some(stream, 100); /* more of it is no progress */
    ends_at(400 * ms, WEIR_CLOSE_WRITE);
}

static void what_is_taken_begins_the_write_time_anew(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&writes, &fd);
    write_some(stream, 300);
    for (int i = 1; i <= 2; i++) {
        go_to(i * 99 * ms);
        take(fd, 100);
    }
    ends_at(298 * ms, WEIR_CLOSE_WRITE);
}

/* Also where the time was not half over: then the kernel has not been asked yet. */
static void progress_before_the_first_look_counts(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&writes, &fd);
    write_some(stream, 200);
    go_to(20 * ms);
    take(fd, 100);
    ends_at(120 * ms, WEIR_CLOSE_WRITE);
}

static void an_empty_queue_is_not_timed(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&writes, &fd);
    write_some(stream, 100);
    go_to(10 * ms);
    take(fd, 100);
    never_ends();
    begin = weir__sys_now();
    write_some(stream, 100);
    ends_at(timeout_ns, WEIR_CLOSE_WRITE);
}

/* The kernel has much of ours and takes nothing more before that has shrunk, though the peer takes byte after byte. */
static void what_the_peer_takes_of_the_kernels_is_progress(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&writes, &fd);
    script_set_unsent(5000);
    write_some(stream, 100);
    for (int i = 1; i <= 5; i++) {
        go_to(i * 100 * ms - 1);
        script_set_unsent(5000 - i);
        go_to(i * 100 * ms);
        assert_int_equal(told.closes, 0);
    }
    ends_at(600 * ms, WEIR_CLOSE_WRITE);
}

/* More than before is none: another byte was sent, none was taken. */
static void only_less_than_before_is_progress(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&writes, &fd);
    script_set_unsent(5000);
    write_some(stream, 100);
    go_to(70 * ms);
    script_set_unsent(5001);
    ends_at(100 * ms, WEIR_CLOSE_WRITE);
}

static void a_corked_stream_is_not_timed_before_its_uncork(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&writes, &fd);
    test_ok(weir_stream_cork(stream));
    write_some(stream, 100);
    never_ends();
    begin = weir__sys_now();
    test_ok(weir_stream_uncork(stream));
    turns();
    ends_at(timeout_ns, WEIR_CLOSE_WRITE);
}

/* What lay corked had used up half of the time, or nearly all of it, when the peer first had something to take. */
static void an_uncorked_queue_has_the_whole_time(void **state) {
    (void)state;
    static const int64_t corked[] = { 1, 49, 51, 99, 101, 149 };
    for (size_t i = 0; i < sizeof corked / sizeof *corked; i++) {
        int fd;
        memset(&told, 0, sizeof told);
        weir_stream *stream = adopt(&writes, &fd);
        test_ok(weir_stream_cork(stream));
        write_some(stream, 100);
        go_to(corked[i] * ms);
        test_ok(i % 2 == 0 ? weir_stream_uncork(stream) : weir_stream_shutdown(stream));
        turns();
        assert_non_null(script_find(IORING_OP_SEND, fd));
        ends_at(corked[i] * ms + timeout_ns, WEIR_CLOSE_WRITE);
    }
}

/* A cork that came when a send was under way does not keep the peer from taking it. */
static void what_was_sent_before_the_cork_is_timed(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&writes, &fd);
    write_some(stream, 100);
    test_ok(weir_stream_cork(stream));
    ends_at(timeout_ns, WEIR_CLOSE_WRITE);
}

static void an_unstarted_stream_is_not_timed_before_its_start(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt_unstarted(&writes, &fd);
    write_some(stream, 100);
    sleep_until(weir__sys_now() + 5 * timeout_ns);
    assert_int_equal(weir_stream_get_state(stream), WEIR_STREAM_UNSTARTED);
    start(stream);
    ends_at(timeout_ns, WEIR_CLOSE_WRITE);
}

static void a_stream_that_connects_is_not_timed_before_it_is_open(void **state) {
    (void)state;
    weir_stream_options options = writes;
    weir_stream *stream;
    options.connect_timeout_ns = WEIR_NEVER;
    test_ok(weir_stream_dial(f.loop, "127.0.0.1:9", &options, &stream));
    start(stream);
    write_some(stream, 100);
    never_ends();
    script_complete(script_live(1), 0, 0);
    begin = weir__sys_now();
    turns();
    ends_at(timeout_ns, WEIR_CLOSE_WRITE);
}

/*
 * A Unix peer that shut its reading down while our queue was full: the kernel wakes nobody for that, so that the wait for
 * room is never over. The write timeout is what ends it.
 */
static void a_wait_for_room_that_never_ends_ends_by_the_timeout(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&writes, &fd);
    script_set_unsent(200000);
    write_some(stream, 100);
    script_complete(script_find(IORING_OP_SEND, fd), -EAGAIN, 0);
    turns();
    assert_non_null(script_find(IORING_OP_POLL_ADD, fd));
    ends_at(timeout_ns, WEIR_CLOSE_WRITE);
}

/*
 * The loop itself was late, by a callback that took long: the first look came after the whole time, and the second one at
 * once behind it, before a peer that reads could have taken anything.
 */
static void two_looks_are_half_the_time_apart_also_when_the_loop_is_late(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&writes, &fd);
    script_set_unsent(5000);
    write_some(stream, 100);
    script_advance_ns(400 * ms);
    turns();
    assert_int_equal(told.closes, 0);
    go_to(430 * ms);
    script_set_unsent(4000);
    go_to(450 * ms);
    ends_at(550 * ms, WEIR_CLOSE_WRITE);
}

static void both_timeouts_share_one_place_and_the_nearer_one_counts(void **state) {
    (void)state;
    for (int is_write_nearer = 0; is_write_nearer <= 1; is_write_nearer++) {
        int fd;
        memset(&told, 0, sizeof told);
        const weir_stream_options both = { .size = sizeof both,
                                           .idle_timeout_ns = is_write_nearer ? 150 * ms : 70 * ms,
                                           .write_timeout_ns = timeout_ns };
        size_t before = f.loop->timers.count;
        weir_stream *stream = adopt(&both, &fd);
        write_some(stream, 100);
        assert_int_equal(f.loop->timers.count, before + 1);
        ends_at(is_write_nearer ? timeout_ns : 70 * ms, is_write_nearer ? WEIR_CLOSE_WRITE : WEIR_CLOSE_IDLE);
        assert_int_equal(f.loop->timers.count, before);
    }
}

static void timeouts_that_are_never_are_not_set(void **state) {
    (void)state;
    const weir_stream_options none = { .size = sizeof none,
                                       .idle_timeout_ns = WEIR_NEVER,
                                       .write_timeout_ns = WEIR_NEVER };
    int fd;
    size_t before = f.loop->timers.count;
    weir_stream *stream = adopt(&none, &fd);
    write_some(stream, 100);
    assert_int_equal(f.loop->timers.count, before);
    never_ends();
}

/* ---- what it costs ------------------------------------------------------------------------------------- */

/* An echo: what came in is written, and taken. The heap is looked at when something is due, not when something happens. */
static void reading_and_writing_only_store(void **state) {
    (void)state;
    const weir_stream_options both = { .size = sizeof both,
                                       .idle_timeout_ns = timeout_ns,
                                       .write_timeout_ns = timeout_ns };
    int fd;
    weir_stream *stream = adopt(&both, &fd);
    write_some(stream, 10);
    take(fd, 10);
    heap_sets = 0;
    for (int i = 0; i < 400; i++) {
        script_advance_ns(ms / 10);
        receive(fd, "hello");
        write_some(stream, 5);
        take(fd, 5);
    }
    assert_int_equal(told.datas, 400);
    assert_int_equal(heap_sets, 0); /* 40 ms have passed: nothing was due */
    for (int i = 0; i < 400; i++) {
        script_advance_ns(ms);
        receive(fd, "hello");
        write_some(stream, 5);
        take(fd, 5);
    }
    assert_int_equal(told.closes, 0);
    assert_true(heap_sets <= 2 * 8 + 2); /* 400 ms more: it fired each half of the time, and was set again */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        time_test(a_queue_that_is_not_taken_ends_the_stream),
        time_test(what_is_taken_begins_the_write_time_anew),
        time_test(progress_before_the_first_look_counts),
        time_test(an_empty_queue_is_not_timed),
        time_test(what_the_peer_takes_of_the_kernels_is_progress),
        time_test(only_less_than_before_is_progress),
        time_test(a_corked_stream_is_not_timed_before_its_uncork),
        time_test(an_uncorked_queue_has_the_whole_time),
        time_test(what_was_sent_before_the_cork_is_timed),
        time_test(an_unstarted_stream_is_not_timed_before_its_start),
        time_test(a_stream_that_connects_is_not_timed_before_it_is_open),
        time_test(a_wait_for_room_that_never_ends_ends_by_the_timeout),
        time_test(two_looks_are_half_the_time_apart_also_when_the_loop_is_late),
        time_test(both_timeouts_share_one_place_and_the_nearer_one_counts),
        time_test(timeouts_that_are_never_are_not_set),
        time_test(reading_and_writing_only_store),
    };
    return cmocka_run_group_tests_name("stream-time", tests, NULL, NULL);
}
