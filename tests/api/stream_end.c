/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

#include <netinet/in.h>
#include <stdio.h>
#include <sys/mman.h>

/* How streams end: by whom, told with which reason, once, last and never inside a call. */

static const int64_t ms = 1000000;

/* ---- close ------------------------------------------------------------------------------------------- */

static void close_sends_the_queue_ends_and_waits_for_the_peer(void **state) {
    test_fixture *f = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        static witness w;
        static uint8_t data[1 << 20], got[1 << 20];
        size_t have = 0;
        int n = -EAGAIN;
        test_fill(6, 0, data, sizeof data);
        int peer = witness_pair(f, &w, tcp, NULL);
        assert_int_equal(weir_stream_write(w.stream, data, sizeof data), WEIR_WRITE_OK);
        test_ok(weir_stream_close(w.stream));
        assert_int_equal(w.closes, 0);
        assert_int_equal(weir_stream_get_state(w.stream), WEIR_STREAM_CLOSING);
        test_ok(weir_stream_close(w.stream)); /* again */
        assert_int_equal(weir_stream_write(w.stream, "x", 1), -EPIPE);
        assert_int_equal(weir_stream_shutdown(w.stream), -EPIPE);
        run_until(f, (n = peer_poll(peer, got + have, sizeof got - have)) > 0 ? (have += (size_t)n, false)
                                                                              : n == 0 || have == sizeof got);
        assert_int_equal(have, sizeof got);
        assert_int_equal(test_differs(6, 0, got, sizeof got), -1);
        run_until(f, peer_poll(peer, got, 1) == 0); /* our end */
        assert_int_equal(w.closes, 0);              /* the peer has not ended */
        peer_send(peer, "late", 4);                 /* thrown away, and no reason for a reset */
        run_turns(f, 5);
        shutdown(peer, SHUT_WR);
        run_until(f, w.closes == 1);
        assert_string_equal(w.order, "c");
        assert_int_equal(w.reason, WEIR_CLOSE_LOCAL);
        assert_int_equal(w.error, 0);
        close(peer);
    }
}

static void a_peer_that_does_not_end_is_reset_after_the_linger_time(void **state) {
    test_fixture *f = *state;
    static witness w;
    const weir_stream_options options = { .size = sizeof options, .linger_timeout_ns = 30 * ms };
    char byte;
    int peer = witness_pair(f, &w, true, &options);
    int64_t start = test_now_ns();
    test_ok(weir_stream_close(w.stream));
    run_until(f, w.closes == 1);
    assert_true(test_now_ns() - start >= 30 * ms);
    assert_int_equal(w.reason, WEIR_CLOSE_LINGER);
    assert_int_equal(peer_poll(peer, &byte, 1), 0); /* our end came before the reset */
    close(peer);
}

static void nothing_is_told_between_close_and_on_close(void **state) {
    test_fixture *f = *state;
    static witness w;
    static const weir_stream_options options = { .size = sizeof options,
                                                 .queue_high_bytes = 1000,
                                                 .queue_low_bytes = 100 };
    static uint8_t data[2000];
    int peer = witness_pair(f, &w, true, &options);
    assert_int_equal(weir_stream_write(w.stream, data, sizeof data), WEIR_WRITE_FULL);
    peer_send(peer, "hello", 5);
    shutdown(peer, SHUT_WR);
    test_ok(weir_stream_close(w.stream));
    run_until(f, w.closes == 1);
    assert_string_equal(w.order, "c"); /* no data, no end, no drain */
    close(peer);
}

static void an_abort_cuts_a_close_short(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, true, NULL);
    test_ok(weir_stream_close(w.stream));
    run_turns(f, 3);
    assert_int_equal(w.closes, 0);
    test_ok(weir_stream_abort(w.stream));
    run_until(f, w.closes == 1);
    assert_int_equal(w.reason, WEIR_CLOSE_ABORT);
    close(peer);
}

/* ---- abort ------------------------------------------------------------------------------------------- */

