/* SPDX-License-Identifier: MIT */
/* Large replies, which go out inside the call that writes them: what of it the kernel is asked, and what is left to the ring. */
#include "loop/loop.h"
#include "scripted/scripted.h"
#include "support/support.h"
#include "weir/stream.h"

enum { LARGE = 10000, SMALL = 1000 };

static test_fixture f;
static const weir__tuning tuning = { .no_self_test = true };

static uint8_t bytes[LARGE];

static struct {
    weir_stream *stream;
    int fd;
    script_entry *receive;
    int written; /* what the last write said */
    int closes, ends, error;
} echo;

static void on_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    (void)userdata;
    echo.written = weir_stream_write_slice(stream, slice);
}

static void on_end(weir_stream *stream, void *userdata) {
    (void)stream, (void)userdata;
    echo.ends++;
}

static void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    (void)stream, (void)reason, (void)userdata;
    echo.error = error;
    echo.closes++;
}

static const weir_stream_callbacks callbacks = {
    .size = sizeof callbacks, .on_data = on_data, .on_end = on_end, .on_close = on_close
};

static void turns(void) {
    for (int i = 0; i < 3; i++)
        assert_true(weir_loop_run_once(f.loop, 0) >= 0);
}

static int setup(void **state) {
    (void)state;
    script_begin();
    script_answer_cancels(true);
    memset(&echo, 0, sizeof echo);
    for (size_t i = 0; i < LARGE; i++)
        bytes[i] = (uint8_t)(i * 31 + i / 251);
    test_open(&f, &tuning, NULL);
    echo.fd = weir__sys_socket(AF_INET, SOCK_STREAM);
    test_ok(weir_stream_adopt(f.loop, echo.fd, NULL, &echo.stream));
    test_ok(weir_stream_start(echo.stream, &callbacks, NULL));
    turns();
    echo.receive = script_find(IORING_OP_RECV, echo.fd);
    assert_non_null(echo.receive);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    if (echo.closes == 0)
        test_ok(weir_stream_abort(echo.stream));
    turns();
    assert_int_equal(echo.closes, 1);
    test_close(&f);
    script_end();
    return 0;
}

static void come(size_t size) {
    script_receive(echo.receive, bytes, size, true);
    turns();
}

/* The ring is asked to send exactly these, and takes them. */
static void the_ring_sends(const uint8_t *data, uint32_t size) {
    script_entry *send = script_find(IORING_OP_SEND, echo.fd);
    assert_non_null(send);
    assert_int_equal(send->sqe.len, size);
    assert_memory_equal((const void *)(uintptr_t)send->sqe.addr, data, size);
    script_complete(send, (int32_t)size, 0);
    turns();
}

static void the_ring_sends_nothing(void) {
    assert_null(script_find(IORING_OP_SEND, echo.fd));
}

static weir_stream_stats stats(void) {
    weir_stream_stats s = { .size = sizeof s };
    test_ok(weir_stream_get_stats(echo.stream, &s));
    return s;
}

static void a_large_reply_is_sent_inside_the_call(void **state) {
    const void *sent;
    (void)state;
    come(LARGE);
    assert_int_equal(script_sends(), 1);
    assert_int_equal(script_sent(&sent), LARGE);
    assert_memory_equal(sent, bytes, LARGE);
    assert_int_equal(echo.written, WEIR_WRITE_OK);
    assert_int_equal(stats().bytes_out, LARGE);
    assert_int_equal(stats().queued_bytes, 0);
    the_ring_sends_nothing();
}

static void what_the_kernel_does_not_take_goes_with_the_turn(void **state) {
    (void)state;
    script_set_room(4000);
    come(LARGE);
    assert_int_equal(script_sent(NULL), 4000);
    the_ring_sends(bytes + 4000, LARGE - 4000);
    assert_int_equal(stats().bytes_out, LARGE);
}

static void without_room_all_of_it_goes_with_the_turn(void **state) {
    (void)state;
    script_set_room(0);
    come(LARGE);
    assert_int_equal(script_sends(), 1);
    the_ring_sends(bytes, LARGE);
    assert_int_equal(stats().bytes_out, LARGE);
}

static void a_signal_is_no_error(void **state) {
    (void)state;
    script_fail(SCRIPT_SEND_VECTORS, -EINTR, 1);
    come(LARGE);
    the_ring_sends(bytes, LARGE);
}

static void a_small_reply_is_worth_no_call_of_its_own(void **state) {
    (void)state;
    come(SMALL);
    assert_int_equal(script_sends(), 0);
    the_ring_sends(bytes, SMALL);
}

static void a_corked_reply_waits(void **state) {
    (void)state;
    test_ok(weir_stream_cork(echo.stream));
    come(LARGE);
    assert_int_equal(script_sends(), 0);
    the_ring_sends_nothing();
    test_ok(weir_stream_uncork(echo.stream));
    turns();
    the_ring_sends(bytes, LARGE);
}

static void a_large_reply_does_not_overtake_a_send_under_way(void **state) {
    (void)state;
    come(SMALL);
    script_entry *send = script_find(IORING_OP_SEND, echo.fd);
    assert_non_null(send);
    come(LARGE);
    assert_int_equal(script_sends(), 0);
    script_complete(send, SMALL, 0);
    turns();
    the_ring_sends(bytes, LARGE);
}

/* Nothing is the application's own that is sent so: a release function would run inside the call that gives the memory. */
static void only_what_was_received_is_sent_at_once(void **state) {
    (void)state;
    assert_int_equal(weir_stream_write(echo.stream, bytes, LARGE), WEIR_WRITE_OK);
    assert_int_equal(script_sends(), 0);
    turns();
    the_ring_sends(bytes, LARGE);
    assert_int_equal(weir_stream_write_external(echo.stream, bytes, LARGE, NULL, NULL), WEIR_WRITE_OK);
    assert_int_equal(script_sends(), 0);
    turns();
    the_ring_sends(bytes, LARGE);
}

/*
 * The simulator found it: a socket tells its error once. Here the call heard of the reset, forgot it, and the receive after it
 * found a mere end, so that the stream closed as if its peer had ended in good order.
 */
static void the_error_that_it_hears_counts(void **state) {
    (void)state;
    script_fail(SCRIPT_SEND_VECTORS, -ECONNRESET, 1);
    come(LARGE);
    assert_int_equal(echo.written, WEIR_WRITE_OK);
    script_complete(echo.receive, 0, 0);
    turns();
    assert_int_equal(echo.ends, 0);
    assert_int_equal(echo.closes, 1);
    assert_int_equal(echo.error, -ECONNRESET);
}

int main(void) {
#define now_test(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        now_test(a_large_reply_is_sent_inside_the_call),
        now_test(what_the_kernel_does_not_take_goes_with_the_turn),
        now_test(without_room_all_of_it_goes_with_the_turn),
        now_test(a_signal_is_no_error),
        now_test(a_small_reply_is_worth_no_call_of_its_own),
        now_test(a_corked_reply_waits),
        now_test(a_large_reply_does_not_overtake_a_send_under_way),
        now_test(only_what_was_received_is_sent_at_once),
        now_test(the_error_that_it_hears_counts),
    };
    return cmocka_run_group_tests_name("stream_now", tests, NULL, NULL);
}
