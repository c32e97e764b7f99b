/* SPDX-License-Identifier: MIT */
/* Which sends may succeed in silence: those after which nobody waits for anything. */
#include "loop/loop.h"
#include "scripted/scripted.h"
#include "socket/stream.h"
#include "support/support.h"

static test_fixture f;
static const weir__tuning tuning = { .no_self_test = true };
static weir_stream *stream;
static int fd;

static void on_data(weir_stream *it, const weir_slice *slice, void *userdata) {
    (void)it, (void)slice, (void)userdata;
}

static void flushed(weir_stream *it, int error, void *userdata) {
    (void)it, (void)error, (void)userdata;
}

static const weir_stream_callbacks callbacks = { .size = sizeof callbacks, .on_data = on_data };

static void turns(void) {
    for (int i = 0; i < 3; i++)
        assert_true(weir_loop_run_once(f.loop, 0) >= 0);
}

static int setup(void **state) {
    const weir_pool_options pool = { .size = sizeof pool, .budget_bytes = 1 << 20, .buffer_bytes = 4096 };
    const weir_stream_options options = { .size = sizeof options,
                                          .queue_high_bytes = 1000,
                                          .queue_limit_bytes = 1 << 20 };
    (void)state;
    script_begin();
    script_set_features(IORING_FEAT_CQE_SKIP);
    script_answer_cancels(true);
    test_open(&f, &tuning, &pool);
    fd = weir__sys_socket(AF_INET, SOCK_STREAM);
    test_ok(weir_stream_adopt(f.loop, fd, &options, &stream));
    test_ok(weir_stream_start(stream, &callbacks, NULL));
    turns();
    f.loop->is_unwatched = true; /* as in weir_loop_run() */
    return 0;
}

static int teardown(void **state) {
    (void)state;
    test_ok(weir_stream_abort(stream));
    turns();
    test_close(&f);
    script_end();
    return 0;
}

/* What was queued is sent: silently? */
static bool is_sent_silently(void) {
    turns();
    script_entry *send = script_find(IORING_OP_SEND, fd);
    assert_non_null(send);
    bool is_silent = (send->sqe.flags & IOSQE_CQE_SKIP_SUCCESS) != 0;
    if (!is_silent)
        script_complete(send, (int32_t)send->sqe.len, 0);
    turns();
    assert_int_equal(weir_stream_get_queued(stream), 0);
    return is_silent;
}

static void a_write_that_nobody_waits_for(void **state) {
    weir_slice slice;
    (void)state;
    assert_int_equal(weir_stream_write(stream, "hello", 5), WEIR_WRITE_OK);
    assert_true(is_sent_silently());
    test_ok(weir_slice_copy(f.loop->pool, "hello", 5, &slice));
    assert_int_equal(weir_stream_write_slice(stream, &slice), WEIR_WRITE_OK);
    weir_slice_unref(&slice);
    assert_true(is_sent_silently());
}

static void not_in_single_turns(void **state) {
    (void)state;
    f.loop->is_unwatched = false;
    assert_int_equal(weir_stream_write(stream, "hello", 5), WEIR_WRITE_OK);
    assert_false(is_sent_silently());
}

static void not_when_a_drain_is_owed(void **state) {
    static const uint8_t much[2000];
    (void)state;
    assert_int_equal(weir_stream_write(stream, much, sizeof much), WEIR_WRITE_FULL);
    assert_false(is_sent_silently());
}

static void not_when_a_flush_waits(void **state) {
    (void)state;
    assert_int_equal(weir_stream_write(stream, "hello", 5), WEIR_WRITE_OK);
    test_ok(weir_stream_flush(stream, flushed, NULL));
    assert_false(is_sent_silently());
}

static void not_before_a_half_close(void **state) {
    (void)state;
    assert_int_equal(weir_stream_write(stream, "hello", 5), WEIR_WRITE_OK);
    test_ok(weir_stream_shutdown(stream));
    assert_false(is_sent_silently());
    assert_int_equal(script_shutdowns(), 1);
}

static void not_of_memory_with_a_release_function(void **state) {
    (void)state;
    assert_int_equal(weir_stream_write_external(stream, "hello", 5, NULL, NULL), WEIR_WRITE_OK);
    assert_false(is_sent_silently());
}

/*
 * Two loops, one of which sent what the other had received. The sender slept, up to a second, on a send that had succeeded,
 * and the receiver's buffers with it: the two crept from second to second.
 */
