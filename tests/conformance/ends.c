/* SPDX-License-Identifier: MIT */
#include <netinet/in.h>
#include <netinet/tcp.h>

#include "conformance/world.h"

/* How connections end, by whom, and what each side hears of it. */

enum { MUCH = 100000, LARGE = 8 << 20 };

static uint8_t data[LARGE];

static void echo(teller *t, char event, const weir_slice *slice) {
    if (event == 'd')
        ok(weir_stream_write_slice(t->stream, slice));
    else if (event == 'e')
        ok(weir_stream_close(t->stream));
}

static void close_at_end(teller *t, char event, const weir_slice *slice) {
    (void)slice;
    if (event == 'e')
        ok(weir_stream_close(t->stream));
}

/* A stream whose peer does not read, with more queued than the sockets hold. */
static int pair_that_is_full(world *w, teller *a) {
    static const weir_stream_options options = { .size = sizeof options, .queue_limit_bytes = LARGE };
    int fds[2];
    peer_pair(true, fds);
    small_send_buffer(fds[0]);
    teller_adopt(w, a, "a", fds[0], &options);
    assert_int_equal(weir_stream_write(a->stream, data, LARGE), WEIR_WRITE_FULL);
    turns(w, 5);
    assert_true(weir_stream_get_queued(a->stream) > 0);
    return fds[1];
}

/* ---- good ends ------------------------------------------------------------------------------------------ */

static void an_echo_ends_with_its_peer(void **state) {
    world *w = *state;
    char path[64];
    snprintf(path, sizeof path, "unix:@weir-conformance-%d", getpid());
    for (int tcp = 0; tcp <= 1; tcp++) {
        gate g = { .hook = NULL };
        teller a = { .voice = { .name = "a", .seed = 3 }, .hook = echo };
        voice p = { .name = "p", .seed = 3 };
        test_fill(3, 0, data, MUCH);
        gate_open(w, &g, tcp ? "127.0.0.1:0" : path, NULL, &a);
        int peer = peer_connect(g.listener);
        peer_send(peer, data, MUCH);
        until(w, a.voice.size == MUCH);
        told(w, "gate: accept\n"
                "a: data 100000\n");
        peer_hear(w, &p, peer, MUCH);
        weir_stream_stats stats = stream_stats(a.stream);
        assert_int_equal(stats.bytes_in, MUCH);
        assert_int_equal(stats.bytes_out, MUCH);
        assert_int_equal(stats.bytes_copied, 0);
        assert_int_equal(stats.queued_bytes, 0);
        assert_int_equal(stats.staged_bytes, 0);
        shutdown(peer, SHUT_WR);
        peer_hear_all(w, &p, peer);
        until(w, a.closes == 1);
        ok(weir_listener_close(g.listener));
        until(w, g.closes == 1);
        told(w, "p: data 100000\n"
                "a: end\n"
                "a: close PEER 0\n"
                "p: end\n"
                "gate: close 0\n");
        close(peer);
    }
    counted(w, 2 * MUCH, 2 * MUCH, 0, 2);
}

static void the_stream_ends_first(void **state) {
    world *w = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        teller a = { .hook = close_at_end };
        voice p = { .name = "p" };
        int peer = teller_pair(w, &a, "a", tcp, NULL);
        ok(weir_stream_write(a.stream, "bye", 3));
        ok(weir_stream_shutdown(a.stream));
        assert_int_equal(weir_stream_write(a.stream, "x", 1), -EPIPE);
        peer_hear_all(w, &p, peer);
        peer_send_text(peer, "and you");
        until(w, a.voice.size == 7);
        assert_int_equal(weir_stream_get_state(a.stream), WEIR_STREAM_OPEN);
        shutdown(peer, SHUT_WR);
        until(w, a.closes == 1);
        told(w, "p: data 'bye'\n"
                "p: end\n"
                "a: data 'and you'\n"
                "a: end\n"
                "a: close PEER 0\n");
        close(peer);
    }
    counted(w, 14, 6, 6, 0);
}