static void abort_drops_the_queue_and_resets(void **state) {
    test_fixture *f = *state;
    static witness w;
    static uint8_t data[8 << 20], got[65536];
    const weir_stream_options options = { .size = sizeof options, .queue_limit_bytes = sizeof data };
    int fds[2], n;
    memset(&w, 0, sizeof w);
    test_pair(true, fds);
    set_buffer_sizes(fds[0], 8192);
    witness_adopt(f, &w, fds[0], &options);
    assert_int_equal(weir_stream_write(w.stream, data, sizeof data), WEIR_WRITE_FULL);
    run_turns(f, 5);
    test_ok(weir_stream_abort(w.stream));
    test_ok(weir_stream_abort(w.stream)); /* again */
    test_ok(weir_stream_close(w.stream)); /* nothing to do */
    assert_int_equal(w.closes, 0);
    assert_int_equal(weir_stream_write(w.stream, "x", 1), -EPIPE);
    assert_int_equal(weir_stream_get_state(w.stream), WEIR_STREAM_CLOSING);
    run_until(f, w.closes == 1);
    assert_string_equal(w.order, "c");
    assert_int_equal(w.reason, WEIR_CLOSE_ABORT);
    assert_int_equal(w.error, 0);
    while ((n = peer_poll(fds[1], got, sizeof got)) > 0)
        ;
    assert_int_equal(n, -ECONNRESET);
    close(fds[1]);
}

static void abort_ends_a_unix_stream_as_well(void **state) {
    test_fixture *f = *state;
    static witness w;
    char byte;
    int peer = witness_pair(f, &w, false, NULL);
    test_ok(weir_stream_abort(w.stream));
    run_until(f, w.closes == 1);
    assert_int_equal(w.reason, WEIR_CLOSE_ABORT);
    assert_int_equal(peer_poll(peer, &byte, 1), 0);
    close(peer);
}

/* ---- never inside ------------------------------------------------------------------------------------ */

static char ask_at;
static int (*ask_with)(weir_stream *stream);

static void ask_and_see(witness *w, char event, const weir_slice *slice) {
    (void)slice;
    if (event == ask_at) {
        test_ok(ask_with(w->stream));
        assert_int_equal(w->closes, 0); /* never inside */
    }
}

static void close_and_abort_never_call_back_inside(void **state) {
    test_fixture *f = *state;
    for (int i = 0; i < 6; i++) {
        static witness w;
        ask_at = "de\0"[i / 2];
        ask_with = i % 2 ? weir_stream_abort : weir_stream_close;
        int peer = witness_pair(f, &w, i % 3 == 0, NULL);
        w.hook = ask_and_see;
        peer_send(peer, "x", 1);
        shutdown(peer, SHUT_WR);
        run_until(f, w.ends == 1 || w.closes == 1);
        if (ask_at == '\0') { /* outside of callbacks */
            test_ok(ask_with(w.stream));
            assert_int_equal(w.closes, 0);
        }
        run_until(f, w.closes == 1);
        close(peer);
        run_turns(f, 3);
        assert_int_equal(w.closes, 1);
    }
}

/* ---- by the peer ------------------------------------------------------------------------------------- */

static void a_reset_closes_with_its_error(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, true, NULL);
    run_turns(f, 3);
    peer_reset(peer);
    run_until(f, w.closes == 1);
    assert_string_equal(w.order, "c");
    assert_int_equal(w.reason, WEIR_CLOSE_ERROR);
    assert_int_equal(w.error, -ECONNRESET);
}

static void a_reset_behind_data_comes_after_the_data(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, true, NULL);
    run_turns(f, 3);
    peer_send(peer, "hello", 5);
    run_until(f, w.size == 5);
    peer_reset(peer);
    run_until(f, w.closes == 1);
    assert_string_equal(w.order, "dc");
    assert_int_equal(w.error, -ECONNRESET);
}

static void a_write_to_a_peer_that_is_gone_closes_with_an_error(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, false, NULL);
    test_ok(weir_stream_pause(w.stream));
    run_turns(f, 3);
    close(peer);
    assert_int_equal(weir_stream_write(w.stream, "x", 1), WEIR_WRITE_OK); /* the kernel tells later */
    run_until(f, w.closes == 1);
    assert_int_equal(w.reason, WEIR_CLOSE_ERROR);
    assert_int_equal(w.error, -EPIPE);
}

