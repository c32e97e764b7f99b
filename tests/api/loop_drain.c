/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

#include <netinet/in.h>
#include <stdio.h>

/* Draining: let what is open finish, but not for ever. */

static const int64_t ms = 1000000;

static void never(weir_timer *timer, void *userdata) {
    (void)timer;
    ++*(unsigned *)userdata;
}

static void drain_closes_listeners_and_lets_streams_go_on(void **state) {
    test_fixture *f = *state;
    static witness_gate gate;
    static witness w;
    char address[WEIR_ADDRESS_SIZE], answer[5];
    weir_listener *refused = (weir_listener *)&gate;
    witness_listen(f, &gate, "127.0.0.1:0", NULL);
    assert_true(weir_listener_get_address(gate.listener, address, sizeof address) > 0);
    int peer = test_connect(gate.listener);
    run_until(f, gate.count == 1);
    memset(&w, 0, sizeof w);
    w.stream = gate.streams[0];
    test_ok(weir_stream_start(w.stream, &witness_callbacks, &w));
    test_ok(weir_loop_drain(f->loop, WEIR_NEVER));
    assert_int_equal(gate.closes, 0); /* callbacks come later */
    assert_int_equal(weir_listener_open(f->loop, "127.0.0.1:0", NULL, &refused), -ESHUTDOWN);
    assert_ptr_equal(refused, &gate);
    run_until(f, gate.closes == 1);
    assert_int_equal(w.closes, 0);
    peer_send(peer, "hello", 5);
    run_until(f, w.size == 5);
    assert_int_equal(weir_stream_write(w.stream, "there", 5), WEIR_WRITE_OK);
    run_until(f, weir_stream_get_queued(w.stream) == 0);
    peer_receive(peer, answer, 5);
    assert_memory_equal(answer, "there", 5);
    close(peer);
    run_until(f, w.ends == 1);
    test_ok(weir_stream_close(w.stream));
    test_ok(weir_loop_run(f->loop)); /* returns: the last one is closed */
    assert_int_equal(w.closes, 1);
    assert_int_equal(w.reason, WEIR_CLOSE_PEER);
}

static void listeners_cannot_be_adopted_while_draining(void **state) {
    test_fixture *f = *state;
    weir_listener *listener = NULL;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(listen(fd, 1), 0);
    test_ok(weir_loop_drain(f->loop, WEIR_NEVER));
    assert_int_equal(weir_listener_adopt(f->loop, fd, NULL, &listener), -ESHUTDOWN);
    assert_null(listener);
    close(fd);
}

static void dial_and_adopt_still_work_while_draining(void **state) {
    test_fixture *f = *state;
    static witness w, dialled;
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    socklen_t length = sizeof in;
    char address[WEIR_ADDRESS_SIZE];
    int listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listening, (struct sockaddr *)&in, sizeof in), 0);
    assert_int_equal(listen(listening, 1), 0);
    assert_int_equal(getsockname(listening, (struct sockaddr *)&in, &length), 0);
    snprintf(address, sizeof address, "127.0.0.1:%u", ntohs(in.sin_port));
    test_ok(weir_loop_drain(f->loop, WEIR_NEVER));
    int peer = witness_pair(f, &w, false, NULL);
    memset(&dialled, 0, sizeof dialled);
    test_ok(weir_stream_dial(f->loop, address, NULL, &dialled.stream));
    test_ok(weir_stream_start(dialled.stream, &witness_callbacks, &dialled));
    run_until(f, dialled.opens == 1);
    test_ok(weir_stream_abort(dialled.stream));
    test_ok(weir_stream_abort(w.stream));
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(w.closes + dialled.closes, 2);
    close(peer);
    close(listening);
}