static void writing_goes_on_after_the_peers_end(void **state) {
    world *w = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        teller a = { .hook = NULL };
        voice p = { .name = "p" };
        int peer = teller_pair(w, &a, "a", tcp, NULL);
        shutdown(peer, SHUT_WR);
        until(w, a.ends == 1);
        turns(w, 5);
        ok(weir_stream_write(a.stream, "still", 5));
        peer_hear(w, &p, peer, 5);
        ok(weir_stream_write(a.stream, "here", 4));
        peer_hear(w, &p, peer, 4);
        ok(weir_stream_shutdown(a.stream));
        peer_hear_all(w, &p, peer);
        turns(w, 5);
        assert_int_equal(weir_stream_get_state(a.stream), WEIR_STREAM_OPEN);
        ok(weir_stream_close(a.stream));
        until(w, a.closes == 1);
        told(w, "a: end\n"
                "p: data 'still'\n"
                "p: data 'here'\n"
                "p: end\n"
                "a: close PEER 0\n");
        close(peer);
    }
}

static void without_on_end_the_peers_end_closes(void **state) {
    world *w = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        int fds[2];
        teller a = { .voice = { .world = w, .name = "a" } };
        voice p = { .name = "p" };
        peer_pair(tcp, fds);
        ok(weir_stream_adopt(w->loop, fds[0], NULL, &a.stream));
        ok(weir_stream_start(a.stream, &endless_callbacks, &a));
        peer_send_text(fds[1], "last");
        shutdown(fds[1], SHUT_WR);
        until(w, a.closes == 1);
        peer_hear_all(w, &p, fds[1]);
        told(w, "a: data 'last'\n"
                "a: close PEER 0\n"
                "p: end\n");
        close(fds[1]);
    }
}

static void a_close_sends_what_is_queued(void **state) {
    world *w = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        teller a = { .hook = NULL };
        voice p = { .name = "p", .seed = 5 };
        test_fill(5, 0, data, 1 << 20);
        int peer = teller_pair(w, &a, "a", tcp, NULL);
        ok(weir_stream_write(a.stream, data, 1 << 20));
        peer_send_text(peer, "unheard");
        ok(weir_stream_close(a.stream));
        assert_int_equal(weir_stream_get_state(a.stream), WEIR_STREAM_CLOSING);
        assert_int_equal(weir_stream_shutdown(a.stream), -EPIPE);
        peer_hear_all(w, &p, peer);
        assert_int_equal(a.closes, 0); /* the peer has not ended */
        peer_send_text(peer, "late");
        turns(w, 5);
        shutdown(peer, SHUT_WR);
        until(w, a.closes == 1);
        told(w, "p: data 1048576\n"
                "p: end\n"
                "a: close LOCAL 0\n");
        close(peer);
    }
    assert_int_equal(loop_stats(w).bytes_out, 2 << 20);
    assert_int_equal(loop_stats(w).bytes_copied, 2 << 20);
}

static int tcp_state(int fd) {
    struct tcp_info info;
    socklen_t size = sizeof info;
    assert_int_equal(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size), 0);
    return info.tcpi_state;
}

static void a_peer_that_does_not_end_is_reset(void **state) {
    world *w = *state;
    const weir_stream_options options = { .size = sizeof options, .linger_timeout_ns = 20000000 };
    teller a = { .hook = NULL };
    voice p = { .name = "p" };
    int peer = teller_pair(w, &a, "a", true, &options);
    ok(weir_stream_close(a.stream));
    peer_hear_all(w, &p, peer);
    until(w, a.closes == 1);
    until(w, tcp_state(peer) == TCP_CLOSE); /* Linux 6.1 may let go of the file a moment later */
    assert_int_equal(send(peer, "x", 1, MSG_NOSIGNAL), -1);
    say(w, "p: %s", error_text(-errno));
    told(w, "p: end\n"
            "a: close LINGER ETIMEDOUT\n"
            "p: EPIPE\n"); /* what a reset is to one who has heard the end */
    close(peer);
}

/* ---- abort ---------------------------------------------------------------------------------------------- */