/*
 * Whatever a send failed with, the stream waited for the peer's end to say so. What came in is only worth waiting for when
 * the connection has gone; here it has not (the memory that was lent has), and the peer does not think of ending.
 */
static void a_send_that_fails_on_a_good_connection_closes_at_once(void **state) {
    test_fixture *f = *state;
    const weir_stream_options options = { .size = sizeof options, .linger_timeout_ns = 3600 * 1000 * ms };
    for (int tcp = 0; tcp <= 1; tcp++) {
        static witness w;
        lent releases = { 0 };
        void *nothing = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_ptr_not_equal(nothing, MAP_FAILED);
        int peer = witness_pair(f, &w, tcp, &options);
        run_turns(f, 3);
        assert_int_equal(weir_stream_write_external(w.stream, nothing, 4096, lent_release, &releases),
                         WEIR_WRITE_OK);
        run_until(f, w.closes == 1);
        assert_int_equal(w.reason, WEIR_CLOSE_ERROR);
        assert_int_equal(w.error, -EFAULT);
        assert_int_equal(releases.releases, 1);
        munmap(nothing, 4096);
        close(peer);
    }
}

/* ---- connecting -------------------------------------------------------------------------------------- */

static void dial(test_fixture *f, witness *w, const char *address, const weir_stream_options *options) {
    memset(w, 0, sizeof *w);
    test_ok(weir_stream_dial(f->loop, address, options, &w->stream));
    assert_int_equal(weir_stream_get_state(w->stream), WEIR_STREAM_UNSTARTED);
    test_ok(weir_stream_start(w->stream, &witness_callbacks, w));
    assert_int_equal(weir_stream_get_state(w->stream), WEIR_STREAM_CONNECTING);
}

static void a_refused_connection_comes_through_on_close(void **state) {
    test_fixture *f = *state;
    static witness w;
    char address[WEIR_ADDRESS_SIZE];
    test_free_address(address, sizeof address);
    dial(f, &w, address, NULL);
    run_until(f, w.closes == 1);
    assert_string_equal(w.order, "c");
    assert_int_equal(w.reason, WEIR_CLOSE_CONNECT);
    assert_int_equal(w.error, -ECONNREFUSED);
    dial(f, &w, "unix:/nonexistent/socket", NULL);
    run_until(f, w.closes == 1);
    assert_int_equal(w.reason, WEIR_CLOSE_CONNECT);
    assert_int_equal(w.error, -ENOENT);
}

/* A listening socket whose backlog is full: connections to it stay on their way. */
static int full_backlog(char *address, size_t size, int ret_fillers[2]) {
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    socklen_t length = sizeof in;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&in, sizeof in), 0);
    assert_int_equal(listen(fd, 0), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&in, &length), 0);
    for (int i = 0; i < 2; i++) {
        ret_fillers[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        (void)!connect(ret_fillers[i], (struct sockaddr *)&in, sizeof in);
    }
    snprintf(address, size, "127.0.0.1:%u", ntohs(in.sin_port));
    return fd;
}

static void a_connection_that_takes_too_long_times_out(void **state) {
    test_fixture *f = *state;
    static witness w;
    int fillers[2];
    char address[WEIR_ADDRESS_SIZE];
    int listening = full_backlog(address, sizeof address, fillers);
    const weir_stream_options options = { .size = sizeof options, .connect_timeout_ns = 50 * ms };
    int64_t start = test_now_ns();
    dial(f, &w, address, &options);
    run_until(f, w.closes == 1);
    assert_true(test_now_ns() - start >= 50 * ms);
    assert_string_equal(w.order, "c");
    assert_int_equal(w.reason, WEIR_CLOSE_CONNECT);
    assert_int_equal(w.error, -ETIMEDOUT);
    close(fillers[0]);
    close(fillers[1]);
    close(listening);
}

