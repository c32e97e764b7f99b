/* SPDX-License-Identifier: MIT */
#include "conformance/world.h"

#include <sys/un.h>

/* Connecting and accepting: what comes of a dial, and who is let in when. */

static const int64_t ms = 1000000;

static void close_now(teller *t, char event, const weir_slice *slice) {
    (void)slice;
    if (event == 'o')
        ok(weir_stream_close(t->stream));
}

/* Nobody is left: what was closed without having been started, too. */
static void all_gone(world *w) {
    until(w, loop_stats(w).streams_open == 0);
}

static void drop_them(world *w, gate *g) {
    for (unsigned i = 0; i < g->count; i++)
        ok(weir_stream_close(g->streams[i]));
    turns(w, 5);
}

/* A listening Unix socket that accepts nobody, and connections that fill its queue. */
typedef struct full_house {
    int listener, waiting[64];
    unsigned count;
    char address[WEIR_ADDRESS_SIZE];
} full_house;

static void full_house_open(full_house *h) {
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    int n = snprintf(un.sun_path + 1, sizeof un.sun_path - 1, "weir-conformance-full-%d", getpid());
    socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
    snprintf(h->address, sizeof h->address, "unix:@%s", un.sun_path + 1);
    h->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ok(bind(h->listener, (struct sockaddr *)&un, length));
    ok(listen(h->listener, 1));
    for (h->count = 0;; h->count++) {
        assert_true(h->count < 64);
        int fd = h->waiting[h->count] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (connect(fd, (struct sockaddr *)&un, length) == 0)
            continue;
        assert_int_equal(errno, EAGAIN);
        close(fd);
        return;
    }
}

static void full_house_close(full_house *h) {
    while (h->count > 0)
        close(h->waiting[--h->count]);
    close(h->listener);
}

/* ---- dialling ------------------------------------------------------------------------------------------- */

static void a_dial_opens_and_sends_what_was_queued(void **state) {
    world *w = *state;
    char path[64], address[WEIR_ADDRESS_SIZE];
    snprintf(path, sizeof path, "unix:@weir-conformance-%d", getpid());
    for (int tcp = 0; tcp <= 1; tcp++) {
        gate g = { .hook = NULL };
        teller a = { .hook = NULL }, b = { .hook = NULL };
        gate_open(w, &g, tcp ? "127.0.0.1:0" : path, NULL, NULL);
        ok(weir_listener_pause(g.listener));
        assert_true(weir_listener_get_address(g.listener, address, sizeof address) > 0);
        teller_dial(w, &b, "b", address, NULL);
        assert_int_equal(weir_stream_get_state(b.stream), WEIR_STREAM_CONNECTING);
        ok(weir_stream_write(b.stream, "early", 5));
        told(w, "");
        until(w, b.opens == 1);
        told(w, "b: open\n");
        ok(weir_listener_resume(g.listener));
        until(w, g.count == 1);
        teller_start(w, &a, "a", g.streams[0]);
        until(w, a.voice.size == 5);
        ok(weir_stream_close(b.stream));
        until(w, a.ends == 1);
        ok(weir_stream_close(a.stream));
        until(w, a.closes == 1);
        until(w, b.closes == 1);
        ok(weir_listener_close(g.listener));
        until(w, g.closes == 1);
        told(w, "gate: accept\n"
                "a: data 'early'\n"
                "a: end\n"
                "a: close PEER 0\n"
                "b: close LOCAL 0\n"
                "gate: close 0\n");
    }
    counted(w, 10, 10, 10, 2);
}

static void nobody_listens(void **state) {
    world *w = *state;
    char address[64];
    const char *const nowhere[] = { address, "unix:/nonexistent/weir", "unix:@weir-nobody-listens-here" };
    free_address(address, sizeof address);
    for (size_t i = 0; i < 3; i++) {
        teller a = { .hook = NULL };
        teller_dial(w, &a, "a", nowhere[i], NULL);
        ok(weir_stream_write(a.stream, "never", 5));
        told(w, ""); /* never inside */
        until(w, a.closes == 1);
        told(w, i == 1 ? "a: close CONNECT ENOENT\n" : "a: close CONNECT ECONNREFUSED\n");
    }
    counted(w, 0, 0, 15, 0);
}

static void a_failed_dial_waits_for_its_start(void **state) {
    world *w = *state;
    teller a = { .voice = { .world = w, .name = "a" } };
    char address[64];
    free_address(address, sizeof address);
    ok(weir_stream_dial(w->loop, address, NULL, &a.stream));
    turns(w, 20);
    told(w, "");
    assert_int_equal(loop_stats(w).streams_unstarted, 1);
    teller_start(w, &a, "a", a.stream);
    told(w, "");
    until(w, a.closes == 1);
    told(w, "a: close CONNECT ECONNREFUSED\n");
}