static void an_abort_resets(void **state) {
    world *w = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        teller a = { .hook = NULL };
        voice p = { .name = "p" };
        int peer = teller_pair(w, &a, "a", tcp, NULL);
        peer_send_text(peer, "heard");
        until(w, a.voice.size == 5);
        ok(weir_stream_abort(a.stream));
        ok(weir_stream_abort(a.stream));
        ok(weir_stream_close(a.stream));
        assert_int_equal(a.closes, 0);
        until(w, a.closes == 1);
        peer_hear_all(w, &p, peer);
        told(w, tcp ? "a: data 'heard'\n"
                      "a: close ABORT 0\n"
                      "p: ECONNRESET\n"
                    : "a: data 'heard'\n"
                      "a: close ABORT 0\n"
                      "p: end\n");
        close(peer);
    }
}

static void an_abort_drops_the_queue(void **state) {
    world *w = *state;
    static uint8_t buffer[65536];
    teller a = { .hook = NULL };
    ssize_t n;
    uint64_t heard = 0;
    int peer = pair_that_is_full(w, &a);
    ok(weir_stream_abort(a.stream));
    assert_int_equal(a.closes, 0);
    until(w, a.closes == 1);
    while ((n = recv(peer, buffer, sizeof buffer, 0)) > 0)
        heard += (uint64_t)n;
    say(w, "p: %s", n == 0 ? "end" : error_text(-errno));
    assert_true(heard < LARGE);
    told(w, "a: close ABORT 0\n"
            "p: ECONNRESET\n");
    close(peer);
}

static void an_abort_cuts_a_close_short(void **state) {
    world *w = *state;
    teller a = { .hook = NULL };
    int peer = teller_pair(w, &a, "a", true, NULL);
    ok(weir_stream_close(a.stream));
    turns(w, 5);
    told(w, "");
    ok(weir_stream_abort(a.stream));
    until(w, a.closes == 1);
    told(w, "a: close ABORT 0\n");
    close(peer);
}

static void abort_now(teller *t, char event, const weir_slice *slice) {
    (void)slice;
    if (event == 'd' || event == 'e') {
        ok(weir_stream_abort(t->stream));
        assert_int_equal(t->closes, 0);
    }
}

static void an_abort_inside_a_callback_silences(void **state) {
    world *w = *state;
    for (int i = 0; i < 4; i++) {
        teller a = { .hook = abort_now };
        int peer = teller_pair(w, &a, "a", i % 2, NULL);
        if (i < 2)
            peer_send_text(peer, "x");
        shutdown(peer, SHUT_WR);
        until(w, a.closes == 1);
        turns(w, 3);
        told(w, i < 2 ? "a: data 'x'\na: close ABORT 0\n" : "a: end\na: close ABORT 0\n");
        close(peer);
    }
}

/* ---- resets by the peer --------------------------------------------------------------------------------- */

static void a_reset_while_idle(void **state) {
    world *w = *state;
    teller a = { .hook = NULL };
    int peer = teller_pair(w, &a, "a", true, NULL);
    turns(w, 3);
    peer_send_text(peer, "first");
    until(w, a.voice.size == 5);
    peer_reset(peer);
    until(w, a.closes == 1);
    told(w, "a: data 'first'\n"
            "a: close ERROR ECONNRESET\n");
}

static void a_reset_while_paused(void **state) {
    world *w = *state;
    for (int settled = 0; settled <= 1; settled++) {
        teller a = { .hook = NULL };
        int peer = teller_pair(w, &a, "a", true, NULL);
        if (settled)
            turns(w, 5);
        ok(weir_stream_pause(a.stream));
        turns(w, 5);
        peer_reset(peer);
        until(w, a.closes == 1);
        told(w, "a: close ERROR ECONNRESET\n");
    }
}

static void pause_at_data(teller *t, char event, const weir_slice *slice) {
    (void)slice;
    if (event == 'd')
        ok(weir_stream_pause(t->stream));
}

