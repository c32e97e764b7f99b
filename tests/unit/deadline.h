/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TESTS_UNIT_DEADLINE_H
#define WEIR_TESTS_UNIT_DEADLINE_H

/* A stream over the scripted edge and a clock that the test moves: what was it told, and when to the nanosecond. */

#include "loop/loop.h"
#include "scripted/scripted.h"
#include "socket/stream.h"
#include "support/support.h"

static test_fixture f;
static const weir__tuning tuning = { .no_self_test = true };
static const int64_t ms = 1000000, timeout_ns = 100000000;

static struct {
    unsigned datas, ends, closes;
    int reason, error;
    int64_t at; /* when it closed */
} told;

static int64_t begin; /* when the stream was started */

static inline void on_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    (void)stream, (void)slice, (void)userdata;
    told.datas++;
}

static inline void on_end(weir_stream *stream, void *userdata) {
    (void)stream, (void)userdata;
    told.ends++;
}

static inline void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    (void)stream, (void)userdata;
    told.closes++;
    told.reason = reason;
    told.error = error;
    told.at = weir__sys_now();
}

static const weir_stream_callbacks callbacks = {
    .size = sizeof callbacks, .on_data = on_data, .on_end = on_end, .on_close = on_close
};

static inline int set_up(const weir_pool_options *pool) {
    script_begin();
    script_answer_cancels(true);
    memset(&told, 0, sizeof told);
    test_open(&f, &tuning, pool);
    return 0;
}

static inline int setup(void **state) {
    (void)state;
    return set_up(NULL);
}

static inline int teardown(void **state) {
    (void)state;
    test_close(&f);
    script_end();
    return 0;
}

static inline void turns(void) {
    for (int i = 0; i < 4; i++)
        assert_true(weir_loop_run_once(f.loop, 0) >= 0);
}

/* The loop sleeps until then, and does on the way what is due. */
static inline void sleep_until(int64_t then) {
    while (weir__sys_now() < then)
        assert_true(weir_loop_run_once(f.loop, then - weir__sys_now()) >= 0);
    assert_int_equal(weir__sys_now(), then);
    turns();
}

/* Let the time be @at, counted from the stream's start. */
static inline void go_to(int64_t at) {
    sleep_until(begin + at);
}

static inline weir_stream *adopt_unstarted(const weir_stream_options *options, int *ret_fd) {
    weir_stream *stream;
    *ret_fd = weir__sys_socket(AF_INET, SOCK_STREAM);
    test_ok(weir_stream_adopt(f.loop, *ret_fd, options, &stream));
    turns();
    return stream;
}

static inline void start(weir_stream *stream) {
    test_ok(weir_stream_start(stream, &callbacks, NULL));
    begin = weir__sys_now();
    turns();
}

static inline weir_stream *adopt(const weir_stream_options *options, int *ret_fd) {
    weir_stream *stream = adopt_unstarted(options, ret_fd);
    start(stream);
    return stream;
}

/* It lives until @at, counted from its start, and not a nanosecond longer. */
static inline void ends_at(int64_t at, int reason) {
    sleep_until(begin + at - 1);
    assert_int_equal(told.closes, 0);
    sleep_until(begin + at);
    assert_int_equal(told.closes, 1);
    assert_int_equal(told.at, begin + at);
    assert_int_equal(told.reason, reason);
    assert_int_equal(told.error, -ETIMEDOUT);
}

/* Nothing is due, however long it is waited for. */
static inline void never_ends(void) {
    sleep_until(weir__sys_now() + 20 * timeout_ns);
    script_advance_ns(100 * timeout_ns);
    turns();
    assert_int_equal(told.closes, 0);
}

static inline script_entry *live_receive(int fd) {
    for (unsigned i = 0;; i++) {
        script_entry *entry = script_live(i);
        assert_non_null(entry);
        if (entry->sqe.opcode == IORING_OP_RECV && entry->sqe.fd == fd)
            return entry;
    }
}

static inline void receive(int fd, const char *text) {
    script_receive(live_receive(fd), text, strlen(text), true);
    turns();
}

static inline void take(int fd, int32_t bytes) {
    script_entry *entry = script_find(IORING_OP_SEND, fd);
    assert_non_null(entry);
    script_complete(entry, bytes, 0);
    turns();
}

static inline void write_some(weir_stream *stream, size_t size) {
    static const uint8_t bytes[1000];
    assert_int_equal(weir_stream_write(stream, bytes, size), WEIR_WRITE_OK);
    turns();
}

#define time_test(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

#endif