static void what_is_no_address_is_refused_at_once(void **state) {
    world *w = *state;
    static const char *const bad[] = { "",          "localhost:80", "127.0.0.1", "127.0.0.1:65536", "[::1]",
                                       "[::1:80",   "unix:",        "tcp:1",     "256.0.0.1:80",    "127.0.0.1:x",
                                       "[::1]:80 ", "1.2.3:80" };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        weir_stream *stream = NULL;
        assert_int_equal(weir_stream_dial(w->loop, bad[i], NULL, &stream), -EINVAL);
        assert_null(stream);
    }
    weir_stream *stream;
    assert_int_equal(weir_stream_dial(w->loop, "[fe80::1%nosuchdev]:80", NULL, &stream), -ENODEV);
    assert_int_equal(loop_stats(w).streams_open, 0);
}

static void a_dial_that_nobody_answers_times_out(void **state) {
    world *w = *state;
    const weir_stream_options options = { .size = sizeof options, .connect_timeout_ns = 30 * ms };
    full_house h;
    teller a = { .hook = NULL };
    full_house_open(&h);
    teller_dial(w, &a, "a", h.address, &options);
    until(w, a.closes == 1);
    told(w, "a: close CONNECT ETIMEDOUT\n");
    full_house_close(&h);
}

static void a_dial_waits_for_room_in_the_queue(void **state) {
    world *w = *state;
    full_house h;
    teller a = { .hook = NULL };
    full_house_open(&h);
    teller_dial(w, &a, "a", h.address, NULL);
    turns(w, 5);
    told(w, "");
    close(accept(h.listener, NULL, NULL));
    until(w, a.opens == 1);
    told(w, "a: open\n");
    ok(weir_stream_abort(a.stream));
    until(w, a.closes == 1);
    told(w, "a: close ABORT 0\n");
    full_house_close(&h);
}

static void a_close_before_connected(void **state) {
    world *w = *state;
    full_house h;
    full_house_open(&h);
    for (int i = 0; i < 4; i++) {
        teller a = { .hook = NULL };
        teller_dial(w, &a, "a", h.address, NULL);
        if (i / 2)
            turns(w, 3);
        ok((i % 2 ? weir_stream_abort : weir_stream_close)(a.stream));
        told(w, "");
        until(w, a.closes == 1);
        told(w, i % 2 ? "a: close ABORT 0\n" : "a: close LOCAL 0\n");
    }
    weir_stream *stream;
    ok(weir_stream_dial(w->loop, h.address, NULL, &stream));
    ok(weir_stream_close(stream)); /* not started: without a word */
    turns(w, 5);
    told(w, "");
    full_house_close(&h);
}

static void a_close_in_on_open(void **state) {
    world *w = *state;
    gate g = { .hook = NULL };
    teller a = { .hook = close_now };
    char address[WEIR_ADDRESS_SIZE];
    gate_open(w, &g, "127.0.0.1:0", NULL, NULL);
    ok(weir_listener_pause(g.listener));
    assert_true(weir_listener_get_address(g.listener, address, sizeof address) > 0);
    teller_dial(w, &a, "a", address, NULL);
    until(w, a.opens == 1);
    ok(weir_listener_resume(g.listener));
    until(w, g.count == 1);
    drop_them(w, &g);
    until(w, a.closes == 1);
    ok(weir_listener_close(g.listener));
    until(w, g.closes == 1);
    told(w, "a: open\n"
            "gate: accept\n"
            "a: close LOCAL 0\n"
            "gate: close 0\n");
}

/* ---- accepting ------------------------------------------------------------------------------------------ */

static void no_more_than_the_limit_are_let_in(void **state) {
    world *w = *state;
    const weir_listener_options options = { .size = sizeof options, .max_streams = 2 };
    gate g = { .hook = NULL };
    int peers[5];
    gate_open(w, &g, "127.0.0.1:0", &options, NULL);
    for (int i = 0; i < 5; i++)
        peers[i] = peer_connect(g.listener);
    until(w, g.count == 2);
    turns(w, 20);
    told(w, "gate: accept\n"
            "gate: accept\n");
    for (unsigned i = 0; i < 5; i++) {
        ok(weir_stream_abort(g.streams[i]));
        if (i < 3)
            until(w, g.count == 3 + i);
        turns(w, 5);
        told(w, i < 3 ? "gate: accept\n" : "");
    }
    ok(weir_listener_close(g.listener));
    until(w, g.closes == 1);
    told(w, "gate: close 0\n");
    for (int i = 0; i < 5; i++)
        close(peers[i]);
    all_gone(w);
    counted(w, 0, 0, 0, 5);
}

static void pause_in_it(gate *g, weir_stream *stream) {
    (void)stream;
    ok(weir_listener_pause(g->listener));
}

static void a_paused_listener_lets_nobody_in(void **state) {
    world *w = *state;
    gate g = { .hook = pause_in_it };
    int peers[3];
    gate_open(w, &g, "127.0.0.1:0", NULL, NULL);
    turns(w, 3);
    for (int i = 0; i < 3; i++)
        peers[i] = peer_connect(g.listener);
    for (unsigned i = 1; i <= 3; i++) {
        until(w, g.count == i);
        turns(w, 10);
        told(w, "gate: accept\n");
        ok(weir_listener_resume(g.listener));
        told(w, "");
    }
    ok(weir_listener_pause(g.listener));
    ok(weir_listener_resume(g.listener));
    turns(w, 10);
    drop_them(w, &g);
    ok(weir_listener_close(g.listener));
    until(w, g.closes == 1);
    told(w, "gate: close 0\n");
    for (int i = 0; i < 3; i++)
        close(peers[i]);
    all_gone(w);
}

