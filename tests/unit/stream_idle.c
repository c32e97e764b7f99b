/* SPDX-License-Identifier: MIT */
/* When a stream counts as idle: when nothing is read and nothing is taken, unless reading is held back. */
#include "unit/deadline.h"

static const weir_stream_options idles = { .size = sizeof idles,
                                           .idle_timeout_ns = timeout_ns,
                                           .write_timeout_ns = WEIR_NEVER };

static int setup_small(void **state) {
    (void)state;
    const weir_pool_options pool = {
        .size = sizeof pool, .budget_bytes = 8 * 4096, .buffer_bytes = 4096, .window_bytes = 4096
    };
    return set_up(&pool);
}

static void a_stream_where_nothing_happens_is_idle_from_its_start_on(void **state) {
    (void)state;
    int fd;
    (void)adopt(&idles, &fd);
    ends_at(timeout_ns, WEIR_CLOSE_IDLE);
}

static void reading_pushes_the_idle_timeout(void **state) {
    (void)state;
    int fd;
    (void)adopt(&idles, &fd);
    go_to(60 * ms);
    receive(fd, "a");
    go_to(159 * ms);
    receive(fd, "b");
    assert_int_equal(told.datas, 2);
    ends_at(259 * ms, WEIR_CLOSE_IDLE);
}

static void only_what_is_taken_of_a_write_pushes_the_idle_timeout(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&idles, &fd);
    go_to(60 * ms);
    write_some(stream, 300);
    go_to(90 * ms);
    take(fd, 100);
    go_to(150 * ms);
    write_some(stream, 100); /* writing alone is no activity */
    ends_at(190 * ms, WEIR_CLOSE_IDLE);
}

static void the_idle_time_stands_still_while_paused(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&idles, &fd);
    go_to(30 * ms);
    test_ok(weir_stream_pause(stream));
    turns();
    go_to(500 * ms); /* 70 ms are left */
    test_ok(weir_stream_resume(stream));
    turns();
    go_to(520 * ms);
    test_ok(weir_stream_pause(stream)); /* and then 50 */
    turns();
    go_to(900 * ms);
    assert_int_equal(told.closes, 0);
    test_ok(weir_stream_resume(stream));
    turns();
    ends_at(950 * ms, WEIR_CLOSE_IDLE);
}

static void a_paused_stream_is_never_idle(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&idles, &fd);
    go_to(30 * ms);
    test_ok(weir_stream_pause(stream));
    turns();
    never_ends();
}

/* Writing goes on while reading is held back. What was taken then was added to what had been left before, and the stream
 * was idle too late by as long as it had been paused until then. */
static void what_is_taken_while_paused_begins_the_idle_time_anew(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&idles, &fd);
    go_to(30 * ms);
    test_ok(weir_stream_pause(stream));
    write_some(stream, 100);
    go_to(400 * ms);
    take(fd, 100);
    go_to(500 * ms);
    test_ok(weir_stream_resume(stream));
    turns();
    ends_at(600 * ms, WEIR_CLOSE_IDLE);
}

/* The end that came with the last bytes is told behind them, so it is held back as they are. */
static void a_paused_stream_that_has_ended_is_not_idle_before_that_is_told(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&idles, &fd);
    script_entry *entry = live_receive(fd);
    script_receive(entry, "last", 4, true);
    script_complete(entry, 0, 0);
    test_ok(weir_stream_pause(stream));
    turns();
    never_ends();
    assert_int_equal(told.datas + told.ends, 0);
    test_ok(weir_stream_resume(stream));
    turns();
    assert_int_equal(told.datas, 1);
    assert_int_equal(told.ends, 1);
    begin = weir__sys_now();
    test_ok(weir_stream_pause(stream)); /* now there is nothing to be held back any more */
    turns();
    ends_at(timeout_ns, WEIR_CLOSE_IDLE);
}

static void a_metered_stream_without_credit_is_not_idle(void **state) {
    (void)state;
    int fd;
    weir_stream_options options = idles;
    options.flags = WEIR_STREAM_METERED;
    weir_stream *stream = adopt(&options, &fd);
    never_ends();
    test_ok(weir_stream_grant(stream, 2));
    begin = weir__sys_now();
    turns();
    go_to(40 * ms);
    receive(fd, "a");
    ends_at(140 * ms, WEIR_CLOSE_IDLE);
}

/* With what was granted last its reading is held back, at once: that was noted when the receive had been taken back, a turn
 * later, and the time until then, in which the application did other things, made it idle. */
static void a_stream_is_held_back_from_the_byte_on_that_used_its_grant_up(void **state) {
    (void)state;
    int fd;
    weir_stream_options options = idles;
    options.flags = WEIR_STREAM_METERED;
    weir_stream *stream = adopt(&options, &fd);
    test_ok(weir_stream_grant(stream, 1));
    turns();
    script_receive(live_receive(fd), "a", 1, true); /* its last completion is on its way */
    assert_true(weir_loop_run_once(f.loop, 0) >= 0);
    assert_int_equal(told.datas, 1);
    script_advance_ns(5 * timeout_ns);
    test_ok(weir_stream_grant(stream, 1));
    begin = weir__sys_now();
    turns();
    ends_at(timeout_ns, WEIR_CLOSE_IDLE);
}