static void grace_aborts_what_is_still_open(void **state) {
    test_fixture *f = *state;
    static witness tcp, local;
    char byte;
    int peers[2] = { witness_pair(f, &tcp, true, NULL), witness_pair(f, &local, false, NULL) };
    int64_t start = test_now_ns();
    test_ok(weir_loop_drain(f->loop, 30 * ms));
    test_ok(weir_loop_run(f->loop));
    assert_true(test_now_ns() - start >= 30 * ms);
    assert_int_equal(tcp.closes, 1);
    assert_int_equal(tcp.reason, WEIR_CLOSE_DRAIN);
    assert_int_equal(tcp.error, 0);
    assert_int_equal(local.closes, 1);
    assert_int_equal(local.reason, WEIR_CLOSE_DRAIN);
    assert_int_equal(peer_poll(peers[0], &byte, 1), -ECONNRESET);
    assert_int_equal(peer_poll(peers[1], &byte, 1), 0);
    close(peers[0]);
    close(peers[1]);
}

static void no_grace_aborts_at_once(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, true, NULL);
    test_ok(weir_loop_drain(f->loop, 0));
    assert_int_equal(w.closes, 0); /* not inside */
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(w.closes, 1);
    assert_int_equal(w.reason, WEIR_CLOSE_DRAIN);
    close(peer);
}

static void grace_aborts_a_graceful_close_that_takes_too_long(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, true, NULL);
    test_ok(weir_stream_close(w.stream)); /* the peer does not end, and may take ten seconds for it */
    int64_t start = test_now_ns();
    test_ok(weir_loop_drain(f->loop, 10 * ms));
    test_ok(weir_loop_run(f->loop));
    assert_true(test_now_ns() - start < 5000 * ms);
    assert_int_equal(w.closes, 1);
    assert_int_equal(w.reason, WEIR_CLOSE_DRAIN);
    close(peer);
}

static void a_second_call_shortens_the_grace(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, false, NULL);
    test_ok(weir_loop_drain(f->loop, WEIR_NEVER));
    test_ok(weir_loop_drain(f->loop, 3600 * 1000 * ms));
    test_ok(weir_loop_drain(f->loop, 10 * ms));
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(w.reason, WEIR_CLOSE_DRAIN);
    close(peer);
}

static void a_second_call_does_not_lengthen_the_grace(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, false, NULL);
    test_ok(weir_loop_drain(f->loop, 10 * ms));
    test_ok(weir_loop_drain(f->loop, 3600 * 1000 * ms));
    test_ok(weir_loop_drain(f->loop, WEIR_NEVER));
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(w.reason, WEIR_CLOSE_DRAIN);
    close(peer);
}

static void run_returns_although_timers_are_left(void **state) {
    test_fixture *f = *state;
    weir_timer *timer;
    unsigned fired = 0;
    test_ok(weir_timer_new(f->loop, never, &fired, &timer));
    test_ok(weir_timer_start(timer, 3600 * 1000 * ms, 0));
    test_ok(weir_loop_drain(f->loop, WEIR_NEVER));
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(fired, 0);
    weir_timer_unref(timer);
}

static void run_returns_although_it_was_to_keep_running(void **state) {
    (void)state;
    test_fixture f;
    static witness w;
    weir_loop_options options = { .flags = WEIR_LOOP_KEEP_RUNNING };
    test_open_options(&f, NULL, &options);
    int peer = witness_pair(&f, &w, false, NULL);
    test_ok(weir_loop_drain(f.loop, 5 * ms));
    test_ok(weir_loop_run(f.loop));
    assert_int_equal(w.closes, 1);
    close(peer);
    test_close(&f);
}

static void close_it(weir_timer *timer, void *userdata) {
    (void)timer;
    test_ok(weir_stream_close(userdata));
}

static void run_waits_for_a_stream_that_was_not_started(void **state) {
    test_fixture *f = *state;
    weir_stream *stream;
    weir_timer *timer;
    int fds[2];
    test_pair(false, fds);
    test_ok(weir_stream_adopt(f->loop, fds[0], NULL, &stream));
    test_ok(weir_timer_new(f->loop, close_it, stream, &timer));
    test_ok(weir_timer_start(timer, 20 * ms, 0));
    test_ok(weir_loop_drain(f->loop, WEIR_NEVER));
    int64_t start = test_now_ns();
    close(fds[1]);
    test_ok(weir_loop_run(f->loop));
    assert_true(test_now_ns() - start >= 15 * ms);
    weir_timer_unref(timer);
}