static void not_of_another_loops_memory(void **state) {
    const weir_loop_options options = { .size = sizeof options, .backend = WEIR_BACKEND_EPOLL };
    weir_loop *other;
    weir_slice slice;
    (void)state;
    test_ok(weir_loop_new(&options, &other));
    test_ok(weir_slice_copy(weir_loop_get_pool(other), "hello", 5, &slice));
    assert_int_equal(weir_stream_write_slice(stream, &slice), WEIR_WRITE_OK);
    weir_slice_unref(&slice);
    assert_false(is_sent_silently());
    test_ok(weir_loop_close(other));
    weir_loop_unref(other);
}

static void not_while_memory_is_short(void **state) {
    weir_slice most;
    uint8_t *data;
    (void)state;
    test_ok(weir_slice_new(f.loop->pool, 300 << 10, &data, &most));
    assert_true(weir__pool_is_short(f.loop->pool));
    assert_int_equal(weir_stream_write(stream, "hello", 5), WEIR_WRITE_OK);
    assert_false(is_sent_silently());
    weir_slice_unref(&most);
    assert_int_equal(weir_stream_write(stream, "hello", 5), WEIR_WRITE_OK);
    assert_true(is_sent_silently());
}

/* The loop came round to it while the send lasted, and cannot start the next before the end of that is told. */
static void what_was_written_meanwhile_is_sent_when_it_is_over(void **state) {
    (void)state;
    stream->out.kind = WEIR__OP_SEND; /* of two bytes */
    assert_int_equal(weir_stream_write(stream, "hello", 5), WEIR_WRITE_OK);
    turns();
    assert_null(script_find(IORING_OP_SEND, fd));
    stream->out.kind = WEIR__OP_NONE;
    weir__stream_output_done(&stream->out, &(weir__completion){ .result = 2, .final = true, .is_late = true });
    assert_int_equal(weir_stream_get_queued(stream), 3);
    assert_true(is_sent_silently());
}

/* A send had been started and could not be handed over at once, and meanwhile its stream was closed: the end waited until
 * the loop woke for something else, for up to a second. */
static void not_when_it_was_closed_before_it_was_handed_over(void **state) {
    (void)state;
    assert_int_equal(weir_stream_write(stream, "hello", 5), WEIR_WRITE_OK);
    script_overflow(true);
    turns();
    assert_null(script_find(IORING_OP_SEND, fd));
    test_ok(weir_stream_close(stream));
    turns();
    script_overflow(false);
    assert_false(is_sent_silently());
    assert_int_equal(script_shutdowns(), 1);
}

static int refused_write(void) {
    static const uint8_t too_much[1 << 20];
    return weir_stream_write(stream, too_much, sizeof too_much);
}

static void write_too_much(weir_stream *it, int error, void *userdata) {
    (void)it, (void)error, (void)userdata;
    assert_int_equal(refused_write(), -ENOBUFS);
}

static void write_and_flush(weir_loop *loop, void *userdata) {
    (void)loop;
    assert_int_equal(weir_stream_write(stream, "hello", 5), WEIR_WRITE_OK); /* settled first */
    test_ok(weir_stream_flush(userdata, write_too_much, NULL));
}

/*
 * Its send had been started at the end of a turn, and then somebody was told that there is no room, and to wait for the drain: the send
 * went out silently, and the drain came when the loop woke for something else, up to a second later.
 */
static void not_when_a_write_was_refused_before_it_was_handed_over(void **state) {
    weir_stream *other;
    (void)state;
    int fd_of_other = weir__sys_socket(AF_INET, SOCK_STREAM);
    test_ok(weir_stream_adopt(f.loop, fd_of_other, NULL, &other));
    test_ok(weir_stream_start(other, &callbacks, NULL));
    turns();
    f.loop->is_unwatched = true;
    test_ok(weir_loop_post(f.loop, write_and_flush, other)); /* which runs behind the wait */
    assert_false(is_sent_silently());
    test_ok(weir_stream_abort(other));
    turns();
}

int main(void) {
#define quiet_test(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        quiet_test(a_write_that_nobody_waits_for),
        quiet_test(not_in_single_turns),
        quiet_test(not_when_a_drain_is_owed),
        quiet_test(not_when_a_flush_waits),
        quiet_test(not_before_a_half_close),
        quiet_test(not_of_memory_with_a_release_function),
        quiet_test(not_of_another_loops_memory),
        quiet_test(not_while_memory_is_short),
        quiet_test(not_when_it_was_closed_before_it_was_handed_over),
        quiet_test(not_when_a_write_was_refused_before_it_was_handed_over),
        quiet_test(what_was_written_meanwhile_is_sent_when_it_is_over),
    };
    return cmocka_run_group_tests_name("stream_quiet", tests, NULL, NULL);
}