static void a_reset_that_came_with_what_made_it_pause(void **state) {
    world *w = *state;
    teller a = { .hook = pause_at_data };
    int peer = teller_pair(w, &a, "a", true, NULL);
    turns(w, 3);
    peer_send_text(peer, "pause");
    peer_reset(peer);
    until(w, a.closes == 1);
    told(w, "a: data 'pause'\n"
            "a: close ERROR ECONNRESET\n");
}

static void a_reset_while_nothing_is_granted(void **state) {
    world *w = *state;
    const weir_stream_options options = { .size = sizeof options, .flags = WEIR_STREAM_METERED };
    teller a = { .hook = NULL };
    int peer = teller_pair(w, &a, "a", true, &options);
    peer_send_text(peer, "unheard");
    turns(w, 5);
    peer_reset(peer);
    until(w, a.closes == 1);
    told(w, "a: close ERROR ECONNRESET\n");
}

static void a_reset_while_a_send_is_queued(void **state) {
    world *w = *state;
    for (int paused = 0; paused <= 1; paused++) {
        teller a = { .hook = NULL };
        int peer = pair_that_is_full(w, &a);
        if (paused)
            ok(weir_stream_pause(a.stream));
        turns(w, 5);
        peer_reset(peer);
        until(w, a.closes == 1);
        told(w, "a: close ERROR ECONNRESET\n");
    }
}

static void a_reset_after_our_half_has_ended(void **state) {
    world *w = *state;
    teller a = { .hook = NULL };
    voice p = { .name = "p" };
    int peer = teller_pair(w, &a, "a", true, NULL);
    ok(weir_stream_shutdown(a.stream));
    peer_hear_all(w, &p, peer);
    peer_reset(peer);
    until(w, a.closes == 1);
    told(w, "p: end\n"
            "a: close ERROR ECONNRESET\n");
}

static void a_reset_during_a_close_is_an_error_only_if_something_is_lost(void **state) {
    world *w = *state;
    teller a = { .hook = NULL };
    int peer = pair_that_is_full(w, &a);
    ok(weir_stream_close(a.stream));
    turns(w, 5);
    peer_reset(peer);
    until(w, a.closes == 1);
    told(w, "a: close ERROR ECONNRESET\n");
}

static void a_unix_peer_that_has_gone(void **state) {
    world *w = *state;
    teller a = { .hook = NULL };
    int peer = teller_pair(w, &a, "a", false, NULL);
    ok(weir_stream_pause(a.stream));
    turns(w, 5);
    peer_send_text(peer, "left behind");
    close(peer);
    turns(w, 5);
    told(w, "");
    ok(weir_stream_write(a.stream, "too late", 8));
    until(w, a.closes == 1);
    told(w, "a: close ERROR EPIPE\n");
}

static void what_a_gone_peer_sent_comes_before_the_error(void **state) {
    world *w = *state;
    teller a = { .hook = NULL };
    int peer = teller_pair(w, &a, "a", false, NULL);
    peer_send_text(peer, "my last words");
    close(peer);
    ok(weir_stream_write(a.stream, "too late", 8));
    until(w, a.closes == 1);
    told(w, "a: data 'my last words'\n"
            "a: close ERROR EPIPE\n");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        scenario(an_echo_ends_with_its_peer),
        scenario(the_stream_ends_first),
        scenario(writing_goes_on_after_the_peers_end),
        scenario(without_on_end_the_peers_end_closes),
        scenario(a_close_sends_what_is_queued),
        scenario(a_peer_that_does_not_end_is_reset),
        scenario(an_abort_resets),
        scenario(an_abort_drops_the_queue),
        scenario(an_abort_cuts_a_close_short),
        scenario(an_abort_inside_a_callback_silences),
        scenario(a_reset_while_idle),
        scenario(a_reset_while_paused),
        scenario(a_reset_that_came_with_what_made_it_pause),
        scenario(a_reset_while_nothing_is_granted),
        scenario(a_reset_while_a_send_is_queued),
        scenario(a_reset_after_our_half_has_ended),
        scenario(a_reset_during_a_close_is_an_error_only_if_something_is_lost),
        scenario(a_unix_peer_that_has_gone),
        scenario(what_a_gone_peer_sent_comes_before_the_error),
    };
    return run_world(tests);
}