static void stop_it(weir_timer *timer, void *userdata) {
    (void)timer;
    weir_loop_stop(userdata);
}

/* Drain promises an end: a stream that nobody ever starts or closes must not keep run going for ever. */
static void grace_ends_the_waiting_for_a_stream_that_nobody_starts(void **state) {
    test_fixture *f = *state;
    static witness w;
    weir_timer *timer;
    int fds[2];
    test_pair(false, fds);
    memset(&w, 0, sizeof w);
    test_ok(weir_stream_adopt(f->loop, fds[0], NULL, &w.stream));
    test_ok(weir_timer_new(f->loop, stop_it, f->loop, &timer)); /* so that the test ends */
    test_ok(weir_timer_start(timer, 3000 * ms, 0));
    test_ok(weir_loop_drain(f->loop, 10 * ms));
    int64_t start = test_now_ns();
    test_ok(weir_loop_run(f->loop));
    assert_true(test_now_ns() - start < 2000 * ms);
    test_ok(weir_stream_start(w.stream, &witness_callbacks, &w)); /* still yours: and it tells */
    run_turns(f, 3);
    assert_int_equal(w.closes, 1);
    assert_int_equal(w.reason, WEIR_CLOSE_DRAIN);
    weir_timer_unref(timer);
    close(fds[1]);
}

static void an_unstarted_stream_tells_of_the_drain_when_it_is_started(void **state) {
    test_fixture *f = *state;
    static witness w;
    int fds[2];
    test_pair(false, fds);
    memset(&w, 0, sizeof w);
    test_ok(weir_stream_adopt(f->loop, fds[0], NULL, &w.stream));
    test_ok(weir_loop_drain(f->loop, 0));
    run_turns(f, 5);
    assert_int_equal(w.closes, 0);
    test_ok(weir_stream_start(w.stream, &witness_callbacks, &w));
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(w.closes, 1);
    assert_int_equal(w.reason, WEIR_CLOSE_DRAIN);
    close(fds[1]);
}

static weir_loop *to_drain;

static void drain_in_data(witness *w, char event, const weir_slice *slice) {
    (void)w, (void)slice;
    if (event == 'd')
        test_ok(weir_loop_drain(to_drain, 0));
}

static void drain_works_in_a_callback(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, false, NULL);
    w.hook = drain_in_data;
    to_drain = f->loop;
    peer_send(peer, "x", 1);
    test_ok(weir_loop_run(f->loop));
    assert_string_equal(w.order, "dc");
    close(peer);
}

static void drain_after_close_is_refused(void **state) {
    test_fixture *f = *state;
    test_ok(weir_loop_close(f->loop));
    assert_int_equal(weir_loop_drain(f->loop, 0), -ESHUTDOWN);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        loop_test(drain_closes_listeners_and_lets_streams_go_on),
        loop_test(listeners_cannot_be_adopted_while_draining),
        loop_test(dial_and_adopt_still_work_while_draining),
        loop_test(grace_aborts_what_is_still_open),
        loop_test(no_grace_aborts_at_once),
        loop_test(grace_aborts_a_graceful_close_that_takes_too_long),
        loop_test(a_second_call_shortens_the_grace),
        loop_test(a_second_call_does_not_lengthen_the_grace),
        loop_test(run_returns_although_timers_are_left),
        loop_test(run_returns_although_it_was_to_keep_running),
        loop_test(run_waits_for_a_stream_that_was_not_started),
        loop_test(grace_ends_the_waiting_for_a_stream_that_nobody_starts),
        loop_test(an_unstarted_stream_tells_of_the_drain_when_it_is_started),
        loop_test(drain_works_in_a_callback),
        loop_test(drain_after_close_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