static void a_closed_listener_sends_its_backlog_away(void **state) {
    world *w = *state;
    for (int i = 0; i < 2; i++) {
        gate g = { .hook = NULL };
        voice p = { .name = "p" };
        gate_open(w, &g, "127.0.0.1:0", NULL, NULL);
        ok(weir_listener_pause(g.listener));
        turns(w, 3);
        int peer = peer_connect(g.listener);
        turns(w, i == 0 ? 0 : 5);
        ok(weir_listener_close(g.listener));
        ok(weir_listener_close(g.listener));
        told(w, "");
        until(w, g.closes == 1);
        peer_hear_all(w, &p, peer);
        told(w, "gate: close 0\n"
                "p: ECONNRESET\n");
        close(peer);
    }
    counted(w, 0, 0, 0, 0);
}

static void close_it(gate *g, weir_stream *stream) {
    ok(weir_listener_close(g->listener));
    ok(weir_stream_close(stream));
}

static void a_listener_is_closed_in_its_callback(void **state) {
    world *w = *state;
    gate g = { .hook = close_it };
    gate_open(w, &g, "127.0.0.1:0", NULL, NULL);
    int first = peer_connect(g.listener), second = peer_connect(g.listener);
    until(w, g.closes == 1);
    turns(w, 5);
    told(w, "gate: accept\n"
            "gate: close 0\n");
    close(first);
    close(second);
    all_gone(w);
}

static void what_cannot_be_listened_on(void **state) {
    world *w = *state;
    gate g = { .hook = NULL };
    weir_listener *other;
    char address[WEIR_ADDRESS_SIZE];
    gate_open(w, &g, "127.0.0.1:0", NULL, NULL);
    assert_true(weir_listener_get_address(g.listener, address, sizeof address) > 0);
    assert_int_equal(weir_listener_open(w->loop, address, NULL, &other), -EADDRINUSE);
    assert_int_equal(weir_listener_open(w->loop, "192.0.2.1:0", NULL, &other), -EADDRNOTAVAIL);
    assert_int_equal(weir_listener_open(w->loop, "nowhere", NULL, &other), -EINVAL);
    assert_int_equal(loop_stats(w).listeners_open, 1);
    ok(weir_listener_close(g.listener));
    until(w, g.closes == 1);
    told(w, "gate: close 0\n");
}

/* ---- draining ------------------------------------------------------------------------------------------- */

static void a_drain_lets_finish_what_is_open(void **state) {
    world *w = *state;
    gate g = { .hook = NULL };
    teller a = { .voice = { .name = "a" } };
    weir_listener *other;
    gate_open(w, &g, "127.0.0.1:0", NULL, &a);
    int peer = peer_connect(g.listener);
    until(w, g.count == 1);
    ok(weir_loop_drain(w->loop, WEIR_NEVER));
    assert_int_equal(weir_listener_open(w->loop, "127.0.0.1:0", NULL, &other), -ESHUTDOWN);
    until(w, g.closes == 1);
    peer_send_text(peer, "go on");
    until(w, a.voice.size == 5);
    ok(weir_stream_close(a.stream));
    close(peer);
    ok(weir_loop_run(w->loop));
    told(w, "gate: accept\n"
            "gate: close 0\n"
            "a: data 'go on'\n"
            "a: close LOCAL 0\n");
}

static void a_drain_ends_what_does_not_finish(void **state) {
    world *w = *state;
    teller a = { .hook = NULL };
    voice p = { .name = "p" };
    weir_stream *stream;
    int peer = teller_pair(w, &a, "a", true, NULL);
    ok(weir_loop_drain(w->loop, 20 * ms));
    ok(weir_loop_run(w->loop));
    assert_int_equal(weir_stream_dial(w->loop, "127.0.0.1:1", NULL, &stream), -ESHUTDOWN);
    peer_hear_all(w, &p, peer);
    told(w, "a: close DRAIN 0\n"
            "p: ECONNRESET\n");
    close(peer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        scenario(a_dial_opens_and_sends_what_was_queued),
        scenario(nobody_listens),
        scenario(a_failed_dial_waits_for_its_start),
        scenario(what_is_no_address_is_refused_at_once),
        scenario(a_dial_that_nobody_answers_times_out),
        scenario(a_dial_waits_for_room_in_the_queue),
        scenario(a_close_before_connected),
        scenario(a_close_in_on_open),
        scenario(no_more_than_the_limit_are_let_in),
        scenario(a_paused_listener_lets_nobody_in),
        scenario(a_closed_listener_sends_its_backlog_away),
        scenario(a_listener_is_closed_in_its_callback),
        scenario(what_cannot_be_listened_on),
        scenario(a_drain_lets_finish_what_is_open),
        scenario(a_drain_ends_what_does_not_finish),
    };
    return run_world(tests);
}