static void a_stream_may_be_closed_or_aborted_while_it_connects(void **state) {
    test_fixture *f = *state;
    static witness closed, aborted;
    int fillers[2];
    char address[WEIR_ADDRESS_SIZE];
    int listening = full_backlog(address, sizeof address, fillers);
    dial(f, &closed, address, NULL);
    dial(f, &aborted, address, NULL);
    run_turns(f, 3);
    test_ok(weir_stream_close(closed.stream));
    test_ok(weir_stream_abort(aborted.stream));
    run_until(f, closed.closes + aborted.closes == 2);
    assert_int_equal(closed.reason, WEIR_CLOSE_LOCAL);
    assert_int_equal(aborted.reason, WEIR_CLOSE_ABORT);
    assert_int_equal(closed.opens + aborted.opens, 0);
    close(fillers[0]);
    close(fillers[1]);
    close(listening);
}

/* What was written is sent all the same. */
static void close_while_connecting_sends_what_was_written(void **state) {
    test_fixture *f = *state;
    static witness w, server;
    static witness_gate gate;
    char address[WEIR_ADDRESS_SIZE];
    witness_listen(f, &gate, "127.0.0.1:0", NULL);
    assert_true(weir_listener_get_address(gate.listener, address, sizeof address) > 0);
    dial(f, &w, address, NULL);
    assert_int_equal(weir_stream_write(w.stream, "last words", 10), WEIR_WRITE_OK);
    test_ok(weir_stream_close(w.stream));
    run_until(f, gate.count == 1);
    memset(&server, 0, sizeof server);
    server.stream = gate.streams[0];
    test_ok(weir_stream_start(server.stream, &witness_endless_callbacks, &server));
    run_until(f, w.closes + server.closes == 2);
    assert_memory_equal(server.bytes, "last words", 10);
    assert_int_equal(w.reason, WEIR_CLOSE_LOCAL);
    assert_int_equal(server.reason, WEIR_CLOSE_PEER);
}

static void a_stream_that_failed_before_its_start_tells_then(void **state) {
    test_fixture *f = *state;
    static witness w;
    char address[WEIR_ADDRESS_SIZE];
    memset(&w, 0, sizeof w);
    test_free_address(address, sizeof address);
    test_ok(weir_stream_dial(f->loop, address, NULL, &w.stream));
    run_turns(f, 10);
    assert_int_equal(weir_stream_get_state(w.stream), WEIR_STREAM_UNSTARTED);
    assert_int_equal(weir_stream_write(w.stream, "x", 1), -EPIPE);
    test_ok(weir_stream_start(w.stream, &witness_callbacks, &w));
    assert_int_equal(w.closes, 0);
    run_until(f, w.closes == 1);
    assert_int_equal(w.reason, WEIR_CLOSE_CONNECT);
    assert_int_equal(w.error, -ECONNREFUSED);
}

static void an_unstarted_stream_is_closed_without_on_close(void **state) {
    test_fixture *f = *state;
    for (int i = 0; i < 2; i++) {
        weir_stream *stream;
        int fds[2];
        test_pair(true, fds);
        test_ok(weir_stream_adopt(f->loop, fds[0], NULL, &stream));
        test_ok(i == 0 ? weir_stream_close(stream) : weir_stream_abort(stream));
        shutdown(fds[1], SHUT_WR);
        run_until(f, test_loop_stats(f).streams_open == 0);
        close(fds[1]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        loop_test(close_sends_the_queue_ends_and_waits_for_the_peer),
        loop_test(a_peer_that_does_not_end_is_reset_after_the_linger_time),
        loop_test(nothing_is_told_between_close_and_on_close),
        loop_test(an_abort_cuts_a_close_short),
        loop_test(abort_drops_the_queue_and_resets),
        loop_test(abort_ends_a_unix_stream_as_well),
        loop_test(close_and_abort_never_call_back_inside),
        loop_test(a_reset_closes_with_its_error),
        loop_test(a_reset_behind_data_comes_after_the_data),
        loop_test(a_write_to_a_peer_that_is_gone_closes_with_an_error),
        loop_test(a_send_that_fails_on_a_good_connection_closes_at_once),
        loop_test(a_refused_connection_comes_through_on_close),
        loop_test(a_connection_that_takes_too_long_times_out),
        loop_test(a_stream_may_be_closed_or_aborted_while_it_connects),
        loop_test(close_while_connecting_sends_what_was_written),
        loop_test(a_stream_that_failed_before_its_start_tells_then),
        loop_test(an_unstarted_stream_is_closed_without_on_close),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