static void a_stream_that_nobody_listens_to_is_not_idle(void **state) {
    (void)state;
    static const weir_stream_callbacks deaf = { .size = sizeof deaf, .on_close = on_close };
    int fd;
    weir_stream *stream = adopt_unstarted(&idles, &fd);
    test_ok(weir_stream_start(stream, &deaf, NULL));
    begin = weir__sys_now();
    turns();
    never_ends();
}

/* It could not read, and that is our fault: there was no buffer. */
static void a_stream_that_waits_for_memory_is_not_idle(void **state) {
    (void)state;
    int fd;
    weir_slice held[8];
    unsigned count = 0;
    uint8_t *data;
    (void)adopt(&idles, &fd);
    while (count < 8 && weir_slice_new(weir_loop_get_pool(f.loop), 3000, &data, &held[count]) == 0)
        count++;
    script_complete(live_receive(fd), -ENOBUFS, 0);
    assert_true(weir_loop_run_once(f.loop, 0) >= 0);
    weir__actor *actor = WEIR__CONTAINER(f.loop->actors.next, weir__actor, member);
    weir_stream *stream = WEIR__CONTAINER(actor, weir_stream, actor);
    while (count > 0)
        weir_slice_unref(&held[--count]);
    /* With memory it is served in the next turn. Before that, it is due while it is starved. */
    assert_true(f.loop->backend->verbs->is_starved(&stream->in));
    script_advance_ns(timeout_ns - 1);
    stream->timeout.node.deadline = begin;
    weir__stream_timed_out(&stream->timeout);
    assert_false(stream->has_failed);
    script_advance_ns(1);
    f.loop->now = weir__sys_now();
    weir__stream_timed_out(&stream->timeout);
    assert_false(stream->has_failed);
    begin = weir__sys_now();
    turns();
    ends_at(timeout_ns, WEIR_CLOSE_IDLE);
}

static void the_idle_time_begins_with_the_start(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt_unstarted(&idles, &fd);
    test_ok(weir_stream_resume(stream)); /* which has it settled: it counts as held back from then on */
    turns();
    sleep_until(weir__sys_now() + 5 * timeout_ns);
    assert_int_equal(weir_stream_get_state(stream), WEIR_STREAM_UNSTARTED);
    start(stream);
    ends_at(timeout_ns, WEIR_CLOSE_IDLE);
}

static void a_stream_that_connects_is_not_idle(void **state) {
    (void)state;
    weir_stream_options options = idles;
    weir_stream *stream;
    options.connect_timeout_ns = WEIR_NEVER;
    test_ok(weir_stream_dial(f.loop, "127.0.0.1:9", &options, &stream));
    start(stream);
    never_ends();
    script_entry *connect = script_live(1); /* behind the waker's poll */
    assert_int_equal(connect->sqe.opcode, IORING_OP_CONNECT);
    script_complete(connect, 0, 0);
    begin = weir__sys_now();
    turns();
    assert_int_equal(weir_stream_get_state(stream), WEIR_STREAM_OPEN);
    ends_at(timeout_ns, WEIR_CLOSE_IDLE);
}

static void a_stream_that_closes_has_the_linger_timeout_alone(void **state) {
    (void)state;
    int fd;
    weir_stream_options options = idles;
    options.write_timeout_ns = timeout_ns;
    options.linger_timeout_ns = 3 * timeout_ns;
    weir_stream *stream = adopt(&options, &fd);
    write_some(stream, 100);
    test_ok(weir_stream_close(stream));
    turns();
    ends_at(3 * timeout_ns, WEIR_CLOSE_LINGER);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        time_test(a_stream_where_nothing_happens_is_idle_from_its_start_on),
        time_test(reading_pushes_the_idle_timeout),
        time_test(only_what_is_taken_of_a_write_pushes_the_idle_timeout),
        time_test(the_idle_time_stands_still_while_paused),
        time_test(a_paused_stream_is_never_idle),
        time_test(what_is_taken_while_paused_begins_the_idle_time_anew),
        time_test(a_paused_stream_that_has_ended_is_not_idle_before_that_is_told),
        time_test(a_metered_stream_without_credit_is_not_idle),
        time_test(a_stream_is_held_back_from_the_byte_on_that_used_its_grant_up),
        time_test(a_stream_that_nobody_listens_to_is_not_idle),
        cmocka_unit_test_setup_teardown(a_stream_that_waits_for_memory_is_not_idle, setup_small, teardown),
        time_test(the_idle_time_begins_with_the_start),
        time_test(a_stream_that_connects_is_not_idle),
        time_test(a_stream_that_closes_has_the_linger_timeout_alone),
    };
    return cmocka_run_group_tests_name("stream-idle", tests, NULL, NULL);
}
